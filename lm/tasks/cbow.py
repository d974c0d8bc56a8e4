"""Continuous bag of words: predict each word from the mean vector of its context (Mikolov 2013)."""

from __future__ import annotations

from typing import Any

from lm.config import Config
from lm.models.word_vectors.heads import CbowScores
from lm.tasks.word_vectors import ContextTask


class Cbow(ContextTask):
    name = "cbow"
    doc = "train word vectors whose mean over a context predicts the word in the middle (word2vec)"
    whole_context = True

    def head(self, config: Config) -> Any:
        return CbowScores(window=config.objective.context_window, num_noise=config.objective.shared_negatives)
