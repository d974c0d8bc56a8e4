"""Builds tokenizers from vocab.txt (WordPiece), or from vocab.json and merges.txt (byte-level BPE)."""

from __future__ import annotations

import io
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lm.files import parse_json
from lm.huggingface.older_files import Older, add_special, frame, with_id


def word_pieces(older: Older) -> Tokenizer:
    """Builds the tokenizer of BERT (Devlin 2019), DistilBERT and ELECTRA."""
    lines = io.TextIOWrapper(io.BytesIO(older.content("vocab.txt")), encoding="utf-8")
    vocabulary = {line.rstrip("\n"): number for number, line in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=older.token("unk")))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=older.flag("tokenize_chinese_chars", True),
        strip_accents=older.stated("strip_accents"),
        lowercase=older.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    add_special(older, tokenizer, older.names.values())
    first, last = older.token("cls"), older.token("sep")
    one = [f"{first}:0", "$A:0", f"{last}:0"]
    frame(tokenizer, one, [*one, "$B:1", f"{last}:1"])
    return tokenizer


def gpt2(older: Older) -> Tokenizer:
    tokenizer = _byte_level(older)
    add_special(older, tokenizer, older.names.values())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if older.flag("add_bos_token", False):
        one = [f"{older.token('bos')}:0", "$A:0"]
        frame(tokenizer, one, [*one, "$B:1"])
    return tokenizer


def roberta(older: Older) -> Tokenizer:
    """Builds the tokenizer of RoBERTa (Liu 2019) and BART."""
    tokenizer = _byte_level(older)
    add_special(older, tokenizer, older.names.values(), mask=older.token("mask"))
    tokenizer.post_processor = processors.RobertaProcessing(
        with_id(tokenizer, older.token("sep")),
        with_id(tokenizer, older.token("cls")),
        trim_offsets=older.flag("trim_offsets", True),
        add_prefix_space=older.flag("add_prefix_space", False),
    )
    return tokenizer


def _byte_level(older: Older) -> Tokenizer:
    vocabulary = parse_json(older.content("vocab.json"))
    lines = [line.removesuffix("\r") for line in older.content("merges.txt").decode("utf-8").split("\n")]
    pairs: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=older.flag("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
