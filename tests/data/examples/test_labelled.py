"""Pieces of labelled examples, token by token: cuts, places of labels, words and tags, windows and answers."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Config
from lm.data.examples.label_encoding import AnswerTokens, TextTokens, WordTokens
from lm.data.examples.labelled import AnswerPieces, TextPieces, WordPieces, covering
from lm.data.reading.labelled import Labelled, Question, Tagged
from lm.data.storing.label_store import LabelledStore
from lm.data.tokenizing.tokenizers import ByteTokenizer, WordTokenizer
from lm.errors import UserError

BYTES = ByteTokenizer()
BOS, EOS = BYTES.bos_id, BYTES.eos_id


def make_store(raw, tokenizer=BYTES, counts=None):
    kinds = {Labelled: TextTokens, Tagged: WordTokens, Question: AnswerTokens}
    return LabelledStore("s", list(raw), kinds[type(raw[0])].encode(raw, tokenizer), "", {}, counts or {}, [])


def make_config(objective, length=16, labels=("a", "b"), pooling="first", overlap=3, **settings_of_objective):
    field = {"label_field": "label"} if objective in ("classification", "regression") else {}
    return Config.from_dict(
        {
            "data": {
                "train": {"s": {"kind": "jsonl", "path": "x", **field}},
                "sequence_length": length,
                "labels": labels,
                "context_overlap": overlap if objective == "span_qa" else 64,
            },
            "objective": {"name": objective, **settings_of_objective},
            "model": {"family": "encoder", "pooling": pooling},
        }
    )


def text_pieces(raw, train=True, objective="classification", counts=None, **options):
    return TextPieces(make_store(raw, counts=counts), make_config(objective, **options), BYTES, train)


def check(pieces, length):
    """Sizes are right, nothing is longer than a row, and a copy in another process makes the same."""
    copied = pickle.loads(pickle.dumps(pieces))
    assert copied.store.raw == [] and len(copied) == len(pieces) == len(pieces.sizes(0)) == len(pieces.example_of)
    for index in range(len(pieces)):
        piece, again = pieces.make(0, index), copied.make(1, index)
        assert len(piece.tokens_T) == pieces.sizes(0)[index] <= length
        for name in ("tokens_T", "targets_T", "weights_T", "types_T"):
            np.testing.assert_array_equal(getattr(piece, name), getattr(again, name))
        assert piece.tokens_T[0] == BOS and piece.tokens_T[-1] == EOS
        types = (piece.tokens_T == EOS).cumsum() - (piece.tokens_T == EOS)
        np.testing.assert_array_equal(piece.types_T, types)


def weighted(piece):
    places = np.flatnonzero(piece.weights_T)
    return [(int(i), piece.targets_T[i].item(), piece.weights_T[i].item()) for i in places]


@pytest.mark.parametrize(("pooling", "places"), [("first", [0, 0, 0]), ("mean", [0, 0, 0]), ("last", [6, 1, 7])])
def test_a_label_is_the_target_of_one_token(pooling, places):
    raw = [Labelled("short", None, "b"), Labelled("", None, "a"), Labelled("too long a text", None, "b")]
    pieces = text_pieces(raw, pooling=pooling, length=8)
    check(pieces, 8)
    made = [pieces.make(0, i) for i in range(3)]
    assert [BYTES.decode(piece.tokens_T) for piece in made] == ["short", "", "too lo"]
    assert [weighted(piece) for piece in made] == [[(places[0], 1, 1.0)], [(places[1], 0, 1.0)], [(places[2], 1, 1.0)]]
    assert [pieces.label_place(i) for i in range(3)] == places
    assert pieces.notes == ["1 of 3 texts are cut (data.sequence_length=8)"]


def cut_one_by_one(first, second, room):
    """The published procedure: the longer text loses its last token until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return "".join(first), "".join(second)


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, 20), second=st.integers(0, 20), length=st.integers(8, 24))
def test_of_a_pair_the_longer_text_is_cut(first, second, length):
    a, b = "a" * first, "b" * second
    pieces = text_pieces([Labelled(a, b, "a")], length=length)
    check(pieces, length)
    want = cut_one_by_one(a, b, length - 3)
    tokens = [BOS, *BYTES.encode(want[0]), EOS, *BYTES.encode(want[1]), EOS]
    assert pieces.make(0, 0).tokens_T.tolist() == tokens


