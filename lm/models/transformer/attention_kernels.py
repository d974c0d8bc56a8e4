"""Selects the attention kernel: cuDNN on NVIDIA GPUs, Pallas kernels on TPUs, a blocked kernel on CPUs, or plain XLA.

The fused kernels never hold the (B, H, L, S) scores in memory. They separate the segments, and rely on the order of the
tokens in a row, which is valid because positions increase within each segment. Padding may attend to padding, so every
self-attention query has at least one key. A cross-attention query has no key if the source has no
token in the query's segment, and the output for this query is then undefined. This happens only at padding positions,
where outputs are never used: `lm.data.packing.planning.plan` asserts that no example has an empty source. The fused
kernels support neither attention dropout nor decoding with a cache. The "xla" kernel, which uses plain matrix
multiplications (`attention.py`), supports dropout and caches. The "blocked" kernel, for CPUs, works block by block if
the scores are large (`blocked_attention.py`); otherwise, it is the "xla" kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from lm.batch import Array
from lm.config import ModelConfig
from lm.errors import UserError
from lm.models.transformer import cudnn_attention, relative_attention
from lm.models.transformer.cudnn_attention import cudnn
from lm.models.transformer.relative_attention import LANES
from lm.models.transformer.splash_attention import splash

FASTEST = {"cpu": "blocked", "gpu": "cudnn", "tpu": "splash"}  # the fastest kernel of each platform
CUDNN_CAPABILITY = 8.0  # the minimum compute capability: Ampere


def choose_kernel(config: ModelConfig, platform: str) -> str:
    """Returns the attention kernel for a platform: "xla", "blocked", "cudnn" or "splash".

    The platform is "cpu", "gpu" or "tpu". With attention="auto", the platform's fastest kernel is selected if it
    supports the model. Otherwise, "xla" is selected. Raises UserError if the config names a kernel that does not
    support the model or the platform.
    """
    if config.attention == "auto":
        fastest = FASTEST.get(platform, "xla")
        return "xla" if _obstacle(fastest, config, platform) else fastest
    if obstacle := _obstacle(config.attention, config, platform):
        raise UserError(f"config.model.attention: '{config.attention}' {obstacle}; use 'auto' or 'xla' instead.")
    return config.attention


def _obstacle(kernel: str, config: ModelConfig, platform: str) -> str:
    """Returns the reason why a kernel cannot run the model on a platform, or "" if there is none."""
    relative = config.positions == "relative"
    if kernel == "xla":
        return ""
    if kernel in FUSED and config.global_every:
        return f"needs the same window in all layers, but config.model.global_every is {config.global_every}"
    if FASTEST.get(platform) != kernel:
        needed = next(name for name, each in FASTEST.items() if each == kernel)
        return f"runs on a {needed}, but this run is on a {platform}"
    if config.attention_dropout > 0:
        return f"does not support dropout, but config.model.attention_dropout is {config.attention_dropout}"
    if kernel not in FUSED:
        return ""
    if config.attention_softcap and (kernel == "cudnn" or relative):
        return (
            f"does not support a soft cap on {'biased ' * relative}scores, but config.model.attention_softcap is "
            f"{config.attention_softcap}"
        )
    if kernel == "splash":
        if config.family == "encoder_decoder":
            return ""  # the lengths of source and target may differ; see `kernel_for_call`
        if relative and config.max_length > relative_attention.MAX_LENGTH:
            longest = f"{relative_attention.MAX_LENGTH} tokens; config.model.max_length is {config.max_length}"
            return f"supports relative positions only up to {longest}"
        multiple = f"needs lengths that are multiples of {LANES}, but config.model.max_length is {config.max_length}"
        return multiple if config.max_length % LANES else ""
    if config.window and config.family != "decoder":
        return f"supports windows only in a decoder, but config.model.window is {config.window}"
    if config.dtype != "bfloat16":
        return f"computes in bfloat16, but config.model.dtype is {config.dtype}"
    largest = cudnn_attention.MAX_HEAD_DIM
    if relative:  # the features that separate segments take up part of each head
        largest -= cudnn_attention.SEGMENT_FEATURES
    if config.head_dim % 8 or config.head_dim > largest:
        return f"needs a head size divisible by 8 and up to {largest}; config.model.head_dim is {config.head_dim}"
    if jax.default_backend() == "gpu" and float(jax.local_devices()[0].compute_capability) < CUDNN_CAPABILITY:
        return f"needs a GPU with compute capability {CUDNN_CAPABILITY} (Ampere) or higher"
    return ""


def kernel_for_call(kernel: str, length: int, keys: int, *, cached: bool, relative: bool = False) -> str:
    """Returns the kernel for L queries and S keys: `kernel` if it supports the call, otherwise "xla"."""
    multiple = {"cudnn": 2, "splash": LANES}.get(kernel, 1)
    too_long = relative and kernel == "splash" and length > relative_attention.MAX_LENGTH
    return "xla" if cached or length % multiple or keys % multiple or too_long else kernel


FUSED: dict[str, Callable[..., Array]] = {"cudnn": cudnn, "splash": splash}
