"""Products of activations and weights, compared with float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import MeshConfig
from lm.models import products
from lm.models.products import float32_product, product
from lm.parallel.mesh import make_mesh, on_mesh
from lm.training.program import float32_products

ROUNDING = {"float32": 1e-6, "bfloat16": 2**-8}  # relative to the root mean square of the exact result


def with_gradients(x, w, dy, dtype):
    """Returns x w and the gradients of sum(dy x w) by x and by w."""
    y, pull = jax.vjp(lambda x, w: product(x, w, dtype), x, w)
    return [y, *pull(dy.astype(y.dtype))]


@pytest.mark.parametrize("small", [0, products.SMALL])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 30), (30, 12), (8, 12), (11, 13)])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_product_and_gradients_are_rounded_only_once(monkeypatch, dtype, inputs, outputs, small):
    monkeypatch.setattr(products, "SMALL", small)
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape) for shape in ((70, inputs), (inputs, outputs), (70, outputs))]
    x, w, dy = (
        jnp.asarray(each, dtype) for each in arrays
    )  # the rounding of the inputs is not an error of the product
    found = jax.jit(with_gradients, static_argnums=3)(x, w.astype(jnp.float32), dy, dtype)
    assert [each.dtype for each in found] == [dtype, dtype, jnp.float32]
    x, w, dy = (np.asarray(each, np.float64) for each in (x, w, dy))
    for actual, exact in zip(found, (x @ w, dy @ w.T, x.T @ dy), strict=True):
        scale = np.sqrt(np.mean(exact**2))
        np.testing.assert_allclose(np.asarray(actual, np.float64), exact, rtol=ROUNDING[dtype], atol=1e-6 * scale)


@pytest.mark.parametrize("small", [0, products.SMALL])
def test_bfloat16_products_of_float32_activations_are_not_rounded(monkeypatch, small):
    """The factors are rounded, also that of the backward pass, but neither the product nor its gradients."""
    monkeypatch.setattr(products, "SMALL", small)
    random = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((70, 12), (12, 30), (70, 30)))
    y, pull = jax.vjp(lambda x, w: product(x, w, "bfloat16"), x, w)
    found = [y, *pull(dy)]
    assert [each.dtype for each in found] == [jnp.float32] * 3
    x, w, dy = (np.asarray(each.astype(jnp.bfloat16), np.float64) for each in (x, w, dy))
    for actual, exact in zip(found, (x @ w, dy @ w.T, x.T @ dy), strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_bfloat16_products_on_a_cpu_have_the_fast_form(monkeypatch, activations):
    """Every product multiplies bfloat16 matrices, gives float32, and sums over the last axis of the first matrix."""
    monkeypatch.setattr(products, "SMALL", 0)
    x, w, dy = (jnp.ones(shape, activations) for shape in ((64, 48), (48, 96), (64, 96)))
    text = jax.jit(with_gradients, static_argnums=3).lower(x, w.astype(jnp.float32), dy, "bfloat16").as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 3
    for line in dots:
        assert "contracting_dims = [1]" in line and line.count("bf16>") == 2 and line.endswith("xf32>")


@pytest.mark.parametrize("small", [0, products.SMALL])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_gradient_of_a_float32_product_is_rounded_to_the_compute_dtype(monkeypatch, activations, transposed, small):
    """The gradient of x has the dtype of x, in which it may be rounded again."""
    monkeypatch.setattr(products, "SMALL", small)
    random = np.random.default_rng(0)
    x, w = (jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in ((70, 12), (12, 30)))
    x = x.astype(activations)
    dy = jnp.asarray(random.normal(size=(70, 30)), jnp.float32)
    matrix = w.T if transposed else w

    def with_gradients(x, matrix, dy):
        y, pull = jax.vjp(lambda x, matrix: float32_product(x, matrix, transposed, "bfloat16"), x, matrix)
        return [y, *pull(dy)]

    lowered = jax.jit(with_gradients).lower(x, matrix, dy)
    assert float32_products(lowered.as_text()) == []
    y, dx, dw = lowered.compile()(x, matrix, dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, activations, jnp.bfloat16)
    x, w, dy = (np.asarray(each, np.float64) for each in (x, w, dy.astype(jnp.bfloat16)))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-5)
    rounding = 2**-8 if activations == "bfloat16" else 1e-5
    np.testing.assert_allclose(np.asarray(dx, np.float64), dy @ w.T, rtol=rounding, atol=1e-5)
    np.testing.assert_allclose(np.asarray(dw.T if transposed else dw, np.float64), x.T @ dy, rtol=2**-8, atol=1e-5)


def test_no_loop_over_matrices_that_are_split_over_devices(monkeypatch):
    monkeypatch.setattr(products, "SMALL", 0)
    x, w, dy = (jnp.ones(shape, jnp.bfloat16) for shape in ((64, 48), (48, 96), (64, 96)))

    def loops(mesh):
        with on_mesh(mesh):
            return (
                jax.jit(with_gradients, static_argnums=3).lower(x, w, dy, "bfloat16").as_text().count("stablehlo.while")
            )

    assert loops(make_mesh(MeshConfig(), jax.devices()[:1])) == 1
    assert loops(make_mesh(MeshConfig(), jax.devices())) == 0
