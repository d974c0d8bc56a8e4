"""The block, and N of them: scanned or unrolled, with rematerialisation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.transformer.attention import Attention, AttentionContext
from lm.models.transformer.cache import LayerCache
from lm.models.transformer.layers import Mlp, Norm

STACK_NAME, LAYER_PREFIX = "layers", "layer_"  # scanned: one subtree with a leading N; unrolled: one each

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
    """Attention, with `cross` attention to a source too, and MLP: each on a residual branch, normed before or after."""

    config: ModelConfig
    kernel: str
    train: bool
    cross: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, cache: LayerCache | None, context: AttentionContext, is_global: Array | bool
    ) -> tuple[Array, LayerCache | None]:
        config = self.config
        context = context.of_layer(is_global)
        pre = config.norm_position == "pre"
        attention_norm, mlp_norm = Norm(config, name="attention_norm"), Norm(config, name="mlp_norm")
        dropout = nn.Dropout(config.dropout, deterministic=not self.train)
        attention = Attention(config, self.kernel, self.train, name="attention")
        mlp = Mlp(config, name="mlp")

        x_BLD = nn.with_logical_constraint(x_BLD, ("batch", "length", "activation"))
        y_BLD, cache = attention(attention_norm(x_BLD) if pre else x_BLD, context, cache)
        x_BLD = x_BLD + dropout(y_BLD)
        if not pre:
            x_BLD = attention_norm(x_BLD)
        if self.cross:
            cross_norm = Norm(config, name="cross_attention_norm")
            cross_attention = Attention(config, self.kernel, self.train, cross=True, name="cross_attention")
            y_BLD, cache = cross_attention(cross_norm(x_BLD) if pre else x_BLD, context, cache)
            x_BLD = x_BLD + dropout(y_BLD)
            if not pre:
                x_BLD = cross_norm(x_BLD)
        x_BLD = x_BLD + dropout(mlp(mlp_norm(x_BLD) if pre else x_BLD))
        if not pre:
            x_BLD = mlp_norm(x_BLD)
        return x_BLD, cache


def run_stack(
    config: ModelConfig,
    kernel: str,
    train: bool,
    x_BLD: Array,
    layers: Any,
    context: AttentionContext,
    cross: bool = False,
) -> tuple[Array, Any]:
    """Runs N blocks; call it inside a compact module. `layers` is None or the layers of a Cache."""
    block: Any = Block
    if config.remat != "none":
        # Inside a scan nothing can be merged across iterations, so the costly guard against it is not needed.
        block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers)
    # Layers without a window, where the others have one; without either setting all are alike.
    is_global = [config.global_every == 0 or n % config.global_every == 0 for n in range(config.num_layers)]
    if config.scan_layers:
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, 0),
            out_axes=0,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(config, kernel, train, cross, name=STACK_NAME)(x_BLD, layers, context, jnp.array(is_global))
    new_layers = []
    for n in range(config.num_layers):
        x_BLD, cache = block(config, kernel, train, cross, name=f"{LAYER_PREFIX}{n}")(
            x_BLD, None if layers is None else layers[n], context, is_global[n]
        )
        new_layers.append(cache)
    return x_BLD, None if layers is None else tuple(new_layers)


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a scanned model in the form of the unrolled one, in every tower."""
    rest = {
        name: unstack_layers(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name != STACK_NAME
    }
    stacked = params.get(STACK_NAME, {})
    for n in range(jax.tree.leaves(stacked)[0].shape[0] if stacked else 0):
        rest[f"{LAYER_PREFIX}{n}"] = jax.tree.map(lambda x, n=n: x[n], stacked)
    return rest


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model in the form of the scanned one."""
    rest = {
        name: stack_layers(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if not name.startswith(LAYER_PREFIX)
    }
    if layers := [params[f"{LAYER_PREFIX}{n}"] for n in range(len(params) - len(rest))]:
        rest[STACK_NAME] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return rest
