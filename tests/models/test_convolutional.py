"""The convolutional network: its definition, packing, costs, meshes and whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import ModelConfig
from lm.errors import UserError
from lm.models import build_model
from lm.models.heads import Classes, TextEmbedding
from lm.models.parameters import count_parameters
from tests.models.test_recurrent import batch_of, product_flops, random_tokens
from tests.run_helpers import assert_same_run, config_of, train_here
from tests.small_model import random_params

CONFIG = ModelConfig(
    architecture="convolutional",
    family="encoder",
    vocab_size=19,
    max_length=24,
    d_model=6,
    embedding_width=5,
    filter_widths=(1, 2, 4),
)
# Resets what the config of `tiny_labels` changes for the Transformer.
RUN = {
    "model__architecture": "convolutional",
    "model__num_heads": 6,
    "model__num_layers": 6,
    "model__scan_layers": True,
    "model__d_model": 18,
    "model__embedding_width": 16,
}


@pytest.fixture(scope="module")
def model_and_params():
    model = build_model(CONFIG, Classes(3, "first"))
    return model, random_params(model, 0.5)


def vector_by_hand(params, text):
    """Returns the features of a text, computed window by window."""
    x_LE = np.pad(params["token_embedding"]["embedding"][text], ((3, 3), (0, 0)))
    found = []
    for k in CONFIG.filter_widths:
        kernel_kEF = params[f"filters_{k}"]["kernel"].reshape(5, k, 2).swapaxes(0, 1)
        first = 3 - (k - 1) // 2
        windows = [x_LE[first + t : first + t + k] for t in range(len(text))]
        sums = [np.einsum("kE,kEF->F", window, kernel_kEF) + params[f"filters_{k}"]["bias"] for window in windows]
        found.append(np.maximum(np.max(sums, axis=0), 0))
    return np.concatenate(found)


def test_vectors_match_their_definition_for_each_text_of_a_row(model_and_params):
    model, params = model_and_params
    texts = [random_tokens(length, seed=length) for length in (7, 1, 3)]
    vectors_LD = np.asarray(model.token_vectors({"params": params}, batch_of([texts], 13), 1))[0]
    begin = 0
    for text in texts:
        expected = vector_by_hand(params, text)
        for vector in vectors_LD[begin : begin + len(text)]:
            np.testing.assert_allclose(vector, expected, atol=1e-5)
        begin += len(text)


def test_logits_are_those_of_a_linear_layer(model_and_params):
    model, params = model_and_params
    text = random_tokens(6)
    logits = model.apply({"params": params}, batch_of([[text]], 8)).logits[0, 0]
    expected = vector_by_hand(params, text) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_row_of_padding_gives_no_nan(model_and_params):
    model, params = model_and_params
    nothing = np.zeros((2, 4), np.int32)
    batch = Batch(nothing, nothing, nothing.astype(np.float32), positions=nothing, segments=nothing)
    gradients = jax.grad(lambda params: jnp.sum(model.apply({"params": params}, batch).logits))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_costs(model_and_params):
    model, params = model_and_params
    assert model.parameter_counts().total == count_parameters(params)
    batch = batch_of([[random_tokens(7)]], 7)
    jaxpr = jax.make_jaxpr(lambda params: model.apply({"params": params}, batch).logits)(params)
    assert model.flops_per_row(7).forward == product_flops(jaxpr.jaxpr)


def test_paired_texts_are_read_by_the_same_filters():
    model = build_model(CONFIG, TextEmbedding("mean"))
    params, (a, b) = random_params(model, 0.5), (random_tokens(5), random_tokens(5, seed=1))
    output = model.apply({"params": params}, batch_of([[a], [b]], 5, [[b], [a]], 5))
    np.testing.assert_allclose(output.embedding, output.paired_embedding[::-1], atol=1e-6)


@pytest.mark.exhaustive
def test_a_stopped_run_continues_to_the_bit_and_classifies(tiny_labels, tmp_path, call):
    """The runs use all devices of the test, so this also covers a sharded batch."""
    steps = {"train__num_steps": 8, "eval__every_steps": 4, "checkpoint__every_steps": 4}
    steps |= {"optimizer__warmup_steps": 0, "optimizer__schedule": "constant"}
    assert train_here(tiny_labels, tmp_path / "straight", **RUN, **steps) == 0
    assert train_here(tiny_labels, tmp_path / "halves", **RUN, **steps | {"train__num_steps": 4}) == 0
    assert train_here(tiny_labels, tmp_path / "halves", **RUN, **steps) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "halves")
    outcome = call("lm.predict", f"--workdir={tmp_path / 'straight'}", "--text=a quick")
    assert outcome.status == 0 and '"prediction": "is_' in outcome.stdout, outcome.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__d_model": 16}, r"config\.model\.d_model: 16 features cannot be divided among 3 filter widths"),
        ({"model__filter_widths": (3, 3)}, r"config\.model\.filter_widths: \(3, 3\) must consist of distinct"),
        ({"model__filter_widths": ()}, r"config\.model\.filter_widths: \(\) must consist of distinct"),
        ({"model__filter_widths": (3.5,)}, r"config\.model\.filter_widths: expected a tuple of whole numbers"),
        ({"model__use_bias": False}, r"config\.model\.use_bias: the filters .* always have a bias"),
        ({"model__num_layers": 2}, r"config\.model\.num_layers: .* not read by model.architecture=convolutional"),
        ({"optimizer__layer_decay": 0.5}, r"config\.optimizer\.layer_decay: a convolutional network has no layers"),
        ({"optimizer__freeze_layers": 1}, r"config\.optimizer\.freeze_layers: a convolutional network has no layers"),
        ({"model__family": "decoder"}, r"config\.model\.family: .* does not support 'decoder'; choose encoder"),
        ({"objective__name": "masked"}, r"config\.objective\.name: .* reads whole texts; choose .*classification"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_labels, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(tiny_labels, **RUN | changes)


def test_bfloat16_stays_close(model_and_params):
    model, params = model_and_params
    low = build_model(dataclasses.replace(CONFIG, dtype="bfloat16"), Classes(3, "first"))
    batch = batch_of([[random_tokens(9)]], 9)
    exact, found = (each.apply({"params": params}, batch).logits for each in (model, low))
    assert found.dtype == jnp.float32 and 0 < np.abs(exact - found).max() < 0.1
