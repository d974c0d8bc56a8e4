"""Runs that no class of `transformers` can hold, and runs that cannot be read, are refused in one line."""

import pytest

from lm.config import Config
from lm.errors import UserError
from lm.huggingface.export_directory import export_directory
from lm.huggingface.exporting import choose_class
from lm.runs.directory import RunDirectory

LLAMA = {"family": "decoder", "norm": "rmsnorm", "activation": "swiglu", "use_bias": False}
BERT = {"family": "encoder", "positions": "learned", "norm_position": "post", "token_types": 2, "norm_embeddings": True}


def config_of(objective="causal", **model):
    values = {"model": {"max_length": 32, **model}, "data": {"sequence_length": 16}, "objective": {"name": objective}}
    return Config.from_dict(values, reset_unread=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of(**LLAMA), ("llama", "LlamaForCausalLM")),
        (config_of("chat", **LLAMA), ("llama", "LlamaForCausalLM")),
        (config_of(**{**LLAMA, "window": 8}), ("mistral", "MistralForCausalLM")),
        (config_of("tagging", **BERT), ("bert", "BertForTokenClassification")),
        (config_of("regression", **BERT, pooler=True), ("bert", "BertForSequenceClassification")),
    ],
)
def test_family_and_class_of_a_model_trained_here(config, expected):
    family, architecture = choose_class(config, None)
    assert (family.name, architecture) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of(family="decoder"), "the nearest, .*, does not support model."),
        (config_of(**{**LLAMA, "norm": "l1norm"}), "the nearest, llama, does not support model.norm='l1norm'"),
        (
            config_of("multiple_choice", **BERT),
            "a bert model for objective.name=multiple_choice does not exist",
        ),
        (config_of("classification", **BERT), "a bert model for objective.name=classification needs model.pooler=True"),
    ],
)
def test_models_without_a_class_are_refused(config, message):
    with pytest.raises(UserError, match=message) as caught:
        choose_class(config, None)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    RunDirectory(tmp_path / "run").write_config(config_of(**LLAMA))
    for root, message in (
        (tmp_path / "run", "there is no checkpoint; train first"),
        (tmp_path / "other", "there is no such run directory"),
    ):
        with pytest.raises(UserError, match=message):
            export_directory(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        export_directory(tmp_path / "run", tmp_path / "out")
