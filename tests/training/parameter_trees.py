"""Trees with the names and shapes of models' parameters, and optimizers run on them, for the tests in this folder."""

import dataclasses
import functools

import jax
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from lm.config import ModelConfig, OptimizerConfig
from lm.models import build_model
from lm.training.names import decayed
from lm.training.optimizers import OPTIMIZERS, make_optimizer
from tests.trees import flatten, nest

NAMES = list(OPTIMIZERS)
N = 2
SMALL = {"N": N, "D": 8, "H": 4, "G": 2, "K": 6, "F": 20, "V": 24, "L": 10}
LARGE = {"N": N, "D": 128, "H": 4, "G": 2, "K": 64, "F": 160, "V": 144, "L": 136}  # large enough to be factored

BLOCK = {
    "attention/query/kernel": "DHK",
    "attention/query/bias": "HK",
    "attention/key/kernel": "DGK",
    "attention/value/kernel": "DGK",
    "attention/out/kernel": "HKD",
    "attention/out/bias": "D",
    "mlp/up/kernel": "DF",
    "mlp/up/bias": "F",
    "mlp/gate/kernel": "DF",
    "mlp/down/kernel": "FD",
    "mlp/down/bias": "D",
    "attention_norm/scale": "D",
    "attention_norm/bias": "D",
}
TOP = {
    "token_embedding/embedding": "VD",
    "position_embedding/embedding": "LD",
    "final_norm/scale": "D",
    "output/kernel": "DV",
}
# One of each kind, for tests that compile.
FEW = ("query/kernel", "query/bias", "out/kernel", "up/kernel", "attention_norm/scale", "embedding", "output/kernel")
LOGICAL = {"N": "layers", "D": "embed", "H": "heads", "G": "kv_heads", "K": "head", "F": "mlp", "V": "vocab", "L": None}
RULES = (("embed", "fsdp"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"))
RULES += (("layers", None), ("head", None))


def letters(stacked: bool, few: bool = False) -> dict[str, str]:
    """Returns the shape of each parameter, as letters."""
    layers = [("layers", "N")] if stacked else [(f"layer_{i}", "") for i in range(N)]
    block = {f"{layer}/{name}": axis + shape for layer, axis in layers for name, shape in BLOCK.items()}
    return {name: shape for name, shape in (TOP | block).items() if name.endswith(FEW) or not few}


def decay_table(params: dict) -> dict[str, bool]:
    """Returns {"layers/mlp/up/kernel": True, ...}, `decayed` of each parameter of a plain, boxed or abstract tree."""
    return {"/".join(path): decayed(path) for path in traverse_util.flatten_dict(params)}


def zeros_tree(sizes: dict[str, int], stacked: bool) -> dict:
    return nest({path: np.zeros([sizes[x] for x in shape], np.float32) for path, shape in letters(stacked).items()})


def random_tree(seed: int, sizes: dict[str, int]) -> dict:
    """Returns float32 normals in a stacked tree with one parameter of each kind."""
    rng = np.random.default_rng(seed)
    draw = {path: rng.normal(size=[sizes[x] for x in shape]) for path, shape in letters(True, few=True).items()}
    return nest({path: leaf.astype(np.float32) for path, leaf in draw.items()})


def random_gradients(name: str, sizes: dict[str, int], steps: int) -> list[dict]:
    gradients = [random_tree(1 + step, sizes) for step in range(steps)]
    if name == "lion":
        # The sign of its update jumps where momentum and gradient cancel; proportional gradients never cancel.
        return [jax.tree.map(lambda g, i=i: g * (1 + i / 2), gradients[0]) for i in range(steps)]
    return gradients


def two_sided(seed: int | None = None) -> dict:
    """Returns the shapes of an encoder-decoder's parameters or, with a seed, normals of these shapes."""
    sizes = {"d_model": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "d_ff": 20, "max_length": 10}
    model = ModelConfig(
        family="encoder_decoder",
        vocab_size=24,
        source_vocab_size=28,
        share_embeddings=False,
        tie_embeddings=False,
        num_layers=N,
        num_encoder_layers=1,
        positions="relative",
        **sizes,
    )
    shapes = nn.unbox(jax.eval_shape(lambda key: build_model(model).initial_params(key), jax.random.key(0)))
    if seed is None:
        return shapes
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def unroll(tree: dict) -> dict:
    top = {name: leaf for name, leaf in tree.items() if name != "layers"}
    return top | {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(N)}


def boxed(tree: dict) -> dict:
    names = {path: tuple(LOGICAL[x] for x in shape) for path, shape in letters("layers" in tree).items()}
    return nest({path: nn.LogicallyPartitioned(leaf, names[path]) for path, leaf in flatten(tree).items()})


def config(name: str, **changes) -> OptimizerConfig:
    base = OptimizerConfig(name=name, schedule="constant", learning_rate=0.1, warmup_steps=0, clip_norm=1.0)
    return dataclasses.replace(base, **changes)


@functools.cache
def compiled(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the jitted optimizer; cached, because these tests spend their time compiling."""
    optimizer = make_optimizer(settings, num_steps=100)
    return optax.GradientTransformation(jax.jit(optimizer.init), jax.jit(optimizer.update))


def run_steps(settings: OptimizerConfig, params: dict, gradients: list[dict]) -> list[dict]:
    """Returns the update of each step; the parameters change by a hundredth of it."""
    optimizer, updates = compiled(settings), []
    state = optimizer.init(params)
    for grads in gradients:
        step, state = optimizer.update(grads, state, params)
        updates.append(jax.device_get(step))
        params = jax.tree.map(lambda p, u: p + np.float32(0.01) * u, params, updates[-1])
    return updates
