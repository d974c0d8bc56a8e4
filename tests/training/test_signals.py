"""A signal is remembered whatever is going on."""

import contextlib
import io
import os
import signal

import pytest

from lm.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_stderr_is_replaced(number, capfd):
    """As it is during a save, where an error in the handler would look like one of the storage."""
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.at(1) == ""
        with contextlib.redirect_stderr(io.StringIO()):
            os.kill(os.getpid(), number)
        assert request.at(1) == number.name
    assert number.name in capfd.readouterr().err
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
