"""Texts in, the texts of an encoder-decoder out: in batches of similar length, in the order given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lm.data.tokenizing.base import Tokenizer
from lm.decoding.beam import BeamSettings, beam_search
from lm.decoding.loop import check_room, generate
from lm.decoding.sampling import Sampling, row_keys
from lm.decoding.text import vocabulary_of
from lm.errors import UserError
from lm.models.transformer.wiring import Model

Report = Callable[[int, int], None]


def encode_sources(
    tokenizer: Tokenizer, texts: Sequence[str], source_length: int = 0, *, spelled: bool = False
) -> list[list[int]]:
    """Token ids of each text and the end token; with a `source_length` cut by `cut_sources`.

    With `spelled` <extra_id_N> in a text is that token.
    """
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"text {number} is not valid UTF-8: {text!r}.") from None
    encoded = map(tokenizer.encode_spelled, texts) if spelled else tokenizer.encode_batch(list(texts))
    sources = [[*ids, tokenizer.eos_id] for ids in encoded]
    return cut_sources(sources, source_length) if source_length else sources


def cut_sources(sources: Sequence[Sequence[int]], source_length: int) -> list[list[int]]:
    """Those that are longer than `source_length` are cut to so many tokens, of which the last is the end token."""
    return [[*ids[:-1][: source_length - 1], ids[-1]] for ids in sources]


def generate_texts(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: BeamSettings,
    batch_size: int,
    source_length: int,
    report: Report | None = None,
) -> list[list[tuple[str, float]]]:
    """`search_texts` of texts.

    Args:
        tokenizer: of the outputs; `source_tokenizer` may be the same.
        source_length: longer sources are cut to so many tokens, end token included.

    A text may be empty: its output is what the model makes of an end token alone. Raises UserError for
    settings out of range or a text that is not valid.
    """
    settings.check()
    sources = encode_sources(source_tokenizer, texts, source_length)
    return search_texts(model, params, tokenizer, sources, settings, batch_size, report)


def search_texts(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    sources: Sequence[Sequence[int]],
    settings: BeamSettings,
    batch_size: int,
    report: Report | None = None,
    output_prefix: Sequence[int] = (),
    spelled: bool = False,
) -> list[list[tuple[str, float]]]:
    """Of each source the `settings.num_hypotheses` best outputs, best first, as (text, score).

    Args:
        sources: token ids, end token included.
        batch_size: sources at a time. Changes memory and speed, not the outputs.
        report: told (sources done, sources in all) after each batch.
        output_prefix: token ids that every output begins with; `settings.max_new_tokens` counts them too.
        spelled: write extra ids as <extra_id_N>; else they are no part of an output's text.

    Under `on_mesh` the sources of a batch are split over its devices; all processes call it alike and get the same.
    Raises UserError for settings out of range.
    """
    vocabulary, decode = vocabulary_of(tokenizer), tokenizer.decode_spelled if spelled else tokenizer.decode
    batch_size = min(batch_size, len(sources))
    outputs: list[list[tuple[str, float]]] = [[] for _ in sources]
    for places in _batches(sources, batch_size, report):
        batch = [sources[place] for place in places]
        found = beam_search(model, params, batch, settings, vocabulary, [output_prefix] * len(batch), batch_size)
        for place, hypotheses in zip(places, found, strict=True):
            outputs[place] = [(decode(each.tokens), each.score) for each in hypotheses]
    return outputs


def sample_texts(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    sources: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    num_samples: int,
    batch_size: int,
    report: Report | None = None,
    output_prefix: Sequence[int] = (),
    spelled: bool = False,
) -> list[list[str]]:
    """Of each source `num_samples` outputs that are drawn; the other arguments are those of `search_texts`.

    What is drawn depends on the seed and the numbers of source and sample, not on `batch_size`. Raises
    UserError if the model has not so many positions, or nothing is left to draw.
    """
    vocabulary, num_new = vocabulary_of(tokenizer), max_new_tokens - len(output_prefix)
    check_room([[vocabulary.bos_id, *output_prefix]], num_new, model.config.max_length)
    decode = tokenizer.decode_spelled if spelled else tokenizer.decode
    batch_size = min(batch_size, len(sources))
    outputs: list[list[str]] = [[] for _ in sources]
    for places in _batches(sources, batch_size, report):
        batch, begins = [sources[place] for place in places], [[vocabulary.bos_id, *output_prefix]] * len(places)
        for sample in range(num_samples):
            keys_B = row_keys(seed, np.array(places), np.full(len(places), sample))
            made = generate(model, params, begins, keys_B, sampling, vocabulary, num_new, batch_size, sources=batch)
            for place, new in zip(places, made, strict=True):
                outputs[place].append(decode([*output_prefix, *new]))
    return outputs


def _batches(sources: Sequence[Sequence[int]], batch_size: int, report: Report | None) -> Iterator[list[int]]:
    """Places of sources of similar length, the longest first: if memory does not suffice, it shows at once."""
    order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
    for first in range(0, len(sources), max(batch_size, 1)):
        yield order[first : first + batch_size]
        if report is not None:
            report(min(first + batch_size, len(sources)), len(sources))
