"""Encoders and heads: what a token sees, packing and padding, windows, and every head by closed form."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import flops
from lm.batch import Batch, Source
from lm.config import ModelConfig
from lm.models.heads import pool
from lm.models.stack import unstack_layers
from lm.models.transformer import build_model, count_parameters, initial_params

V, D, L = 29, 16, 12
CONFIG = ModelConfig(
    family="encoder", head="masked", vocab_size=V, num_layers=2, d_model=D, num_heads=2, num_kv_heads=2, head_dim=8,
    d_ff=24, max_length=32, init_std=0.3,
)  # fmt: skip
BERT = dataclasses.replace(
    CONFIG, positions="learned", token_types=2, norm_position="post", norm_embeddings=True, head_transform=True,
    output_bias=True, pooler=True, pair_head=True,
)  # fmt: skip
MODERN = dataclasses.replace(
    CONFIG, norm="rmsnorm", use_bias=False, activation="geglu", window=3, global_every=2, local_rotary_theta=100.0,
)  # fmt: skip


@functools.cache
def random_params(config: ModelConfig) -> dict:
    """Norms and biases are random too, so that none of them can be left out unseen."""
    params = nn.unbox(initial_params(build_model(config), jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def batch_of(rows: list[list[np.ndarray]], length: int = L) -> Batch:
    """Rows of texts, each a segment; types are 1 in the second half of a text."""
    tokens, segments, positions, types = (np.zeros((len(rows), length), np.int32) for _ in range(4))
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts, start=1):
            here = slice(start, start + len(text))
            tokens[row, here], segments[row, here], positions[row, here] = text, number, np.arange(len(text))
            types[row, start + len(text) // 2 : start + len(text)] = 1
            start += len(text)
    return Batch(tokens, tokens, (segments > 0).astype(np.float32), positions, segments, types=types)


def texts(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(sizes))
    return [rng.integers(3, V, size).astype(np.int32) for size in sizes]


@functools.cache
def applied(config: ModelConfig):
    return jax.jit(lambda params, batch: build_model(config).apply({"params": params}, batch))


def outputs(config: ModelConfig, batch: Batch) -> tuple[np.ndarray, ...]:
    output = applied(config)(random_params(config), batch)
    return tuple(np.asarray(x) for x in (output.logits, output.pair_logits) if x is not None)


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modern"])
def test_packed_texts_and_padding_give_what_each_text_gives_alone(config):
    a, b, c = texts(5, 4, 3)
    packed = outputs(config, batch_of([[a, b, c], [b]]))
    for text, row, start in ((a, 0, 0), (b, 0, 5), (c, 0, 9), (b, 1, 0)):
        alone = outputs(config, batch_of([[text], []], length=L + 4 if row else len(text)))
        for together, single in zip(packed, alone, strict=True):
            np.testing.assert_allclose(
                together[row, start : start + len(text)], single[0, : len(text)], atol=1e-5, rtol=1e-5
            )


def test_a_token_sees_all_of_its_segment_and_types_matter():
    (text,) = texts(8)
    later = text.copy()
    later[-1] = (later[-1] + 1) % V
    one, two = (outputs(BERT, batch_of([[each]])) for each in (text, later))
    assert np.abs(one[0][0, 0] - two[0][0, 0]).max() > 1e-3
    batch = batch_of([[text]])
    without = outputs(BERT, dataclasses.replace(batch, types=np.zeros_like(batch.types)))
    assert np.abs(one[0] - without[0]).max() > 1e-2
    np.testing.assert_array_equal(without[0], outputs(BERT, dataclasses.replace(batch, types=None))[0])


@pytest.mark.parametrize("changes", [{"scan_layers": False}, {"remat": "full"}], ids=str)
def test_layers_see_a_window_or_all_by_their_number(changes):
    """The reach of a token by brute force: how its output answers to each other token (a Jacobian)."""
    (text,) = texts(L)
    batch = batch_of([[text]])
    for layers, global_every, reach in ((1, 2, L), (2, 4, L), (1, 0, 2), (2, 0, 4)):
        config = dataclasses.replace(MODERN, num_layers=layers, global_every=global_every, **changes)
        params = random_params(dataclasses.replace(config, scan_layers=True, remat="none"))
        params = params if config.scan_layers else unstack_layers(params)
        table = params["token_embedding"]["embedding"]

        def first_logits(x_LD, config=config, params=params, table=table):
            # Each place has a token of its own, whose vector is moved.
            own = {**params, "token_embedding": {"embedding": jnp.concatenate([table[:V], x_LD])}}
            grown = dataclasses.replace(config, vocab_size=V + L)
            moved = dataclasses.replace(batch, tokens=V + np.arange(L, dtype=np.int32)[None])
            return build_model(grown).apply({"params": own}, moved).logits[0, 0, :V]

        jacobian = jax.jit(jax.jacrev(first_logits))(table[text])  # (V, L, D)
        answers = np.abs(np.asarray(jacobian)).max(axis=(0, 2)) > 1e-9
        np.testing.assert_array_equal(np.flatnonzero(answers), np.arange(min(L, reach + 1)))


def test_a_base_of_its_own_is_for_local_layers_alone():
    (text,) = texts(L)
    batch = batch_of([[text]])
    for layers, differs in ((1, False), (2, True)):
        one = dataclasses.replace(MODERN, num_layers=layers)
        two = dataclasses.replace(one, local_rotary_theta=9.0)
        params = random_params(one)
        a, b = (np.asarray(applied(each)(params, batch).logits) for each in (one, two))
        assert (np.abs(a - b).max() > 1e-3) == differs


def body_of(config: ModelConfig, batch: Batch) -> tuple[dict, np.ndarray]:
    """Parameters of a masked head without extras, and the last layer's output: through an embedding of one's own."""
    plain = dataclasses.replace(config, head="masked", vocab_size=V, tie_embeddings=False)
    params = dict(random_params(plain))
    params["output"] = {"kernel": jnp.eye(D, V)}
    return params, np.asarray(applied(plain)(params, batch).logits)[..., :D]


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_labels_of_texts_by_closed_form(family):
    """Mean pooling, pooler and classifier computed by NumPy from what the body gives."""
    config = dataclasses.replace(
        CONFIG, family=family, num_encoder_layers=2 if family == "encoder_decoder" else 0, scan_layers=False,
        head="classes", num_classes=3, pooling="mean", pooler=True,
    )  # fmt: skip
    batch = batch_of([texts(5, 4), texts(7)])
    head = {"pooler": {"kernel": np.eye(D) * 0.5, "bias": np.full(D, 0.1)},
            "classifier": {"kernel": np.linspace(-1, 1, D * 3).reshape(D, 3), "bias": np.arange(3.0)}}  # fmt: skip
    if family == "encoder_decoder":
        plain = dataclasses.replace(config, head="tokens", tie_embeddings=False)
        params = dict(random_params(plain))
        params["output"] = {"kernel": jnp.eye(D, V)}
        source = Source(batch.tokens, batch.positions, batch.segments)
        x = np.asarray(applied(plain)(params, dataclasses.replace(batch, source=source)).logits)[..., :D]
    elif family == "decoder":
        plain = dataclasses.replace(config, head="tokens", tie_embeddings=False)
        params = dict(random_params(plain))
        params["output"] = {"kernel": jnp.eye(D, V)}
        x = np.asarray(applied(plain)(params, batch).logits)[..., :D]
    else:
        params, x = body_of(config, batch)
    del params["output"]
    found = np.asarray(applied(config)({**params, **jax.tree.map(jnp.asarray, head)}, batch).logits)
    for row, start, size in ((0, 0, 5), (0, 5, 4), (1, 0, 7)):
        mean = x[row, start : start + size].mean(axis=0)
        expected = np.tanh(mean * 0.5 + 0.1) @ head["classifier"]["kernel"] + np.arange(3.0)
        np.testing.assert_allclose(found[row, start : start + size], np.tile(expected, (size, 1)), atol=1e-4, rtol=1e-4)


def test_first_and_last_tokens_stand_for_themselves():
    x = np.arange(24.0).reshape(1, 6, 4)
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    for pooling in ("first", "last", "none"):
        config = dataclasses.replace(CONFIG, head="classes", pooling=pooling)
        np.testing.assert_array_equal(pool(config, x, segments), x)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_vectors_of_texts_and_their_partners(pooling):
    config = dataclasses.replace(CONFIG, head="embedding", pooling=pooling)
    a, b = texts(5, 7)
    batch, partners = batch_of([[a], [b], []]), batch_of([[b], [a], []])
    batch = dataclasses.replace(
        batch, types=None, source=Source(partners.tokens, partners.positions, partners.segments)
    )
    output = applied(config)(random_params(config), batch)
    mine, theirs = np.asarray(output.embedding), np.asarray(output.source_embedding)
    np.testing.assert_allclose(np.linalg.norm(mine[:2], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(mine[:2], theirs[1::-1], atol=1e-6)  # the same parameters read both sides
    assert np.isfinite(mine).all()
    params, x = body_of(dataclasses.replace(config, scan_layers=True), dataclasses.replace(batch, source=None))
    own = {**random_params(config), **{name: params[name] for name in params if name != "output"}}
    found = np.asarray(applied(config)(own, batch).embedding)
    expected = {"first": x[0, 0], "last": x[0, 4], "mean": x[0, :5].mean(axis=0)}[pooling]
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)


HEADS = [
    {},
    {"head_transform": True, "output_bias": True, "pair_head": True, "tie_embeddings": False},
    {"head": "classes", "num_classes": 5, "pooler": True},
    {"head": "span"},
    {"head": "embedding"},
]


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_parameters_are_counted_exactly(changes, family):
    config = dataclasses.replace(CONFIG, **{"family": family, **changes})
    if family == "decoder" and config.head == "masked":
        config = dataclasses.replace(config, head="tokens", head_transform=False, output_bias=False, pair_head=False)
    shapes = jax.eval_shape(lambda key: initial_params(build_model(config), key), jax.random.key(0))
    assert flops.parameter_counts(config).total == count_parameters(nn.unbox(shapes))
