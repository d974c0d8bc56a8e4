"""The effect of every setting, and retired settings."""

import json
from collections import defaultdict

import pytest

from lm.config import Config, defaults, source
from lm.config.data import SourceConfig
from lm.config.retired import migrated
from lm.config.schema import check_name, describe_settings, effect
from lm.errors import UserError
from lm.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def by_effect() -> dict[str, set[str]]:
    found = defaultdict(set)
    for name, _, _ in describe_settings(Config):
        found[effect(Config, name.partition(".NAME.")[0])].add(name)
    return found


def names(section: str, text: str) -> set[str]:
    return {f"{section}.{name}" for name in text.split()}


def test_settings_that_may_change_when_a_run_continues(by_effect):
    sections = {name for name, _, _ in describe_settings(Config) if name.startswith(("mesh.", "checkpoint.", "log."))}
    sections |= {name for name, _, _ in describe_settings(Config) if name.startswith(("eval.", "data.test"))}
    assert by_effect["nothing"] == (
        sections
        | names("data", "beam cache_dir num_workers prefetch store_workers")
        | names("model", "attention activation_dtype remat")
        | names("objective", "logit_chunks")
        | names("train", "accumulation max_bad_steps max_minutes patience")
    )


def test_model_settings_that_may_differ_in_another_config_for_evaluation(by_effect):
    harmless = by_effect["nothing"] | by_effect["updates"] | by_effect["storage"]
    assert {name for name in harmless if name.startswith("model.")} == names(
        "model",
        "activation_dtype attention attention_dropout change_penalty dropout embedding_from embedding_std "
        "init_residual_scaling init_std locked_dropout max_length ngram.add ngram.discount ngram.fallback_discounts "
        "ngram.lambdas "
        "output_penalty recurrent_dropout recurrent_dropout_of remat scan_layers vocab_multiple",
    )


def test_settings_that_may_change_if_the_contents_stay_the_same(by_effect):
    assert by_effect["location"] == {"data.tokenizer.path"}
    found = {name for name in SourceConfig.__dataclass_fields__ if effect(Config, f"data.train.a.{name}") == "location"}
    assert found == {"path", "target_path", "data_dir"}
    assert effect(Config, "data.valid.a.field") == effect(Config, "data.train.a") == "batches"
    assert effect(Config, "data.test.a.path") == "nothing"


def test_settings_that_change_what_equal_parameters_compute(by_effect):
    assert by_effect["function"] == names(
        "model",
        "family positions sinusoid_variant sinusoid_offset relative_max_distance rotary_theta local_rotary_theta "
        "rotary_interleaved norm norm_position shift_decoder pooler_activation "
        "rope_scaling rope_factor rope_original_length rope_low_freq_factor rope_high_freq_factor rope_beta_fast "
        "rope_beta_slow rope_attention_factor rope_truncate rope_scaling_local nope_every nope_offset first_norm "
        "norm_epsilon norm_unit_offset activation scale_logits logits_softcap attention_scale attention_softcap "
        "norm_embeddings embedding_scale ngram_lengths window global_every global_offset dtype "
        "pooling lora_alpha",
    )


def test_settings_that_decide_shapes(by_effect):
    fields = Config.__dataclass_fields__["model"].default_factory.__dataclass_fields__
    special = {name: found for name, each in fields.items() if (found := each.metadata.get("parameters"))}
    shapes = {name.removeprefix("model.") for name in by_effect["shapes"] - {"objective.name"}}
    general = (
        "architecture num_layers num_encoder_layers d_model num_heads num_kv_heads head_dim d_ff cell filter_widths "
        "ngram.order ngram.sizes ngram.smoothing"
    )
    assert shapes - set(special) == set(general.split())
    decided = defaultdict(set)
    for name, parameters in special.items():
        for parameter in parameters:
            decided[parameter].add(name)
    assert decided == {
        "position_embedding": {"max_length", "embedding_width"},
        "relative_bias": {"relative_buckets"},
        "type_embedding": {"token_types", "embedding_width"},
        "token_embedding": {"vocab_size", "embedding_width"},
        "source_embedding": {"source_vocab_size", "share_embeddings", "embedding_width"},
        "embedding_norm": {"embedding_width"},
        "embedding_projection": {"embedding_width"},
        "output_projection": {"embedding_width"},
        "input_norm": {"cell_norm"},
        "recurrent_norm": {"cell_norm"},
        "state_norm": {"cell_norm"},
        "source_attention": {"source_attention"},
        "bottleneck": {"latent_size", "latent_vectors"},
        "latent_start": {"latent_vectors"},
        "latent_input": {"latent_vectors"},
        "log_variance": {"variational"},
        "static_embedding": {"static_channel"},
        "ngram_embedding": {"ngram_buckets"},
        "shared_layer": {"share_layers"},
        "output": {"vocab_size", "tie_embeddings", "embedding_width"},
        "output_bias": {"vocab_size", "output_bias"},
        "bias": {"use_bias", "attention_bias"},
        "query_norm": {"qk_norm"},
        "key_norm": {"qk_norm"},
        "pooler": {"pooler", "pooler_bias", "answer_pooler"},
        "pooler_norm": {"pooler", "pooler_norm", "answer_pooler"},
        "classifier": {"classifier_bias"},
        "head_product": {"head_transform", "embedding_width"},
        "head_norm": {"head_transform", "embedding_width"},
        "lora_a": {"lora_rank", "lora_targets"},
        "lora_b": {"lora_rank", "lora_targets"},
    }


