"""The evaluator of generated text: decodes the sources of a split and scores what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm.config import GenerationConfig
from lm.data.reading.raw import Pair
from lm.data.tokenizing.base import Tokenizer
from lm.decoding.beam import BeamSettings
from lm.decoding.translate import generate_texts
from lm.evaluation.evaluator import choose_rows
from lm.evaluation.predictions import Example, write_predictions
from lm.evaluation.text_metrics import score
from lm.models.transformer.wiring import Model
from lm.parallel.mesh import on_mesh


class Generation:
    """Outputs against references over all pairs of a split, each pair scored once.

    Args:
        tokenizer: of the target; `source_tokenizer` may be the same.
        pairs: by data source. With several there are figures for each, `NAME/SOURCE/bleu`, and of the whole,
            which are scores of all texts together and not a mean.
        settings: how outputs are made and which metrics are computed; max_new_tokens is resolved.
        source_length: longest source in tokens, end token included.
        batch_size: sources at a time; 0 for settings.batch_size. Changes memory and speed only.
        max_examples: decode and score only so many, spread evenly; 0 for all. Then `NAME/examples` says how
            many there were.
        report: told (sources done, sources in all) after each batch.

    Every process decodes the same sources and gets the same figures and outputs.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer,
        pairs: Mapping[str, Sequence[Pair]],
        settings: GenerationConfig,
        mesh: Mesh,
        *,
        source_length: int,
        name: str = "valid",
        batch_size: int = 0,
        max_examples: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        assert settings.metrics and settings.max_new_tokens > 0, settings
        self.name = name
        self.signatures: dict[str, str] = {}  # of the last evaluation, by metric
        self.examples: list[Example] = []  # its outputs, in the order of the pairs
        self._model, self._tokenizer, self._source_tokenizer = model, tokenizer, source_tokenizer
        self._settings, self._mesh, self._source_length = settings, mesh, source_length
        self._batch_size, self._report = batch_size or settings.batch_size, report
        chosen = choose_rows({source: len(each) for source, each in pairs.items()}, max_examples)
        self._pairs = {source: _take(pairs[source], places) for source, places in chosen.items()}
        self._limited = any(len(each) < len(pairs[source]) for source, each in self._pairs.items())
        assert self.num_examples > 0, "a split has at least one pair"

    missing: dict[str, str] = {}  # noqa: RUF012

    def previews(self, count: int) -> list[tuple[str, ...]]:
        return [(each.source, each.prediction, each.references[0]) for each in self.examples[:count]]

    def write(self, directory: Path, stem: str) -> list[Path]:
        path = directory / f"{stem}.jsonl"
        write_predictions(path, self.examples)
        return [path]

    @property
    def num_examples(self) -> int:
        """Pairs that an evaluation scores."""
        return sum(len(each) for each in self._pairs.values())

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Figures of the split; see the class. `step` plays no part: all of the split is scored each time."""
        # Decoded together, so that batches of similar length can be formed over all data sources.
        self.examples = self._decode(params, [pair for each in self._pairs.values() for pair in each])
        result: dict[str, float] = {}
        first = 0
        for source, each in self._pairs.items():
            examples = self.examples[first : first + len(each)]
            first += len(each)
            if examples and len(self._pairs) > 1:
                result |= {f"{self.name}/{source}/{figure}": value for figure, value in self._score(examples).items()}
        assert first == len(self.examples), (first, len(self.examples))
        result |= {f"{self.name}/{figure}": value for figure, value in self._score(self.examples).items()}
        if self._limited:
            result[f"{self.name}/examples"] = float(self.num_examples)
        return result

    def _decode(self, params: Any, pairs: Sequence[Pair]) -> list[Example]:
        settings = self._settings
        beam = BeamSettings(
            num_beams=settings.num_beams,
            penalty=settings.penalty,
            length_penalty=settings.length_penalty,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens,
            no_repeat_ngram=settings.no_repeat_ngram,
            exact=settings.exact,
            num_hypotheses=1,
        )
        with on_mesh(self._mesh):
            outputs = generate_texts(
                self._model,
                params,
                self._tokenizer,
                self._source_tokenizer,
                [pair.source for pair in pairs],
                beam,
                self._batch_size,
                self._source_length,
                self._report,
            )
        assert len(outputs) == len(pairs) and all(outputs), "an output for every source"
        return [
            Example(pair.source, pair.references, prediction, float(value))
            for pair, ((prediction, value), *_) in zip(pairs, outputs, strict=True)
        ]

    def _score(self, examples: Sequence[Example]) -> dict[str, float]:
        """Figures of these outputs; the signatures are those of the last call, which is the one for the whole."""
        scores = score(
            self._settings.metrics,
            [each.prediction for each in examples],
            [each.references for each in examples],
            bleu_tokenize=self._settings.bleu_tokenize,
        )
        self.signatures = scores.signatures
        return scores.figures


def _take(pairs: Sequence[Pair], places: np.ndarray) -> list[Pair]:
    return [pairs[place] for place in places.tolist()]
