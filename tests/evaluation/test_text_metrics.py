"""Scores of text against hand calculations and plain recursion."""

import functools
import itertools
import math
import random
import socket

import pytest

from lm.evaluation.text_metrics import TEXT_METRICS, score

METRICS = tuple(TEXT_METRICS)
SENTENCES = ["the cat sat on the mat today", "a dog barked at seven wizards", "it is late"]


def scores(metrics, predictions, references, bleu_tokenize="13a"):
    references = [(each,) if isinstance(each, str) else each for each in references]
    return score(metrics, predictions, references, bleu_tokenize=bleu_tokenize).metrics


def scores_of_one(metric, prediction, *references):
    return scores([metric], [prediction], [references])


def test_copy_has_perfect_scores():
    got = scores(METRICS, SENTENCES, SENTENCES)
    given = [metric for each in TEXT_METRICS.values() for metric in each.gives]
    assert got == {metric.name: pytest.approx(100 if metric.higher_is_better else 0) for metric in given}
    assert got["bleu"] == pytest.approx(100, abs=1e-9)


def test_bleu_by_hand():
    """Papineni 2002: six words against eight. n-grams found: 5 of 6, 3 of 5, 1 of 4, and of four words 0 of 3, for
    which sacrebleu's smoothing counts a half; brevity penalty exp(1 - 8 / 6)."""
    precisions = [5 / 6, 3 / 5, 1 / 4, 0.5 / 3]
    expected = 100 * math.exp(1 - 8 / 6) * math.prod(precisions) ** 0.25
    assert scores_of_one("bleu", "a b c X d e", "a b c d e f g h")["bleu"] == pytest.approx(expected, rel=1e-9)


def test_bleu_is_computed_over_the_corpus():
    predictions, references = ["a b c d e f", "x"], ["a b c d e f", "y z"]
    # 6 + 0 of 7 words, 5 of 5, 4 of 4, 3 of 3; seven words against eight.
    expected = 100 * math.exp(1 - 8 / 7) * (6 / 7) ** 0.25
    assert scores(["bleu"], predictions, references)["bleu"] == pytest.approx(expected, rel=1e-9)


def test_tokenisation_changes_bleu_and_its_signature():
    predictions, references = ["我们明天去北京看长城。"], [("我们今天去北京看长城。",)]
    by = {
        each: score(["bleu"], predictions, references, bleu_tokenize=each)
        for each in ("13a", "zh", "char", "intl", "none")
    }
    assert by["13a"].metrics["bleu"] == pytest.approx(0, abs=1e-6)  # one long word, and it is wrong
    # One of 11 characters is wrong, and with it 2 of 10 pairs, 3 of 9 triples and 3 of 8 fours.
    expected = 100 * (10 / 11 * 8 / 10 * 6 / 9 * 5 / 8) ** 0.25
    assert by["zh"].metrics["bleu"] == by["char"].metrics["bleu"] == pytest.approx(expected, rel=1e-9)
    assert all(f"tok:{each}" in by[each].signatures["bleu"] for each in by)


def test_signatures_describe_the_computation():
    metrics = ("bleu", "chrf", "ter", "rouge", "exact_match", "wer")
    got = score(metrics, SENTENCES, [(each,) for each in SENTENCES], bleu_tokenize="13a")
    assert set(got.signatures) == {"bleu", "chrf", "ter", "rouge", "wer"}, "exact match has one definition"
    assert got.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nc:6|nw:0" in got.signatures["chrf"] and "tok:tercom" in got.signatures["ter"]
    assert "stem:porter" in got.signatures["rouge"]


def test_ter_by_hand():
    """Snover 2006: a shifted phrase is one edit: 1 of 6 words. The word error rate has to delete and insert it."""
    assert scores_of_one("ter", "d e f a b c", "a b c d e f")["ter"] == pytest.approx(100 / 6)
    assert scores_of_one("wer", "d e f a b c", "a b c d e f")["wer"] == 100


def test_chrf_by_hand():
    """Popovic 2015 for one character more than the reference: `abcdefgh` against `abcdefg`."""
    orders = range(1, 7)
    precision = sum((8 - n) / (9 - n) for n in orders) / 6
    recall = 1.0
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert scores_of_one("chrf", "abcdefgh", "abcdefg")["chrf"] == pytest.approx(expected, rel=1e-9)


def test_chrf_with_words_by_hand():
    """Popovic 2017 for one word of two: the mean of F2 over 6 orders of characters and 2 of words.

    `ab cd` against `ab ce`: 3 of 4 characters, 2 of 3 pairs, 1 of 2 triples, 0 of 1 four; 1 of 2 words, 0 of 1 pair.
    """
    got = score(["chrf++"], ["ab cd"], [("ab ce",)], bleu_tokenize="13a")
    shares = [3 / 4, 2 / 3, 1 / 2, 0, 1 / 2, 0]  # precision equals recall; orders without n-grams do not count
    assert got.metrics["chrf++"] == pytest.approx(100 * sum(shares) / len(shares), rel=1e-9)
    assert "nw:2" in got.signatures["chrf++"]


