"""Evaluates the latent vectors of an autoencoder: reconstructs texts from them, and counts active units."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.sampling import vocabulary_of
from lm.evaluation.evaluator import EvaluationSetup, Report, named_metrics
from lm.evaluation.metric import Metric, share
from lm.evaluation.predictions import Example, write_predictions
from lm.evaluation.row_evaluator import RowEvaluator, Scored
from lm.models.latents import MeanLatents
from lm.parallel.mesh import on_mesh

RECONSTRUCTION_METRICS = (
    Metric("restored_tokens", "tokens restored", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("restored_texts", "texts restored", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("active_units", "active units", "{:,.0f}".format, higher_is_better=True, recorded=True),
)
LEAST_VARIANCE = 0.01  # a latent dimension is active if the variance of its mean exceeds this (Burda 2016, section 5.2)


class Restored(NamedTuple):
    """The token ids of a text and of its reconstruction, including the EOS token if it was reached."""

    targets: Sequence[int]
    tokens: Sequence[int]


def reconstruction_metrics(texts: Sequence[Restored]) -> dict[str, float]:
    """Computes the share of tokens restored at the correct position, and the share of texts restored exactly."""
    exact = [list(each.tokens) == list(each.targets) for each in texts]
    right = sum(a == b for each in texts for a, b in zip(each.targets, each.tokens, strict=False))
    total = sum(len(each.targets) for each in texts)
    return {"restored_tokens": right / total, "restored_texts": float(np.mean(exact))}


def active_units(means_EZ: np.ndarray) -> float:
    """Returns the number of latent dimensions whose means vary over the texts (Burda 2016)."""
    return float(np.sum(np.var(means_EZ.astype(np.float64), axis=0) > LEAST_VARIANCE))


class ReconstructionEvaluator(RowEvaluator):
    """Reconstructs each text greedily from its mean latent vectors, scores the result, and counts active units.

    Each row holds one text. `labeller` is the object that `Task.labeller` returns, which turns texts into vectors.
    """

    with_logits = True

    def __init__(self, labeller: Any, setup: EvaluationSetup) -> None:
        super().__init__(labeller, dataclasses.replace(setup, model=MeanLatents(setup.model)))
        self._autoencoder, self._tokenizer = setup.model, setup.tokenizers.target
        self._examples: list[Example] = []  # the texts of the last evaluation and their reconstructions

    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        result = super().evaluate(params, step)
        counted = None if report is None else functools.partial(report, noun="outputs")
        with on_mesh(self._mesh):
            restored = self._restored(params, counted)
        parts = restored if len(self._rows) > 1 else {}
        whole = [text for each in restored.values() for text in each]
        return result | named_metrics(self.name, parts, whole, reconstruction_metrics)

    def _restored(self, params: Any, report: Report | None) -> dict[str, list[Restored]]:
        """Returns the reconstructions of the scored texts of each data source."""
        chosen = [(source, int(row)) for source, rows in self._row_ids.items() for row in rows]
        examples = [self._rows[source].examples.make(0, row) for source, row in chosen]
        sources = [each.source_S.tolist() for each in examples]
        settings = BeamSettings(max_new_tokens=self._config.data.sequence_length)
        vocabulary, size = vocabulary_of(self._tokenizer), self._config.eval.generation.batch_size
        size = min(size, len(sources))
        found = beam_search(self._autoencoder, params, sources, settings, vocabulary, None, size, report)
        best = [hypotheses[0] for hypotheses in found]
        result: dict[str, list[Restored]] = {source: [] for source, _ in chosen}
        self._examples = []
        for number, ((source, _), example) in enumerate(zip(chosen, examples, strict=True)):
            text, output = (self._tokenizer.decode(each) for each in (example.targets_T.tolist(), best[number].tokens))
            self._examples.append(Example(text, (text,), output, best[number].score))
            result[source].append(Restored(example.targets_T.tolist(), best[number].tokens))
        return result

    def _collect(self, source: str, batches: Iterator[Scored]) -> np.ndarray:
        """Returns the mean latent vectors of the texts, float32 (E, k * Z)."""
        return np.concatenate([each.logits_RLC[:, 0] for each in batches if each.logits_RLC is not None])

    def _combine(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def _metrics(self, part: np.ndarray) -> dict[str, float]:
        return {"active_units": active_units(part)}

    def previews(self, count: int) -> list[dict[str, str]]:
        return [{"text": each.source, "restored": each.prediction} for each in self._examples[:count]]

    def write(self, directory: Path, stem: str) -> list[Path]:
        path = directory / f"{stem}.jsonl"
        write_predictions(path, self._examples)
        return [path]
