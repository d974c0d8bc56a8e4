"""Lines of sources and outputs: line ends, prefixes, several outputs, and atomic files."""

import os

import pytest

from lm.config import Config
from lm.data.reading.format import Files
from lm.decoding.lines import in_one_line, output_lines, prefix_of, read_lines, source_text, whole_file
from lm.errors import UserError
from lm.tasks import task_of


def config(*prefixes, objective="seq2seq", **cleaning):
    train = {
        f"s{number}": {"kind": "text", "path": "a", "document": "line", "target_path": "b", "prefix": prefix}
        for number, prefix in enumerate(prefixes)
    }
    if objective != "seq2seq":
        train = {"docs": {"kind": "embedded"}}
    return Config.from_dict(
        {
            "data": {"train": train, "cleaning": cleaning, "tokenizer": {"extra_ids": 100}},
            "model": {"family": "encoder_decoder"},
            "objective": {"name": objective},
        }
    )


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"\n", [""]),
        (b"a\n\nb\r\n", ["a", "", "b"]),
        ("é\u2028xy\x0b\n\n".encode(), ["é\u2028xy\x0b", ""]),
    ],
)
def test_only_line_feeds_end_a_line_of_input(tmp_path, content, lines):
    (tmp_path / "in").write_bytes(content)
    assert read_lines(str(tmp_path / "in"), "input") == lines


def test_unreadable_input_is_rejected(tmp_path):
    (tmp_path / "in").write_bytes(b"a\nb\xe9\n")
    with pytest.raises(UserError, match=r"--input=.*/in: the text is not valid utf-8 at line 2, byte 3: .* convert it"):
        read_lines(str(tmp_path / "in"), "input")
    with pytest.raises(UserError, match=r"--input=.* cannot be read: Is a directory"):
        read_lines(str(tmp_path), "input")


def test_named_pipe_and_device_are_refused_but_standard_input_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # it has no writer, so opening it would block forever
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match=f"--input={path} is a named pipe, a socket or a device; copy its content"):
            read_lines(str(path), "input")
    with pytest.raises(UserError, match="pipe is a named pipe, a socket or a device"):
        Files(str(tmp_path / "pipe"))
    reader, writer = os.pipe()  # as in --input=<(command)
    os.write(writer, b"one\ntwo\n")
    os.close(writer)
    assert read_lines(f"/dev/fd/{reader}", "input") == ["one", "two"]
    os.close(reader)


def test_default_prefix_is_the_one_of_all_training_data():
    assert prefix_of(config("x: ", "x: ")) == "x: "
    assert prefix_of(config("", objective="span_corruption")) == ""
    with pytest.raises(UserError, match=r"--prefix is missing: .*'x: ' \(s0, s2\), '' \(s1\); choose"):
        prefix_of(config("x: ", "", "x: "))


def test_source_is_cleaned_before_it_gets_its_prefix():
    seq2seq = config("", whitespace="collapse", strip_html=True)

    def read(config, prefix, text):
        return source_text(prefix, task_of(config).clean_source(config, text))

    assert read(seq2seq, "  x:  ", " a  <b>b</b> ") == "  x:  a b"
    assert read(seq2seq, "x: ", " <br> ") is None
    assert read(config("", objective="infilling", whitespace="collapse"), "", " a  b ") == " a  b "


def test_one_line_per_source_or_per_output():
    outputs = {1: [("a\nb\tc", "-1"), ("d", "-2")], 3: [("e\r\n\u2028f\n", "-0.5")]}
    assert list(output_lines(4, outputs, several=False)) == ["a b c", "", "e  f", ""]
    several = ["1\t-1\ta b c", "1\t-2\td", "2\t0\t", "3\t-0.5\te  f", "4\t0\t"]
    assert list(output_lines(4, outputs, several=True)) == several
    assert in_one_line("\x0b\x0c\x1c\x85") == "   "


def test_file_replaces_the_old_one_at_once(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "out").symlink_to("real")
    with whole_file(str(tmp_path / "out"), "output") as write:
        assert (tmp_path / "out").read_text() == "old"
        write(["é", ""])
    assert (tmp_path / "real").read_bytes() == "é\n\n".encode() and (tmp_path / "out").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["out", "real"]


def test_old_file_stays_after_an_error(tmp_path):
    def lines():
        yield "new"
        raise RuntimeError

    (tmp_path / "out").write_text("old")
    with pytest.raises(RuntimeError), whole_file(str(tmp_path / "out"), "output") as write:
        write(lines())
    assert (tmp_path / "out").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_unwritable_output_is_rejected_before_the_work(tmp_path):
    for path, message in (
        (tmp_path / "no" / "out", " cannot be written: No such file"),
        (tmp_path, " is not a file"),
        ("/dev/null", " is not a file"),
    ):
        with pytest.raises(UserError, match=f"--output={path}{message}"), whole_file(str(path), "output"):
            raise AssertionError("not reached")
