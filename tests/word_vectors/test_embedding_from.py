"""Models that start from a vector file: static, tuned and two-channel embeddings, coverage, and refusals."""

import numpy as np
import pytest

from lm.config import ModelConfig
from lm.data.vector_files import WRITERS
from lm.models import build_model
from lm.models.heads import Classes
from lm.models.parameters import count_parameters
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers
from tests.models.test_recurrent import batch_of, random_tokens
from tests.run_helpers import train_here
from tests.small_model import random_params
from tests.word_vectors.test_runs import params_of

CNN = {
    "model__architecture": "convolutional",
    "model__num_heads": 6,
    "model__num_layers": 6,
    "model__scan_layers": True,
    "model__d_model": 18,
    "model__embedding_width": 16,
    "data__tokenizer__kind": "words",
    "train__num_steps": 4,
    "optimizer__ema_decay": 0.0,
}
VARIANTS = {
    "tuned": {},
    "static": {"optimizer__freeze": ("token_embedding",)},
    "two channels": {"model__static_channel": True},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    values = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    with path.open("wb") as opened:
        WRITERS["word2vec"](opened, ["a", "x", "absent", "c"], values)
    return path, dict(zip(["a", "x", "absent", "c"], values, strict=True))


@pytest.mark.parametrize(
    "variant", ["two channels", *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("tuned", "static"))]
)
def test_kims_variants_train_what_they_should(tiny_labels, tmp_path, file, capsys, variant):
    path, vectors = file
    changes = CNN | VARIANTS[variant] | {"model__embedding_from": str(path)}
    assert train_here(tiny_labels, tmp_path / "run", **changes) == 0
    assert train_here(tiny_labels, tmp_path / "random", **CNN, optimizer__learning_rate=0.0) in (0, 1)
    assert "token_embedding: 3 of 6 words (50.0%) have vectors of 16 values" in capsys.readouterr().out
    run = RunDirectory.existing(tmp_path / "run")
    tokenizer, params = load_tokenizers(run.load_config(), run.root).target, params_of(tmp_path / "run")
    kept = {word: token for token, word in enumerate(tokenizer.vocabulary, start=4)}
    table = params["static_embedding" if "static_embedding" in params else "token_embedding"]["embedding"]
    close = (
        np.testing.assert_array_equal
        if variant != "tuned"
        else lambda x, y: np.testing.assert_allclose(x, y, atol=0.01)
    )
    for word in ("a", "x", "c"):
        close(table[kept[word]], vectors[word])
    if variant == "static":
        assert set(params) == {"token_embedding", "classifier", "filters_3", "filters_4", "filters_5"}
    else:
        assert np.abs(params["token_embedding"]["embedding"][kept["x"]] - vectors["x"]).max() > 1e-5, "trained"
    if variant == "two channels":
        others = [token for word, token in kept.items() if word not in vectors]
        np.testing.assert_allclose(table[others], params["token_embedding"]["embedding"][others], atol=0.01)


def test_each_filter_reads_both_channels():
    config = ModelConfig(
        architecture="convolutional", family="encoder", vocab_size=19, max_length=9, d_model=4, filter_widths=(1, 2)
    )
    two = ModelConfig(**{**vars(config), "static_channel": True, "embedding_width": 4})
    model = build_model(two, Classes(3, "first"))
    params = random_params(model, 0.5)
    assert model.parameter_counts().total == count_parameters(params)
    text = random_tokens(6)
    found = np.asarray(model.token_vectors({"params": params}, batch_of([[text]], 9), 1))[0, 0]
    both = np.concatenate([params[name]["embedding"] for name in ("token_embedding", "static_embedding")], axis=-1)
    wide = ModelConfig(**{**vars(config), "embedding_width": 8})
    single = {**params, "token_embedding": {"embedding": both}}
    del single["static_embedding"]
    expected = build_model(wide, Classes(3, "first")).token_vectors({"params": single}, batch_of([[text]], 9), 1)
    np.testing.assert_allclose(found, np.asarray(expected)[0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("message", "content", "changes"),
    [
        ("have 3 values, but model.embedding_width is 16; set it to 3", "a 1 2 3\n", []),
        ("there is no file", None, []),
        ("is empty", "", []),
        ("two channels need pre-trained vectors", None, ["model.embedding_from=", "model.static_channel=True"]),
    ],
)
def test_wrong_files_are_refused_before_anything_is_written(
    tiny_labels, tmp_path_factory, refused_settings, message, content, changes
):
    path = tmp_path_factory.mktemp("wrong") / "vectors.txt"
    if content is not None:
        path.write_text(content)
    given = [f"{name.replace('__', '.')}={value}" for name, value in CNN.items()]
    refused_settings(message, tiny_labels, [*given, f"model.embedding_from={path}", *changes])


def test_a_file_without_any_word_of_the_text_is_refused(tiny_labels, tmp_path, refused):
    (tmp_path / "v.txt").write_text("zebra " + "1 " * 16 + "\n")
    flags = tiny_labels.flags(tmp_path / "run", **CNN, model__embedding_from=tmp_path / "v.txt")
    refused("none of the 1 words in", "train.py", *flags)
