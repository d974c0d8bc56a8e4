"""Text in, text out: prompts, samples of many of them, and text that appears as it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm.data.tokenizing.base import Tokenizer
from lm.decoding.inputs import Vocabulary
from lm.decoding.loop import check_room, generate, stream
from lm.decoding.sampling import Sampling, row_keys
from lm.errors import UserError
from lm.models.transformer.wiring import Model

UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are not (yet) a character


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    pad_id = tokenizer.pad_id
    return Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, pad_id, tokenizer.is_special(pad_id))


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, begin token first; the empty prompt is the begin token alone."""
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"prompt {number} is not valid UTF-8: {prompt!r}.") from None
    return [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(list(prompts))]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Text of the new tokens, as it follows that of the prompt (where a space may be part of a joint)."""
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

    Equal calls with other parameters share one compiled program. Under `on_mesh` for sharded
    parameters; all processes call it alike and get the same texts. Raises UserError for a prompt that
    leaves no room.
    """
    ids = encode_prompts(tokenizer, prompts)
    check_room(ids, 1, model.config.max_length)
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
    """(prompt number, sample number, continuation) in order, both numbers from 0, `max_rows` rows at a time.

    What is drawn for a prompt depends on the seed and these two numbers, not on `max_rows`.
    """
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_samples)]
    max_rows = min(max_rows, len(rows))
    for first in range(0, len(rows), max_rows):
        part = rows[first : first + max_rows]
        numbers_B2 = np.array(part)
        keys_B = row_keys(seed, numbers_B2[:, 0], numbers_B2[:, 1])
        ids = [prompts[prompt] for prompt, _ in part]
        made = generate(model, params, ids, keys_B, sampling, vocabulary_of(tokenizer), max_new_tokens, max_rows)
        for (prompt, sample), new in zip(part, made, strict=True):
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
    """Parts of the text that `sample_many` gives for a single prompt and sample, each as soon as it is stable.

    A character may take several tokens; no part of one is given before the rest of it has come.
    """
    key = row_keys(seed, np.zeros(1), np.zeros(1))[0]
    new: list[int] = []
    text, given = "", 0
    for token in stream(model, params, prompt, key, sampling, vocabulary_of(tokenizer), max_new_tokens):
        new.append(token)
        text = continuation(tokenizer, prompt, new)
        stable = len(text.rstrip(UNFINISHED))
        if stable > given:
            yield text[given:stable]
            given = stable
    if len(text) > given:
        yield text[given:]
