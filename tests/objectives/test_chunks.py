"""The loss in chunks against the loss of all logits at once: values, gradients, memory and communication."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from lm.batch import Batch, VocabularyLogits
from lm.config import MeshConfig, ObjectiveConfig
from lm.models.vocabulary import VocabularyProjection
from lm.objectives.chunks import (
    CHUNK,
    CPU_CHUNK,
    FEWEST,
    GPU_CHUNKS,
    LARGEST_GPU_CHUNK,
    chunks_for,
    num_chunks,
)
from lm.objectives.losses import loss_sums
from lm.parallel.mesh import make_mesh, on_mesh

OPTIONS = {
    "embedding": ({"is_embedding": True, "scale": 0.25}, {}),
    "smoothed": ({"is_embedding": False}, {"label_smoothing": 0.1, "z_loss": 1e-2}),
    "smoothed over others": ({"is_embedding": True}, {"label_smoothing": 0.2, "label_smoothing_over": "others"}),
    "capped": ({"is_embedding": True, "softcap": 3.0}, {"z_loss": 1e-3}),
}


def inputs(is_embedding, rows=4, length=7, width=8, size=24, bias=True):
    """Random features, weights and a batch whose last tokens have weight 0."""
    random = np.random.default_rng(0)
    x_BLE = random.normal(size=(rows, length, width)).astype(np.float32)
    weights = {"matrix": random.normal(size=(size, width) if is_embedding else (width, size)).astype(np.float32)}
    if bias:
        weights["bias"] = random.normal(size=size).astype(np.float32)
    ids = random.integers(0, size, (rows, length)).astype(np.int32)
    token_weights = random.random((rows, length)).astype(np.float32)
    token_weights[:, -2:] = 0
    return x_BLE, weights, Batch(ids, ids[:, ::-1], token_weights, np.zeros_like(ids), np.ones_like(ids))


def sums_and_gradients(project, x_BLE, weights, batch, **options):
    def loss(weights, x_BLE, batch):
        sums = loss_sums(VocabularyLogits(x_BLE, weights, project), batch, ObjectiveConfig(**options))
        return 0.5 * sums.loss, sums

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(weights, x_BLE, batch)


def assert_close(found, wanted, tolerance=1e-6):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("named", OPTIONS)
def test_values_and_gradients_equal_those_of_all_logits_at_once(named, count):
    of_projection, of_loss = OPTIONS[named]
    project = VocabularyProjection("float32", **of_projection)
    x_BLE, weights, batch = inputs(project.is_embedding, bias=named != "capped")
    whole = sums_and_gradients(project, x_BLE, weights, batch, logit_chunks=1, **of_loss)
    assert_close(sums_and_gradients(project, x_BLE, weights, batch, logit_chunks=count, **of_loss), whole)


def test_bfloat16_differs_only_by_its_rounding():
    project = VocabularyProjection("bfloat16", True)
    x_BLE, weights, batch = inputs(True)
    x_BLE, weights["matrix"] = x_BLE.astype(jnp.bfloat16), weights["matrix"].astype(jnp.bfloat16)
    found, wanted = (sums_and_gradients(project, x_BLE, weights, batch, logit_chunks=count) for count in (3, 1))
    assert_close(found, wanted, 2**-7)
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(wanted)]


def test_sums_without_a_gradient_are_equal():
    project = VocabularyProjection("float32", True)
    x_BLE, weights, batch = inputs(True)
    logits = VocabularyLogits(x_BLE, weights, project)
    chunked, whole = (loss_sums(logits, batch, ObjectiveConfig(logit_chunks=count)) for count in (4, 1))
    assert_close(chunked, whole)


def largest_exchange(program):
    """Returns the number of values in the largest array that a collective of a compiled program exchanges."""
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    results = re.findall(rf"^ +(?:ROOT )?%\S+ = (.*?) (?:{names})(?:-start)?\(", program, re.M)
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(results))
    return max((math.prod(int(n) for n in shape.split(",") if n) for shape in shapes), default=0)


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_every_mesh_gives_the_same_and_exchanges_the_gradient_once(sizes):
    project = VocabularyProjection("float32", True)
    x_BLE, weights, batch = inputs(True, length=8, size=32)
    wanted = sums_and_gradients(project, x_BLE, weights, batch, logit_chunks=1)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:4])

    def loss(weights, x_BLE, batch):
        placed = nn.with_logical_constraint(weights["matrix"], ("vocab", "embed"))
        logits = VocabularyLogits(
            nn.with_logical_constraint(x_BLE, ("batch", None, None)), weights | {"matrix": placed}, project
        )
        sums = loss_sums(logits, batch, ObjectiveConfig(logit_chunks=4))
        return 0.5 * sums.loss, sums

    with on_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1), has_aux=True)).lower(weights, x_BLE, batch).compile()
        assert_close(compiled(weights, x_BLE, batch), wanted)
    program, local = compiled.as_text(), 32 // sizes[2] * 8
    names = re.findall(r" while\(.* body=%([\w.-]+)", program)
    assert names, "the program has no loop over chunks"
    body = "".join(re.search(rf"^%{re.escape(name)} .*?^\}}", program, re.M | re.S)[0] for name in names)
    assert largest_exchange(body) < local // 2 and largest_exchange(program) >= local


def test_a_frozen_matrix_has_no_gradient():
    project = VocabularyProjection("float32", True)
    x_BLE, weights, batch = inputs(True)

    def loss(x_BLE, count):
        logits = VocabularyLogits(x_BLE, jax.lax.stop_gradient(weights), project)
        return loss_sums(logits, batch, ObjectiveConfig(logit_chunks=count)).loss

    assert_close(jax.grad(loss)(x_BLE, 3), jax.grad(loss)(x_BLE, 1))
    products = [
        str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(x_BLE, count)).count("dot_general") for count in (3, 1)
    ]
    assert products == [2, 2]  # the logits and the gradient of the features


def test_large_logits_are_never_whole():
    project = VocabularyProjection("float32", True)
    rows, length, width, size = 8, 512, 16, 50_257
    shapes = (
        jax.ShapeDtypeStruct((size, width), jnp.float32),
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
    )
    ids, real = (jax.ShapeDtypeStruct((rows, length), each) for each in (jnp.int32, jnp.float32))

    def loss(matrix, x_BLE, batch):
        return loss_sums(VocabularyLogits(x_BLE, {"matrix": matrix}, project), batch, ObjectiveConfig()).loss

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, Batch(ids, ids, real, ids, ids)).compile()
    whole = 4 * rows * length * size
    assert whole > 8e8 and compiled.memory_analysis().temp_size_in_bytes < 0.4 * whole


def test_the_number_of_chunks_follows_from_the_size():
    limit = FEWEST * CHUNK // 4
    assert chunks_for(0, limit - 1, 1, 512, "tpu") == 1 and chunks_for(0, limit, 1, 512, "tpu") == FEWEST
    # Of 41 tokens, unless on a GPU: 8 * 41 * 50,257 * 4 bytes = 63 MiB. The output matrix is larger than CHUNK.
    platforms = {"cpu": 25, "tpu": 25, "gpu": GPU_CHUNKS}
    assert {each: chunks_for(0, 8 * 1024 * 50_257, 768 * 50_257, 1024, each) for each in platforms} == platforms
    assert chunks_for(100, 80, 1, 128, "tpu") == 64  # of 2 tokens
    assert chunks_for(3, 80, 1, 6, "tpu") == 3 and chunks_for(9, 80, 1, 4, "tpu") == 4
    assert chunks_for(1, 10**12, 1, 10**3, "tpu") == 1


def test_chunks_are_smaller_on_cpus_unless_the_output_matrix_is_large():
    limit = FEWEST * CPU_CHUNK // 4
    assert chunks_for(0, limit - 1, 1, 512, "cpu") == 1 and chunks_for(0, limit, 1, 512, "cpu") == FEWEST
    assert chunks_for(0, 2 * limit - 1, CPU_CHUNK // 2, 512, "cpu") == 1  # a matrix of twice the size of a chunk
    assert chunks_for(0, 2 * limit, CPU_CHUNK // 2, 512, "cpu") == FEWEST
    assert chunks_for(0, FEWEST * CHUNK // 4 - 1, CHUNK, 512, "cpu") == 1


def test_gpus_use_a_certain_number_of_chunks_unless_they_are_too_small_or_too_large():
    def chunks(size):
        return chunks_for(0, size // 4, 1, 1024, "gpu")

    assert chunks(FEWEST * CHUNK - 4) == 1 and chunks(FEWEST * CHUNK) == FEWEST and chunks(6 * CHUNK) == 6
    assert chunks(GPU_CHUNKS * CHUNK) == chunks(GPU_CHUNKS * CHUNK + 4) == chunks(100 * CHUNK) == GPU_CHUNKS
    assert chunks(GPU_CHUNKS * LARGEST_GPU_CHUNK) == GPU_CHUNKS
    assert chunks(2 * GPU_CHUNKS * LARGEST_GPU_CHUNK) == 2 * GPU_CHUNKS


def test_chunks_depend_on_the_devices_of_the_mesh():
    matrix, targets_BL = jnp.zeros((FEWEST * CPU_CHUNK // 512, 1)), jnp.zeros((2, 64))
    logits = VocabularyLogits(jnp.zeros((2, 64, 1)), {"matrix": matrix}, VocabularyProjection("float32", True))
    assert num_chunks(0, logits, targets_BL) == FEWEST
    with on_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert num_chunks(0, logits, targets_BL) == FEWEST
    tpu = AbstractDevice("TPU v5 lite", 1, "tpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=tpu)):
        assert num_chunks(0, logits, targets_BL) == 1
