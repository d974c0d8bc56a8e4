"""Builds tokenizers from SentencePiece models (Kudo 2018): unigram (T5, XLM-R, mBART, ALBERT) and BPE (Llama)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lm.data.tokenizing.piece_files import BPE, SPACE, UNIGRAM, PieceFile
from lm.errors import UserError
from lm.huggingface.gguf_tokenizer import PREFIX, tokenizer_files
from lm.huggingface.older_files import Older, add_special, frame

PrependScheme = Literal["always", "first", "never"]
# The language codes, in the order of their ids.
LANGUAGES = tuple(
    """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX
    ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
    """.split()
)
MORE_LANGUAGES = tuple(
    """
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN
    te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
    """.split()
)


def t5(older: Older) -> Tokenizer:
    """Builds the tokenizer of T5 and mT5 (Raffel 2020). The extra tokens follow the pieces, in descending order."""
    pieces = older.pieces("spiece.model", UNIGRAM)
    number = older.options.get("extra_ids", 100)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UserError(f"{older.where}/tokenizer_config.json: extra_ids={number!r} is not a valid number of tokens.")
    extra = [f"<extra_id_{n}>" for n in range(number - 1, -1, -1)]
    vocabulary = [*pieces.scored, *((token, 0.0) for token in extra)]
    tokenizer = _unigram(pieces, vocabulary, pieces.unknown, scheme=prepend_scheme(older))
    add_special(older, tokenizer, [*older.names.values(), *reversed(extra)])
    end = older.token("eos")
    frame(tokenizer, ["$A", end], ["$A", end, "$B", end])
    return tokenizer


def xlm_roberta(older: Older) -> Tokenizer:
    """Builds the tokenizer of XLM-R (Conneau 2020)."""
    tokenizer = _fairseq(older)
    first, last = older.token("bos"), older.token("eos")
    frame(tokenizer, [first, "$A", last], [first, "$A", last, last, "$B", last])
    return tokenizer


def mbart(older: Older) -> Tokenizer:
    """Builds the tokenizer of mBART (Liu 2020). The language token, `src_lang`, follows the source text."""
    tokenizer, last, language = _fairseq(older, LANGUAGES), older.token("eos"), _source_language(older, LANGUAGES)
    frame(tokenizer, ["$A", last, language], ["$A", "$B", last, language])
    return tokenizer


def mbart50(older: Older) -> Tokenizer:
    """Builds the tokenizer of mBART-50 (Tang 2020). The language token, `src_lang`, precedes the source text."""
    languages = LANGUAGES + MORE_LANGUAGES
    tokenizer, last, language = _fairseq(older, languages), older.token("eos"), _source_language(older, languages)
    frame(tokenizer, [language, "$A", last], [language, "$A", "$B", last])
    return tokenizer


def _fairseq(older: Older, languages: Iterable[str] = ()) -> Tokenizer:
    """Returns a tokenizer with fairseq's ids.

    Four special tokens come first. They are followed by all pieces except the first three, then by the language codes,
    and finally by the mask token.
    """
    _check_usual_scheme(older)
    pieces, mask = older.pieces("sentencepiece.bpe.model", UNIGRAM), older.token("mask")
    before, after = [older.token(name) for name in ("bos", "pad", "eos", "unk")], [*languages, mask]
    vocabulary = [*((token, 0.0) for token in before), *pieces.scored[3:], *((token, 0.0) for token in after)]
    tokenizer = _unigram(pieces, vocabulary, unknown=3)
    add_special(older, tokenizer, [*before, *after], mask=mask)
    return tokenizer


def _source_language(older: Older, known: Iterable[str]) -> str:
    language = older.options.get("src_lang") or "en_XX"
    if language not in known:
        raise UserError(
            f"{older.where}/tokenizer_config.json: src_lang={language!r} is not a language of this tokenizer."
        )
    return language


def albert(older: Older) -> Tokenizer:
    """Builds the tokenizer of ALBERT (Lan 2020)."""
    _check_usual_scheme(older)
    pieces = older.pieces("spiece.model", UNIGRAM)
    # The original code splits a comma from the digit before it, so pieces that join the two get a low score.
    vocabulary = [
        (piece, score - 100 if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit() else score)
        for piece, score in pieces.scored
    ]
    before: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    before += [] if older.flag("keep_accents", False) else [normalizers.NFKD(), normalizers.StripAccents()]
    before += [normalizers.Lowercase()] if older.flag("do_lower_case", True) else []
    tokenizer = _unigram(pieces, vocabulary, pieces.unknown, before, strips=False)
    add_special(older, tokenizer, older.names.values(), mask=older.token("mask"))
    first, last = older.token("cls"), older.token("sep")
    one = [f"{first}:0", "$A:0", f"{last}:0"]
    frame(tokenizer, one, [*one, "$B:1", f"{last}:1"])
    return tokenizer


def _unigram(
    pieces: PieceFile,
    vocabulary: list[tuple[str, float]],
    unknown: int,
    before: Iterable[Any] = (),
    strips: bool = True,
    scheme: PrependScheme = "always",
) -> Tokenizer:
    """Returns a tokenizer with the pieces in `vocabulary`.

    Args:
        before: normalizers that are applied before those of the file.
        strips: whether to remove trailing whitespace, and to replace runs of spaces with U+2581 rather than a space.
        scheme: the result of `prepend_scheme`.
    """
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    steps = [*before, *([normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else [])]
    steps += [normalizers.Strip(left=False, right=True)] if strips else []
    steps += [normalizers.Replace(Regex(" {2,}"), SPACE if strips else " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=special) for piece, special in pieces.added])
    return tokenizer


def prepend_scheme(older: Older) -> PrependScheme:
    """Returns the rule that determines which parts of a text get a leading space.

    Special tokens separate the parts. With legacy=False, a part that follows a special token gets no space.
    """
    if not older.flag("add_prefix_space", True):
        return "never"
    return "always" if older.flag("legacy", True) else "first"


def _check_usual_scheme(older: Older) -> None:
    """Raises UserError for options whose effect on this tokenizer class differs between versions of `transformers`."""
    for name in ("add_prefix_space", "legacy"):
        if not older.flag(name, True):
            raise UserError(
                f"{older.where}/tokenizer_config.json: {name}=False is not supported for this tokenizer class; create "
                "tokenizer.json with AutoTokenizer.from_pretrained(...).save_pretrained(...) from the transformers "
                "library."
            )


def llama(older: Older) -> Tokenizer:
    """Builds the tokenizer of Llama 1, Llama 2 and Mistral 7B.

    GGUF files contain the same data, so the GGUF code builds this tokenizer.
    """
    pieces, scheme = older.pieces("tokenizer.model", BPE), prepend_scheme(older)
    ids = {piece: number for number, (piece, _) in enumerate(pieces.scored)}
    if missing := [token for token in older.names.values() if token not in ids]:
        raise ValueError(f"the vocabulary lacks the special token {missing[0]!r}")
    if older.flag("add_eos_token", False):
        raise UserError(f"{older.where}/tokenizer_config.json: add_eos_token=True is not supported.")
    metadata = {
        "model": "llama",
        "tokens": list(ids),
        "scores": [score for _, score in pieces.scored],
        "token_type": pieces.types,
        "bos_token_id": ids[older.token("bos")],
        "eos_token_id": ids[older.token("eos")],
        "unknown_token_id": pieces.unknown,
        "add_bos_token": older.flag("add_bos_token", True),
        "add_space_prefix": scheme != "never",
    }
    files = tokenizer_files({f"{PREFIX}{name}": value for name, value in metadata.items()}, older.where)
    parts = json.loads(files["tokenizer.json"])
    if not older.flag("legacy", True):
        metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        parts |= {"normalizer": None, "pre_tokenizer": metaspace}
    return Tokenizer.from_str(json.dumps(parts))
