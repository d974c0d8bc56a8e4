"""Settings without effect are found and reported in one line each (`test_configs.py`: no shipped config has any)."""

import dataclasses

import pytest

from lm.config import Config, defaults, source
from lm.config.experiment import DEFAULTS
from lm.config.schema import build, entries
from lm.config.unused import unused


def lines(**changes):
    values = defaults()
    values.data.train.mine = source(kind=changes.pop("kind", "text"), path="x")
    values.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return unused(build(Config, values.to_dict()))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"data__tokenizer__kind": "bytes", "data__tokenizer__vocab_size": 500},
            "config.data.tokenizer.vocab_size=500 has no effect; it applies only with kind=words or sentencepiece, "
            "not bytes",
        ),
        (
            {"data__tokenizer__path": "a.model", "data__tokenizer__vocab_size": 500},
            "config.data.tokenizer.vocab_size=500 has no effect; it applies only with no path",
        ),
        (
            {"kind": "jsonl", "data__train__mine__document": "line"},
            "config.data.train.mine.document='line' has no effect; it applies only with kind=text, not jsonl",
        ),
        (
            {"data__train__mine__separator": "#"},
            "config.data.train.mine.separator='#' has no effect; it applies only with document=separator",
        ),
        (
            {"kind": "parquet", "data__train__mine__encoding": "cp1252"},
            "config.data.train.mine.encoding='cp1252' has no effect; it applies only with kind=text or jsonl or tsv or "
            "csv or conll or squad, not parquet",
        ),
        (
            {"optimizer__name": "lion", "optimizer__epsilon": 1e-6},
            "config.optimizer.epsilon=1e-06 has no effect; it applies only with name=adamw or adamax or muon or "
            "adagrad, not lion",
        ),
        (
            {"optimizer__schedule": "constant", "optimizer__final_fraction": 0.5},
            "config.optimizer.final_fraction=0.5 has no effect; it applies only with schedule=linear or cosine or "
            "warmup_stable_decay, not constant",
        ),
        (
            {"model__positions": "learned", "model__rotary_theta": 5e5},
            "config.model.rotary_theta=500000.0 has no effect; it applies only with positions=rotary",
        ),
        ({"model__lora_alpha": 4.0}, "config.model.lora_alpha=4.0 has no effect; it applies only with lora_rank"),
        ({"model__lora_alpha": 4.0, "model__lora_rank": 2}, ""),
        (
            {"model__source_vocab_size": 9},
            "config.model.source_vocab_size=9 has no effect; it applies only with data.separate_vocabularies",
        ),
        (
            {"eval__prompts": (), "eval__sample_tokens": 9},
            "config.eval.sample_tokens=9 has no effect; it applies only with prompts",
        ),
        (
            {"eval__generation__max_examples": 9},
            "config.eval.generation.max_examples=9 has no effect; it applies only with metrics",
        ),
        ({"optimizer__b1": 0.8}, ""),
        ({}, ""),
    ],
)
def test_a_setting_without_effect_is_found(changes, line):
    assert lines(**changes) == ([line] if line else [])


def test_held_out_data_needs_that_there_is_no_validation_data():
    values = defaults()
    values.data.train.mine = values.data.valid.mine = source(path="x")
    values.data.holdout_fraction = 0.2
    assert unused(build(Config, values.to_dict())) == [
        "config.data.holdout_fraction=0.2 has no effect; it applies only with no valid"
    ]


def test_conditions_name_settings_that_exist_and_registries_whose_entries_say_what_they_read():
    found = 0
    sections = [DEFAULTS, *(each for each in vars(DEFAULTS).values() if dataclasses.is_dataclass(each))]
    sections += [DEFAULTS.data.tokenizer, DEFAULTS.eval.generation, build(type(DEFAULTS), {}).data.cleaning]
    for section in sections:
        specs = {spec.name: spec for spec in dataclasses.fields(section)}
        for spec in specs.values():
            for need in spec.metadata.get("needs", ()):
                name = need.removeprefix("no ").partition("=")[0]
                assert "." in name or name in specs, need
                found += 1
            if reader := spec.metadata.get("read_by"):
                registry = entries(specs[reader].metadata["registry"])
                assert any(spec.name in entry.reads for entry in registry.values()), spec.name
                found += 1
    assert found > 20


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.exhaustive
def test_commands_report_settings_without_effect(tiny, call, tmp_path):
    changes = {"data__tokenizer__vocab_size": 500, "train__num_steps": 2, "optimizer__warmup_steps": 1}
    outcome = call("train.py", *tiny.flags(tmp_path / "run", **changes))
    assert outcome.status == 0, outcome.stderr
    notes = [line for line in outcome.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: config.data.tokenizer.vocab_size=500 has no effect; it applies only with kind=words or sentencepiece, "
        "not bytes."
    ]
