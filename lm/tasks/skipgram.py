"""Skip-gram: predict the words around each word, with negative sampling (Mikolov 2013)."""

from __future__ import annotations

from typing import Any

from lm.batch import Batch
from lm.config import Config
from lm.data.tokenizing.base import Tokenizer
from lm.models.word_vectors.heads import SkipGramScores
from lm.tasks.task import NOT_SCORED
from lm.tasks.word_vectors import ContextTask


class SkipGram(ContextTask):
    name = "skipgram"
    doc = "train word vectors that predict the words around each word (word2vec)"
    whole_context = False

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        """Returns, for each word, the distance up to which the surrounding words are its targets."""
        columns = zip(batch.types[row], batch.weights[row], strict=True)  # type: ignore[index]
        return [f"±{radius}" if weight else NOT_SCORED for radius, weight in columns]

    def head(self, config: Config) -> Any:
        return SkipGramScores(window=config.objective.context_window, num_noise=config.objective.shared_negatives)
