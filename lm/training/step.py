"""The training step: loss, gradient accumulation, update, and the guard against non-finite values."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm.batch import Array, Batch, Source
from lm.config import Config
from lm.config.model import DROPOUT_RATES
from lm.models.bottleneck import NOISE
from lm.models.protocol import Model
from lm.objectives.losses import LossSums, first_tokens
from lm.parallel.mesh import batch_sharding, on_mesh
from lm.tasks import task_of
from lm.training.multipliers import learning_rate_multipliers, stop_frozen
from lm.training.optimizers import global_norm
from lm.training.state import TrainState

NOISE_STREAM = 2**32 - 1  # distinguishes the key of NOISE from the keys of the microbatches


def train_step(
    config: Config, model: Model, optimizer: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one optimizer step on a global batch. Returns the new state and scalar metrics.

    The loss is a sum over tokens, divided once by the total weight of the batch, so it is the same for any number of
    microbatches and devices. Microbatch j of k takes the rows j, j + k, j + 2k, ..., so no row moves to another device.
    If the loss or the gradient is not finite, the parameters, optimizer state and moving average stay unchanged, and
    the step counts as bad. The carried state (data.stateful) is updated nonetheless.
    """
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    noise_key = jax.random.fold_in(key, NOISE_STREAM)  # the same in all microbatches, unlike the key for dropout
    task, count = task_of(config), config.train.accumulation
    weight = task.total_weight(batch)
    pairs = jnp.maximum(jnp.sum(first_tokens(batch)), 1.0)
    multipliers = learning_rate_multipliers(config, model)

    def microbatch_loss(params: Any, micro: Batch, carried: Any, key: Array) -> tuple[Array, tuple[LossSums, Any]]:
        params = stop_frozen(params, multipliers)
        rngs = {NOISE: noise_key}
        if any(getattr(config.model, rate) for rate in DROPOUT_RATES):
            rngs["dropout"] = key
        output = model.apply({"params": params}, micro, train=True, cache=carried, rngs=rngs)
        sums = task.training_loss(output, micro, config.objective, state.step)
        if output.penalty is not None:
            sums = dataclasses.replace(sums, loss=sums.loss + output.penalty)
        return sums.loss / weight + sums.pair_nll / pairs, (sums, output.cache)

    gradient = jax.grad(microbatch_loss, has_aux=True)  # only for `params`: back-propagation stops at the window start
    if count == 1:
        grads, (sums, carried) = gradient(state.params, batch, state.carried, key)
    else:

        def accumulate(total: tuple[Any, LossSums], inputs: tuple[Batch, Any, Array]) -> tuple[Any, Any]:
            micro, carried, index = inputs
            grads, (sums, carried) = gradient(state.params, micro, carried, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, (grads, sums)), carried

        micros = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), (batch, state.carried))
        start = (jax.tree.map(jnp.zeros_like, state.params), LossSums())
        (grads, sums), carried = jax.lax.scan(accumulate, start, (*micros, jnp.arange(count)))
        carried = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), carried)

    loss = sums.loss / weight + sums.pair_nll / pairs
    gradient_norm = global_norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None if state.ema is None else moving_average(state.ema, params, config.optimizer.ema_decay)

    step, none_in_row = state.step + 1, jnp.zeros_like(state.bad_in_row)
    if_good = TrainState(step, params, opt_state, ema, state.bad_steps, none_in_row, carried)
    bad = {"bad_steps": state.bad_steps + 1, "bad_in_row": state.bad_in_row + 1}
    if_bad = dataclasses.replace(state, step=step, carried=with_finite_rows(carried), **bad)
    new_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), if_good, if_bad)
    metrics = {
        "train/loss": loss,
        "train/nll": sums.nll / weight,
        "train/token_accuracy": sums.correct / weight,
        "train/gradient_norm": gradient_norm,
        "train/tokens": sums.weight,
        "train/bad_steps": new_state.bad_steps,
        "train/batch_hash": batch_hash(batch),
        "bad_in_row": new_state.bad_in_row,
    }
    return new_state, metrics


