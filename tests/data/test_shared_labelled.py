"""Published labelled data: its size, and that every answer maps back to its characters.

Reads the data in $LM_SHARED_DATA, which is not part of the repository.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from lm.config import SourceConfig, TokenizerConfig
from lm.data.examples.answers import AnswerTokens, covering
from lm.data.reading import open_reader
from lm.data.reading.readers import READERS
from lm.data.tokenizing import build_tokenizer

DATA = Path(os.environ.get("LM_SHARED_DATA", ""))

pytestmark = pytest.mark.skipif(not os.environ.get("LM_SHARED_DATA"), reason="LM_SHARED_DATA is not set")


@pytest.mark.parametrize(
    ("name", "sentences", "words", "entities"),
    [
        ("wnut17train.conll", 3394, 62730, 1975),
        ("emerging.dev.conll", 1009, 15733, 836),
        ("emerging.test.annotated", 1287, 23394, 1079),
    ],
)
def test_wnut17(name, sentences, words, entities):
    found = list(open_reader(SourceConfig(kind="conll", path=str(DATA / "wnut17" / name)), READERS["tags"]).iterate())
    begun = sum(tag.startswith("B-") for each in found for tag in each.tags)
    assert (len(found), sum(len(each.words) for each in found), begun) == (sentences, words, entities)


def test_mr():
    path, pattern = str(DATA / "mr" / "rt-polarity.*"), r"\.(?P<label>neg|pos)$"
    config = SourceConfig(path=path, document="line", encoding="windows-1252", label_pattern=pattern)
    source = open_reader(config, READERS["labels"])
    assert Counter(each.label for each in source.iterate()) == {"neg": 5331, "pos": 5331}
    assert source.notes() == [
        "202 lines with bytes above 127 are read as windows-1252 (rt-polarity.neg 101, rt-polarity.pos 101)"
    ]


@pytest.mark.parametrize(("language", "vocab_size"), [("en", 6000), ("zh", 4000)])
def test_xquad_answers_come_back_to_their_characters(language, vocab_size):
    path = str(DATA / "xquad" / f"xquad.{language}.json")
    questions = list(open_reader(SourceConfig(kind="squad", path=path), READERS["questions"]).iterate())
    assert len(questions) == 1190 and len({each.title for each in questions}) == 48
    contexts = list(dict.fromkeys(each.context for each in questions))
    for kind in ("bytes", "characters", "sentencepiece"):
        tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=vocab_size), contexts)
        tokens = AnswerTokens.encode(questions, tokenizer)
        found = 0
        for number, question in enumerate(questions):
            ((text, start),) = question.placed
            end = start + len(text)
            _, offsets = tokens.context(number)
            first, last = covering(offsets, start, end)
            begin, behind = offsets[first, 0], offsets[last, 1]
            found += (begin, behind) == (start, end)
            # These are the fewest tokens that contain the answer: neither the first nor the last could be left out.
            assert begin <= start < offsets[first, 1] and offsets[last, 0] < end <= behind
        # A few SentencePiece spans are wider, since a token contains more than the answer: "1946," for "1946".
        assert found > 1140 if kind == "sentencepiece" else found == 1190
