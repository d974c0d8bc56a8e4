"""Which rows a config trains and is evaluated on: data and objective brought together, for neither knows the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from lm.config import LABELLED, PAIRED, Config
from lm.data.examples.corruption import build_denoiser
from lm.data.examples.labelled import AnswerPieces, TaskPieces, TextPieces, WordPieces
from lm.data.examples.masked import MaskedPieces, NextSentencePieces
from lm.data.examples.masking import build_masking
from lm.data.examples.pairs import DenoisingExamples, Examples, PairExamples
from lm.data.packing import causal, loader
from lm.data.packing.loader import EvalRows, TrainRows
from lm.data.packing.packed_rows import Packable, PackedTrainRows
from lm.data.packing.pair_rows import PairEvalRows, PairLayout
from lm.data.packing.partner_rows import PartnerEvalRows, PartnerLayout
from lm.data.packing.piece_rows import PieceEvalRows, PieceLayout, TaskEvalRows
from lm.data.storing.label_store import LabelledStore
from lm.data.storing.pair_store import PairStore
from lm.data.storing.prepare import Prepared, Store
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.tokenizers import Tokenizer
from lm.errors import UserError

AnyTrainRows: TypeAlias = TrainRows | PackedTrainRows
AnyEvalRows: TypeAlias = EvalRows | PairEvalRows | PieceEvalRows | PartnerEvalRows

SENTENCE_ENDS = tuple(".!?…。！？")


def train_rows(config: Config, prepared: Prepared) -> AnyTrainRows:
    """Endless training rows. Raises UserError for a source that gives no example, or rows too short for any."""
    if config.objective.name == "causal":
        return TrainRows(config, prepared, causal.features)
    tokenizer, stores = prepared.tokenizer, prepared.stores["train"]
    if config.objective.name in LABELLED:
        tasks = _task_pieces(config, tokenizer, stores, train=True)
        _check_some(tasks, "no example can be learnt", "look at the notes above, or lengthen the rows")
        return PackedTrainRows(config, tasks, PieceLayout.of(config))
    if config.objective.name == "contrastive":
        return PackedTrainRows(
            config, _examples(config, tokenizer, stores, "truncate"), PartnerLayout.of(config, tokenizer.bos_id)
        )
    if config.objective.name == "masked":
        pieces = _masked_pieces(config, tokenizer, stores)
        least = "2 tokens" if config.objective.next_sentence else "a token"
        _check_some(pieces, f"no document has {least}", "give it more text")
        return PackedTrainRows(config, pieces, PieceLayout.of(config))
    examples = _examples(config, tokenizer, stores, config.data.pairs.overlong)
    if config.objective.name == "seq2seq":
        _check_some(
            examples, "every pair is longer than a row", "lengthen the rows or set data.pairs.overlong to 'truncate'"
        )
    else:
        _check_some(examples, "no document has 2 tokens", "give it more text")
    return PackedTrainRows(config, examples, _pair_layout(config, tokenizer))


def _check_some(examples: Mapping[str, Packable], reason: str, remedy: str) -> None:
    for name, each in examples.items():
        if not len(each):
            raise UserError(f"config.data.train.{name}: {reason}, so there is nothing to train on; {remedy}.")


def eval_rows(config: Config, tokenizer: Tokenizer, stores: Mapping[str, Store]) -> dict[str, AnyEvalRows]:
    """Evaluation rows of a split, by source; `tokenizer` is the target's. What is too long is cut, never dropped.

    Sources of which no example can be made are left out. Raises UserError if none is left.
    """
    if config.objective.name == "causal":
        texts = {name: store for name, store in stores.items() if isinstance(store, TokenStore)}
        return dict(loader.eval_rows(config, texts, causal.features))
    rows: dict[str, AnyEvalRows] = {}
    if config.objective.name in LABELLED:
        tasks = _task_pieces(config, tokenizer, stores, train=False)
        return {name: TaskEvalRows(pieces, PieceLayout.of(config)) for name, pieces in tasks.items() if len(pieces)}
    if config.objective.name == "contrastive":
        partners = PartnerLayout.of(config, tokenizer.bos_id)
        return {
            name: PartnerEvalRows(each, partners)
            for name, each in _examples(config, tokenizer, stores, "truncate").items()
        }
    if config.objective.name == "masked":
        for name, pieces in _masked_pieces(config, tokenizer, stores).items():
            if len(pieces):
                layout = PieceLayout.of(config)
                rows[name] = PieceEvalRows(pieces, layout, text=pieces.text, missing=pieces.missing)
    else:
        pair_layout = _pair_layout(config, tokenizer)
        for name, examples in _examples(config, tokenizer, stores, "truncate").items():
            if len(examples):
                rows[name] = PairEvalRows(examples, pair_layout)
    if not rows:
        raise UserError(f"config.data: no document of {', '.join(stores)} has the 2 tokens that can be evaluated.")
    return rows


def _pair_layout(config: Config, tokenizer: Tokenizer) -> PairLayout:
    return PairLayout(config.data.source_length, config.data.sequence_length, tokenizer.bos_id)


def _masked_pieces(config: Config, tokenizer: Tokenizer, stores: Mapping[str, Store]) -> dict[str, MaskedPieces]:
    word_starts = tokenizer.word_starts if config.objective.whole_words else None
    masking = build_masking(config.objective, tokenizer.mask_id, tokenizer.text_ids, word_starts)
    kind = NextSentencePieces if config.objective.next_sentence else MaskedPieces
    length, ends = config.data.sequence_length, (tokenizer.bos_id, tokenizer.eos_id)
    texts = {name: store for name, store in stores.items() if isinstance(store, TokenStore)}
    return {name: kind(store, masking, length, *ends, config.seed, name) for name, store in texts.items()}


TASKS: dict[str, type[TextPieces] | type[WordPieces] | type[AnswerPieces]] = {
    "classification": TextPieces,
    "regression": TextPieces,
    "tagging": WordPieces,
    "span_qa": AnswerPieces,
}


def _task_pieces(
    config: Config, tokenizer: Tokenizer, stores: Mapping[str, Store], *, train: bool
) -> dict[str, TaskPieces]:
    labelled = {name: store for name, store in stores.items() if isinstance(store, LabelledStore)}
    kind = TASKS[config.objective.name]
    return {name: kind(store, config, tokenizer, train) for name, store in labelled.items()}


def _examples(config: Config, tokenizer: Tokenizer, stores: Mapping[str, Store], overlong: str) -> dict[str, Examples]:
    lengths = (config.data.source_length, config.data.sequence_length)
    pairs = {name: store for name, store in stores.items() if isinstance(store, PairStore)}
    if config.objective.name in PAIRED:
        return {name: PairExamples(store, *lengths, overlong) for name, store in pairs.items()}
    extra_ids = [tokenizer.extra_id(i) for i in range(tokenizer.num_extra_ids)]
    ends = _ends_sentence(tokenizer) if config.objective.permute_sentences else None
    denoiser = build_denoiser(config.objective, extra_ids, tokenizer.eos_id, ends)
    texts = {name: store for name, store in stores.items() if isinstance(store, TokenStore)}
    return {name: DenoisingExamples(store, denoiser, *lengths, config.seed, name) for name, store in texts.items()}


def _ends_sentence(tokenizer: Tokenizer) -> np.ndarray:
    """Bool (V,): the tokens after which a sentence is over, for BART's shuffling of sentences."""
    return np.array([tokenizer.piece(token).endswith(SENTENCE_ENDS) for token in range(tokenizer.vocab_size)])
