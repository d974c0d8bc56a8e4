"""Texts that end at stop strings equal the beginnings of texts that are generated in full."""

import dataclasses

import numpy as np
import pytest

from lm.data.tokenizing.bytes import ByteTokenizer
from lm.decoding import rows, stops
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, row_keys, vocabulary_of
from lm.decoding.speculative import Pair
from lm.decoding.stops import before_stop, texts_until
from lm.models import build_model
from tests.small_model import random_params, small_config

BYTES = ByteTokenizer()
PROMPTS = [[1], [1, *BYTES.encode("a story")], [1, *BYTES.encode("été")]]
NEW = 40


@pytest.fixture(scope="module")
def sampler():
    model = build_model(small_config(BYTES.vocab_size, 64))
    return Sampler(model, random_params(model, 0.4, scale=1.0), Sampling(temperature=0), vocabulary_of(BYTES), NEW)


def keys(rows):
    return row_keys(0, np.arange(rows), np.zeros(rows))


def whole_texts(sampler):
    return [BYTES.decode(new) for new in sampler.generate(PROMPTS, keys(3))]


def test_text_before_the_first_stop_string():
    assert before_stop("a\nb. c", ["."]) == "a\nb"
    assert before_stop("a\nb. c", [".", "\n"]) == "a" == before_stop("a\nb. c", ["\n", "", "."])
    assert before_stop("a", ["", "b"]) == "a" == before_stop("a", [])


def test_texts_end_at_the_first_stop_string_wherever_it_is(sampler):
    whole = whole_texts(sampler)
    assert texts_until(sampler, BYTES, PROMPTS, keys(3), []) == whole
    for begin, end in ((0, 1), (3, 6), (14, 19), (30, 33)):  # of one or several tokens, also across a check
        stop = whole[1][begin:end]
        wanted = [before_stop(text, [stop]) for text in whole]
        assert len(wanted[1]) <= begin
        assert texts_until(sampler, BYTES, PROMPTS, keys(3), [stop, ""]) == wanted


def test_generation_ends_once_each_row_has_a_stop_string(sampler, monkeypatch):
    steps = []
    advance = Sampler.advance
    monkeypatch.setattr(
        Sampler, "advance", lambda self, state, until, *rest: steps.append(until) or advance(self, state, until, *rest)
    )
    whole = whole_texts(sampler)
    steps.clear()
    texts_until(sampler, BYTES, PROMPTS, keys(3), [text[2:4] for text in whole])
    assert steps == [stops.STEPS_BETWEEN_CHECKS]
    steps.clear()
    texts_until(sampler, BYTES, PROMPTS, keys(3), ["no such text"])
    assert steps == [16, 32, 40]


def test_rows_that_are_ahead_fit_in_a_small_cache_while_drafts_of_others_are_rejected(sampler, monkeypatch):
    """The draft model reads only one token wrongly, which is in the last prompt. Other drafts are accepted."""
    target, params = sampler.model, sampler.params
    table = params["token_embedding"]["embedding"].copy()
    table[PROMPTS[2][1]] *= -8
    both = {"target": params, "draft": {**params, "token_embedding": {"embedding": table}}}
    drafted = dataclasses.replace(sampler, model=Pair(target, target), params=both, draft_tokens=3)
    wanted = whole_texts(sampler)
    monkeypatch.setattr(rows, "SMALLEST_CAPACITY", 8)
    monkeypatch.setattr(stops, "STEPS_BETWEEN_CHECKS", 5)
    lengths = []
    advance = Sampler.advance

    def recorded(self, state, until):
        state = advance(self, state, until)
        lengths.append(np.asarray(state.num_new_B) - until)
        assert (np.asarray(state.lengths_B) <= int(state.capacity)).all()
        return state

    monkeypatch.setattr(Sampler, "advance", recorded)
    assert texts_until(drafted, BYTES, PROMPTS, keys(3), ["no such text"]) == wanted
    assert max(map(np.max, lengths)) > 4  # further ahead than one round


def test_texts_do_not_depend_on_the_batch(sampler):
    together = texts_until(sampler, BYTES, PROMPTS, keys(3), ["e"], min_rows=4)
    alone = [
        texts_until(sampler, BYTES, [prompt], keys(3)[row : row + 1], ["e"])[0] for row, prompt in enumerate(PROMPTS)
    ]
    assert together == alone
