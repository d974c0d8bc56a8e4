"""Outputs of an encoder-decoder for texts: in order, cut, and independent of the batch."""

import numpy as np
import pytest

from lm.data.tokenizing.bytes import ByteTokenizer
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.sampling import Sampling, vocabulary_of
from lm.decoding.text import SourceDecoder, cut_sources, encode_sources, generate_texts
from lm.errors import UserError
from lm.models import build_model
from tests.small_model import random_params, small_config

BYTES = ByteTokenizer()
CONFIG = small_config(
    BYTES.vocab_size, 16, family="encoder_decoder", num_encoder_layers=1, d_ff=16, positions="sinusoidal"
)
SETTINGS = BeamSettings(num_beams=2, length_penalty=0.6, max_new_tokens=6, num_hypotheses=2)
TEXTS = ["abc", "", "a longer text", "été", "x" * 40, "abc", "b"]
LENGTH = 16


@pytest.fixture(scope="module")
def small():
    model = build_model(CONFIG)
    return model, random_params(model, 0.4)


def test_sources_end_in_the_end_token_even_if_cut():
    assert encode_sources(BYTES, ["ab", "", "abcdef"], 4) == [[100, 101, 2], [2], [100, 101, 102, 2]]
    assert encode_sources(BYTES, ["abc"], 4) == [[100, 101, 102, 2]]
    with pytest.raises(UserError, match="text 2 is not valid UTF-8"):
        encode_sources(BYTES, ["a", "\udcff"], 4)


@pytest.mark.exhaustive
def test_outputs_are_in_the_order_of_the_texts_and_independent_of_the_batch(small):
    model, params = small
    reports = []
    decoder = SourceDecoder(model, params, BYTES, 3, lambda *counts: reports.append(counts))
    outputs = generate_texts(decoder, BYTES, TEXTS, SETTINGS, LENGTH)
    assert reports[-1] == (6, 6) and reports == sorted(reports)
    assert outputs[1] == [("", 0.0)]  # the empty text is not decoded
    decoded = list(zip(encode_sources(BYTES, TEXTS, LENGTH), outputs, strict=True))
    for source, found in decoded[:1] + decoded[2:]:
        (alone,) = beam_search(model, params, [source], SETTINGS, vocabulary_of(BYTES), max_rows=3)
        assert [text for text, _ in found] == [BYTES.decode(each.tokens) for each in alone]
        np.testing.assert_allclose([score for _, score in found], [each.score for each in alone], rtol=1e-5)
    assert outputs[0] == outputs[5]
    assert len({tuple(text for text, _ in each) for each in outputs}) > 3  # the source matters


def test_cut_sources_keep_their_end_token():
    assert cut_sources(BYTES, [[7, 8, 9, 2], [7, 8, 2], [2]], 3) == [[7, 8, 2], [7, 8, 2], [2]]


@pytest.mark.exhaustive
def test_samples_do_not_depend_on_the_batch_size(small):
    model, params = small
    sources, sampling = encode_sources(BYTES, TEXTS, LENGTH), Sampling(temperature=1.0)
    reports = []
    one = SourceDecoder(model, params, BYTES, 3, lambda *counts: reports.append(counts)).sample(
        sources, sampling, 6, 3, 2
    )
    assert reports == [(number, 14) for number in range(1, 15)]
    assert SourceDecoder(model, params, BYTES, 7).sample(sources, sampling, 6, 3, 2) == one
    assert all(len(each) == 2 for each in one) and len({text for each in one for text in each}) > 10
    assert SourceDecoder(model, params, BYTES, 3).sample(sources[:1], sampling, 6, 3, 1) == [one[0][:1]]


def test_samples_at_temperature_0_equal_greedy_search(small):
    model, params = small
    sources = encode_sources(BYTES, TEXTS, LENGTH)
    found = SourceDecoder(model, params, BYTES, 7).search(sources, BeamSettings(max_new_tokens=6))
    samples = SourceDecoder(model, params, BYTES, 7).sample(sources, Sampling(temperature=0.0), 6, 0, 1)
    assert samples == [[text] for ((text, _),) in found]


def test_no_texts_give_no_outputs_and_settings_are_checked(small):
    decoder = SourceDecoder(*small, BYTES, 3)
    assert generate_texts(decoder, BYTES, [], SETTINGS, LENGTH) == []
    with pytest.raises(UserError, match="num_beams=0"):
        generate_texts(decoder, BYTES, [], BeamSettings(num_beams=0), LENGTH)
