"""The progress line on a terminal (through a small terminal emulator) and elsewhere."""

import io
import re

import pytest

from lm.reporting.progress import Console, Line, Progress, counting, duration, rich_console, short_number


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
        """What a person sees: the control sequences for the cursor and for erasing a line are carried out."""
        lines, row, column = [""], 0, 0
        text = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]", "", self.getvalue())  # colours, and whether there is a cursor
        for token in re.findall(r"\x1b\[\d*[A-Z]|.", text.replace("\r", "\x01"), re.DOTALL):
            if token == "\x01":
                column = 0
            elif token == "\x1b[2K":
                lines[row] = ""
            elif token == "\x1b[1A":
                row -= 1
            elif token == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            else:
                assert token[0] != "\x1b", token
                lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def progress_on(stream, total, start=0, clock=None, enabled=True):
    return Progress(rich_console(stream, enabled=enabled), total, start, clock=clock or Clock())


def test_terminal_shows_one_line_with_every_metric():
    clock, terminal = Clock(), Terminal()
    progress = progress_on(terminal, 1000, clock=clock)
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


def test_messages_appear_above_the_line_and_nothing_is_left_of_longer_lines():
    clock, terminal = Clock(), Terminal()
    with progress_on(terminal, 10, clock=clock) as progress:
        progress.message("before the first step")
        for step in range(1, 11):
            clock.now += 1
            progress.update(step, loss=100.0 / step, tokens_per_second=10.0 ** (11 - step))
            if step == 5:
                progress.message("step 5: valid loss 2.0\nSample: Once upon")
    progress.message("after the end: printed by nobody")
    lines = terminal.screen()
    assert lines[:3] == ["before the first step", "step 5: valid loss 2.0", "Sample: Once upon"]
    assert lines[3].startswith("step 10/10") and lines[3].endswith("10 tokens/s")
    assert lines[4:] == [""]


def test_console_prints_text_as_it_is_above_its_progress_line():
    terminal = Terminal()
    console = Console(True, terminal)
    with console.progress(2) as progress:
        progress.update(1, loss=2.0)
        progress.update(2, loss=1.0, valid_loss=1.5)
        console.print("a [bold]sample[/bold] :cat: " + "x" * 150)
        assert "step 2/2" in terminal.screen()[-1], "printing redraws the line as it is now"
        console.banner("Result")
    lines = terminal.screen()
    assert lines[:3] == ["a [bold]sample[/bold] :cat: " + "x" * 150, "", "--- Result ---"]
    assert lines[3].startswith("step 2/2") and lines[4:] == [""]


def test_redraws_are_limited_but_the_last_step_is_shown():
    clock, terminal = Clock(), Terminal()
    progress = progress_on(terminal, 5000, clock=clock)
    for step in range(1, 5001):
        clock.now += 0.001
        progress.update(step)
    assert terminal.getvalue().count("\r") <= 55
    assert "step 5,000/5,000" in terminal.screen()[-1]


