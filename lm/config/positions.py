"""Settings for encoding token positions."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class PositionSettings:
    positions: str = option("rotary", choices=("learned", "sinusoidal", "rotary", "relative", "none"))
    """Encoding of token positions. 'relative' adds a learned bias per distance bucket to the attention scores (T5)."""
    sinusoid_variant: str = option("half", choices=("half", "half_minus_one"), needs=("positions=sinusoidal",))
    """Wavelengths for positions='sinusoidal'. Of n wavelengths, the last is 10000^((n-1)/n) times the first ('half',
    Vaswani 2017) or 10000 times the first ('half_minus_one', M2M-100)."""
    sinusoid_offset: int = option(0, minimum=0, needs=("positions=sinusoidal",))
    """Index of the first position for positions='sinusoidal' (M2M-100: 2)."""
    relative_buckets: int = option(32, minimum=4, parameters=("relative_bias",), needs=("positions=relative",))
    """Number of distance buckets for positions='relative'. Half of the buckets hold a single distance each."""
    relative_max_distance: int = option(128, minimum=2, needs=("positions=relative",))
    """For positions='relative', this distance and all greater distances share one bucket."""
    rotary_theta: float = option(10_000.0, minimum=1.0, needs=("positions=rotary",))
    """Base of the rotation frequencies for positions='rotary'."""
    local_rotary_theta: float = option(0.0, minimum=0.0, needs=("global_every", "positions=rotary"))
    """Base of the rotation frequencies in layers with a window, if global_every is set. If 0, rotary_theta is used."""
    rope_scaling: str = option(
        "none", registry="lm.models.transformer.rope_scaling.ROPE_SCALINGS", needs=("positions=rotary",)
    )
    """How the rotation frequencies are changed so that the model can read texts longer than rope_original_length."""
    rope_factor: float = option(1.0, minimum=1.0, read_by="rope_scaling")
    """Number by which rope_scaling divides frequencies."""
    rope_original_length: int = option(0, minimum=0, read_by="rope_scaling")
    """Maximum sequence length before the frequencies were changed."""
    rope_low_freq_factor: float = option(1.0, minimum=0.0, read_by="rope_scaling")
    """A frequency that makes at most this many full turns within rope_original_length is divided by rope_factor."""
    rope_high_freq_factor: float = option(4.0, minimum=0.0, read_by="rope_scaling")
    """A frequency that makes at least this many full turns within rope_original_length is unchanged."""
    rope_beta_fast: float = option(32.0, minimum=0.001, read_by="rope_scaling")
    """The ramp of 'yarn', from unchanged to divided frequencies, begins at the frequency that makes this many full
    turns within rope_original_length."""
    rope_beta_slow: float = option(1.0, minimum=0.001, read_by="rope_scaling")
    """The ramp of 'yarn' ends at the frequency that makes this many full turns within rope_original_length."""
    rope_attention_factor: float = option(0.0, minimum=0.0, read_by="rope_scaling")
    """Factor by which all cosines and sines are multiplied. If 0, 0.1 * ln(rope_factor) + 1 is used (Peng 2023)."""
    rope_truncate: bool = option(True, read_by="rope_scaling")
    """Round down the index of the frequency at which the ramp of 'yarn' begins, and round up the index at which it
    ends."""
    rope_scaling_local: bool = option(False, needs=("global_every",), read_by="rope_scaling")
    """Also apply rope_scaling to layers with a window, if global_every is set."""
    nope_every: int = option(0, minimum=0, needs=("positions=rotary",))
    """If this value n is positive, layers nope_offset, nope_offset + n, ... have no rotary positions (SmolLM3). If 0,
    every layer has them."""
    nope_offset: int = option(0, minimum=0, needs=("nope_every",))
    """Index of the first layer without rotary positions (3 for SmolLM3, which sets nope_every=4)."""
    rotary_interleaved: bool = option(False, needs=("positions=rotary",))
    """Rotate pairs of adjacent features (llama.c) instead of pairs with one feature from each half of a head (Hugging
    Face)."""
