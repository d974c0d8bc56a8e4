"""Texts in, the texts of an encoder-decoder out: in batches of similar length, in the order given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm.data.tokenizers import Tokenizer
from lm.decoding.beam import BeamSettings, beam_search
from lm.decoding.text import vocabulary_of
from lm.errors import UserError
from lm.models.transformer import Model


def encode_sources(tokenizer: Tokenizer, texts: Sequence[str], source_length: int) -> list[list[int]]:
    """Token ids of each text, cut to `source_length` with the end token, which is always there."""
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"text {number} is not valid UTF-8: {text!r}.") from None
    return [[*ids[: source_length - 1], tokenizer.eos_id] for ids in tokenizer.encode_batch(list(texts))]


def generate_texts(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: BeamSettings,
    batch_size: int,
    source_length: int,
    report: Callable[[int, int], None] | None = None,
) -> list[list[tuple[str, float]]]:
    """Of each text the `settings.num_hypotheses` best outputs, best first, as (text, score).

    Args:
        tokenizer: of the outputs; `source_tokenizer` may be the same.
        batch_size: sources at a time. Changes memory and speed, not the outputs.
        source_length: longer sources are cut to so many tokens, end token included.
        report: told (texts done, texts in all) after each batch.

    A text may be empty: its output is what the model makes of an end token alone. Under `on_mesh` for
    sharded parameters; all processes call it alike and get the same. Raises UserError for settings out
    of range or a text that is not valid.
    """
    settings.check()
    sources = encode_sources(source_tokenizer, texts, source_length)
    vocabulary = vocabulary_of(tokenizer)
    batch_size = min(batch_size, len(texts))
    # The longest first: if memory does not suffice, it shows at once.
    order = sorted(range(len(texts)), key=lambda place: -len(sources[place]))
    outputs: list[list[tuple[str, float]]] = [[] for _ in texts]
    for first in range(0, len(texts), max(batch_size, 1)):
        places = order[first : first + batch_size]
        found = beam_search(
            model, params, [sources[place] for place in places], settings, vocabulary, min_rows=batch_size
        )
        for place, hypotheses in zip(places, found, strict=True):
            outputs[place] = [(tokenizer.decode(each.tokens), each.score) for each in hypotheses]
        if report is not None:
            report(first + len(places), len(texts))
    return outputs
