"""Which parameters weight decay acts on, and the axes of matrices."""

import jax
import pytest

from lm.models.parameters import matrix_axes
from lm.training.names import decayed
from tests.training.parameter_trees import SMALL, N, boxed, decay_table, letters, two_sided, zeros_tree


def test_decayed_parameters_of_unrolled_layers():
    kernels = ["query", "key", "value", "out"]
    expected = {f"layer_{i}/attention/{name}/kernel" for i in range(N) for name in kernels}
    expected |= {f"layer_{i}/mlp/{name}/kernel" for i in range(N) for name in ("up", "gate", "down")}
    expected |= {"token_embedding/embedding", "output/kernel"}
    table = decay_table(zeros_tree(SMALL, stacked=False))
    assert set(table) == set(letters(False))
    assert {path for path, decays in table.items() if decays} == expected


def test_decayed_parameters_of_stacked_layers_plain_boxed_and_abstract():
    expected = {f"layers/attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    expected |= {f"layers/mlp/{name}/kernel" for name in ("up", "gate", "down")}
    expected |= {"token_embedding/embedding", "output/kernel"}
    params = zeros_tree(SMALL, stacked=True)
    for tree in (params, boxed(params), jax.eval_shape(lambda: boxed(params))):
        table = decay_table(tree)
        assert set(table) == set(letters(True))
        assert {path for path, decays in table.items() if decays} == expected


def test_decayed_parameters_of_an_encoder_decoder():
    parts = ("encoder/layers/attention", "decoder/layers/attention", "decoder/layers/cross_attention")
    expected = {f"{part}/{name}/kernel" for part in parts for name in ("query", "key", "value", "out")}
    expected |= {f"{side}/layers/mlp/{name}/kernel" for side in ("encoder", "decoder") for name in ("up", "down")}
    expected |= {"token_embedding/embedding", "source_embedding/embedding", "output/kernel"}
    table = decay_table(two_sided())
    assert {path for path, decays in table.items() if decays} == expected
    assert any(path.startswith("decoder/relative_bias/") for path in table)


def test_other_embeddings_do_not_decay_and_unknown_kinds_are_refused():
    assert not decayed(("decoder", "positions", "embedding"))
    assert decayed(("decoder", "token_embedding", "embedding"))
    assert not any(decayed(("layers", "attention", "query", name)) for name in ("lora_a", "lora_b"))
    with pytest.raises(AssertionError, match="layers/gain"):
        decayed(("layers", "gain"))


def test_matrix_axes():
    assert matrix_axes(("layers", "attention", "query", "kernel")) == ((-3,), (-2, -1))
    assert matrix_axes(("layers", "attention", "out", "kernel")) == ((-3, -2), (-1,))
    assert matrix_axes(("decoder", "layer_0", "cross_attention", "key", "kernel")) == ((-3,), (-2, -1))
    assert matrix_axes(("decoder", "layer_0", "cross_attention", "out", "kernel")) == ((-3, -2), (-1,))
    assert matrix_axes(("output", "kernel")) == ((-2,), (-1,))
