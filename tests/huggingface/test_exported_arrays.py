"""Arrays on their way from the devices to a file."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.config import MeshConfig
from lm.huggingface.exporting import to_host
from lm.parallel.mesh import make_mesh


@pytest.mark.parametrize("spec", [P(), P("fsdp"), P("tensor", "fsdp"), P(None, ("fsdp", "tensor"))])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_sharded_array_is_converted_to_the_bit(spec, dtype):
    values = np.random.default_rng(0).standard_normal((8, 12), np.float32)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    array = jax.device_put(values, NamedSharding(mesh, spec))
    for each in (array, values):
        found = to_host(each, np.dtype(dtype))
        assert found.dtype == dtype and np.array_equal(found, values.astype(dtype))
