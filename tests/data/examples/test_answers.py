"""Question-answering examples, token by token: windows of a context, and answers mapped back to their characters."""

import numpy as np
import pytest

from lm.data.examples.answers import AnswerExamples, covering, trimmed
from lm.data.reading.readers import Question
from lm.data.tokenizing.vocabularies import WordTokenizer
from tests.data.examples.labelled import BOS, BYTES, EOS, check, make_config, make_store, weighted

CONTEXT = "The  caf\u00e9 in 中文 has 😀 e\u0301 and so on, for some while longer.\r\n End"


def questions():
    """Returns a question for each short substring of the context as its answer, and one without an answer."""
    spans = [(i, j) for i in range(len(CONTEXT)) for j in range(i + 1, min(i + 6, len(CONTEXT) + 1))]
    raw = [Question(str(i), "", "who?", CONTEXT, ((CONTEXT[i:j], i),)) for i, j in spans]
    return [*raw, Question("none", "", "?", CONTEXT, ())]


def answer_examples(raw, train=False, length=26, overlap=8, tokenizer=BYTES):
    return AnswerExamples(
        make_store(raw, tokenizer), make_config("span_qa", length, (), overlap=overlap), tokenizer, train
    )


def windows_of(examples):
    found = {}
    for index, example in enumerate(examples.example_of.tolist()):
        found.setdefault(example, []).append(index)
    return found


@pytest.mark.parametrize(("length", "overlap"), [(26, 8), (26, 0), (40, 19), (100, 8)])
def test_windows_hold_every_character_and_answers_map_back_to_the_character(length, overlap):
    raw = questions()
    examples = answer_examples(raw, length=length, overlap=overlap)
    windows = windows_of(examples)
    assert list(windows) == list(range(len(raw)))
    size = len(BYTES.encode(CONTEXT))
    for example, indices in windows.items():
        question = raw[example]
        capacity = length - 3 - len(question.question)
        starts = [number * (capacity - min(overlap, capacity // 2)) for number in range(len(indices))]
        assert starts[-1] + capacity >= size and all(start + capacity < size for start in starts[:-1])
        held = set()
        for index, start in zip(indices, starts, strict=True):
            made, offsets = examples.make(0, index), examples.offsets(index)
            inside = np.flatnonzero(offsets[:, 0] >= 0)
            assert inside.tolist() == list(range(len(question.question) + 2, len(made.tokens_T) - 1))
            assert made.tokens_T[inside].tolist() == BYTES.encode(CONTEXT)[start : start + capacity]
            held |= {i for a, b in offsets[inside].tolist() for i in range(a, b)}
            targets = weighted(made)
            if not question.answers:
                assert targets == [(0, 3, 1.0)], "no answer is at bos in each window"
                continue
            ((text, begin),) = question.answers
            first_byte = len(CONTEXT[:begin].encode())
            assert bool(targets) == (start <= first_byte and first_byte + len(text.encode()) <= start + capacity)
            if targets:
                first = next(i for i, target, _ in targets if target & 1)
                last = next(i for i, target, _ in targets if target & 2)
                assert (offsets[first, 0], offsets[last, 1]) == (begin, begin + len(text))
                assert BYTES.decode(made.tokens_T[first : last + 1]) == text
                assert len(targets) == (1 if first == last else 2) and all(weight == 1.0 for *_, weight in targets)
        assert held == set(range(len(CONTEXT))), "all of the context"


def test_training_has_only_the_windows_with_the_answer():
    raw = questions()
    every, train = answer_examples(raw), answer_examples(raw, train=True)
    check(every, 26)
    check(train, 26)
    with_answer = [i for i in range(len(every)) if every.make(0, i).weights_T.any()]
    assert [every.example_of[i] for i in with_answer] == train.example_of.tolist()
    for index, other in enumerate(with_answer):
        np.testing.assert_array_equal(train.make(0, index).tokens_T, every.make(0, other).tokens_T)
        np.testing.assert_array_equal(train.make(0, index).targets_T, every.make(0, other).targets_T)
    assert 0 < len(train) < len(every)


def test_answers_that_cannot_be_learnt_are_left_out_of_training_and_counted():
    raw = [
        Question("1", "", "q", "abcdef", (("x", 0), ("cd", 2))),  # the first is not in the context, the second is
        Question("2", "", "q", "abcdef", (("x", 0),)),
        Question("3", "", "q", "abcdef" * 9, (("abcdef" * 6, 0),)),  # longer than a window
        Question("4", "", "q", "abcdef", ()),
    ]
    train, every = answer_examples(raw, train=True), answer_examples(raw)
    assert train.example_of.tolist() == [0, 3]
    assert [(target, at) for at, target, _ in weighted(train.make(0, 0))] == [(1, 5), (2, 6)]
    assert train.notes == [
        "2 of 4 questions are omitted because no window contains their whole answer (data.sequence_length=26)"
    ]
    assert sorted(set(every.example_of.tolist())) == [0, 1, 2, 3] and every.notes == []
    assert not any(every.make(0, i).weights_T.any() for i in np.flatnonzero(every.example_of == 1))


@pytest.mark.parametrize(("times", "length", "overlap"), [(1, 26, 8), (1, 26, 7), (8, 307, 100)])
def test_each_token_has_most_context_in_one_window(times, length, overlap):
    context = CONTEXT * times
    examples = answer_examples([Question("1", "", "who?", context, ())], length=length, overlap=overlap)
    size, capacity = len(BYTES.encode(context)), length - 3 - 4
    windows = windows_of(examples)[0]
    bounds = [
        (start, min(start + capacity, size))
        for start in range(0, len(windows) * (capacity - overlap), capacity - overlap)
    ]
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
                assert examples.most_context(windows[k])[6 + token - start] == (k == best)
    for index in windows:
        assert not examples.most_context(index)[examples.offsets(index)[:, 0] < 0].any()


def test_a_long_question_leaves_half_of_the_row_to_the_context():
    examples = answer_examples([Question("1", "", "why " * 20, CONTEXT, ())], overlap=12)
    check(examples, 26)
    assert examples.notes == ["1 of 1 questions are truncated (data.sequence_length=26)"]
    assert BYTES.decode(examples.make(0, 0).tokens_T) == "why why why" + "The  caf\u00e9 i"
    assert examples.offsets(1)[13 + 0].tolist() == [6, 7], "windows share at most half"


def test_an_answer_inside_a_token_is_the_smallest_span_that_holds_it():
    tokenizer = WordTokenizer(["(in", "1999)", "twice"])
    raw = [Question("1", "", "in", "  twice (in  1999) ", (("1999", 13),))]
    examples = answer_examples(raw, tokenizer=tokenizer)
    made, offsets = examples.make(0, 0), examples.offsets(0)
    ((at, target, _),) = weighted(made)
    assert target == 3 and raw[0].context[slice(*offsets[at])] == "1999)"
    assert covering(offsets, 0, 2) is None, "white space is in no token"


def test_an_empty_context_is_one_window():
    examples = answer_examples([Question("1", "", "q", "", ())], train=True)
    assert examples.make(0, 0).tokens_T.tolist() == [BOS, *BYTES.encode("q"), EOS, EOS]
    assert (examples.offsets(0) == -1).all() and not examples.most_context(0).any()


def test_white_space_at_the_ends_belongs_to_no_token():
    assert [trimmed("a  bc \n", *span) for span in ((0, 1), (1, 4), (3, 7), (1, 3), (2, 2))] == [
        (0, 1),
        (3, 4),
        (3, 5),
        (1, 3),
        (2, 2),
    ]
