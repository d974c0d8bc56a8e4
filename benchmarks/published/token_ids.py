"""Compares the ids of our tokenizers with those of the `tokenizers` library on awkward strings, both ways.

    python -m benchmarks.published.fetch --output=/tmp/published minilm smollm2 qwen3 llama3_1 gemma3
    python -m benchmarks.published.token_ids --models=/tmp/published [--number=10000]

The real tokenizers NAMES are read by our code, and tokenizers of ours, of each of KINDS, are exported to tokenizer.json
and read by the library.

The strings mix scripts, emoji, combining and control characters, all kinds of white space, digits, contractions, code,
random characters of all planes, and what looks like tokens (U+2581, "<0x41>", "<|im_"). For strings without a special
token, ids, offsets and decoded texts must be those of tokenizers.Tokenizer and, where transformers is installed, the
ids must be those of PreTrainedTokenizerFast. Strings with one must not give its id: the text of a user never becomes a
special token. What is stored in a run directory must give the same ids again. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import functools
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

from lm.config import TokenizerConfig
from lm.data.tokenizing import build_tokenizer, library, load_tokenizer
from lm.data.tokenizing.base import Tokenizer
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


# --- tokenizers of ours -----------------------------------------------------------------------------------------

# The settings of each kind. Some vocabularies lack characters that others have.
KINDS: dict[str, dict[str, Any]] = {
    "bytes": {"kind": "bytes", "extra_ids": 2},
    "characters": {"kind": "characters", "extra_ids": 2},
    "words": {"kind": "words", "extra_ids": 2},
    "unigram": {"kind": "sentencepiece", "vocab_size": 1500, "extra_ids": 2},
    "bpe": {"kind": "sentencepiece", "algorithm": "bpe", "vocab_size": 1500},
    "unigram without <": {"kind": "sentencepiece", "vocab_size": 1000},
    "unigram without spaces": {"kind": "sentencepiece", "vocab_size": 1000},
    "bpe without spaces": {"kind": "sentencepiece", "algorithm": "bpe", "vocab_size": 1000},
}
MISSING = {"<": "<", "spaces": " "}  # characters that the training text lacks


@functools.cache
def trained(name: str) -> Tokenizer:
    """Returns a tokenizer of a kind, trained on the words of the awkward strings.

    The run of one letter is left out. In a unigram model that has learnt such runs, permutations of the same pieces
    have equal scores, so that the rounding of SentencePiece's 32-bit sums decides.
    """
    draw, words = random.Random(1), [word for word in WORDS if "aaaa" not in word]
    texts = ["".join(draw.choice(words) + draw.choice(GAPS) for _ in range(10)) for _ in range(3000)]
    for missing in MISSING:
        if name.endswith(f"without {missing}"):
            texts = [text.replace(MISSING[missing], "") for text in texts]
    return build_tokenizer(TokenizerConfig(**KINDS[name]), texts)


def check_exported(name: str, ours: Tokenizer, number: int) -> tuple[list[str], dict[str, int]]:
    """Returns a line about each difference, and how many strings were compared."""
    special = library.special_names(ours)
    names = list(special.values())
    content = library.build(ours, ours.text_template, ours.pair_template)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "tokenizer.json").write_bytes(content)
        theirs, as_text = (tokenizers.Tokenizer.from_file(f"{directory}/tokenizer.json") for _ in range(2))
    as_text.encode_special_tokens = True  # takes special tokens in a text for text, as ours
    texts = list(awkward_strings(number, names[:40]))
    problems = []
    counts = {"strings": len(texts), "plain": 0, "tokens": 0}
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        counts["tokens"] += len(ids)
        if not any(each in text for each in names):
            counts["plain"] += 1
            framed = ours.text_template.fill(ids)[0].tolist()
            if (found := theirs.encode(text).ids) != framed:
                problems.append(f"{name}: {found}, not {framed}: {text!r}")
            continue
        found = as_text.encode(text, add_special_tokens=False).ids
        if ours.kind == "words":  # a whole word that is called like a special token is found in its vocabulary
            found = [ours.unk_id if token in special else token for token in found]
        if found != ids:
            problems.append(f"{name}: {found}, not {ids}: {text!r}")
    return problems, counts


def compare_exported(name: str, number: int) -> list[str]:
    problems, counts = check_exported(name, trained(name), number)
    print(
        f"{name:22} {counts['strings']:,} strings, {counts['plain']:,} without a special token, {len(problems)} "
        f"differences; {counts['tokens']:,} tokens"
    )
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"by default, {', '.join(NAMES)}")
    parser.add_argument("--models", type=Path, required=True, help="folder that fetch.py has filled")
    parser.add_argument("--number", type=int, default=10_000, help="number of strings")
    arguments = parser.parse_args()
    problems = [each for name in arguments.names for each in compare(name, arguments.models / name, arguments.number)]
    problems += [each for name in KINDS for each in compare_exported(name, arguments.number)]
    for each in problems[:20]:
        print(each[:500])
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
