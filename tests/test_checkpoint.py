"""What is restored is equal to the bit to what was saved, on any mesh, or it is reported."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import checkpoint_reading, integrity
from lm.checkpoint import TORN, Checkpoints
from lm.config import CheckpointConfig
from lm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
LOSS = "valid/loss"


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any
    bad_steps: Any
    extra: Any = None


def init(key: jax.Array, ema: bool = False) -> State:
    params = {
        "embed": {"table": jax.random.normal(key, (32, 16))},
        "blocks": {"kernel": jax.random.normal(key, (2, 16, 8)), "scale": jnp.full((16,), 1 / 3, jnp.bfloat16)},
    }
    optimizer = optax.adamw(1e-3)
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    average = jax.tree.map(lambda x: x / 2, params) if ema else None
    return State(jnp.int32(7), params, opt_state, average, jnp.int32(2), {"none": None, "flags": jnp.arange(5) > 2})


def make_mesh(*shape: int) -> Mesh:
    axes = ("data", "fsdp")[: len(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(shape), devices=jax.devices()[: np.prod(shape)])


def sharded(tree: Any, mesh: Mesh) -> Any:
    """Abstract leaves; the first axis that the mesh's last axis divides is split over it."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        name, size = mesh.axis_names[-1], mesh.devices.shape[-1]
        axis = next((i for i, n in enumerate(x.shape) if n % size == 0), None)
        spec = P() if axis is None else P(*[None] * axis, name)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, tree)


def make_state(mesh: Mesh, seed: int = 0, ema: bool = False) -> State:
    make = jax.jit(lambda key: init(key, ema), out_shardings=jax.tree.map(lambda x: x.sharding, abstract(mesh, ema)))
    return make(jax.random.key(seed))


def abstract(mesh: Mesh, ema: bool = False) -> State:
    return sharded(jax.eval_shape(lambda key: init(key, ema), jax.random.key(0)), mesh)


def bits(tree: Any) -> list[tuple[str, Any, bytes]]:
    def raw(x: Any) -> Any:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf.dtype, raw(leaf).tobytes()) for path, leaf in leaves]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[int, State]]]:
    """Steps 10 (the best) and 20, one device. Tests that damage it put it back."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    mesh = make_mesh(1)
    states = {10: make_state(mesh, 1), 20: make_state(mesh, 2)}
    with Checkpoints(directory, CheckpointConfig()) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"data": {"docs": "abc"}, "n": step}, {LOSS: step / 10})
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    yield directory, states
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- equality ---------------------------------------------------------------------------------------------------


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


def test_donating_right_after_save(tmp_path: Path) -> None:
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"params": {"w": jnp.arange(500_000.0)}, "step": jnp.int32(1)}
    target = sharded(state, make_mesh(1))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, {})
            for _ in range(20):
                state = add(state)
        checkpoints.wait()
        for step in (1, 2):
            restored = checkpoints.restore(target, step).state
            np.testing.assert_array_equal(restored["params"]["w"], np.arange(500_000.0) + 20 * (step - 1))


def test_params_alone(two_steps: tuple[Path, dict[int, State]]) -> None:
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


def test_params_alone_does_not_read_the_optimizer(tmp_path: Path) -> None:
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


def test_sum_is_the_same_on_every_mesh_and_sees_every_change() -> None:
    x = jax.random.normal(jax.random.key(0), (16, 8)).astype(jnp.bfloat16)

    def total(value: Any, mesh: Mesh, spec: P) -> int:
        return int(integrity.leaf_sum(jax.device_put(value, NamedSharding(mesh, spec))))

    reference = total(x, make_mesh(1), P())
    assert total(x, make_mesh(8), P("data")) == reference
    assert total(x, make_mesh(2, 4), P("fsdp", "data")) == reference
    # The formula, once more, in plain integers.
    words = np.asarray(x).view(np.uint16).astype(np.uint32).reshape(-1)

    def mix(v: int) -> int:
        v = (v ^ v >> 16) * 0x85EBCA6B % 2**32
        v = (v ^ v >> 13) * 0xC2B2AE35 % 2**32
        return v ^ v >> 16

    assert reference == sum(mix(int(word) ^ mix(i)) for i, word in enumerate(words)) % 2**32
    # Blocks of round numbers that change places: what a sum with linear weights would miss.
    ones = np.repeat(np.float32([1, 2, 1, 2]), 256)
    assert int(integrity.leaf_sum(ones)) != int(integrity.leaf_sum(ones[::-1].copy()))
    for i in range(0, 128, 7):
        changed = np.asarray(x).view(np.uint16).reshape(-1).copy()
        changed[i] ^= 1 << (i % 16)
        assert int(integrity.leaf_sum(changed)) != reference


# --- keeping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latest", "best", "kept"),
    [(2, 1, [3, 6, 7]), (1, 2, [3, 5, 7]), (1, 0, [7]), (3, 1, [3, 5, 6, 7])],
)
def test_latest_and_best_are_kept(tmp_path: Path, latest: int, best: int, kept: list[int]) -> None:
    settings = CheckpointConfig(keep_latest=latest, keep_best=best)
    losses = {1: 5.0, 2: 4.0, 3: 1.0, 4: None, 5: 2.0, 6: float("nan"), 7: 3.0}
    state = {"params": {"w": jnp.ones(3)}}
    for part in ([1, 2, 3, 4], [5, 6, 7]):  # a restart in between forgets nothing
        with Checkpoints(tmp_path, settings) as checkpoints:
            for step in part:
                loss = losses[step]
                assert checkpoints.save(step, state, {}, {"other": 0.0} if loss is None else {LOSS: loss})
            assert not checkpoints.save(part[-1], state, {}, {LOSS: 0.0})  # is there already
    with Checkpoints(tmp_path, settings, read_only=True) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.latest() == 7
        assert checkpoints.best() == min(kept, key=lambda step: losses[step] or 9)
        assert checkpoints.metrics(7) == {LOSS: 3.0}


def test_best_without_the_metric(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        checkpoints.save(1, {"params": {"w": jnp.ones(3)}}, {}, {"train/loss": 1.0})
        checkpoints.wait()
        assert checkpoints.best() is None
        assert checkpoints.restore_params(step="best")[1] == 1  # the newest in its place


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_another_model_is_not_damage(two_steps: tuple[Path, dict[int, State]]) -> None:
    directory, _ = two_steps
    target = abstract(make_mesh(1))

    def changed(name: str, leaf: Any) -> State:
        return target.replace(params={**target.params, "embed": {name: leaf}})

    table = target.params["embed"]["table"]
    wide = jax.ShapeDtypeStruct((32, 17), table.dtype, sharding=table.sharding)
    half = jax.ShapeDtypeStruct((32, 16), jnp.bfloat16, sharding=table.sharding)
    with Checkpoints(directory, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=r"params/embed/table has shape \[32, 16\] there and \[32, 17\] here"):
            checkpoints.restore(changed("table", wide))
        with pytest.raises(UserError, match="params/embed/table is float32 there and bfloat16 here"):
            checkpoints.restore_params(changed("table", half).params)
        with pytest.raises(
            UserError, match=r"embed/tabel is not in the checkpoint; params/embed/table is in the .* not"
        ):
            checkpoints.restore(changed("tabel", table))
        with pytest.raises(UserError, match="ema/embed/table is not in the checkpoint"):
            checkpoints.restore(abstract(make_mesh(1), ema=True))
        with pytest.raises(UserError, match="no checkpoint of step 15; there are 10, 20"):
            checkpoints.restore(target, 15)
    with pytest.raises(UserError, match="there is no checkpoint; train first"):
        Checkpoints(directory / "absent", read_only=True).restore(target)
    assert not (directory / "absent").exists()
    with pytest.raises(UserError, match="could not be opened"):
        Checkpoints(directory / "10" / "record" / "metadata")


def damages(content: bytes, rng: random.Random) -> Iterator[bytes | None]:
    """None stands for a lost file."""
    yield None
    yield content[: len(content) // 2]
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    yield bytes(flipped)


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_damage_never_gives_wrong_values(two_steps: tuple[Path, dict[int, State]], capfd: Any) -> None:
    """Every file of the newest step, lost, cut, with a flipped bit: its own bits, or a report and step 10's."""
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
def test_flipped_parameters_are_seen_by_restore_params(two_steps: tuple[Path, dict[int, State]], capfd: Any) -> None:
    directory, states = two_steps
    # All files of data: which of them holds the parameters differs from run to run.
    contents = {each: each.read_bytes() for each in (directory / "20" / "state").rglob("d/*") if each.is_file()}
    assert contents
    try:
        for path, content in contents.items():
            path.write_bytes(b"\0" * len(content))
        checkpoints = Checkpoints(directory, read_only=True)
        params, step = checkpoints.restore_params()
        assert step == 10 and bits(params) == bits(states[10].params)
        assert "is damaged" in capfd.readouterr().err
        with pytest.raises(UserError, match=r"20: this checkpoint is damaged .*; there are 10, 20"):
            checkpoints.restore_params(step=20)
        with pytest.raises(UserError, match=r"20: this checkpoint is damaged .*; there are 10, 20"):
            checkpoints.restore(abstract(make_mesh(1)), 20)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def test_training_sets_a_damaged_one_aside(two_steps: tuple[Path, dict[int, State]], tmp_path: Path) -> None:
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
    assert sorted(os.listdir(directory)) == ["10", "20", "damaged-20"]  # with nothing to go on from, all stay


def test_read_only_writes_nothing(two_steps: tuple[Path, dict[int, State]], tmp_path: Path) -> None:
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


