"""A checkpoint is saved whole or not at all, the right ones are kept, and errors are reported."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.checkpoints.keeping import TORN
from lm.config import CheckpointConfig
from lm.errors import UserError
from tests.checkpoints.states import LOSS, make_mesh, sharded

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("latest", "best", "kept"),
    [(2, 1, [3, 6, 7]), (1, 2, [3, 5, 7]), (1, 0, [7]), (3, 1, [3, 5, 6, 7])],
)
def test_latest_and_best_checkpoints_are_kept(tmp_path: Path, latest: int, best: int, kept: list[int]) -> None:
    settings = CheckpointConfig(keep_latest=latest, keep_best=best)
    losses = {1: 5.0, 2: 4.0, 3: 1.0, 4: None, 5: 2.0, 6: float("nan"), 7: 3.0}
    state = {"params": {"w": jnp.ones(3)}}
    for steps in ([1, 2, 3, 4], [5, 6, 7]):  # a restart in between forgets nothing
        with Checkpoints(tmp_path, settings) as checkpoints:
            for step in steps:
                loss = losses[step]
                assert checkpoints.save(step, state, {}, {"other": 0.0} if loss is None else {LOSS: loss})
            assert not checkpoints.save(steps[-1], state, {}, {LOSS: 0.0})  # exists already
    with Checkpoints(tmp_path, settings, read_only=True) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.best() == min(kept, key=lambda step: losses[step] or 9)
        assert checkpoints.record(7)["metrics"] == {LOSS: 3.0}


def test_newest_checkpoint_stands_in_for_the_best_if_none_has_the_metric(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best()) == ([], None)
        checkpoints.save(1, {"params": {"w": jnp.ones(3)}}, {}, {"train/loss": 1.0})
        checkpoints.wait()
        assert checkpoints.best() is None
        assert checkpoints.restore_params(step="best")[1] == 1  # the newest


def test_buffers_may_be_donated_right_after_save(tmp_path: Path) -> None:
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
            params, _ = checkpoints.restore_params(target["params"], step)
            np.testing.assert_array_equal(params["w"], np.arange(500_000.0) + 20 * (step - 1))


def test_full_disk_is_reported_and_the_next_save_works(tmp_path: Path, capfd: Any) -> None:
    """A limit on the size of files stands for a full disk."""

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
        checkpoints.check()  # reported once
        checkpoints.save(3, state(200_000), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3]
    assert capfd.readouterr().err == ""


def test_lost_directory_is_reported_and_no_thread_is_left(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        shutil.rmtree(directory)
        directory.write_text("not a directory")
        with pytest.raises(UserError, match=r"could not be saved \(step 2\)"):
            checkpoints.save(2, {"params": {"w": jnp.ones(3)}}, {}, {})
            checkpoints.wait()
    new = set(threading.enumerate()) - before
    # asyncio's pool ends with the process; the process would have to wait for any other thread.
    left = [thread.name for thread in new if not thread.daemon and not thread.name.startswith("asyncio_")]
    assert left == []


# --- other processes ------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, threading, time
import jax, jax.numpy as jnp
from pathlib import Path
from lm.checkpoints.checkpoints import Checkpoints
from lm.checkpoints.keeping import TORN
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
from lm.checkpoints.checkpoints import Checkpoints
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
    if rank == 0:  # damage that only one of the two processes finds
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


@pytest.mark.exhaustive
def test_kill_during_a_save_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
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


@pytest.mark.exhaustive
def test_two_processes_save_restore_and_agree_about_damage(tmp_path: Path) -> None:
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
    assert "3 is damaged" in results[0][1] and "damaged" not in results[1][1]  # process 0 reports it
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3", "damaged-3"]
    record = json.loads((tmp_path / "3" / "record" / "metadata").read_text())
    assert record["content"]["step"] == 3


@pytest.mark.exhaustive
def test_saving_and_restoring_print_nothing(tmp_path: Path) -> None:
    """Neither Orbax's log messages nor deprecation warnings reach the terminal."""
    program = (
        "import sys, jax.numpy as jnp; from pathlib import Path; from absl import logging\n"
        "from lm.checkpoints.checkpoints import Checkpoints\n"
        "logging.set_verbosity(logging.INFO); logging.use_absl_handler()\n"
        "with Checkpoints(Path(sys.argv[1])) as c:\n"
        "    c.save(1, {'params': {'w': jnp.ones(3)}}, {}, {}); c.wait(); c.restore_params()\n"
    )
    command = [sys.executable, "-W", "always::DeprecationWarning", "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment(1), timeout=60, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
