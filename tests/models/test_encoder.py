"""Encoders: which tokens a token attends to, packing, padding, token types, layers with and without a window."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.models import build_model
from lm.models.heads import AnswerSpan, Classes
from lm.models.parameters import unstack_layers
from tests.models.small_encoders import (
    BERT,
    ENCODER,
    MASKED,
    MODERN,
    NEXT_SENTENCE,
    L,
    V,
    applied,
    random_params,
    rows_of,
    texts,
)

LABELS = dataclasses.replace(MODERN, num_layers=2, pooler=True)
SPAN = dataclasses.replace(ENCODER, positions="relative", relative_buckets=8, relative_max_distance=6)


@pytest.mark.parametrize(
    ("config", "head"),
    [(BERT, NEXT_SENTENCE), (LABELS, Classes(3, "mean")), (SPAN, AnswerSpan())],
    ids=["masked", "classes", "span"],
)
def test_packed_texts_have_the_logits_of_each_text_alone(config, head):
    """Compares the logits of every output head at every token."""
    (a, b, c), params = texts(5, 4, 3), random_params(config, head)
    packed = applied(config, head)(params, rows_of([[a, b, c], [b]]))
    alone = applied(config, head)(params, rows_of([[a], [b], [c], []], length=L + 4))
    assert packed.logits.std() > 0.1 and np.isfinite(alone.logits).all()
    for row, start, text in ((0, 0, a), (0, 5, b), (0, 9, c), (1, 0, b)):
        number = next(n for n, each in enumerate((a, b, c)) if each is text)
        pairs = (packed.logits, alone.logits), (packed.next_sentence_logits, alone.next_sentence_logits)
        for together, single in pairs:
            if together is not None:
                found, expected = together[row, start : start + len(text)], single[number, : len(text)]
                np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def reach(config, params, batch):
    """Returns bool (L, L): whether changing one token changes the output at another. `batch` has one row."""
    tokens = np.repeat(batch.tokens, L + 1, axis=0)
    tokens[np.arange(L), np.arange(L)] = (tokens[0] + 1) % V  # the last row is unchanged
    many = jax.tree.map(lambda x: np.repeat(x, L + 1, axis=0), batch)
    logits = np.asarray(applied(config)(params, dataclasses.replace(many, tokens=tokens)).logits)
    answers = np.abs(logits[:L] - logits[L:]).max(axis=-1).T
    assert not np.any((answers > 1e-5) & (answers < 1e-4)), "neither clearly changed nor unchanged"
    return answers > 1e-4


def test_a_token_sees_all_of_its_segment_and_nothing_else():
    batch = rows_of([texts(4, 6)])
    segments = batch.segments[0]
    expected = (segments[:, None] == segments[None]) & (segments > 0)
    np.testing.assert_array_equal(reach(BERT, random_params(BERT), batch)[:10, :10], expected[:10, :10])


def test_token_types_matter_and_default_to_zeros():
    batch = rows_of([texts(8)])

    def logits(types):
        return np.asarray(applied(BERT)(random_params(BERT), dataclasses.replace(batch, types=types)).logits[0, :8])

    zeros = logits(np.zeros_like(batch.types))
    assert (np.abs(logits(batch.types) - zeros).max(axis=-1) > 1e-2).all()
    np.testing.assert_allclose(logits(None), zeros, atol=1e-6)


def one_layer_attends(params, layer):
    """Returns stacked parameters in which only one layer's attention contributes."""
    attention = params["layers"]["attention"]
    kernel = attention["out"]["kernel"].copy()
    kernel[np.arange(len(kernel)) != layer] = 0
    layers = {**params["layers"], "attention": {**attention, "out": {"kernel": kernel}}}
    return {**params, "layers": layers}


@pytest.mark.parametrize("changes", [{}, {"scan_layers": False, "remat": "full"}], ids=["scanned", "unrolled, remat"])
def test_layer_number_decides_between_a_window_and_full_attention(changes):
    config, batch = dataclasses.replace(MODERN, **changes), rows_of([texts(L)])
    distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None])
    for layer, expected in enumerate((distance < L, distance < 3, distance < L, distance < 3)):
        params = one_layer_attends(random_params(MODERN), layer)
        found = reach(config, params if config.scan_layers else unstack_layers(params), batch)
        np.testing.assert_array_equal(found, expected, err_msg=f"layer {layer}")


def test_windows_of_successive_layers_add_up():
    config = dataclasses.replace(MODERN, num_layers=2, global_every=0)
    distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None])
    np.testing.assert_array_equal(reach(config, random_params(config), rows_of([texts(L)])), distance <= 4)


@pytest.mark.parametrize(
    ("changes", "answering"), [({"local_rotary_theta": 9.0}, (1, 3)), ({"rotary_theta": 9.0}, (0, 2))], ids=str
)
def test_local_layers_have_their_own_rotary_base(changes, answering):
    batch, other = rows_of([texts(L)]), dataclasses.replace(MODERN, **changes)
    for layer in range(4):
        params = one_layer_attends(random_params(MODERN), layer)
        one, two = (np.asarray(applied(config)(params, batch).logits) for config in (MODERN, other))
        assert (np.abs(one - two).max() > 1e-3) == (layer in answering), layer
        assert np.abs(one - two).max() < 1e-5 or layer in answering


def test_scanned_and_unrolled_layers_have_the_same_loss_and_gradients():
    """Both kinds of layers; one of the two models rematerialises its blocks in the backward pass."""
    scanned = dataclasses.replace(MODERN, num_layers=3, remat="dots")
    unrolled = dataclasses.replace(scanned, scan_layers=False, remat="none")
    batch, results = rows_of([texts(7, 4), texts(9)]), []
    for config in (scanned, unrolled):

        def loss(params, config=config):
            logits = build_model(config, MASKED).apply({"params": params}, batch, train=True).logits
            return (jax.nn.log_softmax(logits)[..., 5] * batch.weights).sum() / batch.weights.sum()

        value, gradients = jax.jit(jax.value_and_grad(loss))(random_params(config))
        results.append((value, unstack_layers(gradients) if config.scan_layers else gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), *results)