def test_full_disk(tmp_path: Path, capfd: Any) -> None:
    """A file that may not grow stands for a full disk: the error is a clear one, and the next save works."""

    def state(size: int) -> Any:
        return {"params": {"w": jax.random.normal(jax.random.key(0), (size,))}}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, CheckpointConfig(keep_latest=1)) as checkpoints:
        checkpoints.save(1, state(10), {}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(UserError, match=r"could not be saved \(step 2\): File too large"):
                checkpoints.save(2, state(200_000), {}, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.listdir(tmp_path) == ["1"]
        checkpoints.check()  # told once
        checkpoints.save(3, state(200_000), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3]
    assert capfd.readouterr().err == ""


def test_directory_lost_while_training(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        shutil.rmtree(directory)
        directory.write_text("not a directory")
        with pytest.raises(UserError, match=r"could not be saved \(step 2\)"):
            checkpoints.save(2, {"params": {"w": jnp.ones(3)}}, {}, {})
            checkpoints.wait()
    new = set(threading.enumerate()) - before
    # asyncio's pool ends with the process; anything else the process would have to wait for.
    left = [thread.name for thread in new if not thread.daemon and not thread.name.startswith("asyncio_")]
    assert left == []


# --- other processes ------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, threading, time
import jax, jax.numpy as jnp
from pathlib import Path
from lm.checkpoint import Checkpoints, TORN
directory = Path(sys.argv[1])
def kill():
    while not any(TORN in name and name.startswith("2") for name in os.listdir(directory)):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoints = Checkpoints(directory)
checkpoints.save(1, {"params": {"w": jnp.arange(1000.0)}}, {}, {})
checkpoints.wait()
state = {"params": {"w": jax.random.normal(jax.random.key(0), (1000,))} | {str(i): jnp.ones(1000) for i in range(200)}}
threading.Thread(target=kill, daemon=True).start()
checkpoints.save(2, state, {}, {})
checkpoints.wait()
time.sleep(10)
"""

TWO_PROCESSES = """
import sys, jax
jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, int(sys.argv[2]))
import numpy as np
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lm.checkpoint import Checkpoints
directory, rank = Path(sys.argv[1]), int(sys.argv[2])
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
whole = np.arange(4096, dtype=np.float32).reshape(64, 64)  # smaller ones lie in the index
def make(value, spec):
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index: value[index])
def target(spec):
    return {"params": {"w": jax.ShapeDtypeStruct((64, 64), np.float32, sharding=NamedSharding(mesh, spec))}}
def same(tree, value):
    return all(np.array_equal(shard.data, value[shard.index]) for shard in tree["params"]["w"].addressable_shards)
with Checkpoints(directory) as checkpoints:
    for step in (1, 2, 3):
        state = {"params": {"w": make(whole + step, P("data", "fsdp"))}}
        checkpoints.save(step, state, {"n": step}, {"valid/loss": step})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3], checkpoints.steps()
    restored = checkpoints.restore(target(P("fsdp")))
    assert restored.step == 3 and restored.metadata == {"n": 3} and same(restored.state, whole + 3)
    params, _ = checkpoints.restore_params(step=2)
    assert np.array_equal(params["w"], whole + 2)
    if rank == 0:  # what only one of the two finds broken
        for path in (directory / "3" / "state" / "ocdbt.process_0" / "d").iterdir():
            path.write_bytes(b"")
    jax.experimental.multihost_utils.sync_global_devices("broken")
    restored = checkpoints.restore(target(P("data", "fsdp")))
    assert restored.step == 2 and same(restored.state, whole + 2)
    assert checkpoints.save(3, restored.state, {}, {})
print("done", flush=True)
jax.distributed.shutdown()
"""


def environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def test_kill_in_the_middle_of_a_save(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, env=environment(1), timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(TORN in name for name in os.listdir(tmp_path))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
        np.testing.assert_array_equal(checkpoints.restore_params()[0]["w"], np.arange(1000.0))
    with Checkpoints(tmp_path) as checkpoints:
        assert os.listdir(tmp_path) == ["1"]
        assert checkpoints.save(2, {"params": {"w": jnp.ones(3)}}, {}, {})


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error::DeprecationWarning",
                "-c",
                TWO_PROCESSES,
                str(tmp_path),
                str(rank),
                str(port),
            ],
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        results = [worker.communicate(timeout=60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], results
    assert all(out.endswith("done\n") for out, _ in results)
    assert "3 is damaged" in results[0][1] and "damaged" not in results[1][1]  # process 0 tells
    assert sorted(name for name in os.listdir(tmp_path)) == ["1", "2", "3", "damaged-3"]
    record = json.loads((tmp_path / "3" / "record" / "metadata").read_text())
    assert record["content"]["step"] == 3


def test_quiet(tmp_path: Path) -> None:
    """Nothing of Orbax's own talk, and no deprecation warning, reaches the terminal."""
    program = (
        "import sys, jax.numpy as jnp; from pathlib import Path; from absl import logging\n"
        "from lm.checkpoint import Checkpoints\n"
        "logging.set_verbosity(logging.INFO); logging.use_absl_handler()\n"
        "with Checkpoints(Path(sys.argv[1])) as c:\n"
        "    c.save(1, {'params': {'w': jnp.ones(3)}}, {}, {}); c.wait(); c.restore_params()\n"
    )
    command = [sys.executable, "-W", "always::DeprecationWarning", "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment(1), timeout=60, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
