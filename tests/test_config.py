"""Which settings the schema accepts, refuses and derives."""

import json

import pytest

from lm.config import Config, defaults, source
from lm.config.schema import check_name, differences
from lm.errors import UserError


def values(**changes):
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    plain = config.to_dict()  # a ConfigDict would itself refuse some of these values
    for name, value in changes.items():
        section, key = name.split("__")
        plain[section][key] = value
    return plain


def test_zeros_stand_for_derived_values():
    config = Config.from_dict(values(model__d_model=64, model__num_heads=4, data__sequence_length=32))
    assert (config.model.head_dim, config.model.num_kv_heads, config.model.d_ff) == (16, 4, 256)
    assert config.model.max_length == config.eval.stride == 32
    assert config.optimizer.decay_steps == config.train.num_steps
    wsd = Config.from_dict(values(optimizer__schedule="warmup_stable_decay", train__num_steps=500))
    assert wsd.optimizer.decay_steps == 100


def test_resolving_twice_changes_nothing():
    once = Config.from_dict(values())
    assert Config.from_dict(once.to_dict()) == once == Config.from_dict(json.loads(once.to_json()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__num_layrs": 3}, "config.model.num_layrs: there is no such setting; did you mean num_layers"),
        ({"model__num_layers": 2.5}, "config.model.num_layers: expected int, got 2.5"),
        ({"model__num_layers": True}, "expected int"),
        ({"model__num_layers": 0}, "below the smallest allowed value, 1"),
        ({"model__dropout": 0.95}, "above the largest allowed value, 0.9"),
        ({"optimizer__learning_rate": float("nan")}, "expected a finite number"),
        ({"optimizer__name": "adam"}, "did you mean adamw"),
        ({"eval__prompts": "abc"}, "expected a tuple of strings"),
        ({"model__num_heads": 7}, "num_heads=7 does not divide d_model=384"),
        ({"model__num_kv_heads": 4}, "4 does not divide num_heads=6"),
        ({"model__head_dim": 63}, "63 is odd"),
        ({"model__max_length": 100}, "less than data.sequence_length=256"),
        ({"model__attention": "cudnn"}, "'cudnn' supports only bfloat16"),
        ({"optimizer__warmup_steps": 1000}, "1000 warm-up steps do not fit in train.num_steps=1000"),
        ({"train__accumulation": 3}, "batch_size=32 cannot be split evenly into 3 microbatches"),
        ({"eval__stride": 257}, "exceeds data.sequence_length"),
        ({"mesh__fsdp": -1}, "only one size may be -1"),
        ({"data__train": {"a": {"kind": "text"}}}, "config.data.train.a.path: a path is required"),
        ({"data__train": {"a b": {"kind": "embedded"}}}, "letters, digits and underscores"),
        ({"data__train": {"a": {"kind": "embedded", "wieght": 1.0}}}, "did you mean weight"),
        ({"data__holdout_fraction": 0.0}, "evaluation has no data"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError) as caught:
        Config.from_dict(values(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_the_nearest_ones():
    check_name(Config, "model.num_layers")
    check_name(Config, "data.train.docs.path")
    with pytest.raises(UserError, match="did you mean batch_size"):
        check_name(Config, "train.batchsize")
    with pytest.raises(UserError, match="has no setting 'x'"):
        check_name(Config, "seed.x")
    with pytest.raises(UserError, match=r"--config.data.train.docs.pth: .*did you mean path"):
        check_name(Config, "data.train.docs.pth")
    with pytest.raises(UserError, match=r"data.train.docs.path is a single value"):
        check_name(Config, "data.train.docs.path.more")


def test_differences_are_listed_by_name():
    old, new = values(), values(model__num_layers=3, eval__prompts=("a",))
    assert differences(old, new) == ["eval.prompts: ('',) -> ('a',)", "model.num_layers: 6 -> 3"]
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []
