"""Files of different ages and writers give the same parameters; damaged or contradictory ones are refused by name."""

import re

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lm.errors import UserError
from lm.huggingface.folder import open_folder
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, folder_of, save, stored
from tests.huggingface.rows import MemoryFolder, imported


def parts(name):
    model = build(*MODELS[name])
    return folder_of(model).config, stored(model)


def check_equal(config, arrays, other_config, other_arrays, **options):
    (first, params), (second, others) = (
        imported(MemoryFolder(config, arrays)),
        imported(MemoryFolder(other_config, other_arrays), **options),
    )
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, params, others)
    return second


def without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


def renamed(arrays, *rules):
    for pattern, new in rules:
        arrays = {re.sub(pattern, new, name): array for name, array in arrays.items()}
    return arrays


BODIES = {"gpt2": "transformer", "bert": "bert", "roberta": "roberta", "xlm_roberta": "roberta", "albert": "albert"}
BODIES |= {"distilbert": "distilbert", "electra": "electra", "modernbert": "model", "bart": "model", "mbart": "model"}
BODIES |= dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"), "model")
BODIES |= dict.fromkeys(("olmo2", "olmo3", "smollm3", "pegasus", "marian", "m2m_100"), "model")


def fast(names, *chosen):
    """Returns parameters of a test, of which all but those chosen are only tested in CI."""
    return [pytest.param(name, marks=[] if name in chosen else [pytest.mark.exhaustive]) for name in names]


@pytest.mark.parametrize("name", fast(BODIES, "gpt2", "bert", "distilbert", "bart"))
def test_names_without_the_prefix(name):
    """Files of a bare body lack the prefix, and some writers left it out of all files."""
    config, arrays = parts(name)
    bare = renamed(arrays, (rf"^{BODIES[name]}\.", ""))
    assert bare.keys() != arrays.keys()
    check_equal(config, arrays, config, bare)


def test_multimodal_prefix_of_gemma3():
    config, arrays = parts("gemma3")
    check_equal(config, arrays, config, renamed(arrays, (r"^model\.", "language_model.model.")))


NORMS = {"bert": 6, "roberta": 5, "xlm_roberta": 5, "albert": 3, "electra": 6}  # called LayerNorm


@pytest.mark.parametrize("name", fast(NORMS, "bert"))
def test_old_names_of_norms(name):
    config, arrays = parts(name)
    old = renamed(arrays, (r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))
    assert sum(name.endswith((".gamma", ".beta")) for name in old) == 2 * NORMS[name]
    check_equal(config, arrays, config, old)


def test_buffers_are_ignored_and_named():
    config, arrays = parts("gpt2")
    extra = {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}
    published = check_equal(config, arrays, config, {**arrays, **extra})
    assert published.match.ignored == tuple(extra)


def test_shards(tmp_path):
    model = build(*MODELS["llama"])
    one, many = (
        open_folder(save(model, tmp_path / "one")),
        open_folder(save(model, tmp_path / "many", max_shard_size="20KB")),
    )
    assert len({info.file for info in many.tensors.values()}) > 1
    jax.tree.map(np.testing.assert_array_equal, imported(one)[1], imported(many)[1])


ROTARY = ("llama3", "qwen3", "smollm2", "mistral", "qwen2", "gemma", "gemma2", "phi3", "olmo2", "smollm3")


