"""The tokenizers that we train, exported: `tokenizers` and `transformers` give the same ids as we do."""

import dataclasses
import io
import json
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import sentencepiece
import tokenizers

from benchmarks.published.token_ids import KINDS, WORDS, awkward_strings, check_exported, trained
from lm.config import Config
from lm.data.tokenizing import build_tokenizer, library
from lm.data.tokenizing.base import Tokenizers
from lm.data.tokenizing.chat_template import TEMPLATES
from lm.data.tokenizing.sentencepiece import SentencePieceTokenizer
from lm.errors import UserError
from lm.huggingface.families import FAMILIES
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import read_tokenizer
from lm.huggingface.tokenizer_files import changed_files, templates, tokenizer_files
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, save


def config_of(family="decoder", objective="causal", **data):
    model = {"family": family, "max_length": 64, "token_types": 2 if family == "encoder" else 0}
    values = {"model": model, "objective": {"name": objective}, "data": {"sequence_length": 32, **data}}
    return Config.from_dict(values, reset_unread=True)


def saved(tokenizer, config, folder, model_type="llama"):
    """Writes the tokenizer files of a run, and a config.json, and returns the folder."""
    folder.mkdir()
    for name, content in tokenizer_files(config, Tokenizers(tokenizer, tokenizer.for_sources)).items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_equal(name):
    problems, counts = check_exported(name, trained(name), number=400)
    assert not problems and counts["plain"] > 300


@pytest.mark.parametrize("name", KINDS)
def test_transformers_loads_it_without_a_warning(name, tmp_path, caplog):
    tokenizer = trained(name)
    folder = saved(tokenizer, config_of(), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert not caplog.records
    special = library.special_names(tokenizer)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)
    assert loaded.unk_token_id == tokenizer.unk_id and len(loaded) == tokenizer.vocab_size
    for token, spelling in special.items():
        assert loaded.convert_tokens_to_ids(spelling) == token
        assert loaded(spelling, add_special_tokens=False).input_ids == [token]
    for text in ("The cat, 3.14!\n ok", "Grüße, 世界 🎉  x"):
        ids = tokenizer.encode(text)
        assert loaded(text).input_ids == [1, *ids]
        if tokenizer.unk_id not in ids:
            assert loaded.decode([1, *ids, 2, 0], skip_special_tokens=True) == tokenizer.decode(ids) == text


TEXT, OTHER = "a cat", "the dog"


@pytest.mark.parametrize(
    ("family", "objective", "one", "two", "types"),
    [
        ("decoder", "causal", "BA", "BAC", None),
        ("decoder", "tagging", "BAE", "BAECE", None),
        ("encoder_decoder", "seq2seq", "AE", "AECE", None),
        ("encoder_decoder", "span_corruption", "AE", "AECE", None),
        ("encoder", "classification", "BAE", "BAECE", [0] * 7 + [1] * 8),
        ("encoder", "masked", "BAE", "BAECE", [0] * 7 + [1] * 8),
    ],
)
def test_special_tokens_are_added_as_here(family, objective, one, two, types, tmp_path):
    tokenizer = trained("bytes").with_extra_ids(100)
    config = config_of(family, objective, tokenizer={"kind": "bytes", "extra_ids": 100})
    loaded = transformers.AutoTokenizer.from_pretrained(saved(tokenizer, config, tmp_path / "out"))
    parts = {"A": tokenizer.encode(TEXT), "C": tokenizer.encode(OTHER), "B": [1], "E": [2]}
    assert loaded(TEXT).input_ids == [token for part in one for token in parts[part]]
    assert loaded(TEXT, OTHER).input_ids == [token for part in two for token in parts[part]]
    assert ("token_type_ids" in loaded(TEXT)) == (types is not None)
    if types is not None:
        assert loaded(TEXT, OTHER).token_type_ids == types
        assert loaded.mask_token_id == tokenizer.mask_id and loaded.cls_token_id == 1 and loaded.sep_token_id == 2
    assert loaded.model_max_length == 64 and loaded.convert_tokens_to_ids("<extra_id_1>") == tokenizer.extra_tokens[1]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_family_uses_the_files(family, tmp_path):
    """AutoTokenizer replaces the tokenizers of some families by a class of its own."""
    tokenizer = trained("bpe")
    folder = saved(tokenizer, config_of(), tmp_path / "out", family.model_types[0])
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    texts = list(awkward_strings(150, []))
    same = [loaded(text, add_special_tokens=False).input_ids == tokenizer.encode(text) for text in texts]
    assert all(same) != family.own_tokenizer


def test_chat_template(tmp_path):
    tokenizer = trained("bpe")
    folder = saved(tokenizer, config_of(objective="chat", chat_template="plain"), tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert loaded.apply_chat_template(messages, tokenize=False) == "User: Hi\nAssistant: Hello<eos>\n"
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATES["plain"]
    # The template that an imported model learnt is added to its files.
    imported = read_tokenizer(open_folder(save(build(*MODELS["llama"]), tmp_path / "in")), 64)
    assert changed_files(config_of(), imported, {}) == {}
    files = changed_files(config_of(objective="chat", chat_template="plain"), imported, {"eos_token": "</s>"})
    assert files["chat_template.jinja"].decode() == TEMPLATES["plain"]
    assert json.loads(files["tokenizer_config.json"]) == {"eos_token": "</s>", "chat_template": TEMPLATES["plain"]}


def test_words_may_be_called_like_special_tokens(tmp_path):
    """In WikiText, <unk> is a word like any other."""
    config = Config().data.tokenizer.__class__(kind="words", vocab_size=300)
    tokenizer = build_tokenizer(config, ["the <unk> of <pad> <unk_>"])
    assert tokenizer.encode("<unk> x") == [tokenizer.vocabulary.index("<unk>") + 4, 3]
    loaded = transformers.AutoTokenizer.from_pretrained(saved(tokenizer, config_of(), tmp_path / "out"))
    assert loaded("<unk> x <pad> <unk_>").input_ids == [1, *tokenizer.encode("<unk> x <pad> <unk_>")]
    assert loaded.unk_token == "<unk__>" and loaded.pad_token == "<pad_>"


def test_tokenizer_of_another_model_is_used_unchanged(tmp_path):
    """The template in the file is kept where the run frames texts likewise, and replaced elsewhere."""
    folder = save(build(*MODELS["llama"]), tmp_path / "in")
    tokenizer = read_tokenizer(open_folder(folder), 64)
    original = json.loads((folder / "tokenizer.json").read_text())
    one, two = templates(config_of(), tokenizer)
    content = json.loads(library.build(tokenizer, one, two))
    assert {name: part for name, part in content.items() if original[name] != part} == {}
    framed = library.build(tokenizer, tokenizer.source_template, tokenizer.source_template)
    assert tokenizers.Tokenizer.from_str(framed.decode()).encode("w5 w6").ids == [5, 6, 2]


def test_what_the_format_cannot_express_is_refused():
    config = config_of("encoder_decoder", "seq2seq")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, separate_vocabularies=True))
    with pytest.raises(UserError, match="separate source and target vocabularies"):
        tokenizer_files(config, Tokenizers(trained("bpe"), trained("bpe")))
    model = io.BytesIO()  # changes the text before it is split
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=model, vocab_size=300, minloglevel=2, hard_vocab_limit=False
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    with pytest.raises(UserError, match="cannot represent this tokenizer exactly; ids would differ for"):
        library.build(tokenizer, tokenizer.text_template, tokenizer.pair_template)
