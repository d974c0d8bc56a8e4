"""Word vectors in whole runs: continued to the bit, the same on every mesh, evaluated, exported and loaded."""

import json
import random

import numpy as np
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.data.vector_files import read_vectors
from lm.errors import UserError
from tests.run_helpers import assert_same_run, config_of, metrics, train_here

VECTORS = {
    "model__architecture": "word_vectors",
    "model__family": "encoder",
    "model__num_layers": 6,
    "model__num_heads": 6,
    "model__dropout": 0.0,
    "data__tokenizer__kind": "words",
    "objective__name": "skipgram",
    "objective__shared_negatives": 8,
    "objective__subsample": 0.0,
    "optimizer__name": "adagrad",
    "optimizer__weight_decay": 0.0,
    "optimizer__ema_decay": 0.0,
    "train__batch_size": 8,
    "train__num_steps": 16,
    "eval__prompts": ("",),
    "eval__every_steps": 8,
}
GLOVE = {"objective__name": "glove", "objective__shared_negatives": 32, "objective__subsample": 1e-3}
EXHAUSTIVE = pytest.mark.exhaustive
TASKS = {
    "skipgram": {"model__ngram_buckets": 50},
    "cbow": {"objective__name": "cbow"},
    "glove": GLOVE,
}


def params_of(root):
    with Checkpoints(root / "checkpoints", read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(None, None)
    return params


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    file.write_text("quick\tbrown\t3\nfox\tdog\t9\nlazy\twizards\t1\nfox\tabsent\t5\n")
    return file


@pytest.mark.parametrize("task", ["skipgram", *(pytest.param(each, marks=EXHAUSTIVE) for each in ("cbow", "glove"))])
def test_vectors_are_of_cleaned_words(tiny, tmp_path, task):
    words, draw = ["The", "Foxes", "fox", "and", "dogs", "Dog", "is", "RUN", "running"], random.Random(0)
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    text = {"data__train__text__path": str(tmp_path / "text.txt"), "data__train__text__document": "line"}
    clean = {f"data__cleaning__{name}": "english" for name in ("stop_words", "stem")}
    short = {"data__cleaning__lowercase": True, "train__num_steps": 2, "optimizer__warmup_steps": 0}
    assert train_here(tiny, tmp_path / "run", **VECTORS | TASKS[task] | text | clean | short) == 0
    assert sorted(json.loads((tmp_path / "run/tokenizer/words.json").read_text())) == ["dog", "fox", "run"]


@pytest.mark.parametrize(
    "task", ["skipgram", *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("cbow", "glove"))]
)
def test_a_stopped_run_continues_to_the_bit(tiny, tmp_path, pairs, task):
    changes = VECTORS | TASKS[task] | {"optimizer__schedule": "constant", "eval__word_pairs": str(pairs)}
    assert train_here(tiny, tmp_path / "straight", **changes) == 0
    assert train_here(tiny, tmp_path / "halves", **changes | {"train__num_steps": 8}) == 0
    assert train_here(tiny, tmp_path / "halves", **changes) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "halves")
    lines = metrics(tmp_path / "straight")
    if task == "glove":
        kept = config_of(tiny, **changes).checkpoint.best_metric
        assert kept == "valid/similarity" and config_of(tiny, **VECTORS | GLOVE).checkpoint.best_metric == ""
    losses = [line["valid/loss"] for line in lines if "valid/loss" in line]
    assert losses[-1] < losses[0] and all(-1 <= line["valid/similarity"] <= 1 for line in lines if "valid/loss" in line)


def test_the_last_step_of_glove_is_the_best_without_word_pairs(tiny, tmp_path, capsys):
    assert train_here(tiny, tmp_path / "run", **VECTORS | GLOVE) == 0
    shown = capsys.readouterr().out
    assert "Step 16 is the last.\n" in shown and "no finite value" not in shown


def test_glove_refuses_several_sources(tiny):
    config = config_of(tiny, **VECTORS | GLOVE).to_dict()
    (source,) = config["data"]["train"].values()
    config["data"]["train"] = {"one": source, "other": source}
    with pytest.raises(UserError, match="use one data source"):
        Config.from_dict(config, reset_unread=True)


def test_unknown_pairs_are_refused_before_training(tiny, tmp_path):
    (tmp_path / "pairs").write_text("fox\tdog\t9\nlazy\twizards\t9\nfox\tabsent\t5\n")
    with pytest.raises(UserError, match=r"config.eval.word_pairs: 2 of 3 pairs in .* both words"):
        train_here(tiny, tmp_path / "run", **VECTORS, eval__word_pairs=str(tmp_path / "pairs"))
    assert not (tmp_path / "run/checkpoints").exists()


