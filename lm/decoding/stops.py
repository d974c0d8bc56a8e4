"""Generates texts that end at a stop string, such as the line break after an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.batch import Array
from lm.data.tokenizing.base import Tokenizer
from lm.decoding.inputs import Rows
from lm.decoding.loop import Sampler

STEPS_BETWEEN_CHECKS = 16  # number of tokens generated between searches for stop strings


def texts_until(
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Rows,
    keys_B: Array,
    stops: Sequence[str],
    min_rows: int = 1,
    sources: Rows | None = None,
) -> list[str]:
    """Returns the text that follows each prompt, up to its first stop string, which is not included.

    Generation ends when each row contains a stop string or a stop token, or has `sampler.max_new_tokens` new tokens.
    A stop string may begin or end within a token. The other arguments are those of `Sampler.start`.
    """
    interval = STEPS_BETWEEN_CHECKS if any(stops) else sampler.max_new_tokens
    state = sampler.start(prompts, keys_B, min_rows, sources)
    texts: list[str] = []
    for step in range(interval, sampler.max_new_tokens + interval, interval):
        state = sampler.advance(state, min(step, sampler.max_new_tokens))
        tokens_BT, num_new_B, ended_B = map(np.asarray, (state.tokens_BT, state.num_new_B, state.ended_B))
        whole = [tokenizer.decode(tokens_BT[row, : num_new_B[row]].tolist()) for row in range(len(prompts))]
        texts = [before_stop(text, stops) for text in whole]
        if all(ended_B[row] or texts[row] != whole[row] for row in range(len(prompts))):
            break
    return texts


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text before its first stop string. An empty stop string has no effect."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text
