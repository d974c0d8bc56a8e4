"""The output of `lm.data.show`, read back."""

import io

from rich.console import Console

from lm.config import Config, defaults, source
from lm.data import show
from lm.runs.prepare import prepare


def printed(tmp_path, width=100, **options):
    (tmp_path / "text.txt").write_text("".join(f"ab cd {i}\n" for i in range(300)))
    values = defaults()
    values.data.train.mine = source(path=str(tmp_path / "text.txt"), document="line")
    values.data.tokenizer.kind = "characters"
    values.data.sequence_length = 40
    return shown(values, tmp_path, width, **options)


def shown(values, tmp_path, width, **options):
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


def test_targets_are_shown_below_the_inputs_that_predict_them(tmp_path):
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


def printed_pairs(tmp_path, width=4000, **options):
    (tmp_path / "text.tsv").write_text("".join(f"ab {i}\tCD {i} CD\n" for i in range(200)))
    values = defaults()
    values.data.train.mine = source(
        kind="tsv", path=str(tmp_path / "text.tsv"), columns="en,de", field="en", target_field="de"
    )
    values.objective.name, values.model.family = "seq2seq", "encoder_decoder"
    values.data.tokenizer.kind = "characters"
    values.data.separate_vocabularies, values.model.share_embeddings = True, False
    values.data.sequence_length, values.data.source_length = 40, 30
    return shown(values, tmp_path, width, **options)


def test_sources_of_pairs_are_shown_above_their_targets(tmp_path):
    _, text = printed_pairs(tmp_path, num_batches=1, num_rows=2, most_lines=9)
    lines = text.splitlines()
    stores = [line.split() for line in lines if "mine/" in line]
    assert [line[:2] for line in stores] == [
        [split, f"mine/{side}"] for split in ("train", "valid") for side in ("source", "target")
    ]
    assert len({line[2] for line in stores[:2]}) == 1, "both sides have as many documents"
    begins = [i for i, line in enumerate(lines) if line.startswith("source  ")]
    assert len(begins) == 2 and "30 + 40 tokens" in text and ", packed row 0" in text
    for i in begins:
        assert lines[i + 1].startswith("reads  ") and lines[i + 2].startswith("predicts ")
        read, target = (
            [each.replace(" ", "").replace("␣", " ") for each in line[9:].split("|")[1:]] for line in lines[i : i + 2]
        )
        predicted = lines[i + 2][9:].split("|")[1:]
        assert len(read) == len(target) == len(predicted) > 1
        for one, other, last in zip(read, target, predicted, strict=True):
            number = one.removesuffix("<eos>").split()[1]
            assert (one, other) == (f"ab {number}<eos>", f"<bos>CD {number} CD"), "the same pair on both sides"
            assert last.split()[-1] == "<eos>" and show.NOT_SCORED not in last


def test_long_sources_are_clipped_independently(tmp_path):
    _, text = printed_pairs(tmp_path, width=40, num_batches=1, num_rows=1, most_lines=1)
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("source  "))
    assert "more tokens" in lines[first + 1] and lines[first + 2].startswith("reads")
    assert "more tokens" in lines[first + 4]


def test_masked_tokens_are_shown_below_the_inputs_that_replace_them(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"ab cd {i} {'ef' * (i % 5)}\n" for i in range(300)))
    values = defaults()
    values.data.train.mine = source(path=str(tmp_path / "text.txt"), document="line")
    values.data.tokenizer.update(kind="characters", extra_ids=1)
    values.objective.update(name="masked", next_sentence=True, noise_density=0.3)
    values.model.family = "encoder"
    values.data.update(sequence_length=40, cache_dir=str(tmp_path / "cache"))
    found = prepare(Config.from_dict(values.to_dict()), tmp_path / "run")
    out = io.StringIO()
    show.show(Console(file=out, width=4000), found, num_batches=1, num_rows=32, most_lines=1)
    lines = out.getvalue().splitlines()
    labels, masks = [], 0
    for at in [i for i, line in enumerate(lines) if line.startswith("reads")]:
        # A column begins at a mark in the upper line, or at a space before a token.
        reads, predicts = lines[at], lines[at + 1].ljust(len(lines[at]))
        for column in range(len(reads)):
            if reads.startswith("<mask>", column):
                masks += 1
                assert predicts[column] not in "· "
            if reads.startswith("<eos>", column):
                assert predicts[column] == show.NOT_SCORED
            if reads.startswith("|<bos>", column):
                labels.append(predicts[column + 1 :].split("  ")[0].split(" ·")[0].strip())
    assert masks > 100 and {label.split(" ")[0] for label in labels} == {"other", "follows"}
    assert "<extra_id" not in out.getvalue() and "packed row 0" in out.getvalue()
