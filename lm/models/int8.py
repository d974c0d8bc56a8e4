"""8-bit matrices for decoding, with a scale for each output channel (symmetric weight-only quantisation).

For an output channel o with the weights W_io, where i runs over the inputs,

    s_o = max_i |W_io| / 127,    Q_io = round(W_io / s_o) in {-127, ..., 127},    y_o = s_o * sum_i x_i Q_io,

so |W_io - s_o Q_io| <= s_o / 2. Ties round to even. A channel whose weights are all 0 has s_o = 1. Activations x and
8-bit weights Q are multiplied in the compute dtype, and the result has the activation dtype (float32 for logits). In a
token embedding, each token v is a channel. Its vector is s_v * Q_v, both when the table embeds the input and when it
serves as the output matrix. Biases, norms, positions and adapters are not quantised.

8-bit weights take a quarter of the memory of float32 weights and half the memory of bfloat16 weights. On accelerators,
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

    values: Array  # int8, with the shape of the parameter; it comes first, because Flax checks only the first shape
    scales: Array  # float32, with the same shape except for size 1 along the input axes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @classmethod
    def of(cls, matrix: Array, input_axes: tuple[int, ...]) -> Int8Matrix:
        """Rounds a float32 matrix to 8 bits. Weights whose positions differ only along `input_axes` share a scale."""
        highest = jnp.max(jnp.abs(matrix), axis=input_axes, keepdims=True)
        scales = jnp.where(highest > 0, highest / LARGEST, 1.0)
        return cls(jnp.round(matrix / scales).astype(jnp.int8), scales)

    def rows(self, ids: Array) -> Array:
        """Returns the rows with the given ids as float32. The table must have one scale per row."""
        values, scales = (jnp.take(x, ids, axis=0) for x in (self.values, self.scales))
        return values.astype(jnp.float32) * scales
