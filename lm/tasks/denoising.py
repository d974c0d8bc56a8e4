"""Denoising with an encoder-decoder: from a corrupted text, generate the missing parts or the original text."""

from __future__ import annotations

import abc

import numpy as np

from lm.config import Config
from lm.data.examples.denoising import Denoiser, DenoisingExamples, Infilling, PrefixLm, SpanCorruption, Ul2
from lm.data.examples.example import Examples
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.tasks.task import SEARCH, VOCABULARY, PackedTask, Stores
from lm.tasks.texts import STORING, DocumentTask

SENTENCE_ENDS = tuple(".!?…。！？")


class Denoising(DocumentTask, PackedTask):
    """Base class for denoising tasks."""

    families = ("encoder_decoder",)
    settings = STORING | SEARCH | VOCABULARY | {"data.source_length"}
    metric_names = ("loss", "perplexity", "token_accuracy")
    loss_name = "nll"
    writes_text = True
    spells_extra_ids = True
    needed_ids = 1
    ids_advice = "needs tokens for masked spans; set extra_ids to 100."

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        return ("loss",)

    @abc.abstractmethod
    def denoiser(self, config: Config, tokenizer: Tokenizer, extra_ids: list[int]) -> Denoiser:
        """Builds the denoiser, which corrupts chunks of text."""

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Examples]:
        extra_ids = list(tokenizer.extra_tokens)
        if len(extra_ids) < self.needed_ids:
            raise UserError(
                f"config.data.tokenizer.extra_ids: objective.name='{self.name}' needs {self.needed_ids} extra tokens, "
                f"but the tokenizer has {len(extra_ids)}; raise extra_ids, or use a tokenizer with more extra tokens."
            )
        denoiser = self.denoiser(config, tokenizer, extra_ids)
        lengths = config.data.source_length, config.data.sequence_length
        return {
            name: DenoisingExamples(store, denoiser, lengths, tokenizer.special_tokens, config.seed, name)
            for name, store in stores.items()
        }


class SpanCorruptionTask(Denoising):
    name = "span_corruption"
    doc = "predict the masked spans of a text (T5)"
    settings = Denoising.settings | {"objective.noise_density", "objective.mean_span_length"}

    def denoiser(self, config: Config, tokenizer: Tokenizer, extra_ids: list[int]) -> Denoiser:
        objective = config.objective
        return SpanCorruption(objective.noise_density, objective.mean_span_length, extra_ids, tokenizer.eos_id)


class Ul2Task(Denoising):
    name = "ul2"
    doc = "learn the denoising tasks of UL2, each marked by a mode token"
    needed_ids = 103
    ids_advice = "needs 103 extra tokens: 100 for masked spans and 3 for modes."

    def denoiser(self, config: Config, tokenizer: Tokenizer, extra_ids: list[int]) -> Denoiser:
        return Ul2(extra_ids, tokenizer.eos_id)


class InfillingTask(Denoising):
    name = "infilling"
    doc = "restore the original text from a copy with masked spans and, optionally, shuffled sentences (BART)"
    settings = SpanCorruptionTask.settings | {"objective.permute_sentences"}

    def denoiser(self, config: Config, tokenizer: Tokenizer, extra_ids: list[int]) -> Denoiser:
        objective = config.objective
        ends = ends_sentence(tokenizer) if objective.permute_sentences else None
        return Infilling(objective.noise_density, objective.mean_span_length, extra_ids[0], tokenizer.eos_id, ends)


class PrefixLmTask(Denoising):
    name = "prefix_lm"
    doc = "predict the rest of a text from its beginning"
    spells_extra_ids = False
    needed_ids = 0

    def denoiser(self, config: Config, tokenizer: Tokenizer, extra_ids: list[int]) -> Denoiser:
        return PrefixLm(tokenizer.eos_id)


def ends_sentence(tokenizer: Tokenizer) -> np.ndarray:
    """Returns a mask, bool (V,), of the tokens that end a sentence, for BART's sentence shuffling."""
    return np.array([tokenizer.piece(token).endswith(SENTENCE_ENDS) for token in range(tokenizer.vocab_size)])
