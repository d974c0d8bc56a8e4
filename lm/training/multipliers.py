"""How fast each parameter learns: layer-wise decay of the learning rate, frozen parameters, adapters alone.

A multiplier is of the whole update, weight decay included. Layer 0 is the embeddings (of tokens, types and positions,
their norm, and the relative bias), layer n + 1 is block n, and what comes after the blocks is the top: there the
multiplier is 1, and in each layer below it is layer_decay times that above (Clark 2020, ELECTRA). The two stacks of an
encoder-decoder count their own blocks; an embedding that both read is below the deeper one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.config import Config, ModelConfig
from lm.errors import UserError
from lm.models.protocol import Model
from lm.training.names import Path, block_of, map_with_path

Rate = float | np.ndarray  # float32 (N,) where the stacked layers differ; 0 for frozen

EMBEDDINGS = (
    "token_embedding",
    "source_embedding",
    "type_embedding",
    "position_embedding",
    "embedding_norm",
    "relative_bias",
)
ADAPTERS = ("lora_a", "lora_b")
NOTHING = -0.0  # to be added; + 0.0 would turn a -0.0 into 0.0


def rate_multipliers(config: Config, model: Model) -> dict[str, Rate]:
    """{"layers/mlp/up/kernel": multiplier of the learning rate, ...} for every parameter of the model.

    From optimizer.layer_decay, freeze_layers and freeze, and model.lora_rank, with which of the body only the
    adapters learn. Raises UserError if a name matches nothing or nothing is left to train.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = nn.unbox(jax.eval_shape(lambda k: model.initial_params(k), key))
    rates: dict[str, Rate] = {}
    map_with_path(lambda path, param: rates.update({"/".join(path): _rate(config, path, param.shape)}), params)
    for part in config.optimizer.freeze:
        matching = [name for name in rates if _matches(part, name)]
        if not matching:
            raise UserError(f"config.optimizer.freeze: {part!r} is in no parameter's name; {_nearest(part, rates)}.")
        rates |= dict.fromkeys(matching, 0.0)
    _check_adapters(config.model, rates)
    if not any(np.any(rate) for rate in rates.values()):
        raise UserError(
            "config.optimizer: nothing is left to train; lower freeze_layers, take names out of freeze, or raise "
            "layer_decay."
        )
    return rates


def all_one(rates: Mapping[str, Rate]) -> bool:
    """Whether every parameter learns at the learning rate itself."""
    return all(np.all(rate == 1.0) for rate in rates.values())


def is_frozen(rate: Rate) -> bool:
    """Whether none of a parameter, in any layer, is trained."""
    return not np.any(rate)


def stop_frozen(params: Any, rates: Mapping[str, Rate]) -> Any:
    """The same parameters, such that the gradient of what is frozen is 0 and costs nothing.

    Of stacked layers of which some are frozen, all gradients are computed and those are set to 0.
    """

    def stop(path: Path, param: jax.Array) -> jax.Array:
        rate = rates["/".join(path)]
        if is_frozen(rate):
            return jax.lax.stop_gradient(param)
        if np.all(rate):
            return param
        return jnp.where(_spread(rate, param) > 0, param, jax.lax.stop_gradient(param))

    return map_with_path(stop, params)


def at_rates(optimizer: optax.GradientTransformation, rates: Mapping[str, Rate]) -> optax.GradientTransformation:
    """The optimizer with its updates multiplied.

    Takes and gives whole trees. What is frozen has no state, its gradients count nowhere, not even in the global
    norm, and its updates leave every bit as it is. Stacked parameters have the state of all layers if one is trained.
    """

    def init(params: Any) -> Any:
        return optimizer.init(_trained(params, rates))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        grads = map_with_path(lambda path, grad: _without_frozen(grad, rates["/".join(path)]), _trained(grads, rates))
        updates, state = optimizer.update(grads, state, _trained(params, rates))
        found: dict[str, jax.Array] = {}
        map_with_path(lambda path, update: found.update({"/".join(path): update}), updates)

        def scaled(path: Path, param: jax.Array) -> jax.Array:
            name = "/".join(path)
            if name not in found:
                return jnp.full(param.shape, NOTHING, jnp.float32)
            return _without_frozen(_scaled(found[name], rates[name]), rates[name])

        return map_with_path(scaled, params), state

    return optax.GradientTransformation(init, update)


