"""A tower, which is the encoder or the decoder of a Transformer: positions, blocks and the final norm."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Source
from lm.config import ModelConfig
from lm.models.layers import NORM_POSITIONS, Embedding, Norm, projection
from lm.models.network import RECORD
from lm.models.transformer.attention import AttentionContext, Memory, View, attention_mask
from lm.models.transformer.attention_kernels import FUSED, kernel_for_call
from lm.models.transformer.cache import Cache, bias_of_groups, mask_of_groups
from lm.models.transformer.positions import RelativeBias, no_rotation, rotary, sinusoidal_positions
from lm.models.transformer.stack import Stack, distinct_kinds, layer_pattern

EMBEDDED, LAST_BLOCK = "embedded_tokens", "last_block"


class Tower(nn.Module):
    """The encoder or decoder layers between the token embedding and the head."""

    config: ModelConfig
    causal: bool
    cross: bool = False  # whether the blocks attend to the output of an encoder
    kernel: str = "xla"

    def setup(self) -> None:
        self.stack = Stack(self.config, self.cross)
        nn.share_scope(self, self.stack)  # names the parameters `layers/...`, not `stack/layers/...`

    @nn.compact
    def __call__(
        self,
        x_BLE: Array,
        tokens: Batch | Source,
        train: bool,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> tuple[Array, Cache | None]:
        """Returns the output of the last layer, (B, L, D), and the updated cache.

        Args:
            x_BLE: the token embeddings, with the embeddings of token types added.
        """
        config, positions_BL, segments_BL = self.config, tokens.positions, tokens.segments
        if config.embedding_scale != 1.0:
            x_BLE = x_BLE * jnp.asarray(config.embedding_scale or math.sqrt(config.d_model), x_BLE.dtype)
        if config.positions == "learned":
            table = Embedding(config.max_length, config, ("positions", "embed"), name="position_embedding")
            x_BLE = x_BLE + table(positions_BL)
        elif config.positions == "sinusoidal":
            x_BLE = x_BLE + sinusoidal_positions(config, positions_BL).astype(x_BLE.dtype)
        if config.norm_embeddings:
            x_BLE = Norm(config, name="embedding_norm")(x_BLE)
        x_BLD = nn.Dropout(config.dropout, deterministic=not train)(x_BLE)
        if config.embedding_width:
            widths, axes = ((config.embedding_width,), (config.d_model,)), ("embed", "activation")
            x_BLD = projection(config, "embedding_projection", *widths, axes, use_bias=True)(x_BLD)
        self.sow(RECORD, EMBEDDED, x_BLD)  # recorded only for `token_vectors`

        key_positions_BS, key_segments_BS, owners_BS, group = positions_BL, segments_BL, None, 1
        if cache is not None:
            rows_B1 = jnp.arange(len(segments_BL))[:, None]
            key_segments_BS = cache.segments.at[rows_B1, positions_BL].set(segments_BL)
            if cache.owners is not None:
                group = len(segments_BL) // jax.tree.leaves(cache.layers)[0].shape[-4]
                owners_BS = cache.owners.at[rows_B1, positions_BL].set(rows_B1 % group)
            key_positions_BS = jnp.broadcast_to(jnp.arange(key_segments_BS.shape[1])[None], key_segments_BS.shape)
        length, relative = positions_BL.shape[1], config.positions == "relative"
        kernel = kernel_for_call(self.kernel, length, length, cached=cache is not None, relative=relative)
        kinds, views = distinct_kinds(layer_pattern(config)), []
        for kind in kinds:
            mask_BLS = rotation = skips = None
            if kernel not in FUSED:
                keys = key_positions_BS, key_segments_BS
                mask_BLS = attention_mask(positions_BL, segments_BL, *keys, causal=self.causal, window=kind.window)
                if owners_BS is not None:
                    mask_BLS = mask_of_groups(mask_BLS, owners_BS, group)
            if config.positions == "rotary" and kind.is_rotary:
                scaled_by = config if kind.rope_is_scaled else None
                rotation = rotary(positions_BL, config.head_dim, kind.rotary_theta, scaled_by)
            elif config.positions == "rotary":
                rotation = no_rotation(positions_BL, config.head_dim)
            if not config.first_norm:
                skips = jnp.asarray(not kind.has_first_norm)
            views.append(View(mask_BLS, rotation, skips))
        bias_BHLS = None
        if relative:
            indices = positions_BL, key_positions_BS
            if kernel == "splash":  # needs the bias of each distance only once
                indices = np.arange(1 - length, length)[None], np.zeros((1, 1), np.int32)
            elif cache is None:
                # Positions within a segment are consecutive, so distances may be computed from indices within the row.
                indices = (np.arange(length)[None],) * 2
            bias_BHLS = RelativeBias(config, self.causal, name="relative_bias")(*indices)
            if kernel == "splash":
                bias_BHLS = bias_BHLS[0, :, :, 0]
            elif owners_BS is not None:
                bias_BHLS = bias_of_groups(bias_BHLS, len(positions_BL), group)
        context = AttentionContext(
            positions=positions_BL,
            segments=segments_BL,
            views=tuple(views),
            kernel=kernel,
            causal=self.causal,
            window=kinds[0].window,
            train=train,
            max_segments=tokens.max_segments if isinstance(tokens, Batch) else 0,
            bias=bias_BHLS,
            memory=memory,
        )
        x_BLD, layers = self.stack(x_BLD, None if cache is None else cache.layers, context)
        self.sow(RECORD, LAST_BLOCK, x_BLD)
        if not NORM_POSITIONS[config.norm_position].sums:
            x_BLD = Norm(config, name="final_norm")(x_BLD)
        if cache is not None:
            cache = dataclasses.replace(cache, layers=layers, segments=key_segments_BS, owners=owners_BS)
        return x_BLD, cache
