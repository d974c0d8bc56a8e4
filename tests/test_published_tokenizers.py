"""Runs with the tokenizers of published models: training, resuming, evaluation and generation."""

import json
import shutil

import numpy as np
import pytest

from lm.data.packing.rows import RowLayout
from lm.runs.prepare import prepare
from lm.tasks import task_of
from tests.data.tokenizing.published import FAMILIES
from tests.run_helpers import config_of, train_here

FEW = {"train__num_steps": 2, "optimizer__warmup_steps": 0, "optimizer__decay_steps": 2, "eval__every_steps": 2}


def published(folder, name):
    """Returns the settings of a tokenizer in a folder of its own."""
    path = FAMILIES[name].write(folder) / "tokenizer.json"
    return {"data__tokenizer__kind": "huggingface", "data__tokenizer__path": str(path)}


def first_batch(config, root):
    """Returns the tokenizer and eight training rows of a config."""
    prepared = prepare(config, root)
    task = task_of(prepared.config)
    rows = task.train_rows(prepared.config, prepared.tokenizer, prepared.stores["train"])
    return prepared.tokenizer, rows.rows(0, range(8))


def test_documents_of_a_tokenizer_without_bos_start_with_eos(tiny, tmp_path):
    tokenizer, batch = first_batch(config_of(tiny, **published(tmp_path / "qwen", "qwen")), tmp_path / "run")
    assert tokenizer.bos_id is None and tokenizer.eos_id == 2
    segments = list(zip(batch.tokens, batch.segments, batch.positions, strict=True))
    begins = [tokens[at] for tokens, segment, position in segments for at in np.flatnonzero(position == 0) if at]
    assert begins and set(begins) == {2}, "every document that begins within a row"
    assert {0, 1}.isdisjoint(batch.tokens.flat), "neither <|endoftext|> nor <|im_start|> occurs"


def test_pairs_have_the_special_tokens_of_bart(tiny_pairs, tmp_path):
    tokenizer, batch = first_batch(config_of(tiny_pairs, **published(tmp_path / "bart", "bart")), tmp_path / "run")
    for row in range(8):
        for number in range(1, batch.segments[row].max() + 1):
            target = batch.targets[row][batch.segments[row] == number].tolist()
            read = batch.tokens[row][batch.segments[row] == number].tolist()
            source = batch.source.tokens[row][batch.source.segments[row] == number].tolist()
            assert source[0] == target[0] == 0 and source[-1] == target[-1] == 2
            assert read == [2, *target[:-1]]
            assert tokenizer.decode(source).split() == tokenizer.decode(target).split()[::-1]


@pytest.mark.exhaustive
def test_run_without_bos_is_scored_resumed_and_continued(tiny, tmp_path, call):
    root, settings = tmp_path / "run", published(tmp_path / "qwen", "qwen")
    assert train_here(tiny, root, **{**FEW, **settings}) == 0
    found = json.loads((root / "eval/2/results.json").read_text())
    assert found["signatures"] == {
        "perplexity": "the first token of each document is predicted from EOS, since the tokenizer has no BOS token"
    }
    stored = json.loads((root / "tokenizer/tokenizer_info.json").read_text())["options"]["special"]
    assert (stored["bos"], stored["eos"], stored["other_stops"]) == (None, 2, [0])
    # The run directory holds all that is needed, so the folder of the tokenizer may change or vanish.
    shutil.rmtree(tmp_path / "qwen")
    assert train_here(tiny, root, **{**FEW, **settings, "train__num_steps": 4}) == 0
    for prompt in ("a quick", ""):
        outcome = call("lm.generate", f"--workdir={root}", f"--prompt={prompt}", "--max_new_tokens=5")
        assert outcome.status == 0, outcome.stderr


@pytest.mark.exhaustive
def test_run_with_the_tokenizer_of_bart_generates(tiny_pairs, tmp_path, call):
    root = tmp_path / "run"
    assert train_here(tiny_pairs, root, **{**FEW, **published(tmp_path / "bart", "bart")}) == 0
    (tmp_path / "in.txt").write_text("a b c\n\nd e\n")
    outcome = call("lm.generate", f"--workdir={root}", f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'out'}")
    assert outcome.status == 0, outcome.stderr
    lines = (tmp_path / "out").read_text().split("\n")
    assert len(lines) == 4 and lines[1] == ""
    shown = call("lm.data.show", f"--config={tiny_pairs.config}:{tiny_pairs.text}", "--n=1", f"--workdir={root}")
    assert shown.status == 0 and "<s>" in shown.stdout and "</s>" in shown.stdout, shown.stderr


def test_texts_and_pairs_of_roberta_are_framed_for_labelled_tasks(tiny_labels, tmp_path):
    tokenizer, batch = first_batch(config_of(tiny_labels, **published(tmp_path / "r", "roberta")), tmp_path / "run")
    layout = RowLayout(48)
    assert batch.tokens.shape[1] == layout.length
    for row in range(8):
        tokens = batch.tokens[row][batch.segments[row] == 1].tolist()
        assert tokens[0] == 0 and tokens[-1] == 2 and batch.weights[row][0] == 1
        assert tokenizer.text_template.fill(tokenizer.encode(tokenizer.decode(tokens)))[0].tolist() == tokens
