"""Tests of the connections between processes. tests/test_processes.py runs whole commands."""

import signal
import subprocess
import sys

import pytest

ABORT = """
import os, socket, sys
from lm.parallel.peers import Peers
ours, first = socket.socketpair()
peers = Peers(None, 1, 2, "host", "")
peers._replace_abort(ours)
if sys.argv[1] == "died":
    first.close()
os.abort()
"""


@pytest.mark.parametrize(
    ("first", "status", "stderr"),
    [("died", 75, "error: process 0 of 2 died; run the same command again.\n"), ("lives", -signal.SIGABRT, "")],
)
def test_an_abort_counts_as_the_death_of_process_0_only_if_it_died(first, status, stderr):
    """JAX aborts if it notices the death of process 0 before we do. Other aborts stay aborts."""
    ended = subprocess.run([sys.executable, "-c", ABORT, first], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, stderr)
