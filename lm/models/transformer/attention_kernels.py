"""Selects the attention kernel and wraps the fused kernels: cuDNN on NVIDIA GPUs and splash on TPUs.

The fused kernels never hold the (L, S) scores in memory. The fused kernels derive the mask from the segments and from
the order of the tokens in a row, which is valid because positions increase within each segment. Padding may attend to
padding, so every query has a key. Outputs at padding positions are never used. The fused kernels support neither
attention dropout nor decoding with a cache. The "xla" kernel, which uses plain matrix multiplications (`attention.py`),
supports dropout and caches. The "blocked" kernel computes the same in pieces, for CPUs (`blocked_attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from lm.batch import Array
from lm.config import ModelConfig
from lm.errors import UserError

FASTEST = {"cpu": "blocked", "gpu": "cudnn", "tpu": "splash"}  # the fastest kernel of each platform
LANES = 128  # the number of lanes of a TPU's vector unit; splash block sizes are multiples of this number
CUDNN_HEAD_DIM = 128  # the largest head size that cuDNN supports before Hopper
CUDNN_CAPABILITY = 8.0  # the minimum compute capability: Ampere


def choose_kernel(config: ModelConfig, platform: str | None = None) -> str:
    """Returns the attention kernel for a platform: "xla", "blocked", "cudnn" or "splash".

    The platform is "cpu", "gpu" or "tpu". If the platform is None, the platform of the default device is used. With
    attention="auto", the platform's fastest kernel is selected if it supports the model. Otherwise, "xla" is selected.
    Raises UserError if the config names a kernel that does not support the model or the platform.
    """
    platform = platform or jax.default_backend()
    if config.attention == "auto":
        fastest = FASTEST.get(platform, "xla")
        return "xla" if _obstacle(fastest, config, platform) else fastest
    if obstacle := _obstacle(config.attention, config, platform):
        raise UserError(f"config.model.attention: '{config.attention}' {obstacle}; use 'auto' or 'xla' instead.")
    return config.attention


def _obstacle(kernel: str, config: ModelConfig, platform: str) -> str:
    """Returns the reason why a kernel cannot run the model on a platform, or "" if there is none."""
    if kernel == "xla":
        return ""
    if kernel in FUSED and (config.family != "decoder" or config.positions == "relative"):
        return "supports only causal self-attention without relative positions"
    if kernel in FUSED and config.global_every:
        return f"needs the same window in all layers, but config.model.global_every is {config.global_every}"
    if FASTEST.get(platform) != kernel:
        needed = next(name for name, each in FASTEST.items() if each == kernel)
        return f"runs on a {needed}, but this run is on a {platform}"
    if config.attention_dropout > 0:
        return f"does not support dropout, but config.model.attention_dropout is {config.attention_dropout}"
    if kernel not in FUSED:
        return ""
    if kernel == "splash":
        multiple = f"needs lengths that are multiples of {LANES}, but config.model.max_length is {config.max_length}"
        return multiple if config.max_length % LANES else ""
    if config.attention_softcap:
        return f"does not cap scores, but config.model.attention_softcap is {config.attention_softcap}"
    if config.dtype != "bfloat16":
        return f"computes in bfloat16, but config.model.dtype is {config.dtype}"
    if config.head_dim % 8 or config.head_dim > CUDNN_HEAD_DIM:
        return f"needs head sizes divisible by 8 and up to {CUDNN_HEAD_DIM}; config.model.head_dim is {config.head_dim}"
    if jax.default_backend() == "gpu" and float(jax.local_devices()[0].compute_capability) < CUDNN_CAPABILITY:
        return f"needs a GPU with compute capability {CUDNN_CAPABILITY} (Ampere) or higher"
    return ""


def kernel_for_call(kernel: str, length: int, *, cached: bool) -> str:
    """Returns the kernel for one call of a model: `kernel` if it supports the call, otherwise "xla"."""
    multiple = {"cudnn": 2, "splash": LANES}.get(kernel, 1)
    return "xla" if cached or length % multiple else kernel


def cudnn(
    q_BLHK: Array,
    k_BLGK: Array,
    v_BLGK: Array,
    segments_BL: Array,
    window: int,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Array:
    """Computes causal attention within each segment with cuDNN's flash attention. Returns bfloat16 (B, L, H, K).

    The kernel skips keys that come after a query or before the query's window. An explicit mask separates the segments.
    `scale` has the same meaning as in `dot_product_attention`; a soft cap is not supported.
    """
    assert not softcap, "choose_kernel does not select cudnn for a model with a soft cap"
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BLGK,
        v_BLGK,
        mask=(segments_BL[:, :, None] == segments_BL[:, None, :])[:, None],
        scale=scale or None,
        is_causal=True,
        local_window_size=(window - 1, 0) if window > 0 else None,
        implementation="cudnn",
    )


def splash(
    q_BLHK: Array,
    k_BLGK: Array,
    v_BLGK: Array,
    segments_BL: Array,
    window: int,
    scale: float = 0.0,
    softcap: float = 0.0,
    interpret: bool = False,
) -> Array:
    """Computes causal attention within each segment with Pallas splash attention. Returns (B, L, H, K).

    L must be a multiple of 128. XLA cannot partition a Pallas kernel, so under a mesh, rows and heads are split over
    devices explicitly, according to the current logical axis rules. `scale` and `softcap` have the same
    meaning as in `dot_product_attention`. With interpret=True, which is meant for tests, the kernel runs in Pallas's
    interpreter on any platform.
    """
    heads_per_kv = q_BLHK.shape[2] // k_BLGK.shape[2]
    q_BHLK = jnp.swapaxes(q_BLHK, 1, 2) * jnp.asarray(scale or q_BLHK.shape[-1] ** -0.5, q_BLHK.dtype)
    k_BGLK, v_BGLK = jnp.swapaxes(k_BLGK, 1, 2), jnp.swapaxes(v_BLGK, 1, 2)

    def on_one_device(q_BHLK: Array, k_BGLK: Array, v_BGLK: Array, segments_BL: Array) -> Array:
        kernel = _splash_kernel(q_BHLK.shape[1], q_BHLK.shape[2], window, softcap, interpret)
        with jax.numpy_rank_promotion("allow"):  # the third-party kernel relies on rank promotion
            return jax.vmap(kernel)(q_BHLK, k_BGLK, v_BGLK, splash_kernel.SegmentIds(segments_BL, segments_BL))

    if jax.sharding.get_abstract_mesh().empty:
        y_BHLK = on_one_device(q_BHLK, k_BGLK, v_BGLK, segments_BL)
    else:
        q_axes = nn.logical_to_mesh_axes(("batch", "heads", "length", "head_dim"))
        kv_axes = nn.logical_to_mesh_axes(("batch", "kv_heads", "length", "head_dim"))
        if q_axes != kv_axes:
            # If only the query heads were split, a device would pair its query heads with the wrong key heads.
            k_BGLK, v_BGLK = (jnp.repeat(x, heads_per_kv, axis=1) for x in (k_BGLK, v_BGLK))
            kv_axes = q_axes
        segment_axes = nn.logical_to_mesh_axes(("batch", "length"))
        y_BHLK = jax.shard_map(
            on_one_device, in_specs=(q_axes, kv_axes, kv_axes, segment_axes), out_specs=q_axes, check_vma=False
        )(q_BHLK, k_BGLK, v_BGLK, segments_BL)
    return jnp.swapaxes(y_BHLK, 1, 2)


def _splash_kernel(
    heads: int, length: int, window: int, softcap: float, interpret: bool
) -> splash_kernel.SplashAttentionKernel:
    """Builds the kernel for one device's heads. Tiles of scores have the largest block size that divides L."""
    shape = (length, length)
    causal = splash_mask.LocalMask(shape, (window - 1, 0), 0) if window > 0 else splash_mask.CausalMask(shape)
    block = next(size for size in (512, 256, LANES) if length % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    blocks: dict[str, Any] = dict.fromkeys(names, block)
    sizes, mask = splash_kernel.BlockSizes(**blocks), splash_mask.MultiHeadMask([causal] * heads)
    return splash_kernel.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )


FUSED: dict[str, Callable[..., Array]] = {"cudnn": cudnn, "splash": splash}
