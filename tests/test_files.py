"""Files that appear whole or not at all."""

import pytest

from lm.evaluation.predictions import Example, read_predictions, write_predictions
from lm.files import replacing


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_if_it_fails(tmp_path):
    path = tmp_path / "predictions.jsonl"
    good = [Example("a\u2028b", ("é", "f"), "g", -1.5)]
    write_predictions(path, good)
    with pytest.raises(AttributeError):
        write_predictions(path, [*good, None])
    assert read_predictions(path) == good and list(tmp_path.iterdir()) == [path]
