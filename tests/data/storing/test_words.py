"""Word-level cleaning: stop words, lower case, stemming and segmentation; what identifies a store; bad settings."""

import random
import sys
from types import SimpleNamespace

import pytest
from nltk.stem.porter import PorterStemmer
from nltk.stem.snowball import SnowballStemmer

from lm.config import CleaningConfig, Config
from lm.config.data import STEMMERS, WORD_STEPS
from lm.config.stop_words import with_words
from lm.data.reading.readers import Labelled
from lm.data.storing import words
from lm.data.storing.splits import LabelledCleaner, clean_text, cleaning_values
from lm.data.storing.stop_words import STOP_WORDS
from lm.errors import UserError
from tests.tasks.test_tasks import values_of


@pytest.mark.parametrize(
    ("options", "text", "want"),
    [
        ({"lowercase": True}, "The ÄÖÜ Film", "the äöü film"),
        ({"stop_words": "english"}, "The film, which I saw, was not good", "film, saw, not good"),
        ({"stop_words": "english"}, "it 's John 's state-of-the-art idea .", "John state-of-the-art idea ."),
        ({"stop_words": "english"}, "It’s  a\n  film of\nthe year", "\n  film\nyear"),
        ({"stop_words": "x\n"}, "  if  a:\n\n\tx  b\tx   c \n  x\nd  x \n  e", "  if  a:\n\n\tb\tc \n\nd\n  e"),
        ({"stop_words": "x\n"}, "(x a), b x, x x c,x d", "( a), b , c, d"),
        ({"stop_words": "x\n"}, "x", ""),
        ({"stop_words": "chinese"}, "这 是 一个 好 电影", "好 电影"),
        ({"stop_words": "chinese"}, "这是一个好电影", "这是一个好电影"),
        ({"stop_words": "Film\nnot\n"}, "The FILM is not bad", "The is bad"),
        ({"stem": "english"}, "Running, generously (flies)!", "run, generous (fli)!"),
        ({"stem": "german"}, "Die Häuser der Städte", "die haus der stadt"),
        ({"stem": "english", "stop_words": "english"}, "they are having cats", "cat"),
        ({"lowercase": True, "whitespace": "collapse", "stop_words": "english"}, " THE  end \n of it", "end"),
    ],
)
def test_cleaning(options, text, want):
    assert clean_text(CleaningConfig(**options), text) == want


def test_random_texts_lose_words_and_blanks_beside_them_only():
    """Words are separated as before, no line is added or lost, and blanks that are not beside a removed word remain."""
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices(["x", "ab", "c", " ", " ", "\n", ","], k=draw.randint(0, 12)))
        found = clean_text(CleaningConfig(stop_words="x\n"), text)
        assert found.count("\n") == text.count("\n") and len(found) <= len(text)
        assert words.WORD.findall(found) == [word for word in words.WORD.findall(text) if word != "x"]
        for one, other in zip(text.split("\n"), found.split("\n"), strict=True):
            if "x" not in words.WORD.findall(one):
                assert other == one


def test_defaults_change_neither_texts_nor_what_identifies_a_store():
    text = "It’s  The end\n of"
    assert words.clean_words(CleaningConfig(), text) == text and words.identity(CleaningConfig()) == {}
    assert not set(WORD_STEPS) & cleaning_values(CleaningConfig(unicode="NFC", strip_html=True)).keys()


def test_every_step_identifies_a_store():
    settings = [
        {},
        {"lowercase": True},
        {"stem": "english"},
        {"stem": "porter"},
        {"stop_words": "english"},
        {"stop_words": "chinese"},
        {"stop_words": "film\n"},
        {"stop_words": "film\nnot\n"},
    ]
    values = [str(cleaning_values(CleaningConfig(**each))) for each in settings]
    assert len(set(values)) == len(values)
    same = [cleaning_values(CleaningConfig(stop_words=each)) for each in ("a\nb\n", "b\na\n")]
    assert same[0] == same[1], "the order of the words does not matter"


def test_stemmers_are_those_of_nltk():
    assert set(STEMMERS) == set(SnowballStemmer.languages)
    for word in ("relational", "skies", "happily", "Dying"):
        assert words.stemmer("porter")(word) == PorterStemmer().stem(word)


