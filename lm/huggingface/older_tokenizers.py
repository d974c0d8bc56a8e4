"""Builds tokenizer.json for a folder that contains only older tokenizer files.

    vocab.txt                                    BERT, DistilBERT, ELECTRA: word pieces
    vocab.json, merges.txt                       GPT-2, RoBERTa, BART: byte-level BPE
    spiece.model, sentencepiece.bpe.model        T5, mT5, ALBERT, XLM-R, mBART: SentencePiece, unigram
    tokenizer.model                              Llama 1 and 2, Mistral: SentencePiece, BPE

The rules are those of the converters in `transformers`, which also produced the published tokenizer.json files. Other
tokenizer classes are rejected with an error that names the class. The tokens in added_tokens.json are added, unless
tokenizer_config.json lists the added tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from lm.data.tokenizing.huggingface import HuggingFaceTokenizer
from lm.data.tokenizing.special_token_files import NAMES, OLD_NAMES
from lm.errors import UserError
from lm.files import parse_json
from lm.huggingface import older_pieces, older_words
from lm.huggingface.older_files import ADDED, Older, add_listed, listed_tokens

BRACKETED = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
BRACKETED |= {"mask_token": "[MASK]"}
ANGLED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class Kind:
    """A tokenizer class of `transformers`.

    Attributes:
        model_types: the values of model_type for which the class is the default.
        files: the files from which the tokenizer is built.
        build: a function that builds the tokenizer.
        usual: the default special tokens of the class, keyed by name.
    """

    model_types: tuple[str, ...]
    files: tuple[str, ...]
    build: Callable[[Older], Tokenizer]
    usual: Mapping[str, str]


_WORDS = ("vocab.txt",), older_words.word_pieces, BRACKETED
_PAIRS = ("vocab.json", "merges.txt")
_ROBERTA = {**ANGLED, "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
_T5 = ("spiece.model",), older_pieces.t5, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_ALBERT = {**BRACKETED, "pad_token": "<pad>", "unk_token": "<unk>"}
KINDS = {
    "BertTokenizer": Kind(("bert",), *_WORDS),
    "DistilBertTokenizer": Kind(("distilbert",), *_WORDS),
    "ElectraTokenizer": Kind(("electra",), *_WORDS),
    "GPT2Tokenizer": Kind(("gpt2",), _PAIRS, older_words.gpt2, dict.fromkeys(ANGLED, "<|endoftext|>")),
    "RobertaTokenizer": Kind(("roberta",), _PAIRS, older_words.roberta, _ROBERTA),
    "BartTokenizer": Kind(("bart",), _PAIRS, older_words.roberta, _ROBERTA),
    "T5Tokenizer": Kind(("t5",), *_T5),
    "MT5Tokenizer": Kind(("mt5",), *_T5),
    "AlbertTokenizer": Kind(("albert",), ("spiece.model",), older_pieces.albert, _ALBERT),
    "XLMRobertaTokenizer": Kind(("xlm-roberta",), ("sentencepiece.bpe.model",), older_pieces.xlm_roberta, _ROBERTA),
    # mBART and mBART-50 both have model_type="mbart", so the files must name the class.
    "MBartTokenizer": Kind((), ("sentencepiece.bpe.model",), older_pieces.mbart, _ROBERTA),
    "MBart50Tokenizer": Kind((), ("sentencepiece.bpe.model",), older_pieces.mbart50, _ROBERTA),
    "LlamaTokenizer": Kind(("llama", "mistral"), ("tokenizer.model",), older_pieces.llama, ANGLED),
}


def converted(content_of: Callable[[str], bytes | None], config: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Returns tokenizer.json and a tokenizer_config.json with all special tokens, or {} if no older files are found.

    Args:
        content_of: a function that returns the content of a file in the folder, or None.
        config: the content of config.json.
        where: the folder, for error messages.

    Raises UserError if a file is damaged or the tokenizer class is not supported.
    """

    def read(name: str) -> dict[str, Any]:
        content = content_of(name)
        try:
            found = {} if content is None else parse_json(content)
        except ValueError as error:
            raise UserError(f"{where}/{name} cannot be read ({error}); correct or remove the file.") from error
        return found if isinstance(found, dict) else {}

    present = [name for kind in KINDS.values() for name in kind.files if content_of(name) is not None]
    if not present:
        return {}
    old, new = read(OLD_NAMES), read(NAMES)
    options = {**old, **new}
    usual = next((name for name, kind in KINDS.items() if config.get("model_type") in kind.model_types), "")
    name = str(options.get("tokenizer_class") or config.get("tokenizer_class") or usual).removesuffix("Fast")
    kind = KINDS.get(name)
    if kind is None or not set(kind.files) <= set(present):
        if name == "MarianTokenizer" or config.get("model_type") == "marian":
            return {}  # Marian tokenizers have their own reader
        named = name or f"model_type={config.get('model_type')!r}"
        raise UserError(
            f"{where} has no tokenizer.json, and building {named} from {present[0]} is not supported; create "
            "tokenizer.json with AutoTokenizer.from_pretrained(...).save_pretrained(...) from the transformers library."
        )
    listed, listed_in = new.get("added_tokens_decoder"), NAMES
    if listed is None:
        listed, listed_in = listed_tokens(read(ADDED), (kind.usual, old, new), where), ADDED
    older = Older(lambda name: content_of(name) or b"", options, kind.usual, where, listed, listed_in)
    try:
        tokenizer = kind.build(older)
        add_listed(older, tokenizer)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception for damaged files
        raise UserError(f"{where}: {' and '.join(kind.files)} cannot be read: {error}.") from error
    names = json.dumps({**options, **older.names}, ensure_ascii=False)
    return {HuggingFaceTokenizer.file_name: tokenizer.to_str().encode(), NAMES: names.encode()}
