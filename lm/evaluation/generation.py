"""The evaluator of generated text: generates an output for each source text of a split and scores the outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.data.reading.readers import Pair
from lm.decoding.beam import BeamSettings
from lm.decoding.rows import Report as DecodingReport
from lm.decoding.text import SourceDecoder, generate_texts
from lm.evaluation.evaluator import EvaluationSetup, Evaluator, Report, choose, named_metrics
from lm.evaluation.predictions import Example, write_predictions
from lm.evaluation.text_metrics import score
from lm.parallel.mesh import on_mesh


class Generation(Evaluator):
    """Scores the model's outputs against the references of a split, counting each pair once.

    Evaluations during training use eval.generation.training_beams and score only about eval.generation.max_examples
    evenly spaced pairs; `NAME/examples` is then the number of scored pairs. If there are several data sources, metrics
    are also computed for each data source (`NAME/SOURCE/bleu`). The metrics of the split are computed from all texts
    together.

    Every process passes the same source texts to the decoder and gets the same outputs and metrics.
    """

    def __init__(self, setup: EvaluationSetup) -> None:
        settings = setup.config.eval.generation
        assert settings.metrics and settings.max_new_tokens > 0, settings
        self.name, self._setup, self._settings = setup.name, setup, settings
        self._signatures: dict[str, dict[str, str]] = {}  # keyed by data source; the key "" stands for the whole split
        self.examples: list[Example] = []  # the last evaluation's examples with their outputs, in order
        sizes = {source: len(each) for source, each in setup.references.items()}
        chosen = choose(sizes, settings.max_examples if setup.in_training else 0)
        self._pairs: dict[str, list[Pair]] = {
            source: [setup.references[source][index] for index in indices] for source, indices in chosen.items()
        }
        self._limited = sum(map(len, self._pairs.values())) < sum(sizes.values())
        assert any(self._pairs.values()), "a split must have at least one pair"

    @property
    def signatures(self) -> dict[str, str]:
        """The signatures of the whole split and, where they differ, of its data sources."""
        whole = self._signatures.get("", {})
        parts = {f"{source}/{name}": text for source, each in self._signatures.items() for name, text in each.items()}
        return whole | {name: text for name, text in parts.items() if whole.get(name.partition("/")[2]) != text}

    def previews(self, count: int) -> list[dict[str, str]]:
        return [
            {"source": each.source, "output": each.prediction, "reference": each.references[0]}
            for each in self.examples[:count]
        ]

    def write(self, directory: Path, stem: str) -> list[Path]:
        path = directory / f"{stem}.jsonl"
        write_predictions(path, self.examples)
        return [path]

    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        # All data sources are decoded together, so that each batch holds source texts of similar length.
        pairs = [pair for each in self._pairs.values() for pair in each]
        decoded = self._decode(params, pairs, report)
        assert len(decoded) == len(pairs) and all(decoded), "a source text has no output"
        self.examples = [
            Example(pair.source, pair.references, prediction, float(value))
            for pair, ((prediction, value), *_) in zip(pairs, decoded, strict=True)
        ]
        outputs = iter(self.examples)
        parts = {source: (source, [next(outputs) for _ in each]) for source, each in self._pairs.items() if each}
        whole = "", self.examples
        result = named_metrics(self.name, parts if len(self._pairs) > 1 else {}, whole, self._score)
        if self._limited:
            result[f"{self.name}/examples"] = float(len(pairs))
        return result

    def _decode(self, params: Any, pairs: Sequence[Pair], report: Report | None) -> list[list[tuple[str, float]]]:
        settings = self._settings
        names = {field.name for field in dataclasses.fields(BeamSettings)} - {"num_hypotheses"}
        values = {name: getattr(settings, name) for name in names}
        values["num_beams"] = settings.training_beams if self._setup.in_training else settings.num_beams
        counted = None if report is None else functools.partial(report, noun="outputs")
        with on_mesh(self._setup.mesh):
            return self.outputs(params, pairs, BeamSettings(**values), counted)

    def outputs(
        self, params: Any, pairs: Sequence[Any], settings: BeamSettings, report: DecodingReport | None
    ) -> list[list[tuple[str, float]]]:
        """Returns (output, score) pairs for each source text, with the best output first."""
        setup = self._setup
        decoder = SourceDecoder(setup.model, params, setup.tokenizers.target, self._settings.batch_size, report)
        texts, length = [pair.source for pair in pairs], setup.config.data.source_length
        return generate_texts(decoder, setup.tokenizers.source, texts, settings, length)

    def _score(self, part: tuple[str, Sequence[Example]]) -> dict[str, float]:
        """Computes the metrics of a data source, or of the whole split if `source` is "". Stores the signatures.

        The tokenisation depends on all references of the data source, even if only some pairs are scored.
        """
        source, examples = part
        pairs = [pair for name, each in self._setup.references.items() if source in ("", name) for pair in each]
        metrics, self._signatures[source] = score(
            self._settings.metrics,
            [each.prediction for each in examples],
            [each.references for each in examples],
            bleu_tokenize=self._settings.bleu_tokenize,
            whole=[pair.references for pair in pairs],
        )
        return metrics
