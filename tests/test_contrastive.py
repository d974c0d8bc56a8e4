"""Contrastive learning from a TSV of paired texts to the table of results: trained, resumed, scored."""

import json
import random
import shutil

import jax
import numpy as np
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.models import build_model
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers, prepare_split
from lm.tasks import task_of
from tests.conftest import Tiny
from tests.run_helpers import assert_same_run, checkpoints_of, metrics, train_here

CONFIG = """
from lm.config import defaults, source


def get_config(path):
    config = defaults()
    for split, part in (("train", path), ("valid", path.replace("train", "valid"))):
        config.data[split].words = source(kind="tsv", path=part, field="one", target_field="other")
    config.data.tokenizer.kind = "bytes"
    config.data.sequence_length = 16
    config.model.update(
        family="encoder", num_layers=1, d_model=16, num_heads=2, pooling="mean", dropout=0.1, scan_layers=False
    )
    config.objective.update(name="contrastive", temperature=0.1)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(num_steps=24, batch_size=16)
    config.checkpoint.update(every_steps=12, best_metric="valid/accuracy")
    config.eval.update(every_steps=12)
    config.log.update(every_steps=1, tensorboard=False)
    return config
"""


@pytest.fixture(scope="module")
def words(tiny, tmp_path_factory) -> Tiny:
    """Pairs of a word and the same letters in another order and in capitals."""
    folder, draw = tmp_path_factory.mktemp("words"), random.Random(0)
    for split, count in (("train", 200), ("valid", 40)):
        lines = ["one\tother"]
        for _ in range(count):
            letters = draw.choices("abcdefghij", k=draw.randint(3, 9))
            lines.append(f"{''.join(letters)}\t{''.join(draw.sample(letters, len(letters))).upper()}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "words.py").write_text(CONFIG)
    return Tiny(folder / "train.tsv", folder / "words.py", tiny.cache)


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    root = tmp_path_factory.mktemp("contrastive") / "run"
    assert train_here(words, root) == 0
    return root


def test_training_finds_paired_texts_better_than_chance(trained):
    measured = [line for line in metrics(trained) if "valid/loss" in line]
    assert [line["step"] for line in measured] == [12, 24]
    assert measured[-1]["valid/accuracy"] > 4 / 16, "chance is one in sixteen"
    assert measured[-1]["valid/loss"] < np.log(16), "the loss of chance"
    (path,) = trained.glob("eval/24/results.json")
    written = json.loads(path.read_text())["metrics"]
    assert set(written) == {"loss", "accuracy"}
    assert written == {name: measured[-1][f"valid/{name}"] for name in written}


@pytest.mark.exhaustive
def test_resumed_run_matches_uninterrupted_run(words, trained, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    shutil.rmtree(root / "checkpoints" / "24")
    assert train_here(words, root) == 0
    assert checkpoints_of(root) == [12, 24]
    assert_same_run(trained, root)


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_eval_metrics_follow_from_the_vectors(trained, call):
    """Compares eval.py with loss and accuracy computed here from each text's vector, in the same batches."""
    outcome = call("eval.py", f"--workdir={trained}", "--step=latest", "--split=train")
    assert outcome.status == 0, outcome.stderr
    assert "train, 200 examples in 200 rows" in outcome.stdout
    found = json.loads((trained / "eval" / "24" / "results-train.json").read_text())["metrics"]
    one, other = vectors(trained)
    loss = correct = 0.0
    for begin in range(0, 200, 16):
        scores = one[begin : begin + 16] @ other[begin : begin + 16].T / 0.1
        for each in (scores, scores.T):
            own = np.arange(len(each))
            loss += 0.5 * float(np.sum(np.log(np.exp(each).sum(axis=1)) - each[own, own]))
            correct += 0.5 * int(np.sum(each.argmax(axis=1) == own))
    assert found == {"loss": pytest.approx(loss / 200, rel=1e-4), "accuracy": correct / 200}


def vectors(root):
    config = RunDirectory.existing(root).load_config()
    task, tokenizers = task_of(config), load_tokenizers(config, root)
    rows = task.eval_rows(config, tokenizers.target, prepare_split(config, tokenizers, "train"))["words"]
    with Checkpoints(root / "checkpoints", read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(None, 24)
    output = jax.jit(build_model(config.model, task.head(config)).apply)(
        {"params": params}, rows.rows(list(range(200)))
    )
    return np.asarray(output.embedding, np.float64), np.asarray(output.paired_embedding, np.float64)


@pytest.mark.filterwarnings("ignore:the load_module")
def test_eval_of_single_texts_is_refused(trained, words, call):
    outcome = call("eval.py", f"--workdir={trained}", f"--text={words.text}")
    assert outcome.status == 1
    assert outcome.stderr == f"error: --text: {trained} needs pairs of texts; specify them in data.test of a config.\n"
