"""Settings of the encoding of token positions."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class PositionSettings:
    positions: str = option(
        "rotary",
        "Encoding of token positions. 'relative' adds a learned bias per distance bucket to the attention scores (T5).",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
    )
    relative_buckets: int = option(
        32,
        "Number of distance buckets for positions='relative'. Half of the buckets hold a single distance each.",
        minimum=4,
        parameters=("relative_bias",),
        needs=("positions=relative",),
    )
    relative_max_distance: int = option(
        128,
        "For positions='relative', this distance and all greater distances share one bucket.",
        minimum=2,
        needs=("positions=relative",),
    )
    rotary_theta: float = option(
        10_000.0, "Base of the rotation frequencies for positions='rotary'.", minimum=1.0, needs=("positions=rotary",)
    )
    local_rotary_theta: float = option(
        0.0,
        "Base of the rotation frequencies in layers with a window, if global_every is set. If 0, rotary_theta is used.",
        minimum=0.0,
        needs=("global_every", "positions=rotary"),
    )
    rotary_interleaved: bool = option(
        False,
        "Rotate pairs of adjacent features, as in llama.c, instead of pairing the two halves of a head, as in "
        "Hugging Face (positions='rotary' only).",
        needs=("positions=rotary",),
    )
