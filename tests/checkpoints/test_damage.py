"""A damaged checkpoint never gives wrong values: it is reported, and an older one is used."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.errors import UserError
from tests.checkpoints.states import LOSS, State, abstract, bits, make_mesh


def damages(content: bytes, rng: random.Random) -> Iterator[bytes | None]:
    """Yields damaged contents of a file; None stands for a lost file."""
    yield None
    yield content[: len(content) // 2]
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    yield bytes(flipped)


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.exhaustive
def test_damage_never_gives_wrong_values(two_steps: tuple[Path, dict[int, State]], capfd: Any) -> None:
    """Damages every file of step 20: either its own bits are restored, or it is reported and step 10 is used."""
    directory, states = two_steps
    target = abstract(make_mesh(1))
    wanted = {step: bits(state) for step, state in states.items()}
    rng, reported, cases = random.Random(0), 0, 0
    for path in sorted(each for each in (directory / "20").rglob("*") if each.is_file()):
        content = path.read_bytes()
        for damaged in damages(content, rng):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            try:
                restored = Checkpoints(directory, read_only=True).restore(target)
            finally:
                path.write_bytes(content)
            said = capfd.readouterr().err.splitlines()
            assert bits(restored.state) == wanted[restored.step], path
            assert restored.metadata == {"data": {"docs": "abc"}, "n": restored.step}
            if restored.step == 10:
                assert len(said) == 2 and "20 is damaged (" in said[0] and "step 10" in said[1], said
                reported += 1
            else:
                assert said == [], said
            cases += 1
    assert 0.1 * cases < reported < cases  # how many depends on the layout of the files


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.exhaustive
def test_restore_params_finds_overwritten_parameters(two_steps: tuple[Path, dict[int, State]], capfd: Any) -> None:
    directory, states = two_steps
    # All data files: which of them holds the parameters differs from run to run.
    contents = {each: each.read_bytes() for each in (directory / "20" / "state").rglob("d/*") if each.is_file()}
    assert contents
    try:
        for path, content in contents.items():
            path.write_bytes(b"\0" * len(content))
        checkpoints = Checkpoints(directory, read_only=True)
        params, step = checkpoints.restore_params()
        assert step == 10 and bits(params) == bits(states[10].params)
        assert "is damaged" in capfd.readouterr().err
        with pytest.raises(UserError, match=r"20: this checkpoint is damaged .*; choose one of 10, 20"):
            checkpoints.restore_params(step=20)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def test_training_sets_a_damaged_checkpoint_aside(two_steps: tuple[Path, dict[int, State]], tmp_path: Path) -> None:
    source, states = two_steps
    directory, target = tmp_path / "checkpoints", abstract(make_mesh(1))
    shutil.copytree(source, directory)
    (directory / "20" / "record" / "metadata").unlink()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(target).step == 10
        assert sorted(os.listdir(directory)) == ["10", "damaged-20"]
        assert checkpoints.save(20, states[20], {"again": True}, {LOSS: 1.0})
        checkpoints.wait()
        assert checkpoints.restore(target).metadata == {"again": True}
    for step in (10, 20):
        (directory / str(step) / "record" / "metadata").write_text("{}")
    with Checkpoints(directory) as checkpoints, pytest.raises(UserError, match=r"intact \(damaged: 20, 10\)"):
        checkpoints.restore(target)
    assert checkpoints.best() is None
    assert sorted(os.listdir(directory)) == ["10", "20", "damaged-20"]  # without an intact one, all stay
