"""Text in, text out: continuations of prompts by a decoder, and the outputs of an encoder-decoder for sources.

Under `on_mesh` the rows of a batch are split over its devices. All processes make each call alike and get equal texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.tokenizing.base import Tokenizer
from lm.decoding.beam import BeamSettings, beam_search
from lm.decoding.inputs import Rows
from lm.decoding.loop import Sampler, check_fits
from lm.decoding.sampling import Sampling, row_keys, vocabulary_of
from lm.errors import UserError
from lm.models.protocol import Model

UNFINISHED = "\ufffd"  # a tokenizer decodes bytes that do not form a character (yet) as this

Report = Callable[[int, int], None]


def _check_utf8(name: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{name} {number} is not valid UTF-8: {text!r}.") from None


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each prompt, begin token first; an empty prompt is the begin token alone."""
    _check_utf8("prompt", prompts)
    return [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(list(prompts))]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Returns the text of the new tokens as it follows the prompt: a space between them may depend on both."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def sample_many(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Rows,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    num_samples: int = 1,
    max_rows: int = 16,
) -> Iterator[tuple[int, int, str]]:
    """Yields (prompt number, sample number, continuation) in order; both numbers start at 0.

    A continuation does not include the prompt, and is shorter where the model's positions end. `max_rows` rows are
    sampled at a time. A sample depends on the seed and on its two numbers, not on `max_rows`. Raises UserError for a
    prompt that fills all positions of the model.
    """
    check_fits(prompts, 1, model.max_length)
    sampler = Sampler(model, params, sampling, vocabulary_of(tokenizer), max_new_tokens)
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_samples)]
    max_rows = min(max_rows, len(rows))
    for first in range(0, len(rows), max_rows):
        batch = rows[first : first + max_rows]
        keys_B = row_keys(seed, *np.array(batch).T)
        new_tokens = sampler.generate([prompts[prompt] for prompt, _ in batch], keys_B, max_rows)
        for (prompt, sample), new in zip(batch, new_tokens, strict=True):
            yield prompt, sample, continuation(tokenizer, prompts[prompt], new)


def stream_text(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
) -> Iterator[str]:
    """Yields the text of `sample_many` for a single prompt and sample in parts, each as soon as it cannot change.

    A character of several tokens appears when its last token is known.
    """
    sampler = Sampler(model, params, sampling, vocabulary_of(tokenizer), max_new_tokens)
    new: list[int] = []
    text, shown = "", 0
    for token in sampler.stream(prompt, row_keys(seed, np.zeros(1), np.zeros(1))[0]):
        new.append(token)
        text = continuation(tokenizer, prompt, new)
        stable = len(text.rstrip(UNFINISHED))
        if stable > shown:
            yield text[shown:stable]
            shown = stable
    if len(text) > shown:
        yield text[shown:]


def encode_sources(
    tokenizer: Tokenizer, texts: Sequence[str], source_length: int = 0, *, spelled: bool = False
) -> list[list[int]]:
    """Returns the token ids of each text, end token last.

    Args:
        source_length: longer sources are cut by `cut_sources`; 0 for no limit.
        spelled: read <extra_id_N> in a text as that token.
    """
    _check_utf8("text", texts)
    encoded = map(tokenizer.encode_spelled, texts) if spelled else tokenizer.encode_batch(list(texts))
    sources = [[*ids, tokenizer.eos_id] for ids in encoded]
    return cut_sources(sources, source_length) if source_length else sources


def cut_sources(sources: Rows, source_length: int) -> list[list[int]]:
    """Returns the sources, cut to `source_length` tokens, of which the last is still the end token."""
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
    """Returns the outputs of `SourceDecoder.search` for texts, cut to `source_length` tokens.

    A text may be empty: then the source is the end token alone. Raises UserError for an invalid text.
    """
    sources = encode_sources(source_tokenizer, texts, source_length)
    return SourceDecoder(model, params, tokenizer, batch_size, report).search(sources, settings)


@dataclass(frozen=True)
class SourceDecoder:
    """An encoder-decoder and how to decode with it."""

    model: Model
    params: Any
    tokenizer: Tokenizer  # of the outputs
    batch_size: int  # sources at a time; affects memory and speed, not the outputs
    report: Report | None = None  # called with (sources done, all sources) after each batch
    output_prefix: Sequence[int] = ()  # token ids that every output starts with; they count as new tokens
    spelled: bool = False  # write extra ids as <extra_id_N>; otherwise they are omitted from the texts

    def search(self, sources: Rows, settings: BeamSettings) -> list[list[tuple[str, float]]]:
        """Returns (text, score) of the `settings.num_hypotheses` best outputs of each source, best first.

        Sources are token ids, end token included. Raises UserError for settings out of range.
        """
        settings.check()
        vocabulary, size = vocabulary_of(self.tokenizer), min(self.batch_size, len(sources))
        outputs: list[list[tuple[str, float]]] = [[] for _ in sources]
        for numbers in batches_by_length(sources, size, self.report):
            batch, prefixes = [sources[number] for number in numbers], [self.output_prefix] * len(numbers)
            found = beam_search(self.model, self.params, batch, settings, vocabulary, prefixes, size)
            for number, hypotheses in zip(numbers, found, strict=True):
                outputs[number] = [(self._text(each.tokens), each.score) for each in hypotheses]
        return outputs

    def sample(
        self, sources: Rows, sampling: Sampling, max_new_tokens: int, seed: int, num_samples: int
    ) -> list[list[str]]:
        """Returns `num_samples` sampled outputs of each source.

        A sample depends on the seed and the numbers of source and sample, not on `batch_size`. Raises UserError if the
        outputs do not fit into the model's positions or `output_prefix` leaves no token to sample.
        """
        vocabulary, size = vocabulary_of(self.tokenizer), min(self.batch_size, len(sources))
        start, num_new = [vocabulary.bos_id, *self.output_prefix], max_new_tokens - len(self.output_prefix)
        check_fits([start], num_new, self.model.max_length)
        sampler = Sampler(self.model, self.params, sampling, vocabulary, num_new)
        outputs: list[list[str]] = [[] for _ in sources]
        for numbers in batches_by_length(sources, size, self.report):
            batch, starts = [sources[number] for number in numbers], [start] * len(numbers)
            for sample in range(num_samples):
                keys_B = row_keys(seed, np.array(numbers), np.full(len(numbers), sample))
                for number, new in zip(numbers, sampler.generate(starts, keys_B, size, batch), strict=True):
                    outputs[number].append(self._text([*self.output_prefix, *new]))
        return outputs

    def _text(self, tokens: Sequence[int]) -> str:
        return (self.tokenizer.decode_spelled if self.spelled else self.tokenizer.decode)(tokens)


def batches_by_length(sources: Rows, batch_size: int, report: Report | None = None) -> Iterator[list[int]]:
    """Yields the numbers of sources of similar length, the longest first so that a lack of memory shows at once."""
    order = sorted(range(len(sources)), key=lambda number: -len(sources[number]))
    for first in range(0, len(order), max(batch_size, 1)):
        yield order[first : first + batch_size]
        if report is not None:
            report(min(first + batch_size, len(order)), len(order))
