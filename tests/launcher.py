"""Runs commands of this project in processes of their own without importing JAX again for each.

The fixture `launch` in conftest.py starts this program and exchanges lines of JSON with it on stdin and stdout:

    {"argv": ["train.py", ...], "environment": {...}, "folder": PATH} -> pid of the new process
    {"poll": pid} -> its exit status (negative: the signal that killed it), or null while it runs

A command is a fork of this process that runs the real script as `__main__`, in a session of its own, in `folder`, with
its output in the files `stdout` and `stderr` there. Neither TensorFlow nor PyTorch can be imported, which shows that
the commands do not need them.
"""

import importlib.abc
import json
import os
import runpy
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)


class NoTorch(importlib.abc.MetaPathFinder):
    """Makes PyTorch look as if it were not installed. (None in sys.modules would be shorter, but misleads SciPy.)"""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.modules["tensorflow"] = None  # type: ignore[assignment]
sys.meta_path.insert(0, NoTorch())

# Imports what the commands import, some of it lazily. None of these starts a thread, so forking stays safe.
import matplotlib.pyplot  # noqa: F401
import tensorboardX  # noqa: F401

import lm.decoding.text
import lm.training.loop  # noqa: F401


def run(argv: list[str], environment: dict[str, str], folder: str) -> None:
    """Turns the child process into the command."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if argv[0].endswith(".py"):
        sys.argv = [str(ROOT / argv[0]), *argv[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = argv
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "poll" in request:
            answer = poll(request["poll"])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX warns about forks because of threads, which do not exist yet
                answer = os.fork()
            if answer == 0:
                return run(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