def test_regression_learns_numbers():
    pieces = text_pieces([Labelled("x", "y", "3.25"), Labelled("x", "y", "-1e2")], objective="regression", labels=())
    check(pieces, 16)
    assert pieces.make(0, 0).targets_T.dtype == np.float32
    assert [weighted(pieces.make(0, i)) for i in (0, 1)] == [[(0, 3.25, 1.0)], [(0, -100.0, 1.0)]]


def test_labels_weigh_what_is_asked_for_in_training_alone():
    raw = [Labelled("x", None, label) for label in "abba"]
    counts, labels = {"a": 2, "b": 6}, ("b", "a", "none")

    def weights(train, **options):
        pieces = text_pieces(raw, train, counts=counts, labels=labels, **options)
        return [weighted(pieces.make(0, i))[0][2] for i in range(4)]

    assert weights(True) == [1.0] * 4
    assert weights(True, class_weights=[0.5, 2.0, 9.0]) == [2.0, 0.5, 0.5, 2.0]
    a, b = 8 / (3 * 2), 8 / (3 * 6)
    assert weights(True, balance_classes=True) == pytest.approx([a, b, b, a])
    assert weights(False, balance_classes=True) == weights(False, class_weights=[0.5, 2.0, 9.0]) == [1.0] * 4
    rows = [Tagged(("x", "y"), ("a", "b"))]
    config = make_config("tagging", labels=labels, class_weights=[0.5, 2.0, 9.0])
    assert [w for _, _, w in weighted(WordPieces(make_store(rows), config, BYTES, True).make(0, 0))] == [2.0, 0.5]


def test_rows_too_short_for_a_task():
    with pytest.raises(UserError, match=r"sequence_length: 7 is too short for objective\.name=classification"):
        text_pieces([Labelled("x", None, "a")], length=7)


