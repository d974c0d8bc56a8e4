"""The checksum of an array: the same on every mesh, and a different one after any change."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.checkpoints import integrity
from tests.checkpoints.states import make_mesh


def test_checksum_is_the_same_on_every_mesh_and_changes_with_every_element() -> None:
    x = jax.random.normal(jax.random.key(0), (16, 8)).astype(jnp.bfloat16)

    def total(value: Any, mesh: Mesh, spec: P) -> int:
        return int(integrity.leaf_sum(jax.device_put(value, NamedSharding(mesh, spec))))

    reference = total(x, make_mesh(1), P())
    assert total(x, make_mesh(8), P("data")) == reference
    assert total(x, make_mesh(2, 4), P("fsdp", "data")) == reference
    # The formula again, in plain integers.
    words = np.asarray(x).view(np.uint16).astype(np.uint32).reshape(-1)

    def mix(v: int) -> int:
        v = (v ^ v >> 16) * 0x85EBCA6B % 2**32
        v = (v ^ v >> 13) * 0xC2B2AE35 % 2**32
        return v ^ v >> 16

    assert reference == sum(mix(int(word) ^ mix(i)) for i, word in enumerate(words)) % 2**32
    # Blocks of round numbers in another order, which a sum with linear weights would miss.
    ones = np.repeat(np.float32([1, 2, 1, 2]), 256)
    assert int(integrity.leaf_sum(ones)) != int(integrity.leaf_sum(ones[::-1].copy()))
    for i in range(0, 128, 7):
        changed = np.asarray(x).view(np.uint16).reshape(-1).copy()
        changed[i] ^= 1 << (i % 16)
        assert int(integrity.leaf_sum(changed)) != reference


def test_checksum_of_a_large_array_is_computed_in_parts(monkeypatch) -> None:
    whole = {name: np.arange(120, dtype=np.float32).reshape(shape) for name, shape in (("a", (8, 15)), ("b", (120,)))}
    whole["c"] = np.arange(60, dtype=np.uint16).reshape(5, 3, 4)
    mesh = make_mesh(8)
    arrays = {name: jax.device_put(each, NamedSharding(mesh, P())) for name, each in whole.items()}
    arrays["columns"] = jax.device_put(whole["a"].T.copy(), NamedSharding(mesh, P(None, "data")))
    arrays["rows"] = jax.device_put(whole["a"], NamedSharding(mesh, P("data")))
    arrays["key"] = jax.random.key(3)
    expected = [[int(integrity.leaf_sum(each)) for each in jax.tree.leaves(tree)] for tree in (whole, arrays)]
    monkeypatch.setattr(integrity, "PART_BYTES", 100)
    assert [[integrity.checksum(each) for each in jax.tree.leaves(tree)] for tree in (whole, arrays)] == expected
