"""Which tokens spell text and which begin a word, for every kind of tokenizer."""

import re

import numpy as np
import pytest
import tokenizers as library

from lm.config import TokenizerConfig
from lm.data.tokenizing import TOKENIZERS, build_tokenizer

TEXT = "The cat sat.\nOn  the\tmat, said\r\n\nthe hat.  "


def huggingface(model, special=("<s>", "</s>", "[MASK]"), **parts):
    tokenizer = library.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(list(special))
    return TOKENIZERS["huggingface"]._from_content(tokenizer.to_str().encode(), {})


def byte_level():
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {piece: i for i, piece in enumerate([*sorted(alphabet), "th", "Ġc"])}
    return huggingface(
        library.models.BPE(vocabulary, [("t", "h"), ("Ġ", "c")]),
        pre_tokenizer=library.pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=library.decoders.ByteLevel(),
    )


def wordpiece():
    pieces = ["[UNK]", "cat", "##s", "s", "the", "##at", "c", ",", "##,"]
    return huggingface(
        library.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"),
        pre_tokenizer=library.pre_tokenizers.BertPreTokenizer(),
    )


def made(kind, extra_ids=3):
    if kind == "byte_level":
        return byte_level().with_extra_ids(extra_ids)
    config = {"kind": kind, "extra_ids": extra_ids}
    if kind == "sentencepiece":
        config |= {"vocab_size": 300, "algorithm": "bpe"}
    return build_tokenizer(TokenizerConfig(**config), [TEXT, "the cat the hat the mat\n" * 5])


def words_of(tokenizer, text):
    """Returns the text of each word, as delimited by `word_starts`."""
    ids = tokenizer.encode(text)
    begins = tokenizer.word_starts[ids]
    begins[0] = True
    return [tokenizer.decode(word) for word in np.split(ids, np.flatnonzero(begins)[1:])]


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece", "byte_level"])
def test_word_extends_from_white_space_to_white_space(kind):
    tokenizer = made(kind)
    found = words_of(tokenizer, TEXT)
    assert "".join(found) == TEXT
    # A run of spaces may be a single piece, so a word is any white space and the characters after it.
    assert all(re.fullmatch(r"\s*\S*", word) for word in found), found
    assert [word.strip() for word in found if word.strip()] == TEXT.split()


def test_wordpiece_marks_what_continues():
    tokenizer = wordpiece()
    assert words_of(tokenizer, "cats the sat,") == ["cat ##s", "the", "s ##at", ","]
    assert words_of(tokenizer, "cats xyz cat") == ["cat ##s", "[UNK]", "cat"], "what is unknown is a word"


def test_every_token_of_a_word_tokenizer_begins_a_word():
    tokenizer = made("words")
    ids = tokenizer.encode("the unheard cat")
    assert tokenizer.unk_id in ids and tokenizer.word_starts[ids].all()


def test_bytes_that_spell_a_space_begin_a_word():
    pieces = ["<unk>", "<s>", "</s>", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = library.models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = huggingface(model, decoder=library.decoders.ByteFallback(), special=("<s>", "</s>"))
    starts = tokenizer.word_starts
    assert [pieces[i] for i in np.flatnonzero(starts)] == [f"<0x{byte:02X}>" for byte in (9, 10, 11, 12, 13, 32)]


def test_letter_that_byte_level_bpe_uses_for_white_space_is_a_letter_elsewhere():
    pieces = [
        "<unk>",
        "\u2581ne",
        "\u010d",
        "\u2581",
        "e",
        "n",
    ]  # n, e, and c with caron, which byte-level BPE uses for a carriage return
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = library.models.BPE(vocabulary, [], unk_token="<unk>")
    tokenizer = huggingface(model, pre_tokenizer=library.pre_tokenizers.Metaspace(), special=("<s>", "</s>"))
    assert [pieces[i] for i in np.flatnonzero(tokenizer.word_starts)] == ["\u2581ne", "\u2581"]


@pytest.mark.parametrize("kind", ["bytes", "characters", "words", "sentencepiece", "byte_level"])
def test_text_ids_are_all_tokens_that_text_can_become(kind):
    tokenizer = made(kind)
    starts, ids = tokenizer.word_starts, tokenizer.text_ids
    assert starts.shape == (tokenizer.vocab_size,) and ids.dtype == np.int32
    left = set(range(tokenizer.vocab_size)) - set(ids.tolist())
    special = {tokenizer.bos_id, tokenizer.eos_id, *(tokenizer.extra_id(i) for i in range(3))}
    special |= {tokenizer.pad_id} if tokenizer.is_special(tokenizer.pad_id) else set()
    special |= set() if tokenizer.unk_id is None else {tokenizer.unk_id}
    if kind == "byte_level":
        special.add(tokenizer._tokenizer.token_to_id("[MASK]"))
    assert left == special and set(tokenizer.encode(TEXT)) <= set(ids.tolist())
    assert not starts[sorted(special - {tokenizer.unk_id})].any()
