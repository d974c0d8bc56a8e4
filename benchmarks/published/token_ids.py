"""Compares the ids of real tokenizers, read by our code, with those of the `tokenizers` library on awkward strings.

    python -m benchmarks.published.fetch --output=/tmp/published minilm smollm2 qwen3 llama3_1 gemma3
    python -m benchmarks.published.token_ids --models=/tmp/published [--number=10000]

The strings mix scripts, emoji, combining and control characters, all kinds of white space, digits, contractions, code,
random characters of all planes, and what looks like tokens (U+2581, "<0x41>", "<|im_"). For strings without a special
token, ids, offsets and decoded texts must be those of tokenizers.Tokenizer and, where transformers is installed, the
ids must be those of PreTrainedTokenizerFast. Strings with one must not give its id: the text of a user never becomes a
special token. What is stored in a run directory must give the same ids again. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from lm.data.tokenizing import load_tokenizer
from lm.data.tokenizing.huggingface import HuggingFaceTokenizer
from lm.huggingface.folder import open_folder

NAMES = ("minilm", "smollm2", "qwen3", "llama3_1", "gemma3")
WORDS = (
    *(
        "the",
        "The",
        "HELLO",
        "naïve",
        "it's",
        "I'LL",
        "don't",
        "we’ve",
        "'tis",
        "'s",
        "x1y22",
        "12345",
        "3.14",
        "1,000",
    ),
    *(
        "你好世界",
        "こんにちは",
        "カタカナ",
        "안녕하세요",
        "\u1112\u1161\u11ab",
        "привет",
        "Ελληνικά",
        "שלום",
        "مرحبا",
        "हिन्दी",
        "ไทย",
    ),
    *(
        "ß",
        "ẞ",
        "İ",
        "ı",
        "ﬁ",
        "Å",
        "A\u030a",
        "e\u0301",
        "Z\u0351\u036b\u0343",
        "½",
        "Ⅷ",
        "٣٤",
        "①",
        "²",
        "€",
        "…",
        "—",
    ),
    *(
        "🎉",
        "👩‍👩‍👧",
        "🏳️‍🌈",
        "🇩🇪",
        "👍🏽",
        "❤️",
        "\U0001f9d1\u200d\U0001f680",
        "(╯°□°)╯",
        "http://a.b/c?d=e&f=%20",
        "a_b-c.d",
    ),
    *(
        "def f(x):",
        "return x**2;",
        "</div>",
        "{{ x }}",
        "\\n",
        "$\\alpha$",
        "==>",
        "#!",
        "```",
        "aaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
    *(
        "\u2581",
        "\u2581the",
        "\u0120",
        "\u010a",
        "##ing",
        "<0x41>",
        "<0x0A>",
        "<|im_",
        "|>",
        "<s",
        "<think>",
        "[UNK",
        "Ġthe",
    ),
    *(
        "\x00",
        "\x07",
        "\x1b[0m",
        "\x7f",
        "\x85",
        "\ufeff",
        "\u200b",
        "\u200d",
        "\u202e",
        "\ufffd",
        "\ue000",
        "\U0010ffff",
    ),
)
GAPS = (
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\n \n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\v",
    "\f",
    "\u2028",
    " \t ",
)
BLOCKS = (
    (0x20, 0x7F),
    (0x80, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x600, 0xE00),
    (0x1100, 0x1200),
    (0x2000, 0x2400),
)
BLOCKS += ((0x2E80, 0xA000), (0xAC00, 0xD7B0), (0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00), (0, 0x110000))


def awkward_strings(number: int, special: list[str], seed: int = 0) -> Iterator[str]:
    """Yields strings, every tenth of which contains one of the special tokens."""
    draw = random.Random(seed)
    yield from ("", *WORDS, *GAPS, *special)
    for index in range(number - 1 - len(WORDS) - len(GAPS) - len(special)):
        parts = []
        for _ in range(draw.randint(1, 12)):
            if draw.random() < 0.7:
                parts.append(draw.choice(WORDS) * draw.choice((1, 1, 1, 2)))
            else:
                low, high = draw.choice(BLOCKS)
                points = (draw.randrange(low, high) for _ in range(draw.randint(1, 6)))
                parts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
            parts.append(draw.choice(GAPS))
        if special and index % 10 == 0:
            parts.insert(draw.randrange(len(parts)), draw.choice(special))
        yield "".join(parts)


def files_of(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Returns tokenizer.json and the object in tokenizer_config.json, of a folder that may hold nothing else."""
    if (folder / "tokenizer.json").exists():
        return (folder / "tokenizer.json").read_bytes(), json.loads((folder / "tokenizer_config.json").read_text())
    opened = open_folder(folder)
    content = opened.content("tokenizer.json")
    assert content is not None
    return content, opened.read_object("tokenizer_config.json") or {}


def compare(name: str, folder: Path, number: int) -> list[str]:
    """Returns a line about each difference."""
    content, config = files_of(folder)
    theirs = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    theirs.no_truncation()
    theirs.no_padding()
    added = theirs.get_added_tokens_decoder()
    special = sorted(token.content for token in added.values() if token.special)
    unknown = getattr(theirs.model, "unk_token", None)  # which stands for characters that the vocabulary lacks
    special_ids = {token for token, each in added.items() if each.special and each.content != unknown}
    texts = list(awkward_strings(number, special[:40]))
    ours = HuggingFaceTokenizer.from_files(content, {"tokenizer_config.json": config})
    with tempfile.TemporaryDirectory() as directory:
        ours.save(Path(directory, "tokenizer"))
        stored = load_tokenizer(Path(directory, "tokenizer"))
    fast = None
    if importlib.util.find_spec("transformers"):
        import transformers

        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(content.decode()))
    batch = ours.encode_batch(texts)
    problems, plain = [], 0
    for text, ids, again in zip(texts, batch, map(stored.encode, texts), strict=True):
        found, offsets = ours.encode_with_offsets(text)
        if not found == ids == again:
            problems.append(f"{name}: encode, encode_batch and the stored tokenizer differ: {text!r}")
        if any(each in text for each in special):
            if special_ids & {*ids}:
                problems.append(f"{name}: the text became a special token: {text!r}")
            continue
        plain += 1
        expected = theirs.encode(text, add_special_tokens=False)
        if ids != expected.ids or [*offsets] != expected.offsets:
            problems.append(f"{name}: {ids} at {offsets}, not {expected.ids} at {expected.offsets}: {text!r}")
        if fast is not None and fast(text, add_special_tokens=False).input_ids != ids:
            problems.append(f"{name}: PreTrainedTokenizerFast gives other ids than {ids}: {text!r}")
    decoded = ours.decode_each(batch)
    for text, ids, back in zip(texts, batch, decoded, strict=True):
        if back != theirs.decode(ids, skip_special_tokens=False):
            problems.append(f"{name}: decoded to {back!r}: {text!r}")
    same = sum(itertools.starmap(str.__eq__, zip(texts, decoded, strict=True)))
    print(
        f"{name:9} {len(texts):,} strings, {plain:,} without a special token, {len(problems)} differences; "
        f"{sum(map(len, batch)):,} tokens; {same:,} strings come back unchanged"
    )
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"by default, {', '.join(NAMES)}")
    parser.add_argument("--models", type=Path, required=True, help="folder that fetch.py has filled")
    parser.add_argument("--number", type=int, default=10_000, help="number of strings")
    arguments = parser.parse_args()
    problems = [each for name in arguments.names for each in compare(name, arguments.models / name, arguments.number)]
    for each in problems[:20]:
        print(each[:500])
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
