"""Closed forms of the metrics of language models."""

import math

import pytest

from lm.evaluation.metric import finite_or_none
from lm.evaluation.token_metrics import Sums, language_metrics, missing_metrics


def test_uniform_model_has_the_vocabulary_size_as_perplexity():
    tokens, vocab = 120, 256
    sums = Sums(nll=tokens * math.log(vocab), correct=30, weight=tokens, bytes=100, words=20)
    got = language_metrics(sums)
    assert got["loss"] == pytest.approx(math.log(256))
    assert got["perplexity"] == pytest.approx(256)
    assert got["token_accuracy"] == 0.25
    assert got["bits_per_byte"] == pytest.approx(8 * 120 / 100)
    assert got["word_perplexity"] == pytest.approx(256.0 ** (120 / 20))
    assert got["tokens"] == 120


def test_bits_per_byte_and_word_perplexity_do_not_depend_on_the_tokenizer():
    """The same text and probability, cut into twice as many tokens."""
    coarse = language_metrics(Sums(nll=300.0, correct=1, weight=50, bytes=400, words=80))
    fine = language_metrics(Sums(nll=300.0, correct=1, weight=100, bytes=400, words=80))
    assert coarse["loss"] == 2 * fine["loss"]
    assert coarse["bits_per_byte"] == fine["bits_per_byte"]
    assert coarse["word_perplexity"] == fine["word_perplexity"]


def test_totals_weigh_sources_by_their_tokens():
    long, short = Sums(nll=900.0, correct=90, weight=900, bytes=900, words=9), Sums(nll=300.0, weight=100, bytes=1)
    assert language_metrics(long + short)["loss"] == pytest.approx(1.2)
    assert language_metrics(long + short)["token_accuracy"] == pytest.approx(0.09)


def test_text_that_the_tokenizer_cannot_spell_has_no_bits_per_byte():
    sums = Sums(nll=10.0, correct=1, weight=10, bytes=20, words=4, unknown=3)
    assert "bits_per_byte" not in language_metrics(sums) and "word_perplexity" not in language_metrics(sums)
    assert language_metrics(sums)["loss"] == 1.0
    assert "3 unknown" in missing_metrics(sums)["bits_per_byte"]
    assert "unknown" in missing_metrics(sums + Sums(bytes=5, words=1))["bits_per_byte"]


def test_text_that_decoding_does_not_restore_has_no_bits_per_byte():
    sums = Sums(nll=10.0, correct=1, weight=10, bytes=20, words=4, changed=1200)
    assert language_metrics(sums + Sums(bytes=5)).keys() == {"loss", "perplexity", "token_accuracy", "tokens"}
    missing = missing_metrics(sums)
    assert missing.keys() == {"bits_per_byte", "word_perplexity"}
    assert "loses text: 1,200 documents differ after encoding and decoding" in missing["bits_per_byte"]


def test_the_compression_rate_of_xz_is_missing_for_the_reason_of_the_bits_per_byte():
    for sums in (Sums(bytes=9, words=1, changed=1), Sums(bytes=9, words=1, unknown=2), Sums()):
        missing = missing_metrics(sums, with_xz=True)
        assert missing["xz_bits_per_byte"] == missing["bits_per_byte"]
    assert missing_metrics(Sums(bytes=9, words=1), with_xz=True) == {}


def test_text_without_words_has_no_word_perplexity():
    sums = Sums(nll=1.0, weight=1, bytes=3)
    assert "word_perplexity" not in language_metrics(sums) and "bits_per_byte" in language_metrics(sums)


@pytest.mark.parametrize("nll", [1e6, math.inf])
def test_huge_loss_has_infinite_perplexity(nll):
    got = language_metrics(Sums(nll=nll, weight=1, bytes=1, words=1))
    assert got["perplexity"] == math.inf and got["word_perplexity"] == math.inf


def test_metrics_of_nothing_are_nan():
    got = language_metrics(Sums())
    assert math.isnan(got["loss"]) and math.isnan(got["perplexity"]) and got["tokens"] == 0
    assert math.isnan(language_metrics(Sums(nll=math.nan, weight=2))["perplexity"])


def test_json_has_null_for_numbers_that_are_not_finite():
    assert [finite_or_none(x) for x in (1.5, math.inf, -math.inf, math.nan)] == [1.5, None, None, None]
