"""Looking up words gives the ids of SentencePiece for every text, and is only used for models for which this holds."""

import functools
import io
import math
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import TokenizerConfig
from lm.data.tokenizing import TOKENIZERS, build_tokenizer, word_cache
from lm.data.tokenizing.flat import rows_of
from lm.data.tokenizing.piece_files import NORMAL, SPACE, PieceFile, with_scores
from lm.data.tokenizing.sentencepiece import UNKNOWN_PENALTY
from lm.data.tokenizing.word_cache import EXACT, GRID, REPEATS, WordCache

SYLLABLES = ("ha", "a", "he", "e", "aha", "b", ".", "é")


def words(draw, count, longest, syllables=SYLLABLES):
    return " ".join("".join(draw.choices(syllables, k=draw.randint(1, longest))) for _ in range(count))


@functools.cache
def tokenizer_of(algorithm):
    """A tokenizer with 400 pieces: with fewer or more, few words have segmentations with almost the same score."""
    draw = random.Random(0)
    texts = [words(draw, 30, 4) for _ in range(200)]
    return build_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=400, algorithm=algorithm), texts)


@pytest.fixture(autouse=True)
def even_for_rare_words():
    """Lets the cache encode texts whose words do not repeat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_cache, "REPEATS", 0)
        yield


def reference(tokenizer, texts):
    """Returns the ids of SentencePiece, line by line."""
    joints, found = tokenizer._joints, []
    for text in texts:
        parts = [joints.get(part) or tokenizer._processor.encode(part) for part in tokenizer._cut(text)]
        found.append([tokenizer.start_id, *(token for part in parts for token in part), tokenizer.eos_id])
    return found


ORDINARY = st.text(st.sampled_from("ahe b .\n \té中 "), max_size=60)
ANY = st.text(st.sampled_from(f"ah b\n\0{SPACE}é"), max_size=20)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(ORDINARY, max_size=4), unusual=st.lists(ANY, max_size=2))
def test_every_text_has_the_ids_of_sentencepiece(algorithm, texts, unusual):
    tokenizer = tokenizer_of(algorithm)
    for each in (texts, [*texts, *unusual]):
        assert rows_of(*tokenizer.encode_documents(each)) == reference(tokenizer, each)
    if texts:
        assert rows_of(*tokenizer._word_cache.encode(texts)) == reference(tokenizer, texts)


def lines_with_ties():
    draw = random.Random(1)
    return [words(draw, 900, 9, SYLLABLES[:4]) for _ in range(20)]


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_words_have_the_same_ids_wherever_they_are(algorithm):
    tokenizer, lines = tokenizer_of(algorithm), lines_with_ties()
    assert rows_of(*tokenizer._word_cache.encode(lines)) == reference(tokenizer, lines)


def test_without_rounded_scores_some_words_would_have_other_ids():
    rounded = tokenizer_of("unigram")
    # Multiplication takes the scores off the grid, so their sums are rounded.
    exact = TOKENIZERS["sentencepiece"](with_scores(rounded._model, lambda score: score * 1.01))
    cache = WordCache(exact._processor.encode, exact._joints["\n"], (exact.eos_id, exact.start_id))
    assert rows_of(*cache.encode(lines_with_ties())) != reference(exact, lines_with_ties())


@pytest.mark.parametrize("word", ["b", "中"])  # a piece, and bytes
def test_a_line_whose_sum_of_scores_may_not_be_exact_is_encoded_as_a_whole(word):
    assert np.float32(EXACT) - np.float32(GRID) != np.float32(EXACT) == np.float32(EXACT) + np.float32(GRID / 2)
    tokenizer = tokenizer_of("unigram")
    file = PieceFile.parse(tokenizer._model)
    scores = [score if kind == NORMAL else None for (_, score), kind in zip(file.scored, file.types, strict=True)]
    of_unknown = UNKNOWN_PENALTY - min(score for score in scores if score is not None)

    def cost(text):
        ids = tokenizer._processor.encode(text)
        return sum(of_unknown if scores[token] is None else -scores[token] for token in ids)

    # Each of the two ids before a text counts as unknown, and so does each byte of the longest word.
    rest = EXACT - 2 * of_unknown - cost(word) - len(f" {word}".encode()) * of_unknown
    fits = math.ceil(rest / cost(f" {word}")) - 1
    for count, is_known in ((fits, True), (fits + 1, False)):
        text = word + f" {word}" * count
        assert (tokenizer._word_cache.encode([text]) is not None) == is_known
        assert rows_of(*tokenizer.encode_documents([text])) == reference(tokenizer, [text])


def test_a_full_cache_starts_anew_and_an_error_leaves_none_of_the_words(monkeypatch):
    tokenizer, draw = tokenizer_of("bpe"), random.Random(2)
    cache = tokenizer._word_cache
    monkeypatch.setattr(word_cache, "MOST_WORDS", 40)
    for _ in range(9):
        text = words(draw, 30, 4)
        assert rows_of(*cache.encode([text])) == reference(tokenizer, [text])
        assert len(cache._rows) <= 40
    for number in range(1, 6):
        cache.encode(["ha ha"])
        with monkeypatch.context() as patch:
            results = iter([*[np.append] * (number - 1), None])
            patch.setattr(np, "append", lambda *args, r=results, **options: next(r)(*args, **options))
            with pytest.raises(TypeError):
                cache._rows_of([b" he", b" aha"])
        assert len(cache._rows) == len(cache._ids) == len(cache._begins) == 0
        text = words(draw, 30, 4)
        assert rows_of(*cache.encode([text])) == reference(tokenizer, [text])


def test_texts_whose_words_rarely_repeat_are_not_kept(monkeypatch):
    monkeypatch.setattr(word_cache, "REPEATS", REPEATS)
    tokenizer = tokenizer_of("bpe")
    cache = tokenizer._word_cache
    known = len(cache._rows)
    assert cache.encode([" ".join(f"b{number}" for number in range(50))]) is None and len(cache._rows) == known
    assert cache.encode(["b b b b"]) is not None


def trained(**options):
    model = io.BytesIO()
    defaults = {"byte_fallback": True, "allow_whitespace_only_pieces": True, "user_defined_symbols": ["\n"]}
    defaults |= {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words(random.Random(seed), 30, 4) for seed in range(200)]),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**defaults, **options},
    )
    return TOKENIZERS["sentencepiece"](model.getvalue())


@pytest.mark.parametrize(
    ("options", "has_cache"),
    [
        ({"model_type": "bpe"}, True),
        ({}, False),  # the scores are not multiples of GRID
        ({"model_type": "bpe", "split_by_whitespace": False}, False),  # pieces extend over several words
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, False),
        ({"model_type": "bpe", "normalization_rule_name": "nfkc"}, False),
        ({"model_type": "bpe", "user_defined_symbols": ["\n", "ha b"]}, False),
        ({"model_type": "bpe", "add_dummy_prefix": True}, False),
    ],
)
def test_only_models_that_encode_words_independently_have_a_cache(options, has_cache):
    assert (trained(**options)._word_cache is not None) == has_cache


def test_scores_are_changed_in_place():
    model = trained()._model
    changed = PieceFile.parse(with_scores(model, lambda score: score / 2))
    before = PieceFile.parse(model)
    assert [score for _, score in changed.scored] == [score / 2 for _, score in before.scored]
    assert (changed.types, changed.algorithm) == (before.types, before.algorithm)
    assert [piece for piece, _ in changed.scored] == [piece for piece, _ in before.scored]
    assert min(score for _, score in before.scored) < -3
