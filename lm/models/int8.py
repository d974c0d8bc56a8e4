"""8-bit matrices for decoding, with a scale for each output channel (symmetric weight-only quantisation).

For an output channel o with the weights W_io (i runs over the inputs),

    s_o = max_i |W_io| / 127,    Q_io = round(W_io / s_o) in {-127, ..., 127},    y_o = s_o * sum_i x_i Q_io,

so |W_io - s_o Q_io| <= s_o / 2. Ties round to even. A channel of zeros has s_o = 1. The activations x are multiplied in
the compute dtype, and the result has the dtype of activations (float32 for logits). In a token embedding, each token is
a channel: its vector E_v is s_v * Q_v, both when the vector is an input and when the table is the output matrix.
Biases, norms, positions and adapters are unchanged.

8-bit weights take a quarter of the memory of float32 weights and half of that of bfloat16 weights. On accelerators,
where reading the weights limits the speed of decoding, this may save time as well.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from lm.batch import Array

LARGEST = 127


@flax.struct.dataclass
class Int8Matrix:
    """An 8-bit matrix, which takes the place of a float32 parameter."""

    values: Array  # int8, with the shape of the parameter; Flax checks the shape of this first array only
    scales: Array  # float32: the same shape, but with size 1 along the input axes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @classmethod
    def of(cls, matrix: Array, input_axes: tuple[int, ...]) -> Int8Matrix:
        """Rounds a float32 matrix to 8 bits. Weights that differ only in position along `input_axes` share a scale."""
        highest = jnp.max(jnp.abs(matrix), axis=input_axes, keepdims=True)
        scales = jnp.where(highest > 0, highest / LARGEST, 1.0)
        return cls(jnp.round(matrix / scales).astype(jnp.int8), scales)

    def rows(self, ids: Array) -> Array:
        """Returns the rows with the given ids, in float32, of a table with one scale per row."""
        values, scales = (jnp.take(x, ids, axis=0) for x in (self.values, self.scales))
        return values.astype(jnp.float32) * scales
