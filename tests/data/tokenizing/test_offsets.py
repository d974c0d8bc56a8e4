"""Offsets refer to characters of the original text, for every kind of tokenizer and any text."""

import functools
import io
import itertools
import unicodedata

import pytest
import sentencepiece
import tokenizers as library
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.config import TokenizerConfig
from lm.data.tokenizing import TOKENIZERS, build_tokenizer
from lm.errors import UserError

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.\n\n",
    "def f(x):\n    if x:\n        return  x\n\treturn None\n",
    "Ein paar Wörter mit Umlauten: äöüß. 中文字 one two three.\n",
    " ".join(f"word{i}" for i in range(100)) + "\n",
] * 5
STRANGE = "  ▁ a▁b 😀 \n\n\t日本 e\u0301 <s></s> \x00 \r\n \u2028 👩‍👩‍👧 <0x41> dog "
TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.text("▁ \n\tab<s>/é中😀", max_size=30)


def byte_level():
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = library.Tokenizer(library.models.BPE({p: i for i, p in enumerate([*alphabet, "th"])}, [("t", "h")]))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return TOKENIZERS["huggingface"]._from_content(tokenizer.to_str().encode(), {})


@functools.cache
def lossless(kind):
    if kind == "byte_level":
        return byte_level()
    kind, _, algorithm = kind.partition("-")
    config = TokenizerConfig(kind=kind, vocab_size=340, algorithm=algorithm or "unigram")
    return build_tokenizer(config, [*SENTENCES, STRANGE])


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece-unigram", "sentencepiece-bpe", "byte_level"])
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@example(text=STRANGE)
@example(text="")
def test_tokens_hold_all_characters_in_order(kind, text):
    tokenizer = lossless(kind)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and len(offsets) == len(ids)
    groups = [list(group) for _, group in itertools.groupby(zip(offsets, ids, strict=True), key=lambda each: each[0])]
    position = 0
    for group in groups:
        begin, end = group[0][0]
        # Tokens that are parts of the same characters have the same offsets, and together spell exactly these.
        assert begin == position < end
        if kind != "characters":
            assert tokenizer.decode([token for _, token in group]) == text[begin:end]
        position = end
    assert position == len(text)


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@example(text="\x1c a\u3000b\u00a0c\x85d \u200b")
def test_offsets_of_words_spell_the_words(text):
    tokenizer = build_tokenizer(TokenizerConfig(kind="words"), ["a b"])
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert [text[begin:end] for begin, end in offsets] == text.split()


@functools.cache
def foreign(**options):
    """Returns a SentencePiece model with the library's defaults: normalises, adds a leading space, merges spaces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return TOKENIZERS["sentencepiece"]._from_content(model.getvalue(), {})


def test_offsets_of_a_normalising_model_refer_to_the_raw_text():
    tokenizer = foreign(model_type="bpe", byte_fallback=True)
    text = "  😀 ｆｏｘ e\u0301\ufb01  do\n"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    found = [(tokenizer.piece(token), text[begin:end]) for token, (begin, end) in zip(ids, offsets, strict=True)]
    assert found[0] == ("␣", ""), "the space before the text is not in it"
    assert [raw for _, raw in found if raw == "😀"] == ["😀"] * 4, "each of its four bytes"
    assert [raw for piece, raw in found if raw == "e\u0301"] == ["e\u0301"] * 2, "both bytes of é"
    assert [piece for piece, raw in found if raw == "\ufb01"] == ["f", "i"]
    letters = [
        (piece, raw) for piece, raw in found if piece.strip("␣").isascii() and raw not in ("😀", "\ufb01", "e\u0301")
    ]
    assert [piece.strip("␣") for piece, _ in letters] == [
        unicodedata.normalize("NFKC", raw).strip() for _, raw in letters
    ]
    assert "".join(piece for piece, _ in letters).replace("␣", "") == "foxdo"


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@example(text=STRANGE)
def test_offsets_of_a_foreign_model_are_in_order_and_within_the_text(text):
    for tokenizer in (foreign(model_type="bpe", byte_fallback=True), foreign(model_type="unigram")):
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text) and len(offsets) == len(ids)
        flat = [0, *itertools.chain(*dict.fromkeys(offsets)), len(text)]
        assert flat == sorted(flat)
        held = {index for begin, end in offsets for index in range(begin, end)}
        assert {i for i, character in enumerate(text) if character.isalnum() and character.isascii()} <= held


def test_wordpiece_offsets_refer_to_the_raw_text_and_its_mask_is_kept():
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "##s", "the"]
    tokenizer = library.Tokenizer(library.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[MASK]"])
    ours = TOKENIZERS["huggingface"]._from_content(tokenizer.to_str().encode(), {})
    text = "😀 The CAFÉs cafe\u0301"
    ids, offsets = ours.encode_with_offsets(text)
    assert ids == ours.encode(text) == [0, 6, 4, 5, 4]
    assert [text[begin:end] for begin, end in offsets[:4]] == ["😀", "The", "CAFÉ", "s"]
    assert offsets[4][0] == 12
    assert ours.mask_id == 3 == ours.with_extra_ids(5).mask_id
    assert ours.is_special(3) and 3 not in ours.encode("[MASK] the")
    assert ours.decode([1, 6, 3, 2]) == ours.decode([6])


def test_mask_of_other_tokenizers_is_the_first_extra_id():
    for kind in ("bytes", "byte_level"):
        tokenizer = lossless(kind)
        assert tokenizer.with_extra_ids(3).mask_id == tokenizer.vocab_size + 2
        with pytest.raises(UserError, match=r"extra_ids: <extra_id_0> is needed"):
            _ = tokenizer.mask_id