def test_narrow_terminals_keep_what_matters(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    clock, terminal = Clock(), Terminal()
    progress = progress_on(terminal, 1000, clock=clock)
    progress.update(1, loss=3.0)
    clock.now += 1.0
    progress.update(2, loss=2.5, learning_rate=1e-3, tokens_per_second=5e6, peak_share=0.5, valid_loss=2.0)
    (line,) = terminal.screen()
    assert len(line) < 40
    assert "step 2/1,000" in line and "loss 2.5000" in line and "left" in line and "lr" not in line


def test_log_files_get_few_plain_lines():
    clock, log = Clock(), io.StringIO()
    with progress_on(log, 100, clock=clock) as progress:
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


def test_dumb_terminals_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with progress_on(terminal, 2) as progress:
        progress.update(1, loss=1.0)
    assert terminal.getvalue() == "step 1/2  loss 1.0000\n"


def test_step_that_was_shown_is_not_repeated_at_the_end():
    log = io.StringIO()
    with progress_on(log, 1) as progress:
        progress.update(1, loss=1.0)
    assert len(log.getvalue().splitlines()) == 1


def test_resumed_run_estimates_from_its_own_steps():
    clock, log = Clock(), io.StringIO()
    progress = progress_on(log, 1000, 900, clock)
    progress.update(901, loss=1.0)
    clock.now += 10.0
    progress.update(911, loss=1.0)
    assert "1:29 left" in log.getvalue().splitlines()[-1]


def test_other_processes_write_nothing():
    terminal = Terminal()
    with progress_on(terminal, 2, enabled=False) as progress:
        progress.update(1, loss=1.0)
        progress.message("quiet")
    Console(False, terminal).print("quiet")
    assert terminal.getvalue() == ""


def test_terminals_without_unicode_get_an_ascii_bar():
    terminal = Terminal()
    terminal.encoding = "ascii"
    progress_on(terminal, 2).update(1, loss=float("nan"))
    assert terminal.getvalue().isascii() and "---" in terminal.getvalue() and "loss nan" in terminal.getvalue()


def test_line_never_exceeds_the_width():
    parts = [(0, "step 1/2"), (2, "b" * 10), (1, "c" * 10)]
    for width in range(2, 60):
        terminal = Terminal()
        console = rich_console(terminal)
        console.width = width
        console.print(Line(lambda: (parts, 0.5)))
        lines = terminal.screen()
        assert len(lines) <= 2 and len(lines[0]) < width
        if width == 21:
            assert lines[0] == "step 1/2  cccccccccc"


def test_counting_shows_how_many_are_done_and_goes_at_the_end():
    clock, terminal = Clock(), Terminal()
    seen = []
    with counting(1000, "sentences", stream=terminal, clock=clock) as report:
        seen += terminal.screen()
        for now, done in ((10.0, 100), (12.0, 500), (20.0, 1000)):
            clock.now = now
            report(done, 1000)
            seen += terminal.screen()
    start, first, half, end = seen
    assert re.fullmatch("0 of 1,000 sentences  [━╸╺]+", start)
    assert re.fullmatch("100 of 1,000 sentences  [━╸╺]+", first)
    assert re.fullmatch(r"500 of 1,000 sentences  [━╸╺]+  200.0 sentences/s  0:03 left", half)
    assert end.startswith("1,000 of 1,000 sentences")
    assert terminal.screen() in ([""], ["", ""])
    for stream, total in ((io.StringIO(), 1000), (Terminal(), 0)):
        with counting(total, "sentences", stream=stream) as report:
            assert report is None
        assert stream.getvalue() == ""


def test_counting_starts_anew_for_another_noun():
    clock, terminal = Clock(), Terminal()
    with counting(10, "rows", stream=terminal, clock=clock) as report:
        report(10, 10)
        clock.now = 50.0
        report(2, 8, noun="outputs")
        assert re.fullmatch("2 of 8 outputs  [━╸╺]+", terminal.screen()[0])
        clock.now = 52.0
        report(4, 8, noun="outputs")
        assert re.fullmatch("4 of 8 outputs  [━╸╺]+  1.0 outputs/s  0:04 left", terminal.screen()[0])


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_an_evaluation_is_shown_until_the_next_step(stream):
    clock, stream = Clock(), stream()
    with progress_on(stream, 4, 0, clock) as progress:
        progress.update(2, loss=1.0)
        for done in (1, 2, 3):
            clock.now += 10.0
            progress.evaluating(done, 3, noun="outputs")
            assert f"step 2/4  evaluated {done} of 3 outputs" in stream.getvalue() or isinstance(stream, Terminal)
            shown = stream.screen()[-1] if isinstance(stream, Terminal) else stream.getvalue()
            assert f"evaluated {done} of 3 outputs  loss 1.0000" in shown
        clock.now += 10.0
        progress.update(3, loss=0.5)
        shown = stream.screen()[-1] if isinstance(stream, Terminal) else stream.getvalue().splitlines()[-1]
        assert "evaluated" not in shown and "loss 0.5000" in shown


def test_numbers_and_durations():
    numbers = [short_number(x) for x in (7, 999, 999.9, 1234, 99_960, 12_345_678, 2.5e9, float("inf"))]
    assert numbers == ["7", "999", "1.00k", "1.23k", "100k", "12.3M", "2.50G", "inf"]
    assert [duration(x) for x in (-1, 42.4, 723, 11279, 187800)] == ["0:00", "0:42", "12:03", "3:07:59", "2 d 04:10"]
