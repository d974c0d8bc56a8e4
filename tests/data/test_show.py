"""What `lm.data.show` prints, read back."""

import io

from rich.console import Console

from lm.config import Config, defaults, source
from lm.data import show
from lm.data.prepare import prepare


def printed(tmp_path, width=100, **options):
    (tmp_path / "text.txt").write_text("".join(f"ab cd {i}\n" for i in range(300)))
    values = defaults()
    values.data.train.mine = source(path=str(tmp_path / "text.txt"), document="line")
    values.data.tokenizer.kind = "characters"
    values.data.sequence_length = 40
    values.data.cache_dir = str(tmp_path / "cache")
    prepared = prepare(Config.from_dict(values.to_dict()), tmp_path / "run")
    out = io.StringIO()
    show.show(Console(file=out, width=width), prepared, **options)
    return prepared, out.getvalue()


def test_batches_and_stores_are_shown(tmp_path):
    prepared, text = printed(tmp_path, num_batches=2, num_rows=2, most_lines=9)
    lines = text.splitlines()
    assert next(line for line in lines if "mine" in line and "train" in line).split()[2] == str(
        prepared.stores["train"]["mine"].num_documents
    )
    assert sum(line.startswith("step ") for line in lines) == 2
    reads = [line for line in lines if line.startswith("reads")]
    assert len(reads) == 4
    assert "<eos>|<bos>" in text and "0.0% padding" in text and "␣" in text and "⏎" not in text
    assert max(map(len, lines)) <= 100


def test_targets_stand_under_the_inputs_that_predict_them(tmp_path):
    _, text = printed(tmp_path, num_batches=1, num_rows=1, most_lines=99, width=4000)
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("reads"))
    reads, predicts = lines[at][9:], lines[at + 1][9:].ljust(len(lines[at]) - 9)
    bos = reads.index("<bos>")
    assert predicts[bos] == "a", "the document's first character is predicted from its bos"
    end = reads.index("<eos>")
    assert predicts[end] == show.NOT_SCORED, "and nothing across a boundary"


def test_long_rows_are_clipped(tmp_path):
    _, text = printed(tmp_path, num_batches=1, num_rows=1, most_lines=1, width=50)
    assert "more tokens" in text and text.count("reads ") == 1
