"""Decoding with several stop tokens, a start token apart from BOS, a forced first token, or no BOS token."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from lm.decoding.beam import BeamSettings, Rules, first_beams, search
from lm.decoding.beam_model import beam_search
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, choosable, row_keys, vocabulary_of
from lm.decoding.text import SourceDecoder, cut_sources, encode_prompts, encode_sources, with_text
from lm.models import build_model
from tests.data.tokenizing.published import FAMILIES
from tests.small_model import random_params, small_config

V, T, FORCED = 6, 4, 4
STOPS = (3, 5)
TOY = Vocabulary(size=V, bos_id=None, eos_id=3, other_stops=(5,), decoder_start_id=V)


def tables(seed):
    """Returns the log-probabilities of the next token after each token, float32 (V + 1, V); row V is the start."""
    return np.asarray(jax.nn.log_softmax(np.random.default_rng(seed).normal(0, 1.5, (V + 1, V)).astype(np.float32)))


@functools.partial(jax.jit, static_argnames=("vocabulary", "k"))
def run(table, forced_BT, rules, vocabulary, k):
    def step(tokens_R, positions_R, cache):
        return table[tokens_R], cache

    beams = first_beams(None, forced_BT, np.array([True]), k, k, vocabulary.pad_id)
    return search(step, lambda cache, rows: cache, beams, rules, vocabulary, 0, min_alive=0, capacity=T).finished


def found(table, vocabulary, k, forced=()):
    forced_BT = np.full((1, T), -1, np.int32)
    forced_BT[0, : len(forced)] = forced
    rules = Rules.of(BeamSettings(max_new_tokens=T))
    result = jax.tree.map(np.asarray, run(table, forced_BT, rules, vocabulary, k))
    lengths = result.lengths_Bn[0]
    scores = result.scores_Bn[0]
    return [(result.tokens_BnT[0, i, : lengths[i]].tolist(), scores[i]) for i in range(k) if scores[i] > -math.inf]


def plain_search(table, k, free=-1):
    """Beam search with lists, in which the first token costs nothing if it is the token `free`."""
    alive, finished = [([], 0.0)], []
    for step in range(T):
        candidates = []
        for tokens, total in alive:
            row = table[tokens[-1] if tokens else V]
            for token in range(V) if step or free < 0 else [free]:
                candidates.append(([*tokens, token], total + (0.0 if step == 0 and free >= 0 else float(row[token]))))
        candidates = sorted(candidates, key=lambda each: -each[1])[: (1 + len(STOPS)) * k]
        ended = [tokens[-1] in STOPS or step == T - 1 for tokens, _ in candidates]
        finished += [
            (tokens, total / len(tokens))
            for (tokens, total), end in list(zip(candidates, ended, strict=True))[:k]
            if end
        ]
        alive = [each for each, end in zip(candidates, ended, strict=True) if not end][:k]
    return sorted(finished, key=lambda each: -each[1])[:k]


@pytest.mark.parametrize("k", [2, 4])
def test_beam_search_with_two_stop_tokens_equals_plain_search(k):
    for seed in range(20):
        expected = plain_search(tables(seed), k)
        for (tokens, score), (wanted, wanted_score) in zip(found(tables(seed), TOY, k), expected, strict=True):
            assert tokens == wanted and math.isclose(score, wanted_score, rel_tol=1e-5)


def test_forced_first_token_counts_as_a_token_but_costs_nothing():
    vocabulary = dataclasses.replace(TOY, forced_first_id=FORCED)
    for seed in range(20):
        expected = plain_search(tables(seed), 3, free=FORCED)
        for (tokens, score), (wanted, wanted_score) in zip(
            found(tables(seed), vocabulary, 3, [FORCED]), expected, strict=True
        ):
            assert tokens == wanted and tokens[0] == FORCED and math.isclose(score, wanted_score, rel_tol=1e-5)


def test_stop_tokens_can_be_chosen_even_if_they_are_bos_or_padding():
    def chosen(**fields):
        return np.flatnonzero(np.asarray(choosable(Vocabulary(**fields), 8))).tolist()

    assert chosen(size=6, bos_id=None, eos_id=2) == [0, 1, 2, 3, 4, 5]
    assert chosen(size=6, bos_id=1, eos_id=2, pad_id=0, pad_is_special=True, other_stops=(0,)) == [0, 2, 3, 4, 5]
    assert chosen(size=6, bos_id=1, eos_id=2, pad_id=0, pad_is_special=True, other_stops=(1, 4)) == [1, 2, 3, 4, 5]


def test_sampling_ends_at_the_first_of_several_stop_tokens():
    model = build_model(small_config(40, 64))
    params = random_params(model, 0.6)
    free = Vocabulary(size=40, bos_id=None, eos_id=-1)
    prompts, keys = [[5, 6], [7], [8, 9, 10], [11]], row_keys(0, np.arange(4), np.zeros(4))

    def generated(vocabulary):
        return Sampler(model, params, Sampling(1.0), vocabulary, 30).generate(prompts, keys)

    everything = generated(free)
    stops = everything[0][4], everything[1][9], everything[2][12]
    stopped = generated(dataclasses.replace(free, eos_id=stops[0], other_stops=stops[1:]))
    for whole, part in zip(everything, stopped, strict=True):
        ends = [index for index, token in enumerate(whole) if token in stops]
        assert part == (whole[: ends[0] + 1] if ends else whole)
    assert sorted({len(part) for part in stopped})[0] <= 5


def test_prompts_of_tokenizers_without_bos_are_only_their_text(tmp_path):
    qwen, llama = FAMILIES["qwen"].load(tmp_path / "a"), FAMILIES["llama3"].load(tmp_path / "b")
    a = qwen.encode("ab")
    assert encode_prompts(qwen, ["ab", ""]) == [a, [qwen.eos_id]]
    assert encode_prompts(llama, ["ab", ""]) == [[0, *llama.encode("ab")], [0]]


def test_sources_keep_the_special_tokens_of_their_template_when_cut(tmp_path):
    bart = FAMILIES["bart"].load(tmp_path)
    ids = bart.encode("abcd")
    assert encode_sources(bart, ["abcd", ""]) == [[0, *ids, 2], [0, 2]]
    assert encode_sources(bart, ["abcd"], 4) == [[0, *ids[:2], 2]]
    assert cut_sources(bart, [[0, *ids, 2]], 5) == [[0, *ids[:3], 2]]
    assert with_text(bart, [[0, *ids, 2], [0, 2]]) == [0]


def test_outputs_start_with_the_decoder_start_and_the_forced_first_token(tmp_path):
    """The logits that beam search and sampling use are those of the published decoder inputs `</s> <s> ...`."""
    tokenizer = FAMILIES["bart"].load(tmp_path)
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.output_start == [2, 0] and vocabulary.stops == (2,)
    model = build_model(small_config(tokenizer.vocab_size, 24, family="encoder_decoder", num_encoder_layers=1))
    params = random_params(model, 0.6)
    sources = encode_sources(tokenizer, ["abc", "d"])
    settings = BeamSettings(num_beams=1, max_new_tokens=6)
    greedy = [each.tokens for (each,) in beam_search(model, params, sources, settings, vocabulary)]
    prompts = [[2, 0], [2, 0]]
    sampler = Sampler(model, params, Sampling(temperature=0), vocabulary, 5)
    drawn = sampler.generate(prompts, row_keys(0, np.arange(2), np.zeros(2)), sources=sources)
    assert greedy == [[0, *each] for each in drawn]
    decoder = SourceDecoder(model, params, tokenizer, 2)
    texts = [text for ((text, _),) in decoder.search(sources, settings)]
    assert texts == [text for (text,) in decoder.sample(sources, Sampling(temperature=0), 6, 0, 1)]
    assert texts == [tokenizer.decode(each) for each in greedy]
    # Any other first token gives other outputs, so the forced token is really read.
    other = dataclasses.replace(vocabulary, forced_first_id=None, decoder_start_id=5)
    assert [each.tokens for (each,) in beam_search(model, params, sources, settings, other)] != greedy
