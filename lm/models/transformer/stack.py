"""The MLP, the block, and the stack of N blocks, scanned or unrolled, with optional rematerialisation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import ACTIVATIONS, NORM_POSITIONS, Norm, projection, residual_scale
from lm.models.parameters import LAYER_PREFIX, SHARED_NAME, STACK_NAME
from lm.models.transformer.attention import Attention, AttentionContext, WithCache
from lm.models.transformer.cache import LayerCache
from lm.models.transformer.remat import REMAT_POLICIES


@dataclass(frozen=True)
class LayerKind:
    """The settings that may differ between the layers of a stack."""

    window: int  # tokens attend only to tokens less than this many positions away; 0 means no limit
    rotary_theta: float
    rope_is_scaled: bool  # whether model.rope_scaling applies
    is_rotary: bool = True  # False if the layer ignores positions although model.positions is rotary
    has_first_norm: bool = True  # False for the first layer if model.first_norm is False


def layer_pattern(config: ModelConfig) -> tuple[LayerKind, ...]:
    """Returns the kind of each layer, in order."""
    local = LayerKind(config.window, config.local_rotary_theta or config.rotary_theta, config.rope_scaling_local)
    others = LayerKind(0 if config.global_every else config.window, config.rotary_theta, rope_is_scaled=True)

    def kind(n: int) -> LayerKind:
        is_local = config.global_every and n % config.global_every != config.global_offset
        return dataclasses.replace(
            local if is_local else others,
            is_rotary=not (config.nope_every and n % config.nope_every == config.nope_offset),
            has_first_norm=config.first_norm or n > 0,
        )

    return tuple(kind(n) for n in range(config.num_layers))


def distinct_kinds(pattern: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """Returns the distinct kinds of a pattern, in order of first occurrence."""
    return tuple(dict.fromkeys(pattern))


class Mlp(nn.Module):
    """Computes down(activation(up(x))). If gated, computes down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        width, mlp_width = (config.d_model,), (config.d_ff,)
        up_BLF = projection(config, "up", width, mlp_width, ("embed", "mlp"))(x_BLD)
        if activation.gated:
            gate_BLF = projection(config, "gate", width, mlp_width, ("embed", "mlp"))(x_BLD)
            h_BLF = activation.function(gate_BLF) * up_BLF
        else:
            h_BLF = activation.function(up_BLF)
        h_BLF = nn.with_logical_constraint(h_BLF, ("batch", "length", "mlp"))
        return projection(config, "down", mlp_width, width, ("mlp", "embed"), residual_scale(config))(h_BLF)


class Block(nn.Module):
    """Self-attention, cross-attention (only if `cross` is true) and an MLP, each in a residual branch.

    model.norm_position determines whether the input of a branch, its output or the residual sum is normalised.
    """

    config: ModelConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, cache: LayerCache | None, context: AttentionContext, kind: Array | int
    ) -> WithCache:
        config, context = self.config, context.of_kind(kind)
        dropout = nn.Dropout(config.dropout, deterministic=not context.train)
        branches: dict[str, nn.Module] = {"attention": Attention(config, name="attention")}
        if self.cross:
            branches["cross_attention"] = Attention(config, cross=True, name="cross_attention")
        branches["mlp"] = Mlp(config, name="mlp")

        x_BLD = nn.with_logical_constraint(x_BLD, ("batch", "length", "activation"))
        normalized, (view,) = NORM_POSITIONS[config.norm_position], context.views

        def norm(name: str, x_BLD: Array, applies: bool) -> Array:
            return Norm(config, name=name)(x_BLD) if applies else x_BLD

        for name, branch in branches.items():
            y_BLD = norm(f"{name}_norm", x_BLD, normalized.inputs)
            if name == "attention" and view.skips_first_norm is not None:
                y_BLD = jnp.where(view.skips_first_norm, x_BLD, y_BLD)
            if name == "mlp":
                y_BLD = branch(y_BLD)
            else:
                y_BLD, cache = branch(y_BLD, context, cache)
            y_BLD = norm(f"{name}_output_norm", y_BLD, normalized.outputs)
            x_BLD = norm(f"{name}_norm", x_BLD + dropout(y_BLD), normalized.sums)
        return x_BLD, cache


class Stack(nn.Module):
    """The N blocks of a tower, or one block that is applied N times."""

    config: ModelConfig
    cross: bool = False

    @nn.compact
    def __call__(self, x_BLD: Array, layers: Any, context: AttentionContext) -> tuple[Array, Any]:
        """Returns the output of the last block and the updated layers of the cache.

        Args:
            layers: `Cache.layers`, or None if there is no cache.
            context: the attention context, with one view for each of the `distinct_kinds`.
        """
        config, pattern = self.config, layer_pattern(self.config)
        kinds = [distinct_kinds(pattern).index(kind) for kind in pattern]
        block: Any = Block
        if config.remat != "none":
            # In a scan, XLA cannot merge recomputation with the forward pass, so no costly guard against merging is
            # needed.
            block = nn.remat(Block, policy=REMAT_POLICIES[config.remat].keeps, prevent_cse=not config.scan_layers)
        shared = config.share_layers
        if config.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={} if shared else {"params": 0},
                variable_broadcast="params" if shared else False,
                split_rngs={"params": not shared, "dropout": True},
                in_axes=(0, nn.broadcast, 0),
                out_axes=0,
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
                # By default, Flax traces the block twice. One trace is enough if nothing is drawn at random, since only
                # the keys of random draws depend on the number of traces.
                check_constancy_invariants=shared or self.has_rng("params") or self.has_rng("dropout"),
            )
            name = SHARED_NAME if shared else STACK_NAME
            return scanned(config, self.cross, name=name)(x_BLD, layers, context, jnp.array(kinds))
        new_layers = []
        for n, kind in enumerate(kinds):
            if n == 0 or not shared:
                one = block(config, self.cross, name=SHARED_NAME if shared else f"{LAYER_PREFIX}{n}")
            x_BLD, cache = one(x_BLD, None if layers is None else layers[n], context, kind)
            new_layers.append(cache)
        return x_BLD, None if layers is None else tuple(new_layers)
