"""Cleaning deletes markup and control characters, and never what separates two words."""

import time

import pytest

from lm.config import CleaningConfig, Config
from lm.data.storing.example_store import cleaning_identity
from lm.data.storing.markup import strip_control, strip_html
from lm.data.storing.splits import clean_text, cleaning_values


@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("film.<br /><br />The", "film. The"),
        ("<td>12</td><td>34</td>", "12 34"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", "a b 1 2"),
        ("<ul><li>one<li>two</ul>three", "one two three"),
        ("<h1>Title</h1>Text<hr>More<p>End", "Title Text More End"),
        ("<div>a</div><div>b</div>", "a b"),
        ("<option>a</option><option>b</option>", "a b"),
        ("one<img src='x.png'>two", "one two"),
        ("<html><head><title>T</title><style>p {x: y}</style></head><body>B</body></html>", "T B"),
        ("<!DOCTYPE html>\n<p>a</p>", "a"),
        ("<b>bo</b>ld H<sub>2</sub>O <a href=http://x.org/?a=b>li</a>nk<wbr>s", "bold H2O links"),
        ("<p title='a > b' data-x=\"<b>\">x</p>y", "x y"),
        ("<svg viewBox=\"0 0 1 1\"><path d='M0'/></path></svg>x", "x"),
        ("a&nbsp;b<p>&#99;&#x64;&eacute;", "a b cdé"),
        ("<title>A</title>b<textarea>c <p>d</p></textarea>e <b> f", "A b c d e <b> f"),
        ("x<script>if (a<b) document.write('<p>')</script>y<!-- a > b -->z", "xyz"),
        ("<SCRIPT>a</SCRIPT\n>b<Br>c", "b c"),
        ("a<script>b", "a b"),
        ("<td nowrap>1<td colspan=2>2", "1 2"),
    ],
)
def test_tags_go_and_words_stay_apart(html, words):
    assert strip_html(html).split() == words.split()


@pytest.mark.parametrize(
    "text",
    [
        "a<b and c>d",
        "x < y > z, 1<2>0, <3, <-, <=>, -->",
        "if (a<b && c>d) i<a || a>i; p<q and r>s",
        "Map<String, List<Object>> x = y<z>(w);",
        "mail <john@example.com>, see <http://x.org/a?b=c&d=e>, run cmd <file> <title>",
        "R&D, AT&T, x?a=1&copy=2&lt=3, &unknown;, a && b; c",
        "an open tag <a href='x and no more",
        "no comment <!-- here",
        "<plaintext> <custom-element> <foo>bar</foo>",
        "\n  spaces \t stay \r\n",
        "",
    ],
)
def test_text_that_is_not_html_stays_as_it_is(text):
    assert strip_html(text) == text
    assert strip_html(f"{text}<i>t</i>").replace("\r\n", "\n") == f"{text}t".replace("\r\n", "\n")


def test_existing_white_space_is_kept_and_references_are_decoded_once():
    assert strip_html(" <p>a</p> <p>b</p>\n\n<div>c</div><div>d</div>\n") == " a b\n\nc\nd\n"
    assert strip_html("AT&amp;T &amp;lt;b&amp;gt; 5 &lt; 6") == "AT&T &lt;b&gt; 5 < 6"
    assert strip_html("<pre>\n  a\n    b</pre>") == "\n  a\n    b"
    assert strip_html("\ud800<p>x") == "\ufffd\nx"


@pytest.mark.parametrize(
    "part",
    [
        *(
            "<script>",
            "<!--",
            "<!-- -",
            "</script",
            "<p",
            "<a b='",
            "<a b=\"'",
            "<a b=c ",
            "<![if ",
            "&",
            "&#",
            "<",
            "<b>",
        ),
        *(
            "<div>",
            "</div>",
            "<p><b>",
            "<td>x",
            "<a x=\"<a y='\" y='",
            "<!doctype ",
            "<title>",
            "<i " + "a " * 9,
            "\x01",
        ),
    ],
)
def test_time_is_linear(part):
    def seconds():
        began = time.process_time()
        strip_html(part * 20_000 + "</p>-->")
        return time.process_time() - began

    assert any(seconds() < 2 for _ in range(3)), "a quadratic step takes over 10 s"


def test_long_runs_take_linear_time_too():
    began = time.process_time()
    run = " " * 300_000
    assert clean_text(CleaningConfig(whitespace="lines"), f"a{run}b{run}\nc") == f"a{run}b\nc"
    assert strip_control("\0" * 300_000 + "x") == "x"
    assert time.process_time() - began < 2


def test_deep_nesting_and_long_texts_are_complete():
    for tag in ("div", "b", "table", "ul"):
        assert strip_html(f"<{tag}>" * 5000 + "x" + f"</{tag}>" * 5000).strip() == "x"
    long = "<p>" + "word " * 2_100_000 + "</p>end"
    assert strip_html(long) == "word " * 2_100_000 + "end"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("page\x0cpage", "page\npage"),
        ("a\x0bb\x85c\rd", "a\nb\nc\nd"),
        ("a\r\nb", "a\nb"),
        ("field\x1ffield\x01item\x00end", "field field item end"),
        ("a\x00 b\x07\nc\x00\x1b\x07d", "a b\nc d"),
        ("\x00a\tb\x7f\x9f", "a\tb"),
    ],
)
def test_control_characters_between_words_become_white_space(text, want):
    assert strip_control(text) == want


def test_fingerprint_changes_with_the_rules_only_where_they_apply():
    plain = CleaningConfig(unicode="NFC", whitespace="lines")
    assert "markup" not in cleaning_values(plain)
    for name in ("strip_html", "strip_control"):
        assert cleaning_values(CleaningConfig(**{name: True}))["markup"] == 3
    data = {"train": {"a": {"kind": "embedded"}}}
    old = (
        "[('deduplicate', False), ('max_chars', 0), ('min_chars', 1), ('strip_control', False), ('strip_html', False), "
    )
    config = Config.from_dict({"data": {**data, "cleaning": {}}})
    assert cleaning_identity(config) == [old + "('unicode', ''), ('whitespace', 'keep')]", ""]


@pytest.mark.parametrize("char", [*map(chr, range(0x20)), "\x7f", "\x85", "\ue000", "\uffff"])
def test_control_characters_are_kept_whether_or_not_there_are_tags(char):
    text = f"a{char}b \ue000"
    assert strip_html(f"x &amp; {text}") == f"x & {text}"
    assert strip_html(f"x <b>{text}</b>") == f"x {text}"
    assert strip_html(f"x <b>{text}</b>&#xE001;&amp;#0;") == f"x {text}\ue001&#0;"
