"""Generates text from text: a decoder continues prompts, and an encoder-decoder generates outputs for sources.

Under `on_mesh`, the rows of a batch are split over the devices. All processes must make the same calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.tokenizing.base import Tokenizer
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.inputs import Rows, longest_first
from lm.decoding.loop import Sampler, check_fits
from lm.decoding.rows import Report
from lm.decoding.sampling import Sampling, Vocabulary, row_keys, vocabulary_of
from lm.errors import UserError
from lm.models.protocol import Model

UNFINISHED = "\ufffd"  # the character decoded from bytes that do not (yet) form a complete character


def _check_utf8(name: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{name} {number} is not valid UTF-8: {text!r}.") from None


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Encodes prompts as token ids that start with the BOS token. Raises UserError if a text is not valid UTF-8.

    If the tokenizer has no BOS token, only the text is encoded. An empty prompt then becomes the EOS token, which also
    precedes training documents.
    """
    _check_utf8("prompt", prompts)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*begin, *ids] or [tokenizer.start_id] for ids in tokenizer.encode_batch(list(prompts))]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Decodes the new tokens in the context of the prompt, which may determine whether they start with a space."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def sample_many(
    sampler: Sampler, tokenizer: Tokenizer, prompts: Rows, seed: int, num_samples: int = 1, max_rows: int = 16
) -> Iterator[tuple[int, int, str]]:
    """Yields tuples (prompt index, sample index, continuation) in order.

    A continuation excludes the prompt and ends, at the latest, at the model's last position. A continuation depends on
    the seed and on its prompt and sample indices, but not on the batch size `max_rows`. Raises UserError if a prompt
    leaves no position for a new token.
    """
    check_fits(prompts, 1, sampler.model.max_length)
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_samples)]
    keys_B, complete, next_row = row_keys(seed, *np.array(rows).T), dict[int, list[int]](), 0
    each = sampler.generate_each([prompts[prompt] for prompt, _ in rows], keys_B, min(max_rows, len(rows)))
    for number, new in each:
        complete[number] = new
        while next_row in complete:
            prompt, sample = rows[next_row]
            yield prompt, sample, continuation(tokenizer, prompts[prompt], complete.pop(next_row))
            next_row += 1


def stream_text(sampler: Sampler, tokenizer: Tokenizer, prompt: Sequence[int], seed: int) -> Iterator[str]:
    """Yields the continuation of one prompt (see `sample_many`) in pieces, each as soon as its text is final."""
    tokens = sampler.stream(prompt, row_keys(seed, np.zeros(1), np.zeros(1))[0])
    return text_parts(tokenizer, tokens, prompt)


def text_parts(tokenizer: Tokenizer, tokens: Iterable[int], prompt: Sequence[int] = ()) -> Iterator[str]:
    """Decodes tokens that continue a prompt, and yields each piece of their text as soon as it is final.

    A character that spans several tokens is yielded once its last token has been read.
    """
    new, text, shown = list[int](), "", 0
    for token in tokens:
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
    """Encodes texts as token ids with the special tokens of sources. Raises UserError if a text is not valid UTF-8.

    Sources longer than `source_length` (0 means no limit) are truncated. See `encode_texts` for `spelled`.
    """
    encoded = encode_texts(tokenizer, texts, spelled=spelled)
    sources = [tokenizer.source_template.fill(ids)[0].tolist() for ids in encoded]
    return cut_sources(tokenizer, sources, source_length) if source_length else sources


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], *, spelled: bool = False) -> list[list[int]]:
    """Encodes texts without special tokens. Raises UserError if a text is not valid UTF-8.

    If `spelled` is true, the string <extra_id_N> is encoded as the extra id with that name.
    """
    _check_utf8("text", texts)
    return [*map(tokenizer.encode_spelled, texts)] if spelled else tokenizer.encode_batch(list(texts))


def with_text(tokenizer: Tokenizer, sources: Rows) -> list[int]:
    """Returns the indices of the sources to decode. A source that contains only special tokens has an empty output."""
    least = tokenizer.source_template.num_special
    return [index for index, ids in enumerate(sources) if len(ids) > least]


