"""Every output head compared with its closed form, from the output of the last layer, in all model families."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy.special import erf

from lm.config import ObjectiveConfig
from lm.models import build_model
from lm.models.heads import AnswerSpan, Classes, MaskedTokens, NextToken, TextEmbedding
from lm.models.parameters import count_parameters
from lm.tasks import TASKS
from tests.models.small_encoders import (
    BERT,
    ENCODER,
    NEXT_SENTENCE,
    D,
    V,
    applied,
    random_params,
    rows_of,
    source_of,
    texts,
)

FAMILIES = {
    "encoder": dataclasses.replace(ENCODER, num_layers=1, token_types=2),
    "decoder": dataclasses.replace(ENCODER, num_layers=1, family="decoder"),
    "encoder_decoder": dataclasses.replace(ENCODER, num_layers=1, family="encoder_decoder", num_encoder_layers=1),
}
SPANS = ((0, 0, 5), (0, 5, 4), (1, 0, 7))  # row, first token and length of each text
BATCH = rows_of([texts(5, 4), texts(7), []])


def last_layer(config, batch):
    """Returns float64 (B, L, D), the output of the last layer, which an identity output matrix copies to the logits."""
    config, head = dataclasses.replace(config, tie_embeddings=False, output_bias=False), NextToken()
    if config.family == "encoder_decoder":  # it reads the same text on both sides
        batch = dataclasses.replace(batch, source=source_of(batch))
    params = random_params(config, head) | {"output": {"kernel": np.eye(D, V, dtype=np.float32)}}
    return np.asarray(applied(config, head)(params, batch).logits, np.float64)[..., :D]


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_and_span_heads_match_their_closed_form(family):
    """Class logits come from the mean over a text; each token is scored as the start and the end of an answer."""
    config = FAMILIES[family]
    x = last_layer(config, BATCH)
    labels = dataclasses.replace(config, pooler=True), Classes(3, "mean")
    spans = dataclasses.replace(config, scan_layers=False), AnswerSpan()
    found, params = applied(*labels)(random_params(*labels), BATCH).logits, random_params(*labels)
    starts_and_ends, span = applied(*spans)(random_params(*spans), BATCH).logits, random_params(*spans)["span"]
    assert found.shape[-1] == 3 and starts_and_ends.shape[-1] == 2 and np.isfinite(found).all()
    for row, first, size in SPANS:
        here = slice(first, first + size)
        mean = x[row, here].mean(axis=0, keepdims=True)
        expected = linear(np.tanh(linear(mean, params["pooler"])), params["classifier"])
        assert_close(found[row, here], np.tile(expected, (size, 1)))
        assert_close(starts_and_ends[row, here], linear(x[row, here], span))


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_poolings_of_a_single_token_classify_every_token(pooling):
    config, head = FAMILIES["encoder"], Classes(4, pooling)
    params = random_params(config, head)
    found = applied(config, head)(params, BATCH).logits
    expected = linear(last_layer(config, BATCH), params["classifier"])
    for row, first, size in SPANS:
        assert_close(found[row, first : first + size], expected[row, first : first + size])


def test_pooler_has_its_own_activation_and_norm():
    config = dataclasses.replace(
        FAMILIES["encoder"], pooler=True, pooler_activation="relu", pooler_bias=False, pooler_norm=True
    )
    head = Classes(3, "first")
    params = random_params(config, head)
    h = np.maximum(last_layer(config, BATCH) @ params["pooler"]["kernel"], 0)
    h = (h - h.mean(axis=-1, keepdims=True)) / np.sqrt(h.var(axis=-1, keepdims=True) + config.norm_epsilon)
    h = h * params["pooler_norm"]["scale"] + params["pooler_norm"]["bias"]
    assert_close(applied(config, head)(params, BATCH).logits[0, :9], linear(h, params["classifier"])[0, :9])


@pytest.mark.parametrize("tied", [True, False])
def test_masked_head_and_next_sentence_head_match_their_closed_form(tied):
    """Devlin 2019: linear layer, GELU, LayerNorm, output matrix, bias; for next sentences, a pooler and two classes."""
    config = dataclasses.replace(BERT, num_layers=1, tie_embeddings=tied)
    params, x = random_params(config, NEXT_SENTENCE), last_layer(config, BATCH)
    h = linear(x, params["head_product"])
    h = h * (1 + erf(h / np.sqrt(2))) / 2
    h = (h - h.mean(axis=-1, keepdims=True)) / np.sqrt(h.var(axis=-1, keepdims=True) + config.norm_epsilon)
    h = h * params["head_norm"]["scale"] + params["head_norm"]["bias"]
    matrix = params["token_embedding"]["embedding"].T if tied else params["output"]["kernel"]
    expected = h @ matrix + params["output_bias"]["bias"]
    pairs = linear(np.tanh(linear(x, params["pooler"])), params["next_sentence"])
    found = applied(config, NEXT_SENTENCE)(params, BATCH)
    for row, first, size in SPANS:
        here = slice(first, first + size)
        assert_close(found.logits[row, here], expected[row, here])
        assert_close(found.next_sentence_logits[row, here], pairs[row, here])


def paired_batch():
    """Returns a batch of two pairs of texts and a row of padding."""
    a, b, c, d = texts(5, 7, 6, 3)
    return dataclasses.replace(rows_of([[a], [b], []]), source=source_of(rows_of([[c], [d], []])), types=None)


@pytest.mark.parametrize(("family", "pooling"), [("encoder", "first"), ("decoder", "last"), ("encoder", "mean")])
def test_embedding_head_returns_a_unit_vector_for_each_of_two_paired_texts(family, pooling):
    batch, config, head = paired_batch(), FAMILIES[family], TextEmbedding(pooling)
    output = applied(config, head)(random_params(config, head), batch)
    source = batch.source
    paired = dataclasses.replace(batch, tokens=source.tokens, positions=source.positions, segments=source.segments)
    for found, side, sizes in ((output.embedding, batch, (5, 7)), (output.paired_embedding, paired, (6, 3))):
        x = last_layer(config, dataclasses.replace(side, source=None))
        for row, size in enumerate(sizes):
            vector = {"first": x[row, 0], "last": x[row, size - 1], "mean": x[row, :size].mean(axis=0)}[pooling]
            assert_close(found[row], vector / np.linalg.norm(vector))
        assert found.shape == (3, D) and np.isfinite(found).all()


def test_a_row_of_padding_changes_no_gradient():
    """The mean over no tokens has no direction, but must not make the gradient NaN."""
    config, head, batch = FAMILIES["encoder"], TextEmbedding("mean"), paired_batch()
    objective = ObjectiveConfig(name="contrastive", temperature=0.5)

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            output = build_model(config, head).apply({"params": params}, batch)
            return TASKS[objective.name].loss(output, batch, objective).loss

        return jax.grad(loss)(params)

    with_padding = gradient(random_params(config, head), batch)
    without = gradient(random_params(config, head), jax.tree.map(lambda x: x[:2], batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), with_padding, without)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(without)) > 1e-2


BODIES = {
    "encoder": {"token_embedding", "type_embedding", "layers", "final_norm"},
    "decoder": {"token_embedding", "layers", "final_norm"},
    "encoder_decoder": {"token_embedding", "encoder", "decoder"},
}
MASKED = {"head_transform": True, "output_bias": True, "tie_embeddings": False}
BERT_HEADS = {"head_product", "head_norm", "output_bias", "output", "pooler", "next_sentence"}
HEADS = [
    (MaskedTokens(), {}, set()),
    (NEXT_SENTENCE, MASKED, {"head_product", "head_norm", "output_bias", "output", "pooler", "next_sentence"}),
    (
        NEXT_SENTENCE,
        MASKED | {"use_bias": False},
        {"head_product", "head_norm", "output_bias", "output", "pooler", "next_sentence"},
    ),
    (Classes(5, "first"), {}, {"classifier"}),
    (Classes(5, "first"), {"pooler": True, "use_bias": False}, {"classifier", "pooler"}),
    (
        Classes(5, "mean"),
        {"pooler": True, "pooler_bias": False, "pooler_norm": True},
        {"classifier", "pooler", "pooler_norm"},
    ),
    (Classes(5, "last"), {"classifier_bias": False}, {"classifier"}),
    (NextToken(), {"embedding_width": 6, "output_bias": True}, {"output_projection", "output_bias"}),
    (NextToken(), {"embedding_width": 6, "tie_embeddings": False}, {"output"}),
    (MaskedTokens(), {"head_transform": True, "embedding_width": 6}, {"head_product", "head_norm"}),
    (AnswerSpan(), {"tie_embeddings": False, "pooler": True}, {"span"}),
    (AnswerSpan(), {"answer_pooler": True, "pooler_norm": True}, {"span", "pooler", "pooler_norm"}),
    (TextEmbedding("mean"), {}, set()),
]


@pytest.mark.parametrize(("head", "changes", "names"), HEADS, ids=range(len(HEADS)))
def test_parameters_have_their_names_and_are_counted_exactly(head, changes, names):
    for family, body in BODIES.items():
        config = dataclasses.replace(FAMILIES[family], **changes)
        if (isinstance(head, MaskedTokens) and family != "encoder") or (head.texts_per_row == 2 and "_" in family):
            continue
        model = build_model(config, head)
        params = nn.unbox(jax.eval_shape(lambda key, model=model: model.initial_params(key), jax.random.key(0)))
        projected = {"embedding_projection"} if config.embedding_width and family != "encoder_decoder" else set()
        assert set(params) == body | names | projected
        assert model.parameter_counts().total == count_parameters(params), family
