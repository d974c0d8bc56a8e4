"""Reading while a training run saves new checkpoints and removes old ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lm.checkpoints import reading
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import CheckpointConfig
from lm.errors import UserError
from tests.checkpoints.states import LOSS

ONE = CheckpointConfig(keep_latest=1, keep_best=0)


def save(directory: Path, *steps: int, settings: CheckpointConfig = ONE) -> None:
    """Saves steps whose parameters and loss are the step, and removes those that `settings` do not keep."""
    with Checkpoints(directory, settings) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": {"w": jnp.full(50_000, float(step))}}, {}, {LOSS: float(step)})


@pytest.fixture
def during_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """`during_reading(act)` calls `act` after the record of the first checkpoint was read, before its arrays are."""

    def plan(*acts: Callable[[], None]) -> None:
        read, waiting = reading.read_arrays, list(acts)

        def read_arrays(*arguments: Any, **options: Any) -> Any:
            if waiting:
                waiting.pop(0)()
            return read(*arguments, **options)

        monkeypatch.setattr(reading, "read_arrays", read_arrays)

    return plan


@pytest.mark.parametrize("step", [None, "best"])
def test_next_checkpoint_is_read_if_one_is_removed(tmp_path: Path, during_reading: Any, capfd: Any, step: Any) -> None:
    save(tmp_path, 10)
    during_reading(lambda: save(tmp_path, 20), lambda: save(tmp_path, 30))
    params, found = Checkpoints(tmp_path, read_only=True).restore_params(step=step)
    assert found == 30
    np.testing.assert_array_equal(params["w"], np.full(50_000, 30.0))
    assert capfd.readouterr().err == "", "it was not damaged"


def test_chosen_checkpoint_that_is_removed_is_not_called_damaged(tmp_path: Path, during_reading: Any) -> None:
    save(tmp_path, 10)
    during_reading(lambda: save(tmp_path, 20))
    with pytest.raises(UserError, match="there is no checkpoint for step 10; choose one of 20"):
        Checkpoints(tmp_path, read_only=True).restore_params(step=10)


def test_average_starts_again_with_the_checkpoints_that_are_left(tmp_path: Path, during_reading: Any) -> None:
    two = CheckpointConfig(keep_latest=2, keep_best=0)
    save(tmp_path, 10, 20, settings=two)
    during_reading(lambda: save(tmp_path, 30, settings=two))
    params, steps = Checkpoints(tmp_path, read_only=True).average_params(2)
    assert steps == [20, 30]
    np.testing.assert_array_equal(params["w"], np.full(50_000, 25.0))


@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_average_of_equal_parameters_is_exact(tmp_path: Path, count: int) -> None:
    """Otherwise, the adapters of an averaged run could not be exported alone."""
    frozen = np.random.default_rng(0).standard_normal(1_000).astype(np.float32)
    with Checkpoints(tmp_path, CheckpointConfig(keep_latest=count)) as checkpoints:
        for step in range(count):
            checkpoints.save(
                step, {"params": {"frozen": frozen, "trained": np.full(10, 2.0**step, np.float32)}}, {}, {}
            )
    params, _ = Checkpoints(tmp_path, read_only=True).average_params(count)
    np.testing.assert_array_equal(params["frozen"], frozen)
    np.testing.assert_allclose(params["trained"], (2.0**count - 1) / count, rtol=1e-6)


def test_damaged_checkpoint_beside_new_ones_is_still_reported(tmp_path: Path, during_reading: Any, capfd: Any) -> None:
    three = CheckpointConfig(keep_latest=3, keep_best=0)
    save(tmp_path, 10, 20, settings=three)
    for path in (tmp_path / "20" / "state").rglob("d/*"):
        path.write_bytes(b"")
    assert Checkpoints(tmp_path, read_only=True).restore_params()[1] == 10
    assert "20 is damaged" in capfd.readouterr().err