def test_lists_are_function_words_in_lower_case_without_negations():
    for name, each in STOP_WORDS.items():
        assert len(each) > 100 and all(word == word.lower() for word in each), name
        matches = {word: [match[0] for match in words.WORD.finditer(word)] for word in each}
        assert all(found == [word] for word, found in matches.items()), "each entry is a whole word"
    assert not STOP_WORDS["english"] & {"no", "not", "nor", "never", "n't", "none", "don't"}
    assert not STOP_WORDS["chinese"] & {"不", "没", "没有", "无", "非"}


def test_stop_words_that_no_text_contains_are_noted():
    for config, text, noted in [
        ({"stop_words": "chinese"}, "这是一个好电影", True),
        ({"stop_words": "chinese"}, "这 是 一个 好 电影", False),
        ({"lowercase": True}, "film", False),
    ]:
        rules = LabelledCleaner(CleaningConfig(**config))
        rules.clean(Labelled(text, None, "pos"))
        assert ["no text contained a stop word" in note for note in rules.notes()] == [True] * noted


# --- segmentation -------------------------------------------------------------------------------------------------


@pytest.fixture
def jieba(monkeypatch):
    """A stand-in for jieba, which is optional: all words have two characters."""
    levels = []
    module = SimpleNamespace(
        __version__="0.1",
        setLogLevel=levels.append,
        cut=lambda line: (line[i : i + 2] for i in range(0, len(line), 2)),
    )
    monkeypatch.setitem(sys.modules, "jieba", module)
    words.segmenter.cache_clear()
    yield module
    words.segmenter.cache_clear()


def test_segmentation_puts_spaces_between_words_and_keeps_lines(jieba):
    assert clean_text(CleaningConfig(segment="jieba"), "我们喜欢  电影\n这个") == "我们 喜欢 电影\n这个"
    assert clean_text(CleaningConfig(segment="jieba", stop_words="chinese"), "我们喜欢电影") == "喜欢 电影"
    assert words.identity(CleaningConfig(segment="jieba")) == {"segment": ["jieba", "0.1"]}
    jieba.__version__ = "0.2"
    assert words.identity(CleaningConfig(segment="jieba")) == {"segment": ["jieba", "0.2"]}


def test_missing_jieba_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    words.segmenter.cache_clear()
    for use in (lambda config: clean_text(config, "我"), cleaning_values):
        with pytest.raises(UserError, match=r"^config\.data\.cleaning\.segment: jieba is not installed; run `pip"):
            use(CleaningConfig(segment="jieba"))


def test_real_jieba_splits_a_sentence():
    pytest.importorskip("jieba")
    words.segmenter.cache_clear()
    assert clean_text(CleaningConfig(segment="jieba"), "我来到北京清华大学") == "我 来到 北京 清华大学"


# --- files and settings -------------------------------------------------------------------------------------------


def test_config_contains_the_words_of_a_file(tmp_path):
    path = tmp_path / "stop.txt"
    path.write_text("\ufefffilm\r\n\n the \nfilm\n", encoding="utf-8")
    values = values_of("classification", "encoder", **{"data.cleaning.stop_words": str(path)})
    config = Config.from_dict(values)
    assert config.data.cleaning.stop_words == "film\nthe\n"
    path.unlink()
    assert Config.from_dict(config.to_dict()) == config, "a run directory needs the file no longer"
    assert with_words("english") == "english" and with_words("") == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); use 'english' or 'chinese', or a file with one word per l"),
        (b"\n \n", "contains no words; leave this setting empty to keep all words."),
        (b"the\nof course\n", "line 2: 'of course' is not a single word; put one word per line."),
        (b"the\nc++\n", "line 2: 'c++' never occurs as a word, because words consist of letters and digits"),
        (b",\n", "line 1: ',' never occurs as a word"),
        (b"a\n\xff", "is not encoded in UTF-8 (byte 2); convert it to UTF-8."),
        (b"word\n" * 300_000, "has 1,500,000 bytes; a list of stop words has at most 1,000,000."),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "stop.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        with_words(str(path))
    assert str(caught.value).startswith(f"config.data.cleaning.stop_words: {path}") and message in str(caught.value)


def test_published_tokenizers_read_unchanged_words():
    for setting, value in (("lowercase", True), ("stop_words", "english"), ("stem", "porter"), ("segment", "jieba")):
        values = values_of("classification", "encoder", **{f"data.cleaning.{setting}": value})
        values["data"]["tokenizer"].update(kind="huggingface", path="tokenizer.json", extra_ids=0)
        with pytest.raises(UserError, match=rf"^config\.data\.cleaning\.{setting}: .* a published tokenizer expects"):
            Config.from_dict(values)
