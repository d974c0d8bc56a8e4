"""train.num_epochs: every row is read so often, the schedule follows, runs resume exactly, and folds differ."""

import json
import math
from collections import Counter
from fractions import Fraction

import jax
import numpy as np
import pytest

from lm.config import Config
from lm.errors import UserError
from lm.runs.directory import RunDirectory
from lm.runs.prepare import prepare
from lm.runs.repeats import repetitions
from lm.tasks import task_of
from lm.training.epochs import describe_epochs, steps_in, with_epochs
from tests.run_helpers import config_of, final_state, metrics, train_here
from tests.test_resume_tasks import MASKED

UNSET = {"train__num_steps": -1, "optimizer__warmup_steps": -1}


def rows_of(experiment, folder, **changes):
    config = prepare(config_of(experiment, **changes), folder).config
    prepared = prepare(config, folder)
    return config, task_of(config).train_rows(config, prepared.tokenizer, prepared.stores["train"])


@pytest.fixture(params=["windows", "masked", "pairs", "labels"])
def planned(request, tiny, tiny_pairs, tiny_labels, tmp_path):
    experiment, changes = {
        "windows": (tiny, {}),
        "masked": (tiny, MASKED),  # each epoch has other examples, in another number of rows
        "pairs": (tiny_pairs, {}),
        "labels": (tiny_labels, {}),
    }[request.param]
    return rows_of(experiment, tmp_path, **changes | UNSET | {"train__num_epochs": 3})


@pytest.mark.parametrize("epochs", [3.0, 2.3, 0.7, 0.001])
def test_every_row_of_the_epochs_is_read(planned, epochs):
    """A smaller number of steps would leave out at least one row."""
    config, rows = planned
    size, steps = config.train.batch_size, steps_in(epochs, rows, config.train.batch_size)
    located = [each for step in range(steps) for each in rows.locate(step, range(size))]
    (name,) = rows.rows_per_epoch()
    whole = int(epochs)
    wanted = [rows.rows_per_epoch(epoch)[name] for epoch in range(whole)]
    last = math.ceil(Fraction(str(epochs)) % 1 * rows.rows_per_epoch(whole)[name])
    read = Counter(epoch for _, epoch, _ in located)
    assert [read[epoch] for epoch in range(whole)] == wanted
    assert last <= read[whole] + read[whole + 1] < last + size
    assert len(set(located)) == len(located) == steps * size


def test_warm_up_and_decay_follow_from_the_number_of_steps(tiny_labels, tmp_path):
    config, rows = rows_of(tiny_labels, tmp_path, **UNSET, train__num_epochs=9, train__batch_size=2)
    found = with_epochs(config, rows)
    steps = found.train.num_steps
    assert steps == steps_in(9.0, rows, 2) > 20
    assert (found.optimizer.warmup_steps, found.optimizer.decay_steps) == (steps // 10, steps)
    assert describe_epochs(found, rows) == f"9 epochs (train.num_epochs), warm-up of {steps // 10} steps"
    wsd = config_of(tiny_labels, **UNSET, train__num_epochs=9, optimizer__schedule="warmup_stable_decay")
    assert wsd.with_num_steps(50).optimizer.decay_steps == 10
    given = config_of(tiny_labels, train__num_steps=-1, train__num_epochs=9, optimizer__warmup_steps=7)
    assert given.with_num_steps(50).optimizer.warmup_steps == 7, "what is set stays"
    with pytest.raises(UserError, match=r"7 warm-up steps do not fit in train.num_steps=5 \(train.num_epochs=9\)"):
        given.with_num_steps(5)


def test_steps_and_epochs_together_are_refused(tiny_labels):
    with pytest.raises(UserError, match=r"train.num_epochs: num_epochs=2 and num_steps=16 both set the length"):
        config_of(tiny_labels, train__num_epochs=2)
    with pytest.raises(UserError, match=r"train.num_steps: the number of steps must not be 0"):
        config_of(tiny_labels, train__num_steps=0)
    assert config_of(tiny_labels, train__num_steps=-1).train.num_steps == 1000
    resolved = config_of(tiny_labels, train__num_steps=-1, train__num_epochs=2).with_num_steps(8)
    assert Config.from_dict(json.loads(resolved.to_json()), reset_unread=True) == resolved


@pytest.mark.exhaustive
def test_run_of_epochs_resumes_exactly(tiny_labels, capsys, tmp_path):
    """More epochs continue a run only at the same learning rates, and then as if they had been set at its start."""
    root, epochs = tmp_path / "run", {**UNSET, "train__num_epochs": 1.5}
    assert train_here(tiny_labels, root, **epochs) == 0
    assert "1.5 epochs (train.num_epochs), warm-up of " in capsys.readouterr().out
    config = RunDirectory(root).load_config()
    steps, warmup = config.train.num_steps, config.optimizer.warmup_steps
    assert config.train.num_epochs == 1.5 and config.optimizer.decay_steps == steps > 2
    before = (root / "config.json").read_bytes()
    assert train_here(tiny_labels, root, **epochs) == 0
    assert f"Already done: step {steps} of {steps}." in capsys.readouterr().out
    assert (root / "config.json").read_bytes() == before
    with pytest.raises(UserError, match=rf"decay_steps: {steps} -> 0.*add --config.optimizer.decay_steps={steps}"):
        train_here(tiny_labels, root, **epochs | {"train__num_epochs": 2})
    with pytest.raises(UserError, match=r"train.num_epochs: 1.5 -> 1"):
        train_here(tiny_labels, root, **epochs | {"train__num_epochs": 1})
    assert (root / "config.json").read_bytes() == before
    longer = {"optimizer__decay_steps": steps, "optimizer__warmup_steps": warmup, "train__num_epochs": 2}
    assert train_here(tiny_labels, root, **epochs | longer) == 0
    assert metrics(root)[-1]["step"] > steps
    assert train_here(tiny_labels, tmp_path / "straight", **epochs | longer) == 0
    states = final_state(root), final_state(tmp_path / "straight")
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_each_fold_has_steps_of_its_own(tiny_labels, tmp_path):
    settings = {**UNSET, "train__num_epochs": 4, "train__batch_size": 1, "data__sequence_length": 24}
    found = []
    for name, config in repetitions(config_of(tiny_labels, **settings), [], 4).items():
        prepared = prepare(config, tmp_path / name)
        rows = task_of(config).train_rows(prepared.config, prepared.tokenizer, prepared.stores["train"])
        found.append(with_epochs(prepared.config, rows).train.num_steps)
        assert found[-1] == sum(rows.rows_per_epoch(epoch)["lines"] for epoch in range(4))
    assert len(set(found)) > 1, found
