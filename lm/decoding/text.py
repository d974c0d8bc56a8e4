"""Text in, text out: continuations of prompts by a decoder, and the outputs of an encoder-decoder for sources.

Under `on_mesh` the rows of a batch are split over its devices. All processes make each call alike and get equal texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lm.data.tokenizing.base import Tokenizer
from lm.decoding.beam import BeamSettings, beam_search
from lm.decoding.loop import check_fits, generate, stream
from lm.decoding.sampling import Sampling, row_keys
from lm.decoding.vocabulary import vocabulary_of
from lm.errors import UserError
from lm.models.protocol import Model

UNFINISHED = "\ufffd"  # a tokenizer decodes bytes that are not (yet) a character as this

Report = Callable[[int, int], None]


def _check_utf8(name: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{name} {number} is not valid UTF-8: {text!r}.") from None


# --- decoder ----------------------------------------------------------------------------------------------------


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, begin token first; an empty prompt is the begin token alone."""
    _check_utf8("prompt", prompts)
    return [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(list(prompts))]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of the new tokens as it follows the prompt (a space at the joint may depend on both)."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def sample_text(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int = 0,
) -> list[str]:
    """One continuation of each prompt, without the prompt; shorter where the model's positions end.

    Equal calls with other parameters share one compiled program. Raises UserError for a prompt that fills all positions
    of the model.
    """
    ids = encode_prompts(tokenizer, prompts)
    check_fits(ids, 1, model.max_length)
    samples = sample_many(model, params, tokenizer, ids, sampling, max_new_tokens, seed, max_rows=len(ids))
    return [text for _, _, text in samples]


def sample_many(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    num_samples: int = 1,
    max_rows: int = 16,
) -> Iterator[tuple[int, int, str]]:
    """Yields (prompt number, sample number, continuation) in order; both numbers start at 0.

    `max_rows` rows are sampled at a time. A sample depends on the seed and on its two numbers, not on `max_rows`.
    """
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_samples)]
    max_rows = min(max_rows, len(rows))
    for first in range(0, len(rows), max_rows):
        batch = rows[first : first + max_rows]
        keys_B = row_keys(seed, *np.array(batch).T)
        ids = [prompts[prompt] for prompt, _ in batch]
        new_tokens = generate(model, params, ids, keys_B, sampling, vocabulary_of(tokenizer), max_new_tokens, max_rows)
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
    key = row_keys(seed, np.zeros(1), np.zeros(1))[0]
    new: list[int] = []
    text, shown = "", 0
    for token in stream(model, params, prompt, key, sampling, vocabulary_of(tokenizer), max_new_tokens):
        new.append(token)
        text = continuation(tokenizer, prompt, new)
        stable = len(text.rstrip(UNFINISHED))
        if stable > shown:
            yield text[shown:stable]
            shown = stable
    if len(text) > shown:
        yield text[shown:]


# --- encoder-decoder --------------------------------------------------------------------------------------------


def encode_sources(
    tokenizer: Tokenizer, texts: Sequence[str], source_length: int = 0, *, spelled: bool = False
) -> list[list[int]]:
    """Token ids of each text, end token last.

    Args:
        source_length: longer sources are cut by `cut_sources`; 0 for no limit.
        spelled: read <extra_id_N> in a text as that token.
    """
    _check_utf8("text", texts)
    encoded = map(tokenizer.encode_spelled, texts) if spelled else tokenizer.encode_batch(list(texts))
    sources = [[*ids, tokenizer.eos_id] for ids in encoded]
    return cut_sources(sources, source_length) if source_length else sources


def cut_sources(sources: Sequence[Sequence[int]], source_length: int) -> list[list[int]]:
    """The sources, cut to at most `source_length` tokens, of which the last is still the end token."""
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
    """The outputs of `search_texts` for texts, cut to `source_length` tokens. Raises UserError for an invalid text.

    A text may be empty: then the source is the end token alone.
    """
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
    """(text, score) of the `settings.num_hypotheses` best outputs of each source, best first.

    Args:
        tokenizer: of the outputs.
        sources: token ids, end token included.
        batch_size: sources at a time. Changes memory and speed, not the outputs.
        report: called with (sources done, all sources) after each batch.
        output_prefix: token ids that every output starts with; `settings.max_new_tokens` counts them too.
        spelled: write extra ids as <extra_id_N>; otherwise they are omitted from the texts.

    Raises UserError for settings out of range.
    """
    settings.check()
    vocabulary, decode = vocabulary_of(tokenizer), tokenizer.decode_spelled if spelled else tokenizer.decode
    batch_size = min(batch_size, len(sources))
    outputs: list[list[tuple[str, float]]] = [[] for _ in sources]
    for numbers in batches_by_length(sources, batch_size, report):
        batch = [sources[number] for number in numbers]
        found = beam_search(model, params, batch, settings, vocabulary, [output_prefix] * len(batch), batch_size)
        for number, hypotheses in zip(numbers, found, strict=True):
            outputs[number] = [(decode(each.tokens), each.score) for each in hypotheses]
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
    """`num_samples` sampled outputs of each source; see `search_texts` for the other arguments.

    A sample depends on the seed and the numbers of source and sample, not on `batch_size`. Raises UserError if the
    outputs do not fit into the model's positions or `output_prefix` leaves no token to sample.
    """
    vocabulary, decode = vocabulary_of(tokenizer), tokenizer.decode_spelled if spelled else tokenizer.decode
    start, num_new = [vocabulary.bos_id, *output_prefix], max_new_tokens - len(output_prefix)
    check_fits([start], num_new, model.max_length)
    batch_size = min(batch_size, len(sources))
    outputs: list[list[str]] = [[] for _ in sources]
    for numbers in batches_by_length(sources, batch_size, report):
        batch, starts = [sources[number] for number in numbers], [start] * len(numbers)
        for sample in range(num_samples):
            keys_B = row_keys(seed, np.array(numbers), np.full(len(numbers), sample))
            new_tokens = generate(model, params, starts, keys_B, sampling, vocabulary, num_new, batch_size, batch)
            for number, new in zip(numbers, new_tokens, strict=True):
                outputs[number].append(decode([*output_prefix, *new]))
    return outputs


def batches_by_length(
    sources: Sequence[Sequence[int]], batch_size: int, report: Report | None = None
) -> Iterator[list[int]]:
    """Yields the numbers of sources of similar length, the longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(sources)), key=lambda number: -len(sources[number]))
    for first in range(0, len(order), max(batch_size, 1)):
        yield order[first : first + batch_size]
        if report is not None:
            report(min(first + batch_size, len(order)), len(order))
