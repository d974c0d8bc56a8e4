"""Marian's tokenizers number the pieces of two SentencePiece models by one vocabulary."""

import io
import json

import pytest
import sentencepiece

from lm.config import TokenizerConfig
from lm.data.tokenizing import build_tokenizer, load_tokenizer, published_tokenizer
from lm.errors import UserError

ENGLISH = ["the house is small", "a small tree in the garden", "the dog sleeps in the house"] * 5
GERMAN = ["das Haus ist klein", "ein kleiner Baum im Garten", "der Hund schläft im Haus"] * 5
TEXTS = [
    "the house",
    "das kleine Haus",
    "",
    "  a  dog ",
    "the 中 house",
    ">>deu<< the dog",
    ">>xyz<< the dog",
    "</s> <pad>",
]


def write(folder):
    """Writes the tokenizer files of a small model and returns the folder."""
    pieces = {}
    for name, texts in (("source", ENGLISH), ("target", GERMAN)):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=out, vocab_size=45, hard_vocab_limit=False, minloglevel=2
        )
        (folder / f"{name}.spm").write_bytes(out.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
        pieces |= dict.fromkeys(processor.id_to_piece(i) for i in range(3, processor.get_piece_size()))
    vocabulary = {piece: i for i, piece in enumerate(["</s>", "<unk>", *sorted(pieces), ">>deu<<", "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    config = {"source_lang": "en", "target_lang": "de", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "MarianTokenizer"}))
    generation = {"decoder_start_token_id": vocabulary["<pad>"], "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def load(folder):
    return build_tokenizer(TokenizerConfig(kind="marian", path=str(folder / "vocab.json")), [])


def test_sides_have_their_own_pieces_and_one_vocabulary(tmp_path):
    target = load(write(tmp_path))
    source, ids = target.for_sources, json.loads((tmp_path / "vocab.json").read_text())
    assert (target.bos_id, target.eos_id, target.decoder_start_id, target.pad_id) == (
        None,
        0,
        ids["<pad>"],
        ids["<pad>"],
    )
    assert target.vocab_size == source.vocab_size == len(ids)
    code, *rest = source.encode(">>deu<< the")
    assert source.piece(code) == ">>deu<<" and "".join(map(source.piece, rest)) == "␣the"
    assert ids[">>deu<<"] not in target.encode(">>deu<< the")
    assert source.encode("the house") != target.encode("the house") and target.unk_id not in target.encode("das Haus")
    assert target.decode([ids[">>deu<<"], *target.encode("das Haus"), 0, ids["<pad>"]]) == "das Haus"
    assert source.source_template.fill([7])[0].tolist() == target.target_template.fill([7])[0].tolist() == [7, 0]


def test_offsets_refer_to_the_text(tmp_path):
    source = load(write(tmp_path)).for_sources
    for text in TEXTS:
        ids, offsets = source.encode_with_offsets(text)
        assert ids == source.encode(text) and len(ids) == len(offsets)
    text = ">>deu<< the dog"
    ids, offsets = source.encode_with_offsets(text)
    assert text[slice(*offsets[0])] == ">>deu<<" and offsets[1][1] > 8 and offsets[-1][1] == len(text)


def test_saved_tokenizers_are_equal_and_sides_have_different_fingerprints(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    target = load(write(folder))
    target.save(tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    assert loaded.special_tokens == target.special_tokens and loaded.fingerprint == target.fingerprint
    assert loaded.for_sources.fingerprint == target.for_sources.fingerprint != target.fingerprint
    config = TokenizerConfig(kind="marian", path=str(tmp_path / "run" / "marian.json"))
    assert build_tokenizer(config, []).fingerprint == target.fingerprint, "the file of a run"
    for text in TEXTS:
        assert loaded.encode(text) == target.encode(text)
        assert loaded.for_sources.encode(text) == target.for_sources.encode(text)


def test_published_files_are_found_by_name(tmp_path):
    write(tmp_path)

    def content_of(name):
        return (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None

    assert published_tokenizer(content_of, "HERE").fingerprint == load(tmp_path).fingerprint
    (tmp_path / "target.spm").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="HERE: the tokenizer is not usable"):
        published_tokenizer(content_of, "HERE")
    (tmp_path / "target.spm").unlink()
    with pytest.raises(UserError, match=r"HERE has no tokenizer\.json"):
        published_tokenizer(content_of, "HERE")
    with pytest.raises(UserError, match="not a usable"):
        load(tmp_path)