def test_rouge_by_hand():
    """Lin 2004: `police kill the gunman` against `police killed the gunman`; the stem of killed is kill.

    And `the gunman kill police`: all words, of the three pairs `the gunman` only, in order `the gunman`.
    """
    got = scores_of_one("rouge", "police kill the gunman", "police killed the gunman")
    assert got == {name: pytest.approx(100) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    got = scores_of_one("rouge", "the gunman kill police", "police killed the gunman")
    assert got["rouge1"] == pytest.approx(100) and got["rouge2"] == pytest.approx(100 / 3)
    assert got["rougeL"] == got["rougeLsum"] == pytest.approx(50)
    # 2 of 3 words of the prediction, 2 of 5 of the reference: F1 = 2 * 2 / (3 + 5).
    assert scores_of_one("rouge", "a b x", "a b c d e")["rouge1"] == pytest.approx(50)


def test_rouge_lsum_takes_lines_as_sentences():
    """Sentences in another order: each is found whole, but only one of them in order."""
    got = scores_of_one("rouge", "seven red\nbig cats", "big cats\nseven red")
    assert got["rougeLsum"] == pytest.approx(100) and got["rougeL"] == pytest.approx(50)
    assert scores_of_one("rouge", "seven red big cats", "big cats seven red")["rougeLsum"] == pytest.approx(50)


def test_rouge_is_the_mean_over_examples_of_the_best_reference():
    got = scores(["rouge"], ["a b c", "x"], [("c b a", "a b q"), ("y",)])
    assert got["rouge1"] == pytest.approx(50)  # 100 by the first reference
    assert got["rouge2"] == pytest.approx(25)  # 50 by the second
    assert got["rougeL"] == pytest.approx(100 * 2 / 3 / 2)


def test_exact_match_ignores_outer_white_space_only():
    predictions = [" a b\n", "a  b", "A b", "c"]
    assert scores(["exact_match"], predictions, ["a b", "a b", "a b", ("b", "c ")])["exact_match"] == 50


def recursive_distance(first, second):
    @functools.cache
    def between(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(
            between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        )

    return between(len(first), len(second))


def word_errors(prediction, *references):
    """(edits, words of the reference) by which the word error rate counts one example."""
    (counts,) = TEXT_METRICS["wer"].counts([prediction], [references])["wer"].tolist()
    return tuple(counts)


def test_word_errors_equal_recursive_edit_distance():
    for lengths in itertools.product(range(4), repeat=2):
        for words in itertools.product("ab", repeat=sum(lengths)):
            first, second = words[: lengths[0]], words[lengths[0] :]
            found = word_errors(" ".join(first), " ".join(second))
            assert found == (recursive_distance(first, second), len(second)), (first, second)
    draw = random.Random(0)
    for _ in range(100):
        first, second = (draw.choices(["a", "b", "cc", "dd", "日本"], k=draw.randrange(20)) for _ in range(2))
        assert word_errors(" ".join(first), " ".join(second))[0] == recursive_distance(tuple(first), tuple(second))


def test_word_error_rate_is_over_all_words_by_the_closest_reference():
    # 1 of 4, 0 of 1 (the second reference), 2 of 1.
    predictions, references = ["a b x d", "e", "f g h"], ["a b c d", ("e e", "e"), "f"]
    assert scores(["wer"], predictions, references)["wer"] == pytest.approx(100 * 3 / 6)
    # Of references at the same distance the longest.
    assert word_errors("a", "b", "a c") == (1, 2)
    assert scores_of_one("wer", "", "a b")["wer"] == 100
    assert scores_of_one("wer", "", "")["wer"] == 0 and scores_of_one("wer", "a", "")["wer"] == 100


def test_examples_may_have_different_numbers_of_references():
    """A missing reference is none, and not an empty one: it changes no count of its sentence."""
    predictions = ["the cat sat on the mat", "a dog barked"]
    got = score(METRICS, predictions, [("no", predictions[0]), (predictions[1],)], bleu_tokenize="13a")
    assert got.metrics["bleu"] == pytest.approx(100) and got.metrics["wer"] == got.metrics["exact_match"] - 100 == 0
    assert "nrefs:var" in got.signatures["bleu"]
    # TER divides by the mean length of the references, so a reference that were empty would show.
    assert scores(["ter"], ["a b x", "c d"], [("a b y", "q q q q q"), ("c q",)])["ter"] == pytest.approx(100 * 2 / 6)


def test_empty_predictions_are_scored():
    got = scores(METRICS, ["", ""], ["a b", "c"])
    assert got["bleu"] == got["chrf"] == got["rouge1"] == got["exact_match"] == 0 and got["wer"] == got["ter"] == 100


def test_missing_prediction_is_an_error():
    with pytest.raises(AssertionError):
        score(["wer"], ["a"], [("a",), ("b",)], bleu_tokenize="13a")


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for tokenize in ("13a", "intl", "zh", "char", "none"):
        score(METRICS, ["a. b\nc"], [("a. b\nd",)], bleu_tokenize=tokenize)


def test_references_given_as_one_text_are_an_error():
    with pytest.raises(TypeError, match="must be a tuple of texts, not a single text"):
        score(["exact_match"], ["a"], ["a"], bleu_tokenize="13a")
