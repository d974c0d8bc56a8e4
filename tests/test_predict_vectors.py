"""`python -m lm.predict --pooling`: the vectors of texts, for models of tasks that predict text and of others."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.batch import Batch, Source
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import defaults, source
from lm.models import build_model
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of
from tests.test_predict_command import save_untrained

TEXTS = ["the lazy dog", "a", "", "seven wizards brew a quick brown fox over the fence", "Ähnlich"]
CASES = {
    "causal": ("causal", "decoder", {}),
    "masked": ("masked", "encoder", {"model.token_types": 2, "data.tokenizer.extra_ids": 1}),
    "seq2seq": ("seq2seq", "encoder_decoder", {"data.source_length": 24, "data.cleaning.whitespace": "collapse"}),
    "contrastive": ("contrastive", "encoder", {"model.pooling": "first"}),
    "tagging": ("tagging", "encoder", {"data.labels": ("O", "B-X")}),
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("vectors"), {}
    (folder / "texts.txt").write_text("\n".join(TEXTS * 10) + "\n")
    (folder / "pairs.tsv").write_text("one\tother\n" + "a b\tc d\n" * 40)
    (folder / "tags.conll").write_text("a O\nb B-X\n\n" * 40)
    (folder / "input.txt").write_text("\n".join(TEXTS) + "\n")

    def of(case):
        if case not in made:
            objective, family, changes = CASES[case]
            values = defaults()
            for split in ("train", "valid"):
                values.data[split].s = {
                    "seq2seq": source(kind="tsv", path=f"{folder}/pairs.tsv", field="one", target_field="other"),
                    "contrastive": source(kind="tsv", path=f"{folder}/pairs.tsv", field="one", target_field="other"),
                    "tagging": source(kind="conll", path=f"{folder}/tags.conll"),
                }.get(objective, source(path=f"{folder}/texts.txt", document="line"))
            values.objective.name, values.model.family = objective, family
            values.data.cache_dir = str(tiny.cache)
            values.update_from_flattened_dict(changes)
            save_untrained(folder / case, values, num_layers=2, scan_layers=case == "causal")
            made[case] = folder / case
        return SimpleNamespace(root=made[case], input=folder / "input.txt")

    return of


def model_of(root):
    config = RunDirectory.existing(root).load_config()
    with Checkpoints(root / "checkpoints", read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(None, 1)
    return config, build_model(config.model, task_of(config).head(config)), {"params": params}


def alone(config, root, text):
    """Returns a batch that holds a text, which is also its own paired text, and padding, so that all have one shape."""
    tokenizer, is_source = load_tokenizers(config, root).source, config.objective.name == "seq2seq"
    longest = config.data.source_length if is_source else config.data.sequence_length
    ids = tokenizer.encode(text)[: longest - 2 + is_source]
    tokens = [*([] if is_source else [tokenizer.bos_id]), *ids, tokenizer.eos_id]
    row = np.zeros((1, longest), np.int32)
    row[0, : len(tokens)] = tokens
    segments = (np.arange(longest) < len(tokens)).astype(np.int32)[None]
    same = Source(row, np.arange(longest, dtype=np.int32)[None] * segments, segments)
    return Batch(row, row, np.ones(row.shape, np.float32), same.positions, same.segments, source=same)


def token_vectors(root, layer, texts=TEXTS):
    """Yields the vectors (T, D) of the tokens of each text, computed without any other text."""
    config, model, variables = model_of(root)
    vectors_of = jax.jit(lambda batch: model.token_vectors(variables, batch, layer))
    for text in texts:
        batch = alone(config, root, text)
        yield np.asarray(vectors_of(batch))[0, : int(batch.segments.sum())]


POOLED = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "mean": lambda x: x.mean(axis=0),
    "max": lambda x: x.max(axis=0),
}


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize(
    ("case", "pooling", "layer"),
    [
        ("causal", "last", None),
        pytest.param("causal", "max", 1, marks=pytest.mark.exhaustive),
        pytest.param("masked", "first", -1, marks=pytest.mark.exhaustive),
        pytest.param("masked", "mean", 0, marks=pytest.mark.exhaustive),
        pytest.param("seq2seq", "mean", None, marks=pytest.mark.exhaustive),
        pytest.param("seq2seq", "first", -2, marks=pytest.mark.exhaustive),
        pytest.param("tagging", "max", 2, marks=pytest.mark.exhaustive),
    ],
)
def test_vectors_are_pooled_from_those_of_the_tokens(runs, call, case, pooling, layer):
    run = runs(case)
    flags = [] if layer is None else [f"--layer={layer}"]
    outcome = call("lm.predict", f"--workdir={run.root}", f"--input={run.input}", f"--pooling={pooling}", *flags)
    assert outcome.status == 0, outcome.stderr
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    of_tokens = token_vectors(run.root, {None: 2, -1: 2, -2: 1}.get(layer, layer))
    expected = [POOLED[pooling](each) for each in of_tokens]
    np.testing.assert_allclose([line["vector"] for line in lines], expected, rtol=1e-4, atol=1e-5)
    setting = "source_length=24" if case == "seq2seq" else "sequence_length=32"
    assert f"note: 1 of 5 texts are truncated (data.{setting})" in outcome.stderr


def test_arrays_hold_the_vectors_of_the_lines(runs, call, tmp_path):
    run = runs("causal")
    flags = f"--workdir={run.root}", f"--input={run.input}", "--pooling=mean", "--normalize"
    lines = [json.loads(line) for line in call("lm.predict", *flags).stdout.splitlines()]
    outcome = call("lm.predict", *flags, f"--output={tmp_path / 'x.npy'}")
    assert outcome.stdout.startswith(f"written: {tmp_path / 'x.npy'}, 5 predictions in "), outcome.stderr
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert found.shape == (5, 16) and found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([line["vector"] for line in lines], np.float32))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-6)


def test_vectors_of_a_contrastive_model_are_those_that_it_compares(runs, call):
    run = runs("contrastive")
    outcome = call("lm.predict", f"--workdir={run.root}", *(f"--text={text}" for text in TEXTS))
    found = [json.loads(line)["vector"] for line in outcome.stdout.splitlines()]
    config, model, variables = model_of(run.root)
    apply = jax.jit(lambda batch: model.apply(variables, batch))
    outputs = [apply(alone(config, run.root, text)) for text in TEXTS]
    np.testing.assert_allclose(found, [output.embedding[0] for output in outputs], rtol=1e-4, atol=1e-6)


def test_prefix_is_put_before_the_cleaned_text(runs, call):
    run = runs("seq2seq")
    flags = f"--workdir={run.root}", "--pooling=mean"
    first = json.loads(call("lm.predict", *flags, "--prefix=to: ", "--text= a  b ").stdout)
    (expected,) = token_vectors(run.root, 2, ["to: a b"])
    assert first["text"] == "a b"
    np.testing.assert_allclose(first["vector"], expected.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "flags", "message"),
    [
        ("causal", ["--text=a"], "predicts no labels; write vectors with --pooling=mean, or generate text with lm.gen"),
        ("masked", ["--text=a"], "predicts no labels; write vectors with --pooling=mean."),
        (
            "causal",
            ["--text=a", "--pooling=first"],
            "--pooling=first: the first token of a decoder sees no other token",
        ),
        ("causal", ["--text=a", "--pooling=sum"], "--pooling"),
        ("seq2seq", ["--text=a", "--pooling=max", "--layer=-4"], "--layer=-4: the model has 2 layers"),
    ],
)
def test_flags_that_do_not_fit_are_refused(runs, refused, case, flags, message):
    refused(message, "lm.predict", f"--workdir={runs(case).root}", *flags)
