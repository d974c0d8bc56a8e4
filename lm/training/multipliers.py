"""Learning-rate multipliers: layer-wise learning-rate decay, frozen parameters, and adapter-only training.

A multiplier scales the whole update of a parameter, including weight decay. Layer 0 holds the embeddings (of tokens,
types and positions), their norm and the relative position bias. Block n is layer n + 1. Everything after the last block
forms the top layer, whose multiplier is 1. Any other layer has `layer_decay` times the multiplier of the layer above
(Clark 2020, ELECTRA). In an encoder-decoder, the blocks of each stack are numbered separately. An embedding that both
stacks share counts as layer 0 of the deeper stack.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from lm.config import Config, ModelConfig
from lm.errors import UserError
from lm.models.parameters import abstract_params
from lm.models.protocol import Model
from lm.training.names import STATIC, Path, block_of, map_with_path

Multiplier = float | np.ndarray  # float32 (N,) if the multipliers of N stacked layers differ; 0 means frozen

ADAPTERS = ("lora_a", "lora_b")
NO_UPDATE = -0.0  # adding -0.0 leaves every bit of a parameter unchanged; adding +0.0 would turn -0.0 into +0.0


def learning_rate_multipliers(config: Config, model: Model) -> dict[str, Multiplier]:
    """Returns the multiplier of every parameter of the model, e.g. {"layers/mlp/up/kernel": 0.5, ...}.

    If the model has adapters, only the adapters and the head are trained. Raises UserError if a name in the settings
    matches no parameter, or if all parameters are frozen.
    """
    params = nn.unbox(abstract_params(model))
    leaves = traverse_util.flatten_dict(params).items()
    multipliers = {"/".join(path): _multiplier(config, path, param.shape) for path, param in leaves}
    for part in config.optimizer.freeze:
        matching = [name for name in multipliers if _matches(part, name)]
        if not matching:
            parts = dict.fromkeys(each for name in multipliers for each in name.split("/"))
            near = difflib.get_close_matches(part, [*parts, *multipliers], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(sorted(parts))}"
            raise UserError(f"config.optimizer.freeze: no parameter's name contains {part!r}; {hint}.")
        multipliers |= dict.fromkeys(matching, 0.0)
    for target in config.model.lora_targets if config.model.lora_rank else ():
        if not any(name.endswith(f"/{target}/lora_a") for name in multipliers):
            gate = " (only a gated activation has a gate)" if target == "gate" else ""
            raise UserError(f"config.model.lora_targets: this model has no projection {target!r}{gate}; omit it.")
    if all(map(is_frozen, multipliers.values())):
        ways = "lower freeze_layers, remove names from freeze, or raise layer_decay"
        raise UserError(f"config.optimizer: nothing is left to train; {ways}.")
    return multipliers


def all_one(multipliers: Mapping[str, Multiplier]) -> bool:
    return all(np.all(each == 1.0) for each in multipliers.values())


def is_frozen(multiplier: Multiplier) -> bool:
    """Returns whether a parameter with this multiplier is frozen in all layers."""
    return not np.any(multiplier)


def stop_frozen(params: Any, multipliers: Mapping[str, Multiplier]) -> Any:
    """Applies `stop_gradient` to frozen parameters, so that their gradients are 0 and need not be computed.

    If only some layers of a stack are frozen, the gradients of all its layers are computed.
    """

    def stop(path: Path, param: jax.Array) -> jax.Array:
        multiplier, stopped = multipliers["/".join(path)], jax.lax.stop_gradient(param)
        return stopped if is_frozen(multiplier) else _replace_frozen(param, multiplier, stopped)

    return map_with_path(stop, params)


def with_multipliers(
    optimizer: optax.GradientTransformation, multipliers: Mapping[str, Multiplier]
) -> optax.GradientTransformation:
    """Wraps an optimizer so that its updates are scaled by the multipliers.

    The wrapped optimizer takes and returns trees of all parameters. Frozen parameters have no optimizer state and stay
    bitwise unchanged. The gradients of frozen parameters are ignored, even in the global norm. If any layer of a stack
    is trained, the optimizer state covers all layers of the stack.
    """
    flat, nested = (partial(each, sep="/") for each in (traverse_util.flatten_dict, traverse_util.unflatten_dict))

    def trained(tree: dict[str, Any]) -> dict[str, Any]:
        """Returns {name: leaf} for the parameters that are trained in at least one layer. Leaves may be boxed."""
        return {name: leaf for name, leaf in flat(tree).items() if not is_frozen(multipliers[name])}

    def init(params: Any) -> Any:
        return optimizer.init(nested(trained(params)))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = {name: _replace_frozen(grad, multipliers[name], NO_UPDATE) for name, grad in trained(grads).items()}
        updates, state = optimizer.update(nested(grads), state, nested(trained(params)))
        scaled = {name: jnp.full(param.shape, NO_UPDATE, jnp.float32) for name, param in flat(params).items()}
        for name, x in flat(updates).items():
            scaled[name] = _replace_frozen(x * _by_layer(multipliers[name], x), multipliers[name], NO_UPDATE)
        return nested(scaled), state

    return optax.GradientTransformation(init, update)


def describe_multipliers(multipliers: list[Multiplier]) -> str:
    """Summarises multipliers for one table row, e.g. as "0.8", "0.41 to 0.8" or "2 frozen, 1"."""
    values = np.concatenate([np.atleast_1d(np.asarray(each, np.float32)) for each in multipliers])
    trained = values[values > 0]
    if not trained.size:
        return "frozen"
    low, high = (f"{value:.2g}" for value in (trained.min(), trained.max()))
    frozen = f"{values.size - trained.size} frozen, " if trained.size < values.size else ""
    return frozen + (low if low == high else f"{low} to {high}")


def _multiplier(config: Config, path: Path, shape: tuple[int, ...]) -> Multiplier:
    """Returns the multiplier of a parameter before optimizer.freeze is applied."""
    if path[0] in STATIC:
        return 0.0
    block = block_of(path)
    in_body = block is not None or any("embedding" in part for part in path)  # including embedding_norm/scale
    if config.model.lora_rank and path[-1] not in ADAPTERS and (in_body or "final_norm" in path):
        return 0.0
    if not in_body:
        return 1.0
    top = _depth(config.model, path) + 1
    layers = np.arange(1, shape[0] + 1) if block == -1 else np.array([0 if block is None else block + 1])
    trained = (layers > config.optimizer.freeze_layers) | (config.optimizer.freeze_layers == 0)
    values = np.where(trained, config.optimizer.layer_decay ** (top - layers), 0.0).astype(np.float32)
    return float(values[0]) if np.all(values == values[0]) else values


def _depth(model: ModelConfig, path: Path) -> int:
    """Returns how many blocks in the parameter's stack have parameters of their own."""
    if model.share_layers:
        return 1
    if model.family == "encoder_decoder":
        if path[0] in ("encoder", "source_embedding"):
            return model.num_encoder_layers
        if path[0] == "token_embedding" and model.share_embeddings:
            return max(model.num_layers, model.num_encoder_layers)
    return model.num_layers


def _matches(part: str, name: str) -> bool:
    """Returns whether `part` occurs in the name. Numbers must match as a whole: layer_1 does not match layer_10."""
    pattern = re.escape(part) + (r"(?!\d)" if part[-1:].isdigit() else "")
    return any(re.search(pattern, each) for each in (name, re.sub(r"layer_\d+", "layer_*", name)))


def _replace_frozen(x: jax.Array, multiplier: Multiplier, value: Any) -> jax.Array:
    """Replaces the frozen layers of `x` with the corresponding layers of `value`, which may be a scalar."""
    return x if np.all(multiplier) else jnp.where(_by_layer(multiplier, x) > 0, x, value)


def _by_layer(multiplier: Multiplier, x: Any) -> np.ndarray:
    """Reshapes a multiplier from (N,) to (N, 1, ...), or a scalar to (1, 1, ...), to broadcast against `x`."""
    return np.asarray(multiplier, np.float32).reshape(-1, *[1] * (x.ndim - 1))
