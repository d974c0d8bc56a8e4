"""A directory with two checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import CheckpointConfig
from tests.checkpoints.states import LOSS, State, make_mesh, make_state


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[int, State]]]:
    """Steps 10 (the best) and 20, on one device. Tests that damage it restore it."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    mesh = make_mesh(1)
    states = {10: make_state(mesh, 1), 20: make_state(mesh, 2)}
    with Checkpoints(directory, CheckpointConfig()) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"data": {"docs": "abc"}, "n": step}, {LOSS: step / 10})
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    yield directory, states
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
