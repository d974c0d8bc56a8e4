"""Which rows a config trains and is evaluated on: data and objective brought together, for neither knows the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from lm.config import Config
from lm.data import loader
from lm.data.examples import DenoisingExamples, Examples, PairExamples
from lm.data.loader import EvalRows, TrainRows
from lm.data.pair_rows import PairEvalRows, PairTrainRows
from lm.data.pair_store import PairStore
from lm.data.prepare import Prepared
from lm.data.token_store import TokenStore
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.objectives import causal
from lm.objectives.denoising import build_denoiser

AnyTrainRows: TypeAlias = TrainRows | PairTrainRows
AnyEvalRows: TypeAlias = EvalRows | PairEvalRows

SENTENCE_ENDS = tuple(".!?…。！？")


def train_rows(config: Config, prepared: Prepared) -> AnyTrainRows:
    """Endless training rows. Raises UserError for a source that gives no example, or rows too short for any."""
    if config.objective.name == "causal":
        return TrainRows(config, prepared, causal.features)
    examples = _examples(config, prepared.tokenizer, prepared.stores["train"], config.data.pairs.overlong)
    for name, each in examples.items():
        if not len(each):
            pairs = config.objective.name == "seq2seq"
            reason = "every pair is longer than a row" if pairs else "no document has 2 tokens"
            remedy = "lengthen the rows or set data.pairs.overlong to 'truncate'" if pairs else "give it more text"
            raise UserError(f"config.data.train.{name}: {reason}, so there is nothing to train on; {remedy}.")
    return PairTrainRows(config, examples, prepared.tokenizer.bos_id)


def eval_rows(
    config: Config, tokenizer: Tokenizer, stores: Mapping[str, TokenStore | PairStore]
) -> dict[str, AnyEvalRows]:
    """Evaluation rows of a split, by source; `tokenizer` is the target's. What is too long is cut, never dropped.

    Sources of which no example can be made are left out. Raises UserError if none is left.
    """
    if config.objective.name == "causal":
        texts = {name: store for name, store in stores.items() if isinstance(store, TokenStore)}
        return dict(loader.eval_rows(config, texts, causal.features))
    lengths = (config.data.source_length, config.data.sequence_length)
    examples = _examples(config, tokenizer, stores, "truncate")
    rows = {name: PairEvalRows(each, *lengths, tokenizer.bos_id) for name, each in examples.items() if len(each)}
    if not rows:
        raise UserError(f"config.data: no document of {', '.join(stores)} has the 2 tokens that can be evaluated.")
    return dict(rows)


def _examples(
    config: Config, tokenizer: Tokenizer, stores: Mapping[str, TokenStore | PairStore], overlong: str
) -> dict[str, Examples]:
    lengths = (config.data.source_length, config.data.sequence_length)
    pairs = {name: store for name, store in stores.items() if isinstance(store, PairStore)}
    if config.objective.name == "seq2seq":
        return {name: PairExamples(store, *lengths, overlong) for name, store in pairs.items()}
    extra_ids = [tokenizer.extra_id(i) for i in range(tokenizer.num_extra_ids)]
    ends = _ends_sentence(tokenizer) if config.objective.permute_sentences else None
    denoiser = build_denoiser(config.objective, extra_ids, tokenizer.eos_id, ends)
    texts = {name: store for name, store in stores.items() if isinstance(store, TokenStore)}
    return {name: DenoisingExamples(store, denoiser, *lengths, config.seed, name) for name, store in texts.items()}


def _ends_sentence(tokenizer: Tokenizer) -> np.ndarray:
    """Bool (V,): the tokens after which a sentence is over, for BART's shuffling of sentences."""
    return np.array([tokenizer.piece(token).endswith(SENTENCE_ENDS) for token in range(tokenizer.vocab_size)])
