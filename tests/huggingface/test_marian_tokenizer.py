"""Marian's tokenizer gives the ids of transformers on both sides."""

import json

import pytest

from lm.config import Config
from lm.data.tokenizing.base import Tokenizers
from lm.huggingface.tokenizer_files import tokenizer_files
from tests.data.tokenizing.test_marian import ENGLISH, GERMAN, TEXTS, load, write

transformers = pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore:Recommended")
def test_ids_and_texts_equal_transformers(tmp_path):
    target = load(write(tmp_path))
    source, peer = target.for_sources, transformers.MarianTokenizer.from_pretrained(tmp_path)
    # The published class takes any code for a token, and knows the names of special tokens in a text.
    for text in [*ENGLISH, *GERMAN, *TEXTS[:6]]:
        assert source.source_template.fill(source.encode(text))[0].tolist() == peer(text).input_ids
        ids = target.target_template.fill(target.encode(text.removeprefix(">>deu<<")))[0].tolist()
        assert ids == peer(text_target=text.removeprefix(">>deu<<")).input_ids
        assert target.decode(ids) == peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.filterwarnings("ignore:Recommended")
def test_exported_files_are_those_of_the_published_class(tmp_path):
    """tokenizer.json cannot represent the tokenizer, so its own three files are written."""
    (tmp_path / "in").mkdir()
    target = load(write(tmp_path / "in"))
    values = {"data": {"sequence_length": 16}, "model": {"family": "encoder_decoder"}, "objective": {"name": "seq2seq"}}
    files = tokenizer_files(Config.from_dict(values, reset_unread=True), Tokenizers(target, target.for_sources))
    assert files.keys() == {"vocab.json", "source.spm", "target.spm", "tokenizer_config.json"}
    (tmp_path / "out").mkdir()
    for name, content in files.items():
        (tmp_path / "out" / name).write_bytes(content)
    for name in ("source.spm", "target.spm"):
        assert files[name] == (tmp_path / "in" / name).read_bytes()
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": "marian"}))
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    source = target.for_sources
    for text in [*ENGLISH, *TEXTS[:6]]:
        assert peer(text).input_ids == source.source_template.fill(source.encode(text))[0].tolist()
