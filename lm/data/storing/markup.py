"""Extracts text from HTML and removes control characters. Words that were separated stay separated.

A regular expression finds each `<` and `&` that belongs to HTML; all others are left unchanged. lxml then parses the
HTML without building a tree. Both steps take time linear in the length of the text.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

from lxml import etree

from lm.files import well_formed

VERSION = 3  # part of the fingerprints of cleaned data; increment this when the result for the same text changes

HIDDEN = frozenset("script style iframe noframes noembed".split())  # elements whose content is neither text nor tags
BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li main menu nav noscript ol optgroup "
    "option p pre section summary table tbody tfoot thead title tr ul xmp".split()
)
SPACED = frozenset("applet audio button canvas embed iframe img input object select svg td textarea th video".split())
INLINE = frozenset(
    "a abbr acronym area b base basefont bdi bdo bgsound big blink br cite code col colgroup data datalist del dfn em "
    "font frame i image ins kbd label link map mark marquee math meta meter nobr o:p output param picture progress q "
    "rp rt ruby s samp slot small source span strike strong sub sup template time track tt u var wbr".split()
)
ELEMENTS = HIDDEN | BLOCKS | SPACED | INLINE
# Names that are used only in HTML. The start tag of any other element, such as <title> or the <b> in "a <b> c", counts
# as HTML only if it has an attribute or if the text also contains the end tag.
UNMISTAKABLE = frozenset(
    "blockquote body br colgroup dd del div dl dt em font h1 h2 h3 h4 h5 h6 head hr html iframe img li nobr "
    "noscript ol p pre script span strong style tbody td textarea tfoot th thead tr tt ul wbr o:p".split()
)
# Attributes that take no value. If a supposed tag contains other words without a value, as in "a<b and c>d", it counts
# as HTML only if its name is in UNMISTAKABLE and longer than one letter.
_FLAGS = re.compile(
    r"(?:[\s/]*+(?:allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|download|hidden|"
    r"inert|ismap|itemscope|loop|multiple|muted|nohref|nomodule|noresize|noshade|novalidate|nowrap|open|playsinline|"
    r"readonly|required|reversed|selected|data-[\w-]+)(?=[\s/]|$))+[\s/]*",
    re.IGNORECASE,
)
# A quoted value may contain at most four "<", and a tag at most 100 attributes, so that matching takes linear time.
_VALUE = r""""[^"<]*+(?:<[^"<]*+){0,4}+"|'[^'<]*+(?:<[^'<]*+){0,4}+'|[^\s"'<>`]++"""
_ATTRIBUTE = rf"""[\s/]*+[^\s"'<>/=]++(?:\s*+=\s*+(?:{_VALUE}))?+"""
_MARKUP = re.compile(
    rf"""
    <(?:
        (?P<comment>!--)
        | (?P<declaration>!doctype\b[^<>]*+>|\?xml\b[^<>]*+>|!\[(?:if|endif)\b[^<>]*+>)
        | /(?P<end>[a-z][\w:-]*+)\s*+>
        | (?P<start>[a-z][\w:-]*+)(?P<attributes>(?=[\s/])(?:{_ATTRIBUTE}){{1,100}}+)?+[\s/]*+>
    )?+
    | &(?:(?P<reference>\#[0-9]{{1,7}}|\#x[0-9a-f]{{1,6}}|[a-z][a-z0-9]{{1,31}});)?+
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_QUOTED = re.compile(r"=\s*[\"']")
_END = re.compile(r"</([a-z][\w:-]*+)\s*+>", re.IGNORECASE | re.ASCII)


def strip_html(text: str) -> str:
    """Removes tags, comments, scripts and styles from a text, and decodes character references.

    Where only a tag separates two words, the tag of a block element or <br> becomes a line break, and the tag of a
    table cell, an image or a form element becomes a space. Inline tags are simply removed. Existing whitespace is
    kept.
    """
    if "<" not in text and "&" not in text:
        return text
    marked = _Marked(well_formed(text))
    if not marked.num_tags:
        return _MARKUP.sub(lambda match: _decoded(match) if match["reference"] else match[0], text)
    content, originals = marked.html, {}
    for char in "\0\r":  # lxml would replace them with U+FFFD and LF
        if char in content:
            stand_in = next(each for each in map(chr, range(0xE000, 0x110000)) if each not in content)
            content, originals[ord(stand_in)] = content.replace(char, stand_in), char
    parser = etree.HTMLParser(target=_Words(originals), huge_tree=True)
    parser.feed(f"<body><span>{content}")  # inside an open element, leading whitespace counts as content
    return parser.close()


def _decoded(match: re.Match[str]) -> str:
    """Decodes a character reference; returns it unchanged if it does not refer to a character."""
    name = match["reference"]
    return html.unescape(match[0]) if name.startswith("#") or f"{name};" in html5 else match[0]


class _Marked:
    """Converts a string to valid HTML (`html`) without nested elements.

    Tags that separate words become <br>, <hr> or <img>. Other tags are removed, except those of hidden elements. Every
    `<` and `&` that does not belong to HTML is escaped.
    """

    def __init__(self, text: str):
        self.num_tags = 0  # number of tags, including comments and declarations
        self._last_end = {match[1].lower(): match.start() for match in _END.finditer(text)}
        self._last_comment_end = text.rfind("-->")
        self._foreign: set[str] = set()  # names of elements that are not in ELEMENTS
        self.html = _MARKUP.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        tag = self._tag(match)
        if tag is None:
            return html.escape(_decoded(match) if match["reference"] else match[0], quote=False)
        self.num_tags += 1
        return tag

    def _tag(self, match: re.Match[str]) -> str | None:
        """Returns the replacement for a tag or comment, or None if the match is neither."""
        if match["comment"]:
            return match[0] if match.start() < self._last_comment_end else None
        if match["declaration"]:
            return ""
        name, attributes = (match["start"] or match["end"] or "").lower(), match["attributes"]
        if name not in ELEMENTS:
            if attributes and _QUOTED.search(attributes):
                self._foreign.add(name)
                return ""
            return "" if match["end"] and name in self._foreign else None
        if match["end"]:
            return _replacement(name, match[0])
        is_closed = self._last_end.get(name, -1) > match.start()
        if attributes and "=" not in attributes and not _FLAGS.fullmatch(attributes):
            if name not in UNMISTAKABLE or len(name) == 1:
                return None
        elif not (attributes or is_closed or name in UNMISTAKABLE):
            return None
        return _replacement(name, f"<{name}>" if is_closed else "<hr>")


def _replacement(name: str, tag: str) -> str:
    """Returns the HTML that replaces the tag of an element; a hidden element keeps its `tag`."""
    if name in HIDDEN:
        return tag
    return "<br>" if name == "br" else "<hr>" if name in BLOCKS else "<img>" if name in SPACED else ""


class _Words:
    """Collects the text while lxml parses the HTML. `originals` maps stand-ins to the characters that they replace."""

    def __init__(self, originals: dict[int, str]) -> None:
        self._originals = originals
        self._parts: list[str] = []
        self._is_hidden = False
        self._line_breaks = 0  # <br> elements since the last text
        self._separator = ""  # the separator required by the other elements since the last text

    def start(self, tag: str, attributes: object) -> None:
        self._line_breaks += tag == "br"
        self.end(tag)
        self._is_hidden = tag in HIDDEN

    def end(self, tag: str) -> None:
        self._is_hidden = False  # hidden elements contain no other elements
        if tag == "br" or tag in BLOCKS:
            self._separator = "\n"
        elif tag in SPACED:
            self._separator = self._separator or " "

    def data(self, text: str) -> None:
        if self._is_hidden or not text:
            return
        text = text.translate(self._originals) if self._originals else text
        if self._separator and self._parts and not (self._parts[-1][-1].isspace() or text[0].isspace()):
            self._parts.append("\n" * self._line_breaks or self._separator)
        self._parts.append(text)
        self._line_breaks, self._separator = 0, ""

    def close(self) -> str:
        return "".join(self._parts)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
_LINE_ENDS = frozenset("\r\v\f\x1c\x1d\x1e\x85")


def strip_control(text: str) -> str:
    """Removes all control characters except newline and tab.

    Between two characters that are not whitespace, a run of control characters becomes a line break if it contains a
    line or page separator, and a space otherwise, because some control characters separate fields or words.
    """

    def separator(match: re.Match[str]) -> str:
        start, end = match.span()
        before, after = text[max(start - 1, 0) : start], text[end : end + 1]
        if not before.strip() or not after.strip():
            return ""
        return " " if _LINE_ENDS.isdisjoint(match[0]) else "\n"

    return _CONTROL.sub(separator, text)
