"""Files and directories appear whole or not at all."""

import json

import pytest

from lm.evaluation.predictions import Example, read_predictions, write_predictions
from lm.files import new_directory, parse_json, replacing


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
