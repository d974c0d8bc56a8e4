"""Restored states are equal to the bit to the saved ones, on any mesh, and reading changes nothing."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.checkpoints import reading as checkpoint_reading
from lm.checkpoints.checkpoints import Checkpoints
from lm.errors import UserError
from tests.checkpoints.states import State, abstract, bits, make_mesh, make_state, sharded


@pytest.mark.parametrize("shape", [(8,), (2, 4), (1,)])
def test_restored_bits_are_equal_on_any_mesh(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = make_state(make_mesh(4, 2), ema=True)
    state = state.replace(extra={**state.extra, "key": jax.random.key(3), "legacy": jax.random.PRNGKey(4)})
    target = sharded(jax.eval_shape(lambda: state), make_mesh(*shape))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(7, state, {"tokens": [1, 2]}, {})
        checkpoints.wait()
        restored = checkpoints.restore(target)
    assert bits(restored.state) == bits(state)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    for leaf, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert (restored.step, restored.metadata) == (7, {"tokens": [1, 2]})
    assert restored.state.extra["none"] is None


def test_parameters_read_in_parts_are_equal(
    two_steps: tuple[Path, dict[int, State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, states = two_steps
    monkeypatch.setattr(checkpoint_reading, "PART_BYTES", 1)
    with Checkpoints(directory, read_only=True) as checkpoints:
        for target in (None, abstract(make_mesh(2, 4)).params):
            params, _ = checkpoints.restore_params(target, 10)
            assert bits(params) == bits(states[10].params)


def test_parameters_are_read_by_step_best_or_newest(two_steps: tuple[Path, dict[int, State]]) -> None:
    directory, states = two_steps
    with Checkpoints(directory, read_only=True) as checkpoints:
        for step, expected in ((None, 20), ("best", 10), (10, 10)):
            params, found = checkpoints.restore_params(step=step)
            assert found == expected
            assert bits(params) == bits(states[expected].params)
            assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
        target = abstract(make_mesh(2, 4)).params
        params, _ = checkpoints.restore_params(target, ema=True)  # there is none: the parameters
        assert bits(params) == bits(states[20].params)
        assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, target)


def test_reading_parameters_does_not_read_the_optimizer(tmp_path: Path) -> None:
    state = make_state(make_mesh(1), ema=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        checkpoints.wait()
        average, _ = checkpoints.restore_params(ema=True)
        assert bits(average) == bits(state.ema) != bits(state.params)
        read: list[str] = []
        describe = checkpoint_reading.describe

        def spy(tree: Any, sums: Any = None) -> Any:
            read.extend(describe(tree))
            return describe(tree, sums)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_reading, "describe", spy)
            checkpoints.restore_params()
        assert read and all(path.startswith("params/") for path in read)


def test_checkpoint_of_another_model_is_refused_and_not_called_damaged(
    two_steps: tuple[Path, dict[int, State]],
) -> None:
    directory, _ = two_steps
    target = abstract(make_mesh(1))

    def changed(name: str, leaf: Any) -> State:
        return target.replace(params={**target.params, "embed": {name: leaf}})

    table = target.params["embed"]["table"]
    wide = jax.ShapeDtypeStruct((32, 17), table.dtype, sharding=table.sharding)
    half = jax.ShapeDtypeStruct((32, 16), jnp.bfloat16, sharding=table.sharding)
    with Checkpoints(directory, read_only=True) as checkpoints:
        with pytest.raises(
            UserError, match=r"params/embed/table has shape \[32, 16\] in the checkpoint but \[32, 17\] in this"
        ):
            checkpoints.restore(changed("table", wide))
        with pytest.raises(
            UserError, match="params/embed/table has dtype float32 in the checkpoint but bfloat16 in this model"
        ):
            checkpoints.restore_params(changed("table", half).params)
        with pytest.raises(
            UserError, match=r"embed/tabel is not in the checkpoint; params/embed/table is in the .* not"
        ):
            checkpoints.restore(changed("tabel", table))
        with pytest.raises(UserError, match="ema/embed/table is not in the checkpoint"):
            checkpoints.restore(abstract(make_mesh(1), ema=True))
        with pytest.raises(UserError, match="no checkpoint for step 15; choose one of 10, 20"):
            checkpoints.restore_params(step=15)
    with pytest.raises(UserError, match="there is no checkpoint; train first"):
        Checkpoints(directory / "absent", read_only=True).restore(target)
    assert not (directory / "absent").exists()
    with pytest.raises(UserError, match="could not be opened"):
        Checkpoints(directory / "10" / "record" / "metadata")


def test_reading_writes_nothing(two_steps: tuple[Path, dict[int, State]], tmp_path: Path) -> None:
    source, states = two_steps
    directory = tmp_path / "checkpoints"
    shutil.copytree(source, directory)
    (directory / "30.orbax-checkpoint-tmp").mkdir()  # a training is saving
    everything = [directory, *directory.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in everything}
    try:
        with Checkpoints(directory, read_only=True) as checkpoints:
            assert bits(checkpoints.restore(abstract(make_mesh(8))).state) == bits(states[20])
            assert checkpoints.restore_params(step="best")[1] == 10
        assert before == {path: path.stat().st_mtime_ns for path in [directory, *directory.rglob("*")]}
    finally:
        for path in everything:
            path.chmod(0o755)
