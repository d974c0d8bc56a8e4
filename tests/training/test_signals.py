"""A signal is remembered whatever the run is doing."""

import contextlib
import io
import os
import signal

import pytest

from lm.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_remembered_while_stderr_is_replaced(number, capfd):
    """Stderr is replaced while a checkpoint is saved; an error in the handler would look like a storage error."""
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.at(1) == ""
        with contextlib.redirect_stderr(io.StringIO()):
            os.kill(os.getpid(), number)
        assert request.at(1) == number.name
    assert number.name in capfd.readouterr().err
    assert signal.getsignal(number) == before


def test_second_ctrl_c_interrupts_immediately():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