def test_batches_and_updates_cover_the_rest(by_effect):
    sections = {name.partition(".")[0] for name in by_effect["batches"]}
    assert sections == {"seed", "data", "objective", "train"}
    assert {name.partition(".")[0] for name in by_effect["updates"]} == {
        "init_from", "model", "objective", "optimizer", "train"
    }  # fmt: skip
    assert names("objective", "noise_density whole_words next_sentence") <= by_effect["batches"]
    assert names("objective", "label_smoothing z_loss temperature class_weights") <= by_effect["updates"]
    assert "train.batch_size" in by_effect["batches"] and "train.num_steps" in by_effect["updates"]


# --- retired settings -------------------------------------------------------------------------------------------


def values() -> dict:
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    return Config.from_dict(config.to_dict()).to_dict()


def test_old_run_continues_without_its_retired_settings(tmp_path):
    old = values()
    for name in ("attention_scale", "embedding_scale"):
        del old["model"][name]
    old["model"] |= {"scale_attention": True, "scale_embeddings": False}
    old["model"] |= {"head": "tokens", "num_classes": 0, "max_hidden": 0, "pair_head": False, "pooling": "none"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config = RunDirectory.existing(tmp_path).load_config()
    assert config == Config.from_dict(values())
    with RunDirectory.open(tmp_path, config):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(config.to_json())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"scale_attention": True, "scale_embeddings": True}, {"attention_scale": 0.0, "embedding_scale": 0.0}),
        ({"scale_attention": False, "scale_embeddings": False}, {"attention_scale": 1.0, "embedding_scale": 1.0}),
    ],
)
def test_migration_replaces_scales_that_were_switches(old, new):
    assert migrated({"model": {"d_model": 4, **old}}) == {"model": {"d_model": 4, **new}}


def test_migration_keeps_unknown_settings():
    old = {"data": {"test": {}, "train": {"a": {"new": [0, 1]}}}, "model": {"head": "masked", "new": 1}, "seed": 0}
    assert migrated(old) == {"data": old["data"], "model": {"new": 1}, "seed": 0}
    assert old["model"]["head"] == "masked", "the argument is not changed"
    assert migrated({"model": "bert"}) == {"model": "bert"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.head", "config.model.head is no longer a setting; it is now determined by objective.name."),
        ("model.num_classes", "config.model.num_classes is no longer a setting; it is now determined by data.labels."),
        (
            "model.max_hidden",
            "config.model.max_hidden is no longer a setting; it is now determined by objective.noise_density.",
        ),
        ("model.pair_head", "config.model.pair_head is no longer a setting; set objective.next_sentence."),
        (
            "model.scale_attention",
            "config.model.scale_attention is no longer a setting; set model.attention_scale to 0 (formerly "
            "True) or 1.0 (formerly False).",
        ),
        (
            "model.scale_embeddings",
            "config.model.scale_embeddings is no longer a setting; set model.embedding_scale to 0 (formerly "
            "True) or 1.0 (formerly False).",
        ),
    ],
)
def test_retired_setting_in_a_config_file_or_flag_is_refused_with_advice(key, message):
    given = values()
    section, name = key.split(".")
    given[section][name] = 0
    with pytest.raises(UserError) as caught:
        Config.from_dict(given)
    assert str(caught.value).startswith(message)
    with pytest.raises(UserError) as caught:
        check_name(Config, key)
    assert str(caught.value).startswith(f"--{message}")