def cut_sources(tokenizer: Tokenizer, sources: Rows, source_length: int) -> list[list[int]]:
    """Truncates sources to `source_length` tokens, keeping the special tokens after the text."""
    template = tokenizer.source_template
    kept = template.num_special - template.num_before(0)
    return [[*ids[:-kept][: source_length - kept], *ids[-kept:]] for ids in sources]


@dataclass(frozen=True)
class SourceDecoder:
    """Generates outputs with an encoder-decoder, by beam search or by sampling."""

    model: Model
    params: Any
    tokenizer: Tokenizer  # the tokenizer of the outputs
    # The number of sources (in `sample`, of outputs) decoded at the same time; affects only memory and speed.
    batch_size: int
    report: Report | None = None
    output_prefix: Sequence[int] = ()  # token ids with which every output starts; they count as new tokens
    spelled: bool = False  # whether to write extra ids as <extra_id_N> instead of omitting them
    vocabulary: Vocabulary | None = None  # if None, the tokenizer's vocabulary is used

    def search(self, sources: Rows, settings: BeamSettings) -> list[list[tuple[str, float]]]:
        """Returns the `settings.num_hypotheses` best outputs of each source as (text, score) pairs, best first.

        Sources are token ids, including special tokens. Raises UserError if a setting is out of range.
        """
        settings.check()
        prefixes, size = [self.output_prefix] * len(sources), min(self.batch_size, len(sources))
        found = beam_search(self.model, self.params, sources, settings, self._vocabulary, prefixes, size, self.report)
        return [[(self._text(each.tokens), each.score) for each in hypotheses] for hypotheses in found]

    def sample(
        self, sources: Rows, sampling: Sampling, max_new_tokens: int, seed: int, num_samples: int
    ) -> list[list[str]]:
        """Returns `num_samples` outputs for each source.

        The random numbers of an output depend only on the seed and on its source and sample indices. Raises UserError
        if the outputs could exceed the model's maximum length or if `output_prefix` leaves no token to sample.
        """
        vocabulary = self._vocabulary
        start = [*vocabulary.output_start, *self.output_prefix]
        num_new = max_new_tokens - len(start) + 1
        check_fits([start], num_new, self.model.max_length)
        if not sources:
            return []
        sampler = Sampler(self.model, self.params, sampling, vocabulary, num_new)
        order = [(number, sample) for number in longest_first(sources) for sample in range(num_samples)]
        numbers, starts = [number for number, _ in order], [start] * len(order)
        keys_B, size = row_keys(seed, *np.array(order).T), min(self.batch_size, len(order))
        outputs = [[""] * num_samples for _ in sources]
        drawn = sampler.generate_each(starts, keys_B, size, [sources[number] for number in numbers])
        for count, (index, new) in enumerate(drawn, start=1):
            number, sample = order[index]
            outputs[number][sample] = self._text([*start[1:], *new])
            if self.report is not None:
                self.report(count, len(order))
        return outputs

    @property
    def _vocabulary(self) -> Vocabulary:
        return self.vocabulary or vocabulary_of(self.tokenizer)

    def _text(self, tokens: Sequence[int]) -> str:
        return (self.tokenizer.decode_spelled if self.spelled else self.tokenizer.decode)(tokens)


def generate_texts(
    decoder: SourceDecoder, tokenizer: Tokenizer, texts: Sequence[str], settings: BeamSettings, source_length: int
) -> list[list[tuple[str, float]]]:
    """Returns the outputs of `SourceDecoder.search` for texts truncated to `source_length` tokens.

    The output of a text without tokens is empty, with score 0. Raises UserError if a text is not valid UTF-8.
    """
    sources = encode_sources(tokenizer, texts, source_length)
    numbers = with_text(tokenizer, sources)
    outputs = dict(zip(numbers, decoder.search([sources[each] for each in numbers], settings), strict=True))
    return [outputs.get(number, [("", 0.0)]) for number in range(len(sources))]


def batches_by_length(sources: Rows, batch_size: int) -> Iterator[list[int]]:
    """Yields batches of source indices, longest sources first."""
    order = longest_first(sources)
    for first in range(0, len(order), max(batch_size, 1)):
        yield order[first : first + batch_size]
