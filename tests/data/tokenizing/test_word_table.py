"""Looking up words gives the ids of SentencePiece for every text, and is only used for models for which this holds."""

import functools
import io
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import TokenizerConfig
from lm.data.tokenizing import TOKENIZERS, build_tokenizer, word_table
from lm.data.tokenizing.flat import rows_of
from lm.data.tokenizing.piece_files import PieceFile, with_scores
from lm.data.tokenizing.word_table import EXACT, GRID, LONGEST

SYLLABLES = ("ha", "a", "he", "e", "aha", "b", ".", "é")


def training_texts():
    draw = random.Random(0)
    return [" ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(30)) for _ in range(200)]


@functools.cache
def tokenizer_of(algorithm):
    return build_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=330, algorithm=algorithm), training_texts())


def reference(tokenizer, texts):
    """Returns the ids of SentencePiece, line by line."""
    joints = {"\n": tokenizer._joints["\n"], "\u2581": tokenizer._joints["\u2581"]}
    found = []
    for text in texts:
        parts = [joints.get(part) or tokenizer._processor.encode(part) for part in tokenizer._cut(text)]
        found.append([tokenizer.start_id, *(token for part in parts for token in part), tokenizer.eos_id])
    return found


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ahe b .\n \t\0\u2581é中 "), max_size=60), min_size=1, max_size=4))
def test_every_text_has_the_ids_of_sentencepiece(algorithm, texts):
    tokenizer = tokenizer_of(algorithm)
    assert rows_of(*tokenizer.encode_documents(texts)) == reference(tokenizer, texts)
    if not any(character in text for character in "\0\u2581" for text in texts):
        assert rows_of(*tokenizer._word_table.encode(texts)) == reference(tokenizer, texts)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_equal_scores_are_decided_alike_wherever_the_word_is(algorithm):
    tokenizer, draw = tokenizer_of(algorithm), random.Random(1)
    lines = [
        " ".join("".join(draw.choices(SYLLABLES[:4], k=draw.randint(1, 9))) for _ in range(900)) for _ in range(20)
    ]
    assert rows_of(*tokenizer._word_table.encode(lines)) == reference(tokenizer, lines)


def test_sums_of_scores_are_exact_or_the_text_is_encoded_as_a_whole():
    tokenizer = tokenizer_of("unigram")
    assert np.float32(EXACT) - np.float32(GRID) != np.float32(EXACT) == np.float32(EXACT) + np.float32(GRID / 2)
    table = tokenizer._word_table
    (score,) = {tokenizer._processor.get_score(token) for token in tokenizer._processor.encode("b")}
    fits = int(EXACT / abs(score) / 2)
    assert table.encode(["b " * (fits // 2)]) is not None and table.encode(["b " * fits * 4]) is None
    assert rows_of(*tokenizer.encode_documents(["b " * fits * 4])) == reference(tokenizer, ["b " * fits * 4])


def test_long_words_are_encoded_as_a_whole_and_a_full_table_starts_anew(monkeypatch):
    tokenizer = tokenizer_of("bpe")
    long = ["ha" * LONGEST, "ha ha"]
    assert tokenizer._word_table.encode(long) is None
    assert rows_of(*tokenizer.encode_documents(long)) == reference(tokenizer, long)
    monkeypatch.setattr(word_table, "MOST_WORDS", 5)
    for text in training_texts()[:9]:
        assert rows_of(*tokenizer._word_table.encode([text])) == reference(tokenizer, [text])
        assert len(tokenizer._word_table._rows) <= len(text.split()) + 5


def trained(**options):
    model = io.BytesIO()
    defaults = {"byte_fallback": True, "allow_whitespace_only_pieces": True, "user_defined_symbols": ["\n"]}
    defaults |= {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_texts()),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**defaults, **options},
    )
    return TOKENIZERS["sentencepiece"](model.getvalue())


@pytest.mark.parametrize(
    ("options", "has_table"),
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
def test_only_models_that_encode_words_independently_have_a_table(options, has_table):
    assert (trained(**options)._word_table is not None) == has_table


def test_scores_are_changed_in_place():
    model = trained()._model
    changed = PieceFile.parse(with_scores(model, lambda score: score / 2))
    before = PieceFile.parse(model)
    assert [score for _, score in changed.scored] == [score / 2 for _, score in before.scored]
    assert (changed.types, changed.algorithm) == (before.types, before.algorithm)
    assert [piece for piece, _ in changed.scored] == [piece for piece, _ in before.scored]
    assert min(score for _, score in before.scored) < -3
