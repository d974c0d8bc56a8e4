"""Each cleaning step, on text with a known result."""

from fractions import Fraction

import pytest

from lm.config import CleaningConfig, DataConfig, PairsConfig, SourceConfig
from lm.data.reading.readers import Pair
from lm.data.storing.splits import Cleaner, PairCleaner, SplitSource, Subset, clean_text


@pytest.mark.parametrize(
    ("options", "text", "want"),
    [
        ({}, "  as\x00 it is\t\n\n\n\n", "  as\x00 it is\t\n\n\n\n"),
        ({"unicode": "NFC"}, "e\u0301 ﬁ", "é ﬁ"),
        ({"unicode": "NFKC"}, "e\u0301 ﬁ", "é fi"),
        ({"strip_html": True}, "<p class='x'>a &amp; b<br/></p> 1 < 2 > 0 <3 &lt;i&gt;", "a & b 1 < 2 > 0 <3 <i>"),
        ({"strip_html": True}, "x<script>if (a<b) {}</script>y<!-- c\n> -->z", "xyz"),
        ({"strip_control": True}, "a\x00\x07b\tc\nd\x7f\x9fe\r", "a b\tc\nd e"),
        ({"whitespace": "trim"}, "\n a  b \n", "a  b"),
        ({"whitespace": "lines"}, "\n  a  b \t\n\n \n\nc\n", "  a  b\n\nc"),
        ({"whitespace": "collapse"}, "\n a \t b\u00a0c\n", "a b c"),
        ({"whitespace": "collapse_lines"}, "\n a \t b\u00a0c \r\n\n d\n", "\na b c\n\nd\n"),
        ({"strip_html": True, "whitespace": "collapse"}, "<b>a</b>\n<i>b</i>", "a b"),
    ],
)
def test_each_step(options, text, want):
    assert clean_text(CleaningConfig(**options), text) == want


def kept(cleaner, texts):
    return [text for text in map(cleaner.clean, texts) if cleaner.keeps(text)]


def test_dropped_documents_are_counted_by_reason():
    cleaner = Cleaner(CleaningConfig(min_chars=2, max_chars=4, deduplicate=True, whitespace="trim"))
    assert kept(cleaner, ["ab", " a ", "abcde", "ab ", "abcd", "", "abc"]) == ["ab", "abcd", "abc"]
    assert cleaner.dropped == {"too_short": 2, "too_long": 1, "duplicate": 1}


def test_duplicates_stay_unless_asked_for():
    assert kept(Cleaner(CleaningConfig()), ["a", "a", ""]) == ["a", "a"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_chars": 0},
        {"min_chars": 3},
        {"max_chars": 4},
        {"deduplicate": True},
        {"whitespace": "trim"},
        {"unicode": "NFKC"},
        {"min_chars": 3, "whitespace": "collapse"},
    ],
)
@pytest.mark.parametrize("part", [Subset(), Subset(Fraction(1, 3))])
def test_several_documents_are_selected_like_each_of_them(options, part):
    texts = ["", " ", "a", " ﬁ ", "abc", "abc", "a  b", "  abc  ", "abcde"] * 2
    source = SplitSource("train", "train", "a", "all", SourceConfig(), DataConfig(), part)
    alone, together = Cleaner(CleaningConfig(**options)), Cleaner(CleaningConfig(**options))
    expected = [each for text in texts if (each := source.select(text, alone)) is not None]
    assert list(source.select_each(texts, together)) == expected
    assert together.take_counts() == alone.take_counts()


def test_several_pairs_are_selected_by_the_rules_for_pairs():
    pairs = [Pair("a", ("b",)), Pair("same", ("same",)), Pair("", ("b",))]
    source = SplitSource("train", "train", "a", "all", SourceConfig(), DataConfig(), Subset())
    rules = PairCleaner(CleaningConfig(), PairsConfig(drop_identical=True))
    assert source.select_each(pairs, rules) == pairs[:1]
    assert rules.dropped["identical"] == rules.dropped["too_short"] == 1
