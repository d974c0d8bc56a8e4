"""Closed forms of parameters, FLOPs and memory against the real model and the FLOPs that XLA counts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lm.batch import Batch, Source
from lm.config import Config, ModelConfig, defaults, source
from lm.costs import CHIPS, estimate_memory, peak_flops
from lm.models import build_model
from lm.models.heads import AnswerSpan, Classes, MaskedTokens, TextEmbedding
from lm.models.layers import has_bias
from lm.models.parameters import abstract_params, count_parameters
from lm.models.transformer.costs import projections
from lm.objectives.chunks import num_chunks
from tests.small_model import small_config
from tests.trees import flatten

SMALL = small_config(512, 64, num_layers=3, d_model=256, num_heads=4, d_ff=768, scan_layers=False)

VARIANTS = [
    {},
    {"positions": "learned", "num_kv_heads": 4, "activation": "gelu_tanh"},
    {"norm": "rmsnorm", "activation": "swiglu", "use_bias": False, "tie_embeddings": False},
    {"norm_position": "post", "num_kv_heads": 1, "head_dim": 16, "scan_layers": True, "positions": "sinusoidal"},
    {"share_layers": True, "embedding_width": 128, "norm_embeddings": True, "positions": "learned"},
    {"norm_position": "sandwich", "qk_norm": "head", "norm_unit_offset": True, "attention_bias": "none"},
    {"norm_position": "branch", "qk_norm": "width", "use_bias": False, "attention_bias": "qkv", "output_bias": True},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_parameter_counts_match_the_model(changes):
    config = dataclasses.replace(SMALL, **changes)
    model = build_model(config)
    params, counts = nn.unbox(abstract_params(model)), model.parameter_counts()
    assert counts.total == count_parameters(params)
    tables = [params[name] for name in ("token_embedding", "embedding_projection") if name in params]
    assert counts.token_embedding == count_parameters(tables)
    layers = {name: value for name, value in params.items() if "layer" in name}
    assert counts.num_layers == (1 if config.share_layers else config.num_layers)
    by_part = {
        part: counts.num_layers
        * sum((inputs + has_bias(config, name)) * outputs for name, (inputs, outputs) in group.items())
        for part, group in zip(("attention", "mlp"), projections(config), strict=True)
    }
    for part, count in by_part.items():
        parameters = flatten({name: each[part] for name, each in layers.items()})
        assert count == count_parameters([leaf for path, leaf in parameters.items() if "_norm/" not in path])
    assert counts.layers == sum(by_part.values())


@pytest.mark.parametrize(
    "changes",
    [VARIANTS[0], *(pytest.param(each, marks=pytest.mark.exhaustive) for each in [*VARIANTS[1:3], VARIANTS[4]])],
)
def test_flops_match_the_count_of_xla(changes):
    """XLA also counts norms, softmax, activations and the loss: a few percent more at this width, never less."""
    model, rows, length = build_model(dataclasses.replace(SMALL, **changes)), 4, 64
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = Batch(ids, ids, ids, ids, ids)

    def loss(params, batch):
        logits = model.apply({"params": params}, batch).logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

    flops = model.flops_per_row(length)
    for function, expected in ((loss, flops.forward), (jax.grad(loss), flops.train)):
        counted = jax.jit(function).lower(nn.unbox(abstract_params(model)), batch).compile().cost_analysis()["flops"]
        assert 1.0 < counted / (rows * expected) < 1.06


TWO_SIDED = dataclasses.replace(SMALL, family="encoder_decoder", num_encoder_layers=2, positions="relative")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "learned", "norm_position": "post", "norm_embeddings": True, "use_bias": False},
        {"norm_position": "sandwich", "qk_norm": "width", "attention_bias": "qkv", "norm": "rmsnorm"},
        {"activation": "geglu_tanh", "norm": "rmsnorm", "share_embeddings": False, "source_vocab_size": 300},
    ],
)
def test_encoder_decoder_parameters_and_flops_match_the_model(changes):
    model, rows, L, S = build_model(dataclasses.replace(TWO_SIDED, **changes)), 4, 64, 48
    params = nn.unbox(abstract_params(model))
    assert model.parameter_counts().total == count_parameters(params)
    ids, source = (jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in (L, S))
    batch = Batch(ids, ids, ids, ids, ids, Source(source, source, source))

    def loss(params, batch):
        return jnp.mean(model.apply({"params": params}, batch).logits)

    counted = jax.jit(loss).lower(params, batch).compile().cost_analysis()["flops"]
    assert 1.0 < counted / (rows * model.flops_per_row(L, S).forward) < 1.06


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        (MaskedTokens(max_masked=16, next_sentence=True), {"head_transform": True, "output_bias": True}),
        (Classes(9, "first"), {"pooler": True, "window": 9, "global_every": 2}),
        (MaskedTokens(), {"head_transform": True, "embedding_width": 128, "num_layers": 1, "share_layers": True}),
        (TextEmbedding("first"), {"num_layers": 2}),
        (AnswerSpan(), {"answer_pooler": True, "num_layers": 1}),
        (AnswerSpan(), {"family": "encoder_decoder", "num_layers": 2, "num_encoder_layers": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_flops_of_heads_match_the_count_of_xla(head, changes):
    """Logits at a few positions, a few classes, two paired texts, and the same text on both sides."""
    config, rows, length = dataclasses.replace(SMALL, **({"family": "encoder"} | changes)), 4, 64
    model = build_model(config, head)
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = Batch(ids, ids, ids, ids, ids, Source(ids, ids, ids) if head.texts_per_row == 2 else None)

    def total(params, batch):
        output = model.apply({"params": params}, batch)
        numbers = (output.logits, output.next_sentence_logits, output.embedding, output.paired_embedding)
        return sum(jnp.mean(each) for each in numbers if each is not None)

    counted = jax.jit(total).lower(nn.unbox(abstract_params(model)), batch).compile().cost_analysis()["flops"]
    assert 1.0 < counted / (rows * model.flops_per_row(length, length).forward) < 1.065


def test_flops_of_gpt2_match_the_published_formula():
    """24 D^2 + 4 L D for each layer and 2 V D for the logits, as in Chowdhery 2022, appendix B."""
    D, N, V, L = 768, 12, 50257, 1024
    config = ModelConfig(vocab_size=V, num_layers=N, d_model=D, num_heads=12, num_kv_heads=12, head_dim=64, d_ff=4 * D)
    assert build_model(config).flops_per_row(L).forward == L * (N * (24 * D * D + 4 * L * D) + 2 * V * D)


def test_only_known_chips_have_a_peak():
    assert peak_flops("cpu", "float32") is None
    assert peak_flops("NVIDIA H100", "bfloat16") is None
    assert peak_flops("Tesla T4", "bfloat16") is None
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert all(chip.bfloat16 is None or chip.float32 <= chip.bfloat16 for chip in CHIPS.values())


def config_with(**changes):
    values = defaults()
    values.data.train.docs = source(kind="embedded")
    values.model.vocab_size = 512
    for name, value in changes.items():
        section, key = name.split("__")
        values[section][key] = value
    return Config.from_dict(values.to_dict())


ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def estimate(config, mesh, platform="cpu"):
    return estimate_memory(config, build_model(config.model, platform=platform), mesh, platform)


@pytest.mark.parametrize(
    ("changes", "moments"),
    [({}, 2), ({"optimizer__name": "lion"}, 1), ({"optimizer__name": "sgd"}, 1), ({"optimizer__ema_decay": 0.9}, 2)],
)
def test_memory_of_parameters_and_optimizer_is_exact_on_one_device(changes, moments):
    config = config_with(**changes)
    size = 4 * build_model(config.model).parameter_counts().total
    found = estimate(config, ONE)
    assert found.parameters == size * (2 if config.optimizer.ema_decay else 1)
    assert found.optimizer == moments * size
    assert found.gradients == size


def test_momentum_of_muon_is_divided_among_all_devices():
    counts = build_model(config_with().model).parameter_counts()
    one, eight = (estimate(config_with(optimizer__name="muon"), ONE | {"data": n}).optimizer for n in (1, 8))
    assert one - eight == pytest.approx(4 * counts.layers * 7 / 8, rel=1e-6)


def test_memory_falls_with_sharding_accumulation_remat_and_fused_attention():
    base = estimate(config_with(), ONE)
    assert estimate(config_with(), ONE | {"data": 4}).activations * 4 == base.activations
    assert estimate(config_with(), ONE | {"data": 4}).parameters == base.parameters
    split = estimate(config_with(), ONE | {"fsdp": 4})
    assert split.parameters == pytest.approx(base.parameters / 4, rel=0.01)
    assert estimate(config_with(), ONE | {"tensor": 2}).logits * 2 == base.logits
    assert estimate(config_with(train__accumulation=4), ONE).logits * 4 == base.logits
    by_remat = [estimate(config_with(model__remat=name), ONE).activations for name in ("none", "dots", "full")]
    assert by_remat == sorted(by_remat, reverse=True)
    plain = estimate(config_with(model__attention="xla", data__sequence_length=256), ONE, "tpu").activations
    for attention, platform in (("splash", "tpu"), ("blocked", "cpu")):
        config = config_with(model__attention=attention, data__sequence_length=256)
        assert estimate(config, ONE, platform).activations < plain


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [0, 64])
def test_logits_are_estimated_in_the_chunks_of_the_loss(tied, width):
    """The chunks of a CPU depend on the output matrix, which has 64 MiB, 8 MiB or, if it is separate, 64 MiB again."""
    sizes = {"vocab_size": 2**15, "d_model": 512, "num_heads": 8, "embedding_width": width, "tie_embeddings": tied}
    changes = {f"model__{name}": value for name, value in sizes.items()}
    config = config_with(**changes, train__batch_size=4, data__sequence_length=256)
    model, targets_BL = build_model(config.model, platform="cpu"), jnp.zeros((4, 256), jnp.int32)
    batch = Batch(*(targets_BL,) * 2, jnp.ones((4, 256)), *(targets_BL,) * 2)
    params = jax.eval_shape(model.initial_params, jax.random.key(0))
    logits = jax.eval_shape(lambda params: model.apply({"params": nn.unbox(params)}, batch).scores, params)
    whole = 4 * targets_BL.size * config.model.vocab_size
    assert estimate(config, ONE).logits == 2 * whole / num_chunks(0, logits, targets_BL)
    assert (num_chunks(0, logits, targets_BL) > 1) == (tied and width > 0)
    assert estimate(config, ONE, "tpu").logits == 2 * whole


def test_memory_has_the_scores_of_each_attention_that_no_fused_kernel_supports():
    """The rows of the source, but not those of the target, have a length that splash supports."""
    config = dataclasses.replace(SMALL, family="encoder_decoder", num_encoder_layers=2)
    both = [build_model(dataclasses.replace(config, attention=name), platform="tpu") for name in ("xla", "auto")]
    L, S = 200, 384
    plain, fused = (model.activation_bytes(L, S, 1) for model in both)
    assert plain - fused == config.num_encoder_layers * config.num_heads * S * S * (4 + 4)
