"""Mixes the models of two runs, and tunes the mixture weight (eval.py --mix)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm.batch import Array, Batch
from lm.config import Config
from lm.config.experiment import replace_settings
from lm.data.packing.prefetch import GlobalBatches
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationRows
from lm.models import MODELS
from lm.models.mixture import Mixture, log_probs
from lm.models.protocol import Model
from lm.parallel.distributed import is_first
from lm.parallel.mesh import on_mesh
from lm.reporting.progress import counting
from lm.tasks import task_of

HALVINGS, DECIMALS = 30, 4  # bisection steps and decimal places of the tuned weight


@dataclass(frozen=True)
class Mix:
    """The parsed value of --mix."""

    root: Path
    weight: float | None  # weight of the other run's probabilities; None means that it is tuned on the validation split

    @classmethod
    def of(cls, text: str) -> Mix:
        """Parses RUN or RUN:WEIGHT. Raises UserError if the weight is not a number between 0 and 1."""
        path, colon, number = text.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            if path and re.fullmatch(r"([-+.]?\d[^/]*)?", number):
                problem = f"{number!r} is not a number"
                raise UserError(f"--mix={text}: {problem}; write RUN:WEIGHT, e.g. {path}:0.3, or only RUN.") from None
            path, colon = "", ""
        if not colon or not path:
            return cls(Path(text), None)
        if not 0 < weight < 1:
            raise UserError(f"--mix={text}: the weight of the other run must be between 0 and 1, e.g. {path}:0.3.")
        return cls(Path(path), weight)

    @property
    def name(self) -> str:
        return self.root.absolute().name


def check_mixable(mix: Mix, own: Config, other: Config, fingerprints: tuple[str, str], length: int) -> None:
    """Raises UserError unless two runs can be mixed: both must predict the same tokens in rows of `length` tokens."""
    for config in (own, other):
        if not task_of(config).windowed:
            problem = f"a run with objective.name={config.objective.name} does not score every token of plain text"
            raise UserError(f"--mix={mix.root}: {problem}; mix language models only.")
        if config.data.stateful:
            problem = "one of the two runs carries its state between windows (data.stateful)"
            raise UserError(f"--mix={mix.root}: {problem}, which a mixture cannot do; use runs without data.stateful.")
    if fingerprints[0] != fingerprints[1]:
        advice = "train both with the same tokenizer settings on the same text, or with the same data.tokenizer.path"
        raise UserError(f"--mix={mix.root}: the tokenizers of the two runs differ; {advice}.")
    if MODELS[other.model.architecture].fit is None and other.model.max_length < length:
        problem = f"its model has {other.model.max_length} positions, but rows have {length} tokens"
        raise UserError(f"--mix={mix.root}: {problem}; evaluate that run and mix in this one.")


def cut_contexts(own: Config, other: Config) -> str:
    """Returns a note if the evaluated run's windows truncate contexts that the other run could use, otherwise ""."""
    same_length = replace_settings(other, {"data.sequence_length": own.data.sequence_length})
    longest = MODELS[other.model.architecture].derive(same_length).get("eval.stride", own.data.sequence_length)
    if own.eval.stride <= longest:
        return ""
    windows = f"windows that begin every {own.eval.stride} tokens"
    return f"{windows} truncate some contexts of that run; --stride={longest} would not"


def tuned_weight(
    models: tuple[Model, Model],
    params: tuple[Any, Any],
    rows: Mapping[str, EvaluationRows],
    batch_size: int,
    mesh: Mesh,
) -> float:
    """Returns the weight of the second model that maximises the likelihood of the targets under the mixture.

    If the first model assigns probability p to a target, and the second q, the mean logarithm of the mixed
    probabilities is a concave function of the weight w. Bisection finds its maximum from the sign of its derivative,
    the mean of (q - p) / ((1 - w) p + w q).
    """
    if jax.process_count() > 1:
        raise UserError("--mix: several processes cannot tune the weight; start only one, or use --mix=RUN:WEIGHT.")
    found: list[np.ndarray] = []
    total, done = sum(each.num_rows for each in rows.values()), 0
    global_batches = GlobalBatches(mesh, batch_size)
    with on_mesh(mesh), counting(total, "validation rows", enabled=is_first()) as report:
        for each in rows.values():
            for begin in range(0, each.num_rows, batch_size):
                batch = each.rows((begin + global_batches.row_ids).tolist())
                chosen = np.asarray(batch.weights) > 0
                both_2BL = _target_log_probs(models, params, global_batches.place(batch))
                found.append(np.asarray(both_2BL, np.float64)[:, chosen])
                done = min(done + batch_size, total)
                if report is not None:
                    report(done, total)
    own, other = np.concatenate(found, axis=1)
    ratio = np.exp(np.clip(other - own, -700, 700))  # q / p
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = np.mean((ratio - 1) / (1 - middle + middle * ratio))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return round(float((low + high) / 2), DECIMALS)


@functools.partial(jax.jit, static_argnums=0)
def _target_log_probs(models: tuple[Model, Model], params: tuple[Any, Any], batch: Batch) -> Array:
    """Returns the log-probability of each target under both models, float32 (2, B, L)."""

    def of(model: Model, of_model: Any) -> Array:
        logs_BLV = log_probs(model, of_model, batch)
        return jnp.take_along_axis(logs_BLV, batch.targets[..., None], axis=-1)[..., 0]

    return jnp.stack([of(*each) for each in zip(models, params, strict=True)])


def mixed(models: tuple[Model, Model], params: tuple[Any, Any], weight: float) -> tuple[Any, Any]:
    """Returns the mixture of two models and the parameters of the mixture."""
    own, other = params
    return Mixture(*models), {"own": own, "other": other, "weight": jnp.float32(weight)}