def with_finite_rows(carried: Any) -> Any:
    """Returns the carried state with every row that contains a non-finite value reset to 0."""
    finite_B = jnp.array(True)
    for x in jax.tree.leaves(carried):
        finite_B &= jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
    return jax.tree.map(lambda x: jnp.where(jnp.expand_dims(finite_B, tuple(range(1, x.ndim))), x, 0), carried)


def batch_hash(batch: Batch) -> Array:
    """Returns a uint32 hash of a batch's tokens, targets, source and types, which is the same on every mesh.

    The hash is the sum, modulo 2^32, of all values, each multiplied by an odd factor that depends on the index of the
    value in the global batch. Odd factors are invertible, so changing a single value always changes the hash.
    """

    def weighted_sum(x_BL: Array, start: int) -> Array:
        row_BL, column_BL = (jax.lax.broadcasted_iota(jnp.uint32, x_BL.shape, axis) for axis in (0, 1))
        index_BL = start + row_BL * x_BL.shape[1] + column_BL
        # The factor is not the index itself, because changes to neighbouring values could then cancel out. Instead, the
        # index is multiplied by Knuth's constant, and the product is folded.
        mixed_BL = index_BL * jnp.uint32(2654435761)
        return jnp.sum(x_BL.astype(jnp.uint32) * ((mixed_BL ^ (mixed_BL >> 15)) | 1), dtype=jnp.uint32)

    targets = batch.targets
    if targets.dtype == jnp.float32:
        targets = jax.lax.bitcast_convert_type(targets, jnp.uint32)
    source = None if batch.source is None else batch.source.tokens
    arrays = enumerate((batch.tokens, targets, source, batch.types))
    sums = [weighted_sum(x, i * batch.tokens.size) for i, x in arrays if x is not None]
    return sum(sums, start=jnp.uint32(0))


def abstract_batch(config: Config, mesh: Mesh, max_segments: int = 0) -> Batch:
    """Returns the shapes, dtypes and shardings of a training batch, given `Batch.max_segments`."""
    rows = batch_sharding(mesh)

    def array(length: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.train.batch_size, length), dtype, sharding=rows)

    layout = task_of(config).layout(config)
    ids, real, source = array(layout.length), array(layout.length, jnp.float32), array(layout.source_length)
    return Batch(
        tokens=ids,
        targets=real if layout.real_targets else ids,
        weights=real,
        positions=ids,
        segments=ids,
        source=Source(tokens=source, positions=source, segments=source) if layout.source_length else None,
        types=ids if layout.with_types else None,
        max_segments=max_segments,
    )


def moving_average(average: Any, params: Any, decay: float) -> Any:
    """Returns decay * average + (1 - decay) * params, which is exactly `average` where `average` equals `params`."""
    return jax.tree.map(lambda a, p: jnp.where(a == p, a, decay * a + (1 - decay) * p), average, params)


def trace_train_step(
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    max_segments: int = 0,
) -> jax.stages.Traced:
    """Traces the training step for the given config and mesh. The step donates the buffers of its input state."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract), None
    step = jax.jit(partial(train_step, config, model, optimizer), out_shardings=shardings, donate_argnums=0)
    with on_mesh(mesh):
        return step.trace(abstract, abstract_batch(config, mesh, max_segments))


def compile_train_step(
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    max_segments: int = 0,
) -> jax.stages.Compiled:
    """Compiles the training step for the given config and mesh, for batches with the given `Batch.max_segments`.

    The result is an executable, not a jitted function, so a batch of another shape raises an error.
    """
    compiled = trace_train_step(config, model, optimizer, abstract, mesh, max_segments).lower().compile()
    _return_freed_memory()
    return compiled


def _return_freed_memory() -> None:
    """Returns memory freed by the compiler, often 150 MB, to the system. The GNU C library would otherwise keep it."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
