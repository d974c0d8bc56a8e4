"""The output of `lm.data.show` for labels, tags, answers and paired texts, read back token by token."""

import io
import itertools
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from lm.config import Config, defaults, source
from lm.data import show
from lm.runs.prepare import prepare
from lm.tasks.span_qa import NO_ANSWER


def printed(tmp_path, content, objective, num_rows=16, length=40, **fields):
    """Returns the printed lines."""
    (tmp_path / "data").write_text(content, encoding="utf-8")
    values = defaults()
    values.data.train.mine = source(path=str(tmp_path / "data"), **fields)
    values.objective.name = objective
    values.model.family = "encoder"
    values.data.tokenizer.kind = "characters"
    values.data.update(sequence_length=length, cache_dir=str(tmp_path / "cache"))
    if objective == "span_qa":
        values.data.context_overlap = 8
    values.train.batch_size = 16
    out = io.StringIO()
    prepared = prepare(Config.from_dict(values.to_dict()), tmp_path / "run")
    show.show(Console(file=out, width=4000), prepared, num_batches=1, num_rows=num_rows, most_lines=1)
    return out.getvalue().splitlines()


def columns(upper, lower):
    """Returns (token, text below it) pairs from two terminal lines, where an ideograph takes two columns."""
    upper, lower = ("".join(c + "\0" * (cell_len(c) - 1) for c in line[show.MARGIN :]) for line in (upper, lower))
    width = max(len(upper), len(lower)) + 1
    upper, lower = upper.ljust(width), lower.ljust(width)
    begins = [i for i in range(width - 1) if upper[i] in " |" and upper[i + 1] != " "]
    cells = []
    for begin, end in zip(begins, [*begins[1:], width], strict=True):
        cells.append(tuple(line[begin + 1 : end].replace("\0", "").strip() for line in (upper, lower)))
    return cells


def documents(lines):
    """Returns the columns of every document in every row."""
    found = []
    for upper, lower in itertools.pairwise(lines):
        if upper.startswith("reads"):
            for cell in columns(upper, lower):
                if cell[0] == "<bos>":
                    found.append([])
                found[-1].append(cell)
    return found


def text_of(document):
    return "".join(token for token, _ in document if not token.startswith("<")).replace("␣", " ")


def below(document):
    return [shown for _, shown in document if shown != show.NOT_SCORED]


def test_a_label_is_shown_below_the_token_that_predicts_it(tmp_path):
    content = "text\tlabel\n" + "".join(f"line {i}\t{('even', 'odd')[i % 2]}\n" for i in range(80))
    lines = printed(tmp_path, content, "classification", kind="tsv", label_field="label")
    assert any(line.startswith("train labels: even ") and ", odd " in line for line in lines)
    stores = next(line for line in lines if " train " in line and " mine " in line).split()
    assert stores[-1] == "none" and int(stores[2]) > 60
    found = documents(lines)
    assert len(found) > 40
    for document in found:
        number = int(text_of(document).removeprefix("line "))
        assert document[0] == ("<bos>", ("even", "odd")[number % 2]) and below(document) == [document[0][1]]


def test_numbers_are_shown_as_they_are(tmp_path):
    content = "text\tscore\n" + "".join(f"line {i}\t{i / 8}\n" for i in range(80))
    lines = printed(tmp_path, content, "regression", kind="tsv", label_field="score")
    assert not any("labels:" in line for line in lines)
    for document in documents(lines):
        assert below(document) == [f"{int(text_of(document).removeprefix('line ')) / 8:g}"] == [document[0][1]]


def test_a_tag_is_shown_below_the_first_token_of_its_word(tmp_path):
    content = "".join(f"Ann\tB-PER\nmet\tO\n北京\tB-LOC\n{i}\tO\n\n" for i in range(80))
    lines = printed(tmp_path, content, "tagging", kind="conll")
    found = documents(lines)
    assert len(found) > 20
    for document in found:
        tagged = [(token, shown) for token, shown in document if shown != show.NOT_SCORED]
        number = text_of(document).rpartition(" ")[2]
        assert tagged == [("A", "B-PER"), ("m", "O"), ("北", "B-LOC"), (number[0], "O")]


def test_the_ends_of_an_answer_are_labelled(tmp_path):
    articles = []
    for number in range(60):
        context = f"so {number} is it"
        answers = {0: [("it", len(context) - 2)], 1: [("s", 0)], 2: []}[number % 3]
        entry = {
            "id": str(number),
            "question": "?",
            "answers": [{"text": text, "answer_start": start} for text, start in answers],
        }
        articles.append({"title": str(number), "paragraphs": [{"context": context, "qas": [entry]}]})
    lines = printed(tmp_path, json.dumps({"data": articles}), "span_qa", kind="squad")
    kinds = set()
    for document in documents(lines):
        number = int(text_of(document).split()[1])
        wanted = {
            0: [("i", "start"), ("t", "end")],
            1: [("s", "start+end")],
            2: [("<bos>", NO_ANSWER)],
        }[number % 3]
        assert [cell for cell in document if cell[1] != show.NOT_SCORED] == wanted
        kinds.add(number % 3)
    assert kinds == {0, 1, 2}


def test_paired_texts_are_shown_above_each_other_and_nothing_is_predicted(tmp_path):
    content = "one\tother\n" + "".join(f"ab {i}\tCD {i}\n" for i in range(80))
    lines = printed(tmp_path, content, "contrastive", kind="tsv", field="one", target_field="other")
    pairs = [pair for pair in itertools.pairwise(lines) if pair[0].startswith("positive")]
    assert len(pairs) == 16 and not any(line.startswith("predicts") for line in lines)
    for positive, reads in pairs:
        one, other = (line[show.MARGIN :].replace(" ", "").replace("␣", " ") for line in (positive, reads))
        number = one.removesuffix("<eos>").split()[1]
        assert one == f"|<bos>ab {number}<eos>" and other == f"|<bos>CD {number}<eos>"


@pytest.mark.parametrize(("length", "shown"), [(16, True), (40, False)])
def test_notes_about_cut_texts_are_shown(tmp_path, length, shown):
    content = "text\tlabel\n" + "".join(f"a long line {i}{' ' * (i % 2)}\t{'ab'[i % 2]}\n" for i in range(80))
    lines = printed(tmp_path, content, "classification", length=length, kind="tsv", label_field="label")
    assert any("texts are truncated (data.sequence_length=16)" in line for line in lines) == shown
