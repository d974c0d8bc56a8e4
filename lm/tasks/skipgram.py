"""Skip-gram: predict the words around each word, with negative sampling (Mikolov 2013)."""

from __future__ import annotations

from typing import Any

from lm.config import Config
from lm.models.word_vectors.heads import SkipGramScores
from lm.tasks.word_vectors import ContextTask


class SkipGram(ContextTask):
    name = "skipgram"
    doc = "train word vectors that predict the words around each word (word2vec)"
    whole_context = False

    def head(self, config: Config) -> Any:
        return SkipGramScores(window=config.objective.context_window, num_noise=config.objective.shared_negatives)