TAGS = ("O", "B-X", "I-X")
WORDS = st.lists(st.text("ab é中😀", min_size=0, max_size=12).map(str.strip), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(sentences=st.lists(WORDS, min_size=1, max_size=4), length=st.integers(8, 40))
def test_every_word_has_its_tag_at_its_first_token(sentences, length):
    raw = [Tagged(tuple(words), tuple(TAGS[len(word) % 3] for word in words)) for words in sentences]
    pieces = WordPieces(make_store(raw), make_config("tagging", length, TAGS), BYTES, True)
    check(pieces, length)
    covered = dict.fromkeys(range(len(raw)), 0)
    for index in range(len(pieces)):
        example, piece, places = int(pieces.example_of[index]), pieces.make(0, index), pieces.word_places(index)
        assert pieces.first_word(index) == covered[example], "word after word, none twice"
        words = raw[example].words[covered[example] :][: len(places)]
        tags = raw[example].tags[covered[example] :][: len(places)]
        assert len(words) == len(places)
        for word, tag, place in zip(words, tags, places, strict=True):
            if word:
                assert piece.tokens_T[place] == BYTES.encode(word)[0] and TAGS[piece.targets_T[place]] == tag
            else:
                assert place == -1
        assert [place for place, _, _ in weighted(piece)] == [place for place in places if place >= 0]
        covered[example] += len(places)
    assert covered == {number: len(example.words) for number, example in enumerate(raw)}


def test_a_long_sentence_is_cut_between_words_and_a_long_word_is_cut():
    raw = [Tagged(("ab", "cdefgh", "ghi", "jklmnopqrst", "u"), ("O",) * 5), Tagged(("x",), ("O",))]
    pieces = WordPieces(make_store(raw), make_config("tagging", 11, TAGS), BYTES, False)
    check(pieces, 11)
    assert [BYTES.decode(pieces.make(0, i).tokens_T) for i in range(len(pieces))] == [
        "ab cdefgh",
        " ghi",
        " jklmnopq",
        " u",
        "x",
    ]
    assert pieces.example_of.tolist() == [0, 0, 0, 0, 1]
    assert [pieces.first_word(i) for i in range(5)] == [0, 2, 3, 4, 0]
    assert [pieces.word_places(i).tolist() for i in range(5)] == [[1, 4], [2], [2], [2], [1]]
    assert pieces.notes == [
        "1 of 2 sentences are cut in several pieces (data.sequence_length=11)",
        "1 of 6 words are longer than a row: cut (data.sequence_length=11)",
    ]


CONTEXT = "The  caf\u00e9 in 中文 has 😀 e\u0301 and so on, for some while longer.\r\n End"


def questions():
    """One for every range of characters of a context, and one without answer."""
    spans = [(i, j) for i in range(len(CONTEXT)) for j in range(i + 1, min(i + 6, len(CONTEXT) + 1))]
    raw = [Question(str(i), "", "who?", CONTEXT, ((CONTEXT[i:j], i),)) for i, j in spans]
    return [*raw, Question("none", "", "?", CONTEXT, ())]


def answer_pieces(raw, train=False, length=26, overlap=8, tokenizer=BYTES):
    return AnswerPieces(
        make_store(raw, tokenizer), make_config("span_qa", length, (), overlap=overlap), tokenizer, train
    )


def windows_of(pieces):
    found = {}
    for index, example in enumerate(pieces.example_of.tolist()):
        found.setdefault(example, []).append(index)
    return found


@pytest.mark.parametrize(("length", "overlap"), [(26, 8), (26, 0), (40, 19), (100, 8)])
def test_windows_hold_every_character_and_answers_map_back_to_the_character(length, overlap):
    raw = questions()
    pieces = answer_pieces(raw, length=length, overlap=overlap)
    windows = windows_of(pieces)
    assert list(windows) == list(range(len(raw)))
    size = len(BYTES.encode(CONTEXT))
    for example, indices in windows.items():
        question = raw[example]
        room = length - 3 - len(question.question)
        starts = [number * (room - min(overlap, room // 2)) for number in range(len(indices))]
        assert starts[-1] + room >= size and all(start + room < size for start in starts[:-1])
        held = set()
        for index, start in zip(indices, starts, strict=True):
            piece, offsets = pieces.make(0, index), pieces.offsets(index)
            inside = np.flatnonzero(offsets[:, 0] >= 0)
            assert inside.tolist() == list(range(len(question.question) + 2, len(piece.tokens_T) - 1))
            assert piece.tokens_T[inside].tolist() == BYTES.encode(CONTEXT)[start : start + room]
            held |= {i for a, b in offsets[inside].tolist() for i in range(a, b)}
            targets = weighted(piece)
            if not question.answers:
                assert targets == [(0, 3, 1.0)], "no answer is at bos in each window"
                continue
            ((text, begin),) = question.answers
            first_byte = len(CONTEXT[:begin].encode())
            assert bool(targets) == (start <= first_byte and first_byte + len(text.encode()) <= start + room)
            if targets:
                first = next(i for i, target, _ in targets if target & 1)
                last = next(i for i, target, _ in targets if target & 2)
                assert (offsets[first, 0], offsets[last, 1]) == (begin, begin + len(text))
                assert BYTES.decode(piece.tokens_T[first : last + 1]) == text
                assert len(targets) == (1 if first == last else 2) and all(weight == 1.0 for *_, weight in targets)
        assert held == set(range(len(CONTEXT))), "all of the context"


def test_training_has_the_windows_with_the_answer_alone():
    raw = questions()
    every, train = answer_pieces(raw), answer_pieces(raw, train=True)
    check(every, 26)
    check(train, 26)
    with_answer = [i for i in range(len(every)) if every.make(0, i).weights_T.any()]
    assert [every.example_of[i] for i in with_answer] == train.example_of.tolist()
    for index, other in enumerate(with_answer):
        np.testing.assert_array_equal(train.make(0, index).tokens_T, every.make(0, other).tokens_T)
        np.testing.assert_array_equal(train.make(0, index).targets_T, every.make(0, other).targets_T)
    assert 0 < len(train) < len(every)


def test_answers_that_cannot_be_learnt_are_left_out_of_training_and_told():
    raw = [
        Question("1", "", "q", "abcdef", (("x", 0), ("cd", 2))),  # the first is not there, the second is
        Question("2", "", "q", "abcdef", (("x", 0),)),
        Question("3", "", "q", "abcdef" * 9, (("abcdef" * 6, 0),)),  # longer than a window
        Question("4", "", "q", "abcdef", ()),
    ]
    train, every = answer_pieces(raw, train=True), answer_pieces(raw)
    assert train.example_of.tolist() == [0, 3]
    assert [(target, place) for place, target, _ in weighted(train.make(0, 0))] == [(1, 5), (2, 6)]
    assert train.notes == [
        "2 of 4 questions have no answer that is whole in a window: left out (data.sequence_length=26)"
    ]
    assert sorted(set(every.example_of.tolist())) == [0, 1, 2, 3] and every.notes == []
    assert not any(every.make(0, i).weights_T.any() for i in np.flatnonzero(every.example_of == 1))


@pytest.mark.parametrize(("times", "length", "overlap"), [(1, 26, 8), (1, 26, 7), (8, 307, 100)])
def test_each_token_has_most_context_in_one_window(times, length, overlap):
    context = CONTEXT * times
    pieces = answer_pieces([Question("1", "", "who?", context, ())], length=length, overlap=overlap)
    size, room = len(BYTES.encode(context)), length - 3 - 4
    windows = windows_of(pieces)[0]
    bounds = [(start, min(start + room, size)) for start in range(0, len(windows) * (room - overlap), room - overlap)]
    assert len(bounds) == len(windows) > 2 and bounds[-1][1] == size
    for token in range(size):
        best = max(
            (k for k, (start, end) in enumerate(bounds) if start <= token < end),
            key=lambda k: (
                min(token - bounds[k][0], bounds[k][1] - 1 - token) + 0.01 * (bounds[k][1] - bounds[k][0]),
                -k,
            ),
        )
        for k, (start, end) in enumerate(bounds):
            if start <= token < end:
                assert pieces.most_context(windows[k])[6 + token - start] == (k == best)
    for index in windows:
        assert not pieces.most_context(index)[pieces.offsets(index)[:, 0] < 0].any()


def test_a_long_question_leaves_half_of_the_row_to_the_context():
    pieces = answer_pieces([Question("1", "", "why " * 20, CONTEXT, ())], overlap=12)
    check(pieces, 26)
    assert pieces.notes == ["1 of 1 questions are cut (data.sequence_length=26)"]
    assert BYTES.decode(pieces.make(0, 0).tokens_T) == "why why why" + "The  caf\u00e9 i"
    assert pieces.offsets(1)[13 + 0].tolist() == [6, 7], "windows have at most half in common"


def test_an_answer_inside_a_token_is_the_smallest_span_that_holds_it():
    tokenizer = WordTokenizer(["(in", "1999)", "twice"])
    raw = [Question("1", "", "in", "  twice (in  1999) ", (("1999", 13),))]
    pieces = answer_pieces(raw, tokenizer=tokenizer)
    piece, offsets = pieces.make(0, 0), pieces.offsets(0)
    ((place, target, _),) = weighted(piece)
    assert target == 3 and raw[0].context[slice(*offsets[place])] == "1999)"
    assert covering(offsets, 0, 2) is None, "white space is in no token"


def test_an_empty_context_is_one_window():
    pieces = answer_pieces([Question("1", "", "q", "", ())], train=True)
    assert pieces.make(0, 0).tokens_T.tolist() == [BOS, *BYTES.encode("q"), EOS, EOS]
    assert (pieces.offsets(0) == -1).all() and not pieces.most_context(0).any()
