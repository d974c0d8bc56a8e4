"""The progress line on a terminal (through a small terminal emulator) and elsewhere."""

import io
import re

import pytest

from lm.reporting.progress import Progress, duration, fit, short_number


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        """What a person sees: carriage return and erase-to-end-of-line carried out."""
        lines, column = [""], 0
        for token in re.findall(r"\x1b\[K|.|\n", self.getvalue().replace("\r", "\x01")):
            if token == "\x01":
                column = 0
            elif token == "\x1b[K":
                lines[-1] = lines[-1][:column]
            elif token == "\n":
                lines.append("")
                column = 0
            else:
                lines[-1] = lines[-1][:column] + token + lines[-1][column + 1 :]
                column += 1
        return lines


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")


def test_terminal_shows_one_line_with_every_figure(wide):
    clock, terminal = Clock(), Terminal()
    progress = Progress(1000, stream=terminal, clock=clock)
    progress.update(1)
    for step in range(2, 102):
        clock.now += 0.5
        progress.update(step)
    clock.now += 0.5
    progress.update(102, loss=2.34567, learning_rate=3e-4, tokens_per_second=12345.0, peak_share=0.4123, valid_loss=2.5)
    (line,) = terminal.screen()
    for part in ("step 102/1,000", "loss 2.3457", "valid 2.5000", "lr 3.00e-04", "12.3k tokens/s", "41.2% of peak"):
        assert part in line
    assert "7:29 left" in line  # 898 steps of 0.5 s
    assert "━━" in line


def test_messages_stand_above_the_line_and_nothing_is_left_of_longer_lines(wide):
    clock, terminal = Clock(), Terminal()
    with Progress(10, stream=terminal, clock=clock) as progress:
        progress.message("before the first step")
        for step in range(1, 11):
            clock.now += 1
            progress.update(step, loss=100.0 / step, tokens_per_second=10.0 ** (11 - step))
            if step == 5:
                progress.message("step 5: valid loss 2.0\nSample: Once upon")
    progress.message("after the end: said by nobody")
    lines = terminal.screen()
    assert lines[:3] == ["before the first step", "step 5: valid loss 2.0", "Sample: Once upon"]
    assert lines[3].startswith("step 10/10") and lines[3].endswith("10 tokens/s")
    assert lines[4:] == [""]


def test_redraws_are_limited_but_the_last_step_is_shown(wide):
    clock, terminal = Clock(), Terminal()
    progress = Progress(5000, stream=terminal, clock=clock)
    for step in range(1, 5001):
        clock.now += 0.001
        progress.update(step)
    assert terminal.getvalue().count("\r") <= 55
    assert "step 5,000/5,000" in terminal.screen()[-1]


def test_narrow_terminals_keep_what_matters(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    clock, terminal = Clock(), Terminal()
    progress = Progress(1000, stream=terminal, clock=clock)
    progress.update(1, loss=3.0)
    clock.now += 1.0
    progress.update(2, loss=2.5, learning_rate=1e-3, tokens_per_second=5e6, peak_share=0.5, valid_loss=2.0)
    (line,) = terminal.screen()
    assert len(line) < 40
    assert "step 2/1,000" in line and "loss 2.5000" in line and "left" in line and "lr" not in line


def test_log_files_get_few_plain_lines():
    clock, log = Clock(), io.StringIO()
    with Progress(100, stream=log, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.update(step, loss=float(step) if step % 5 == 0 or step == 1 else None, tokens_per_second=100.0)
            if step == 50:
                progress.message("half")
    lines = log.getvalue().splitlines()
    assert not re.search(r"[\r\x1b]", log.getvalue())
    assert lines[0].startswith("step 1/100  loss 1.0000") and lines[-1].startswith("step 100/100  loss 100.0000")
    assert lines.count("half") == 1
    steps = [int(line.split()[1].split("/")[0]) for line in lines if line != "half"]
    assert steps == [1, 15, 25, 35, 45, 55, 65, 75, 85, 95, 100]


def test_a_step_already_shown_is_not_repeated_at_the_end():
    log = io.StringIO()
    with Progress(1, stream=log, clock=Clock()) as progress:
        progress.update(1, loss=1.0)
    assert len(log.getvalue().splitlines()) == 1


def test_a_resumed_run_estimates_from_its_own_steps(wide):
    clock, log = Clock(), io.StringIO()
    progress = Progress(1000, 900, stream=log, clock=clock)
    progress.update(901, loss=1.0)
    clock.now += 10.0
    progress.update(911, loss=1.0)
    assert "1:29 left" in log.getvalue().splitlines()[-1]


def test_other_processes_write_nothing():
    terminal = Terminal()
    with Progress(2, enabled=False, stream=terminal) as progress:
        progress.update(1, loss=1.0)
        progress.message("quiet")
    assert terminal.getvalue() == ""


def test_terminals_without_unicode_get_an_ascii_bar(wide):
    terminal = Terminal()
    terminal.encoding = "ascii"
    Progress(2, stream=terminal).update(1, loss=float("nan"))
    assert terminal.getvalue().isascii() and "###" in terminal.getvalue() and "loss nan" in terminal.getvalue()


def test_fitting_never_exceeds_the_width():
    parts = [(0, "step 1/2"), (2, "b" * 10), (1, "c" * 10)]
    for width in range(1, 60):
        assert len(fit(parts, width, lambda n: "#" * n)) <= width
    assert fit(parts, 20, lambda n: "#" * n) == "step 1/2  cccccccccc"


def test_numbers_and_durations():
    numbers = [short_number(x) for x in (7, 999, 999.9, 1234, 99_960, 12_345_678, 2.5e9, float("inf"))]
    assert numbers == ["7", "999", "1.00k", "1.23k", "100k", "12.3M", "2.50G", "inf"]
    assert [duration(x) for x in (-1, 42.4, 723, 11279, 187800)] == ["0:00", "0:42", "12:03", "3:07:59", "2 d 04:10"]
