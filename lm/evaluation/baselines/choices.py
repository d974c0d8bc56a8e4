"""Baselines for multiple choice, which ignore the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.evaluation.baselines.baseline import BaselineSetup, LabelBaseline


class RandomCandidate(LabelBaseline):
    """Chooses a candidate uniformly at random. The random numbers depend only on config.seed."""

    name = "random candidate"

    def outputs(self, setup: BaselineSetup, train: Sequence[Any], raw: Sequence[Any]) -> tuple[list[np.ndarray], str]:
        generator = np.random.default_rng(setup.config.seed)
        expected = float(np.mean([1 / len(example.candidates) for example in raw]))
        return [generator.random(len(example.candidates)) for example in raw], f"expected accuracy {expected:.2%}"


class LongestCandidate(LabelBaseline):
    """Chooses the candidate with the most characters. Ties go to the first candidate."""

    name = "longest candidate"

    def outputs(self, setup: BaselineSetup, train: Sequence[Any], raw: Sequence[Any]) -> tuple[list[np.ndarray], str]:
        return [np.array([float(len(text)) for text in example.candidates]) for example in raw], ""
