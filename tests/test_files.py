"""Files and directories appear whole or not at all."""

import json
import os

import pytest

from lm.errors import UserError
from lm.evaluation.predictions import Example, read_predictions, write_predictions
from lm.files import new_directory, parse_json, remove_leftovers, replacing, storing, write_texts
from tests.run_helpers import file_size_limit


@pytest.mark.parametrize("durable", [False, True])
def test_file_appears_at_the_end_of_the_block(tmp_path, durable):
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path, durable=durable) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_old_file_stays_if_writing_fails(tmp_path):
    path = tmp_path / "predictions.jsonl"
    good = [Example("a\u2028b", ("é", "f"), "g", -1.5)]
    write_predictions(path, good)
    with pytest.raises(AttributeError):
        write_predictions(path, [*good, None])
    assert read_predictions(path) == good and list(tmp_path.iterdir()) == [path]


def test_directory_appears_at_the_end_of_the_block_and_only_if_the_path_is_free(tmp_path):
    path = tmp_path / "new" / "run"
    with new_directory(path) as temporary:
        (temporary / "a").write_text("whole")
        assert temporary.parent == path.parent and not path.exists()
    assert (path / "a").read_text() == "whole" and path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(FileExistsError), new_directory(path) as temporary:
        (temporary / "a").write_text("other")
    with pytest.raises(RuntimeError), new_directory(tmp_path / "new" / "half") as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (path / "a").read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_several_files_are_replaced_together_or_not_at_all(tmp_path):
    a, b = tmp_path / "a.md", tmp_path / "b.csv"
    write_texts({a: "old", b: "old"})
    with pytest.raises(UnicodeEncodeError):
        write_texts({a: "new", b: "\ud800"})
    assert a.read_text() == b.read_text() == "old" and sorted(tmp_path.iterdir()) == [a, b]


def test_leftovers_of_killed_processes_are_removed_and_others_stay(tmp_path):
    gone, running = 999_999_999, os.getppid()
    for name in (f".a.md.{gone}.tmp", f".b.md.{gone}.tmp", f".a.md.{running}.tmp", ".a.md.tmp", "a.tmp-backup"):
        (tmp_path / name).write_text("half")
    for name in (f"a.tmp-{gone}-abcd_123", f"a.tmp-{running}-abcd_123", "a.tmp-backup1"):
        (tmp_path / f"{name}").mkdir()
    with replacing(tmp_path / "a.md") as temporary:
        temporary.write_text("whole")
    kept = {".a.md.tmp", f".a.md.{running}.tmp", "a.tmp-backup", "a.tmp-backup1", f"a.tmp-{running}-abcd_123", "a.md"}
    names = {each.name for each in tmp_path.iterdir()}
    assert names == kept | {f".b.md.{gone}.tmp", f"a.tmp-{gone}-abcd_123"}
    remove_leftovers(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == kept


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / "results.md"
    path.write_text("old")
    with (
        file_size_limit(1000),
        pytest.raises(UserError, match=r"results.md cannot be written: File too large\. The previous"),
    ):
        with storing(path):
            write_texts({path: "x" * 2000})
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_of_any_depth_is_parsed_or_refused():
    for content in (
        '{"a": [1, {"b": null}], "c": "[[["}',
        b"\xef\xbb\xbf[0.5]",
        "[" * 100 + "1" + "]" * 100,
        "[" * 99 + "]" * 99,
    ):
        assert parse_json(content) == json.loads(content)
    wide = json.dumps([{"a": [i]} for i in range(1000)])
    assert parse_json(wide) == parse_json(wide.encode()) == json.loads(wide)
    for depth in (101, 300, 100_000):
        for begin, end in (("[", "]"), ('{"a":', "}")):
            with pytest.raises(ValueError, match="nested more than 100 levels deep"):
                parse_json(begin * depth + "1" + end * depth)
