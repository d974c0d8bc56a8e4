"""Word tokens, and tagging examples token by token: first tokens, tags, cuts."""

import dataclasses
import io
import itertools

import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Config
from lm.data.examples.labelled import TaggingExamples, WordTokens
from lm.data.reading.readers import Tagged
from lm.data.tokenizing import TOKENIZERS, build_tokenizer
from lm.data.tokenizing.vocabularies import WordTokenizer
from tests.data.examples.labelled import BYTES, check, make_config, make_store, weighted

TAGS = ("O", "B-X", "I-X")
WORDS = st.lists(st.text("ab é中😀", min_size=0, max_size=12).map(str.strip), min_size=1, max_size=12)


def first_word(examples, index):
    """Returns the index within its sentence of the example's first word."""
    return examples._bounds_E2[index, 0] - examples._tokens.starts[examples.example_of[index]]


@settings(max_examples=100, deadline=None)
@given(sentences=st.lists(WORDS, min_size=1, max_size=4), length=st.integers(8, 40))
def test_every_word_has_its_tag_at_its_first_token(sentences, length):
    raw = [Tagged(tuple(words), tuple(TAGS[len(word) % 3] for word in words)) for words in sentences]
    examples = TaggingExamples(make_store(raw), make_config("tagging", length, TAGS), BYTES, True)
    check(examples, length)
    covered = dict.fromkeys(range(len(raw)), 0)
    for index in range(len(examples)):
        example, made, indices = int(examples.example_of[index]), examples.make(0, index), examples.word_indices(index)
        assert first_word(examples, index) == covered[example], "word after word, none twice"
        words = raw[example].words[covered[example] :][: len(indices)]
        tags = raw[example].tags[covered[example] :][: len(indices)]
        assert len(words) == len(indices)
        for word, tag, at in zip(words, tags, indices, strict=True):
            if word:
                assert made.tokens_T[at] == BYTES.encode(word)[0] and TAGS[made.targets_T[at]] == tag
            else:
                assert at == -1
        assert [at for at, _, _ in weighted(made)] == [at for at in indices if at >= 0]
        covered[example] += len(indices)
    assert covered == {number: len(example.words) for number, example in enumerate(raw)}


def test_a_long_sentence_is_cut_between_words_and_a_long_word_is_cut():
    raw = [Tagged(("ab", "cdefgh", "ghi", "jklmnopqrst", "u"), ("O",) * 5), Tagged(("x",), ("O",))]
    examples = TaggingExamples(make_store(raw), make_config("tagging", 11, TAGS), BYTES, False)
    check(examples, 11)
    assert [BYTES.decode(examples.make(0, i).tokens_T) for i in range(len(examples))] == [
        "ab cdefgh",
        " ghi",
        " jklmnopq",
        " u",
        "x",
    ]
    assert examples.example_of.tolist() == [0, 0, 0, 0, 1]
    assert [first_word(examples, i) for i in range(5)] == [0, 2, 3, 4, 0]
    assert [examples.word_indices(i).tolist() for i in range(5)] == [[1, 4], [2], [2], [2], [1]]
    assert examples.notes == [
        "1 of 2 sentences are split into several examples (data.sequence_length=11)",
        "1 of 6 words are longer than a row and are truncated (data.sequence_length=11)",
    ]


def test_tags_have_the_given_weights_only_in_training():
    config = make_config("tagging", labels=("b", "a", "none"), class_weights=[0.5, 2.0, 9.0])
    store = make_store([Tagged(("x", "y"), ("a", "b"))])
    for train, wanted in ((True, [2.0, 0.5]), (False, [1.0, 1.0])):
        assert [w for _, _, w in weighted(TaggingExamples(store, config, BYTES, train).make(0, 0))] == wanted


def encoded(tokenizer, *words):
    tokens = WordTokens.encode([Tagged(words, ("O",) * len(words))], tokenizer)
    return [tokens.words[i].tolist() for i in range(len(words))], tokens.firsts_W.tolist()


def test_words_have_the_tokens_they_have_in_a_text():
    sentences = ["the cat sat on the mat and the dog ran 中文字\n"] * 20 + [
        " ".join(f"w{i}" for i in range(150)) + " quick brown zebras jumped over lazy foxes"
    ]
    for algorithm in ("unigram", "bpe"):
        config = dataclasses.replace(Config().data.tokenizer, vocab_size=310, algorithm=algorithm)
        tokenizer = build_tokenizer(config, sentences)
        words = ("the", "cat", "zebra", "😀", "dog", "w12")
        tokens_of_words, firsts = encoded(tokenizer, *words)
        assert list(itertools.chain(*tokens_of_words)) == tokenizer.encode(" ".join(words))
        for word, tokens, first in zip(words, tokens_of_words, firsts, strict=True):
            assert tokenizer.decode(tokens).strip(" ") == word
            assert tokenizer.decode(tokens[:first]).strip(" ") == "" and tokenizer.decode(tokens[: first + 1]).strip(
                " "
            )


def test_the_first_token_of_a_word_is_not_its_space():
    tokens_of_words, firsts = encoded(BYTES, "ab", "c", "é")
    assert [BYTES.decode(tokens) for tokens in tokens_of_words] == ["ab", " c", " é"] and firsts == [0, 1, 1]
    tokens_of_words, firsts = encoded(WordTokenizer(["ab", "c"]), "ab", "c", "new york")
    assert tokens_of_words == [[4], [5], [3, 3]] and firsts == [0, 0, 0]


def test_ideographs_have_no_space_between_them_and_a_word_may_have_no_token():
    tokens_of_words, firsts = encoded(BYTES, "中", "文", "a", "字", "。", "")
    assert [BYTES.decode(tokens) for tokens in tokens_of_words] == ["中", "文", " a", " 字", "。", " "]
    assert firsts == [0, 0, 1, 1, 0, -1]


def test_a_tokenizer_that_adds_the_space_by_itself_gets_no_second_one():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 9),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer = TOKENIZERS["sentencepiece"]._from_content(model.getvalue(), {})
    tokens_of_words, _ = encoded(tokenizer, "the", "cat")
    assert list(itertools.chain(*tokens_of_words)) == tokenizer.encode("the cat")