def shown(rates: list[Rate]) -> str:
    """One, or what equal parameters of several layers have, for a table: "0.8", "0.41 to 0.8", "frozen"."""
    values = np.concatenate([np.atleast_1d(np.asarray(rate, np.float32)) for rate in rates])
    trained = values[values > 0]
    if not trained.size:
        return "frozen"
    low, high = (f"{value:.2g}" for value in (trained.min(), trained.max()))
    frozen = f"{values.size - trained.size} frozen, " if trained.size < values.size else ""
    return frozen + (low if low == high else f"{low} to {high}")


def _rate(config: Config, path: Path, shape: tuple[int, ...]) -> Rate:
    """Without `freeze`."""
    block, top = block_of(path), _depth(config.model, path) + 1
    below = [part in EMBEDDINGS for part in path]
    if (
        config.model.lora_rank
        and path[-1] not in ADAPTERS
        and (any(below) or block is not None or "final_norm" in path)
    ):
        return 0.0
    if block is None and not any(below):
        return 1.0
    layers = np.arange(1, shape[0] + 1) if block == -1 else np.array([0 if block is None else block + 1])
    frozen = layers <= config.optimizer.freeze_layers if config.optimizer.freeze_layers else np.zeros(1, bool)
    rates = np.where(frozen, 0.0, config.optimizer.layer_decay ** (top - layers)).astype(np.float32)
    return float(rates[0]) if np.all(rates == rates[0]) else rates


def _depth(model: ModelConfig, path: Path) -> int:
    """Blocks of the stack that the parameter belongs to."""
    if model.family != "encoder_decoder":
        return model.num_layers
    if path[0] in ("encoder", "source_embedding"):
        return model.num_encoder_layers
    shared = path[0] == "token_embedding" and model.share_embeddings
    return max(model.num_layers, model.num_encoder_layers) if shared else model.num_layers


def _matches(part: str, name: str) -> bool:
    """A part that ends in a digit is not meant to go on: layer_1 is not a part of layer_10."""
    pattern = re.escape(part) + (r"(?!\d)" if part[-1:].isdigit() else "")
    return any(re.search(pattern, each) for each in (name, re.sub(r"layer_\d+", "layer_*", name)))


def _nearest(part: str, rates: Mapping[str, Rate]) -> str:
    parts = dict.fromkeys(each for name in rates for each in name.split("/"))
    near = difflib.get_close_matches(part, [*parts, *rates], n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(parts))}"


def _check_adapters(model: ModelConfig, rates: Mapping[str, Rate]) -> None:
    for target in model.lora_targets if model.lora_rank else ():
        if not any(name.endswith(f"/{target}/lora_a") for name in rates):
            gate = " (only a gated activation has a gate)" if target == "gate" else ""
            raise UserError(f"config.model.lora_targets: this model has no product {target!r}{gate}; take it out.")


def _trained(tree: dict[str, Any], rates: Mapping[str, Rate], prefix: str = "") -> dict[str, Any]:
    """A tree of the parameters' form (boxed too) without what is frozen."""
    kept = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            value = _trained(value, rates, f"{prefix}{name}/")
        elif is_frozen(rates[prefix + name]):
            continue
        if not isinstance(value, dict) or value:
            kept[name] = value
    return kept


def _scaled(x: jax.Array, rate: Rate) -> jax.Array:
    if isinstance(rate, np.ndarray):
        return x * _spread(rate, x)
    return x if rate == 1.0 else x * rate


def _without_frozen(x: jax.Array, rate: Rate) -> jax.Array:
    """With NOTHING in the layers that are frozen."""
    return x if np.all(rate) else jnp.where(_spread(rate, x) > 0, x, NOTHING)


def _spread(rate: Rate, x: Any) -> np.ndarray:
    """(N,) as (N, 1, ...), to go with the stacked parameter `x`."""
    return np.asarray(rate, np.float32).reshape(-1, *[1] * (x.ndim - 1))
