"""Plots how strongly the loss of a token depends on the inputs before it: the gradient norm by distance in time.

    python -m benchmarks.gradient_distance --workdir=runs/rnn,runs/lstm --output=results/gradient_distance.png

For each run of a language model, rows of `--length` tokens are read from the validation split. The gradient of the loss
of the last token of a row with respect to the embedded input t tokens earlier is computed, and its norm is averaged
over the rows. The picture shows this norm relative to its value at t = 0, for the best step of the run (solid lines)
and for the initial parameters (dashed lines). In an Elman network, it falls exponentially with t (Bengio 1994), so the
network cannot learn what happened long before; the cell state of an LSTM keeps the gradient from vanishing. A JSON
file beside the picture records the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.record import surroundings, write_record
from lm.batch import Batch
from lm.config import ObjectiveConfig, command
from lm.config.experiment import replace_settings
from lm.data.storing.token_store import TokenStore
from lm.errors import UserError
from lm.files import replacing
from lm.models import build_model
from lm.models.layers import Embedding
from lm.models.protocol import Model
from lm.objectives.losses import loss_sums
from lm.reporting.curves import COLORS
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers, prepare_split
from lm.tasks import task_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_list("workdir", [], "Comma-separated run directories of language models.")
    flags.DEFINE_integer("length", 100, "Number of tokens per row.", lower_bound=2)
    flags.DEFINE_integer("rows", 64, "Number of rows over which the norms are averaged.", lower_bound=1)
    flags.DEFINE_string("note", "", "How the runs were trained, for the record.")
    command.define_path("output", "PNG file to write; the record is written beside it.")


def rows_of(store: TokenStore, count: int, length: int) -> Batch:
    """Returns `count` evenly spaced rows of `length` tokens, in which only the last token has a target.

    Document boundaries are ignored, so each row is one text.
    """
    if store.num_tokens <= length:
        raise UserError(f"--length: the validation split has only {store.num_tokens:,} tokens; use a smaller number.")
    starts_B = np.linspace(0, store.num_tokens - length - 1, count).astype(np.int64)
    tokens_BL = np.stack([store.tokens[start : start + length + 1] for start in starts_B]).astype(np.int32)
    weights_BL = np.zeros((count, length), np.float32)
    weights_BL[:, -1] = 1.0
    positions_BL = np.tile(np.arange(length, dtype=np.int32), (count, 1))
    return Batch(tokens_BL[:, :-1], tokens_BL[:, 1:], weights_BL, positions_BL, np.ones_like(positions_BL))


def norms_by_distance(model: Model, params: Any, batch: Batch) -> np.ndarray:
    """Returns the mean norm of the gradient with respect to the embedded input at each distance, float64 (L,).

    Entry t belongs to the input t tokens before the token whose loss is differentiated.
    """
    width = params["token_embedding"]["embedding"].shape[1]

    def loss(change_BLE: jax.Array) -> jax.Array:
        def add_change(call: Any, arguments: Any, named: Any, context: nn.module.InterceptorContext) -> Any:
            embedded = call(*arguments, **named)
            is_input = isinstance(context.module, Embedding) and context.method_name == "__call__"
            return embedded + change_BLE.astype(embedded.dtype) if is_input else embedded

        with nn.intercept_methods(add_change):
            return loss_sums(model.apply({"params": params}, batch).logits, batch, ObjectiveConfig()).loss

    gradient_BLE = jax.jit(jax.grad(loss))(jnp.zeros((*batch.shape, width), jnp.float32))
    norms_BL = np.linalg.norm(np.asarray(gradient_BLE, np.float64), axis=-1)
    return norms_BL.mean(axis=0)[::-1]


def norms_of_run(root: Path, count: int, length: int) -> dict[str, list[float]]:
    """Returns the norms by distance of a run, with its `trained` and its `initial` parameters."""
    run = RunDirectory.existing(root)
    config = run.load_config()
    config = replace_settings(config, {"model.max_length": max(length, config.model.max_length)})
    if config.model.family != "decoder" or not (task := task_of(config)).writes_text:
        raise UserError(f"{root}: is not a language model (model.family='decoder', objective.name='causal').")
    store = next(iter(prepare_split(config, load_tokenizers(config, run.root), "valid").values()))
    model, batch = build_model(config.model, task.head(config), "cpu"), rows_of(store, count, length)
    with run.open_checkpoints(config) as checkpoints:
        params, _ = checkpoints.restore_params(None, "best", ema=config.optimizer.ema_decay > 0)
    initial = jax.jit(lambda key: nn.unbox(model.initial_params(key)))(jax.random.key(config.seed))
    both = {"trained": params, "initial": initial}
    norms = {name: norms_by_distance(model, each, batch) for name, each in both.items()}
    return {name: [float(f"{value:.4g}") for value in values] for name, values in norms.items()}


def draw(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for (name, norms), color in zip(curves.items(), COLORS, strict=False):
        for kind, style in (("trained", "-"), ("initial", "--")):
            values = np.array(norms[kind])
            axes.plot(values / values[0], style, color=color, label=name if kind == "trained" else f"{name}, initial")
    axes.set_yscale("log")
    axes.set_xlabel("distance t in tokens")
    axes.set_ylabel("gradient norm relative to t = 0")
    axes.grid(True, alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> int:
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError("--workdir and --output are needed (see --help).")
    curves = {Path(each).name: norms_of_run(Path(each), FLAGS.rows, FLAGS.length) for each in FLAGS.workdir}
    for name, norms in curves.items():
        shown = {kind: np.array(values) / values[0] for kind, values in norms.items()}
        far = [t for t in (1, 10, 20, 50, 100) if t < FLAGS.length]
        for kind, values in shown.items():
            print(f"{name}, {kind}: {', '.join(f't={t} {values[t]:.1e}' for t in far)}")
    draw(curves, Path(FLAGS.output))
    record = {"note": FLAGS.note, "rows": FLAGS.rows, "length": FLAGS.length, "norms": curves}
    write_record(Path(FLAGS.output).with_suffix(".json"), {**record, **surroundings()})
    print(f"Written: {FLAGS.output}")
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
