"""Neighbours, analogies, rank correlation and components of small tables, compared with values computed by hand."""

import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.word_vectors import Question, WordTable, read_pairs, read_questions

COMPASS = WordTable(
    ["east", "north", "west", "Northeast", "zero"], np.float32([[2, 0], [0, 3], [-1, 0], [5, 5], [0, 0]])
)


def test_neighbours_are_sorted_by_cosine_and_exclude_the_word():
    found = COMPASS.neighbours(0, 3)
    assert [word for word, _ in found] == ["Northeast", "north", "zero"]
    np.testing.assert_allclose([cosine for _, cosine in found], [math.sqrt(0.5), 0, 0], atol=1e-7)
    assert [word for word, _ in COMPASS.neighbours(0, 9)] == ["Northeast", "north", "zero", "west"]


def test_words_are_found_as_they_are_or_in_lower_case():
    assert [COMPASS.find(word) for word in ("north", "North", "Northeast", "northeast")] == [1, 1, 3, None]


def test_similarity_is_the_rank_correlation_of_the_known_pairs():
    # The cosines are 0.71, -1 and 0. Of the ranks (3, 1, 2) and (1, 2, 3), the squared differences are 4, 1 and 1.
    pairs = [("east", "Northeast", 1.0), ("east", "west", 2.0), ("east", "north", 3.0), ("east", "up", 4.0)]
    found = COMPASS.similarity(pairs)
    assert found.value == pytest.approx(1 - 6 * 6 / (3 * 8)) and (found.scored, found.total) == (3, 4)
    assert math.isnan(COMPASS.similarity([("up", "down", 1.0), ("east", "west", 1.0)]).value)


def test_analogies_match_a_search_over_all_words():
    rng = np.random.default_rng(1)
    words = [f"w{i}" for i in range(12)]
    table = WordTable(words, rng.normal(size=(12, 4)).astype(np.float32))
    questions = [Question("ab"[i % 2], tuple(words[j] for j in rng.permutation(12)[:4])) for i in range(300)]
    unknown = [Question("b", ("w0", "w1", "w2", "absent"))]
    right = {"a": 0, "b": 0}
    unit = [vector / np.linalg.norm(vector) for vector in table.vectors_VE]
    for section, question in questions:
        a, b, c, d = (words.index(word) for word in question)
        others = [i for i in range(12) if i not in (a, b, c)]
        right[section] += d == max(others, key=lambda i: float((unit[b] - unit[a] + unit[c]) @ unit[i]))
    found = table.analogies(questions + unknown)
    assert {section: (round(each.value * 150), *each[1:]) for section, each in found.items()} == {
        "a": (right["a"], 150, 150),
        "b": (right["b"], 150, 151),
    }
    assert sum(right.values()) > 0


def test_components_are_those_of_the_covariance_matrix():
    table = WordTable(list("abcdefgh"), np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32))
    coordinates, shares = table.components(range(8))
    unit = table.vectors_VE / np.linalg.norm(table.vectors_VE, axis=1, keepdims=True)
    values, axes = np.linalg.eigh(np.cov(unit.T))
    expected = (unit - unit.mean(0)) @ axes[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(coordinates), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), atol=1e-5)
    assert (coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]] > 0).all()


def test_pairs_and_questions_are_read(tmp_path):
    file = tmp_path / "file"
    file.write_text("# comment\nWord 1\tWord 2\tHuman (mean)\nlove\tsex\t6.77\nice cream\tsea\t1\n")
    assert read_pairs(file) == [("love", "sex", 6.77), ("ice cream", "sea", 1.0)]
    file.write_text("word1,word2,score\na,b,1\nc,d,2\n")
    assert read_pairs(file) == [("a", "b", 1.0), ("c", "d", 2.0)]
    file.write_text("word1\tword2\tPOS\tSimLex999\tconc(w1)\nold\tnew\tA\t1.58\t2.72\nmuscle\ttulip\tN\t0\t5\n")
    assert read_pairs(file) == [("old", "new", 1.58), ("muscle", "tulip", 0.0)]
    file.write_text(": capitals\nAthens Greece Oslo Norway\n: family\nboy girl he she\n")
    assert read_questions(file)[1] == Question("family", ("boy", "girl", "he", "she"))


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_pairs, b"a b 1\nc d\n", "line 2: expected two words and a score, got 'c d'"),
        (read_pairs, b"a b 1\nc d nan\n", "line 2: expected two words and a score"),
        (read_pairs, b"a b\nc d 1\ne f 2\n", "line 1: expected two words and a score, got 'a b'"),
        (read_pairs, b"a b 1\nice cream sea 2\n", "line 2: expected two words and a score"),
        (read_pairs, b"a b x\nc d y\n", "line 2: expected two words and a score"),
        (read_pairs, b"a b 1\n", "has fewer than two pairs"),
        (read_pairs, b"\xff\n", "is not UTF-8 text"),
        (read_questions, b": s\na b c\n", "line 2: expected four words, got 'a b c'"),
        (read_questions, b": s\n", "has no questions"),
    ],
)
def test_wrong_files_are_refused(tmp_path, read, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "file")
