"""The mesh, its checks, and batches placed on it."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm.batch import Batch
from lm.config import Config, MeshConfig, defaults, source
from lm.data.packing.prefetch import GlobalBatches
from lm.errors import UserError
from lm.parallel.mesh import check_divisible, make_mesh, state_shardings


def test_open_axis_takes_the_remaining_devices():
    def sizes(config, count=8):
        return dict(make_mesh(config, jax.devices()[:count]).shape)

    assert sizes(MeshConfig(data=-1, fsdp=2, tensor=2)) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sizes(MeshConfig(data=1, fsdp=-1, tensor=1)) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert sizes(MeshConfig(), 1) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (-1, 16, 1)])
def test_sizes_that_do_not_match_the_devices_are_rejected(sizes):
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize(
    "section, key, value, named",
    [
        ("train", "batch_size", 6, "train.batch_size"),
        ("eval", "batch_size", 6, "eval.batch_size"),
        ("model", "d_model", 18, "model.d_model"),
        ("model", "num_kv_heads", 1, "model.num_kv_heads"),
        ("model", "vocab_size", 31, "model.vocab_size"),
        ("model", "source_vocab_size", 31, "model.source_vocab_size"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide_are_named(section, key, value, named):
    values = defaults()
    values.data.train.docs = source(kind="embedded")
    values.train.batch_size = 8
    values.model.update(num_heads=2, d_model=16, vocab_size=32, head_dim=8)
    values.mesh.update(data=1, fsdp=4, tensor=2)
    check_divisible(Config.from_dict(values.to_dict()), make_mesh(MeshConfig(1, 4, 2)))
    values[section][key] = value
    with pytest.raises(UserError, match=named):
        check_divisible(Config.from_dict(values.to_dict()), make_mesh(MeshConfig(1, 4, 2)))


def test_batch_is_unchanged_on_the_mesh():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rng = np.random.default_rng(0)
    fields = [rng.integers(0, 9, (8, 3)).astype(np.int32) for _ in range(4)]
    batch = Batch(fields[0], fields[1], rng.random((8, 3)).astype(np.float32), fields[2], fields[3])
    batches = GlobalBatches(mesh, 8)
    np.testing.assert_array_equal(batches.row_ids, np.arange(8))
    placed = batches.place(batch)
    jax.tree.map(np.testing.assert_array_equal, batch, placed)
    assert placed.tokens.sharding.spec == P(("data", "fsdp"), None)
    assert placed.tokens.addressable_shards[0].data.shape == (2, 3)


def test_moments_are_sharded_like_their_parameters_and_the_rest_is_replicated():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    array = jax.ShapeDtypeStruct((4, 8), np.float32)
    params = {"a": {"kernel": array}, "b": {"kernel": array}}
    shardings = {
        "a": {"kernel": jax.NamedSharding(mesh, P("fsdp"))},
        "b": {"kernel": jax.NamedSharding(mesh, P(None, "tensor"))},
    }
    state = {
        "mu": params,
        "count": jax.ShapeDtypeStruct((), np.int32),
        "row": {"a": {"kernel": array.update(shape=(4,))}},
    }
    found = state_shardings(state, params, shardings, mesh)
    assert found["mu"] == shardings
    assert found["count"].spec == P() and found["row"]["a"]["kernel"].spec == P()