@pytest.mark.parametrize("name", fast(ROTARY, "llama3", "qwen3", "smollm2"))
def test_old_fields_of_rotary_positions(name):
    config, arrays = parts(name)
    parameters = dict(config["rope_parameters"])
    old = {"rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}
    if parameters["rope_type"] == "default":
        old["rope_scaling"] = None
    elif name == "qwen3":
        parameters["type"] = parameters.pop("rope_type")
    check_equal(config, arrays, {**without(config, "rope_parameters"), **old}, arrays)
    check_equal(config, arrays, {**config, **old}, arrays)


def test_old_fields_of_gemma3():
    config, arrays = parts("gemma3")
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    old |= {"sliding_window_pattern": 2}
    names = "rope_parameters", "layer_types", "_sliding_window_pattern"
    published = check_equal(config, arrays, {**without(config, *names), **old}, arrays)
    assert (published.config.model.global_every, published.config.model.global_offset) == (2, 1)


def test_old_fields_of_modernbert():
    config, arrays = parts("modernbert")
    old = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
    published = check_equal(config, arrays, {**without(config, "rope_parameters", "layer_types"), **old}, arrays)
    assert published.config.model.window == 7


@pytest.mark.parametrize("name", fast((*BODIES, "t5", "mt5"), "gpt2", "llama", "mistral", "roberta", "t5", "bart"))
def test_absent_fields_have_the_class_defaults(name):
    """Fields whose values are the defaults of the class may be left out."""
    import transformers

    config, arrays = parts(name)
    defaults = getattr(transformers, MODELS[name][0]).config_class().to_dict()
    kept = {key: value for key, value in config.items() if key not in defaults or defaults[key] != value}
    kept |= {"model_type": config["model_type"], "architectures": config["architectures"]}
    assert len(kept) < len(config) - 10
    check_equal(config, arrays, kept, arrays)


def test_absent_window_of_mistral():
    config, arrays = parts("mistral")
    model = imported(MemoryFolder(without(config, "sliding_window"), arrays))[0].config.model
    assert model.window == 4096
    assert imported(MemoryFolder({**config, "sliding_window": None}, arrays))[0].config.model.window == 0


# --- ties -----------------------------------------------------------------------------------------------------


def test_equal_copies_of_the_embedding():
    config, arrays = parts("t5")
    shared = arrays["shared.weight"]
    copies = {f"{name}.weight": shared for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}
    check_equal(config, arrays, config, {**arrays, **copies})
    check_equal(config, arrays, config, {**without(arrays, "shared.weight"), **without(copies, "lm_head.weight")})


def test_different_output_matrix_is_not_tied():
    config, arrays = parts("gpt2")
    other = arrays["transformer.wte.weight"] + 1
    published, params = imported(MemoryFolder(config, {**arrays, "lm_head.weight": other}))
    assert not published.config.model.tie_embeddings
    np.testing.assert_array_equal(params["output"]["kernel"], other.T)


def test_missing_output_matrix_is_refused():
    config, arrays = parts("llama")
    with pytest.raises(UserError, match=r"lacks the tensor lm_head.weight, but .* tie_word_embeddings=False"):
        imported(MemoryFolder(config, without(arrays, "lm_head.weight")))


def test_different_copies_are_refused():
    config, arrays = parts("t5")
    copies = {"encoder.embed_tokens.weight": arrays["shared.weight"] + 1}
    with pytest.raises(UserError, match="differ, but should be identical"):
        imported(MemoryFolder(config, {**arrays, **copies}))


# --- what a folder is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert", "albert", "t5"])
def test_files_without_model_type(name):
    config, arrays = parts(name)
    bare = without(config, "model_type", "architectures")
    assert check_equal(config, arrays, bare, arrays).architecture == MODELS[name][0]


def test_family_is_asked_for_if_it_is_not_known():
    config, arrays = parts("roberta")
    bare = without(config, "model_type")
    with pytest.raises(UserError, match="set --family to one of"):
        imported(MemoryFolder(bare, renamed(arrays, ("token_type_embeddings", "types"))))
    check_equal(config, arrays, bare, arrays, family_name="roberta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba' is not supported"),
        ({"architectures": ["BertForMultipleChoice"]}, r"architectures=\['BertForMultipleChoice'\] is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported"),
        ({"hidden_size": "32"}, "hidden_size='32' is not a number"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps=-1.0 is out of range"),
        ({"hidden_size": 48}, r"has shape \[64, 32\], but config.json implies \[64, 48\]"),
        ({"num_hidden_layers": 3}, "lacks the tensor 'bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "holds the tensor 'bert.encoder.layer.1"),
        ({"num_attention_heads": 5}, "num_heads=5 does not divide d_model=32"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        (
            {"new_kind_of_norm": True},
            "has the field new_kind_of_norm=True, which is not recognised for this model family and may",
        ),
    ],
)
def test_refusals_name_the_field_or_tensor(change, message):
    config, arrays = parts("bert")
    with pytest.raises(UserError, match=message) as caught:
        imported(MemoryFolder({**config, **change}, arrays))
    assert str(caught.value).startswith("FOLDER") and "\n" not in str(caught.value)


def test_nan_is_refused(tmp_path):
    config, arrays = parts("bert")
    arrays["bert.embeddings.LayerNorm.bias"][3] = np.nan
    with pytest.raises(UserError, match=r"'bert.embeddings.LayerNorm.bias' holds NaN"):
        imported(MemoryFolder(config, arrays))


def test_labels_keep_their_order():
    config, arrays = parts("bert_classes")
    labels = {"2": "entailment", "0": "contradiction", "1": "neutral"}
    published, _ = imported(MemoryFolder({**config, "id2label": labels}, arrays))
    assert published.config.data.labels == ("contradiction", "neutral", "entailment")
    defaults = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 3}  # as old files have it
    published, _ = imported(MemoryFolder({**config, **defaults}, arrays))
    assert published.config.data.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(UserError, match="must number distinct labels"):
        imported(MemoryFolder({**config, "id2label": {"0": "a", "1": "a", "2": "b"}}, arrays))
    with pytest.raises(UserError, match="multi_label_classification"):
        imported(MemoryFolder({**config, "problem_type": "multi_label_classification"}, arrays))


def test_fewer_positions():
    config, arrays = parts("roberta")
    _, params = imported(MemoryFolder(config, arrays), max_length=10)
    table = arrays["roberta.embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(params["position_embedding"]["embedding"], table[2:12])
    with pytest.raises(UserError, match="--max_length=97 exceeds the 96 positions"):
        imported(MemoryFolder(config, arrays), max_length=97)