def test_every_mesh_gives_the_same_vectors(tiny, tmp_path):
    changes = VECTORS | {
        "model__vocab_multiple": 2,
        "model__ngram_buckets": 50,
        "train__num_steps": 3,
        "optimizer__warmup_steps": 0,
    }
    for name, (data, fsdp, tensor) in {"replicas": (8, 1, 1), "split": (2, 2, 2)}.items():
        mesh = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
        assert train_here(tiny, tmp_path / name, **changes, **mesh) == 0
    one, other = params_of(tmp_path / "replicas"), params_of(tmp_path / "split")
    for name in one:
        np.testing.assert_allclose(one[name]["embedding"], other[name]["embedding"], atol=2e-5)


def test_vectors_are_evaluated_exported_examined_and_refused_for_text(tiny, tmp_path, call, refused, pairs):
    root, file = tmp_path / "run", tmp_path / "vectors.bin"
    assert train_here(tiny, root, **VECTORS, model__ngram_buckets=50) == 0
    assert call("eval.py", f"--workdir={root}").status == 0
    found = json.loads((root / "eval/16/results.json").read_text())["metrics"]
    assert 0 < found["task_loss"] < 6 * np.log(2) + 0.1 and 0 < found["pair_accuracy"] < 1
    outcome = call("lm.vectors", "export", f"--workdir={root}", f"--output={file}")
    assert outcome.status == 0 and "13 words, 16 values each" in outcome.stdout, outcome.stderr
    exported = read_vectors(file)
    own = params_of(root)["token_embedding"]["embedding"]
    assert len(exported.words) == 13 and not np.allclose(exported.vectors_VE, own[4:17]), "n-grams are included"

    outputs = [
        call("lm.vectors", "neighbours", f"--{flag}", "--words=fox,Dog", "--count=3").stdout.partition("\n")[2]
        for flag in (f"workdir={root}", f"file={file}")
    ]
    assert outputs[0] == outputs[1] and outputs[0].count("0.") >= 6
    outcome = call("lm.vectors", "similarity", f"--file={file}", f"--pairs={pairs}")
    assert "over 3 of 4 pairs" in outcome.stdout and "1 pairs were left out" in outcome.stdout, outcome.stderr
    (tmp_path / "questions").write_text(": animals\nquick fox lazy dog\nquick fox lazy cat\n")
    outcome = call("lm.vectors", "analogies", f"--file={file}", f"--questions={tmp_path / 'questions'}")
    assert "animals" in outcome.stdout and "1 questions were left out" in outcome.stdout, outcome.stderr
    outcome = call("lm.vectors", "picture", f"--file={file}", "--words=fox,dog,lazy", f"--output={tmp_path / 'p.png'}")
    assert outcome.status == 0 and (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG", outcome.stderr

    outcome = call("lm.vectors", "export", f"--file={file}", f"--output={tmp_path / 'v.bin.gz'}")
    assert "v.bin.gz (binary)" in outcome.stdout, outcome.stderr
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.bin.gz").vectors_VE, exported.vectors_VE)

    refused("generates no text", "lm.generate", f"--workdir={root}", "--prompt=a")
    refused("predicts no labels", "lm.predict", f"--workdir={root}", "--text=a")
    refused("cat: not in the vocabulary of 13 words", "lm.vectors", "neighbours", f"--file={file}", "--words=cat")
    refused("--pairs is missing", "lm.vectors", "similarity", f"--file={file}")
    refused("--count has no effect", "lm.vectors", "export", f"--file={file}", "--output=x", "--count=2")
    refused("this file is also the input", "lm.vectors", "export", f"--file={file}", f"--output={file}")
    refused("give either --workdir=RUN or --file=VECTORS", "lm.vectors", "export", "--output=x")


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (
            "does not support 'transformer'; choose word_vectors",
            ["model.architecture=transformer", "model.num_heads=4"],
        ),
        ("does not support 'word_vectors'", ["objective.name=masked", "objective.shared_negatives=32"]),
        ("word vectors need a multiple of 32, not 33", ["data.sequence_length=33"]),
        ("is not a range of lengths", ["model.ngram_buckets=5", "model.ngram_lengths=(4, 3)"]),
        ("GloVe has no character n-grams", ["objective.name=glove", "model.ngram_buckets=5"]),
        ("this setting is not read by model.architecture=word_vectors", ["model.dropout=0.1"]),
        ("this setting is not read by model.architecture=word_vectors", ["model.tie_embeddings=False"]),
        ("set eval.word_pairs, or leave this at 0", ["objective.name=glove", "train.patience=1"]),
        ("config.eval.word_pairs: absent.tsv cannot be read", ["eval.word_pairs=absent.tsv"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, refused_settings, message, change):
    given = {name.replace("__", "."): value for name, value in VECTORS.items()}
    given |= dict(each.split("=", 1) for each in change)
    if given["objective.name"] == "glove":
        given |= {"objective.shared_negatives": 32, "objective.subsample": 1e-3}
    elif given["objective.name"] == "masked":
        given |= {"objective.subsample": 1e-3, "data.tokenizer.extra_ids": 1}
    refused_settings(message, tiny, [f"{name}={value}" for name, value in given.items()])
