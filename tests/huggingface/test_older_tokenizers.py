"""Folders without tokenizer.json: the ids equal those of the converters and classes of transformers."""

import io
import json
import random
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers

from benchmarks.published.token_ids import WORDS, awkward_strings
from lm.data.tokenizing import published_tokenizer
from lm.errors import UserError
from lm.huggingface.older_tokenizers import converted
from tests.data.tokenizing.test_marian import ENGLISH, GERMAN

transformers = pytest.importorskip("transformers")
conversion = pytest.importorskip("transformers.convert_slow_tokenizer")

CORPUS = [*ENGLISH, *GERMAN]
CORPUS += [" ".join(random.Random(n).choices(WORDS, k=12)) for n in range(300)]
TEXTS = [
    *ENGLISH[:3],
    "",
    "a",
    "9, 10,5",
    "``Quoted''  twice",
    *awkward_strings(600, ["<s>", "[MASK]", "<extra_id_3>"]),
]
NORMAL = {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pieces(path, **options):
    out = io.BytesIO()
    settings = {"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=out, **settings)
    path.write_bytes(out.getvalue())


def words(folder, special=BERT_TOKENS, **options):
    """Writes vocab.txt, whose words are pieces of the corpus."""
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=options.get("do_lower_case", True))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    ids = trained.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(ids, key=ids.get)) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def byte_level(folder, special, **options):
    """Writes vocab.json and merges.txt."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=500, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def content_of(folder):
    return lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None


def ours(folder, model_type):
    """Returns our tokenizer, and the library's from the same tokenizer.json."""
    made = converted(content_of(folder), {"model_type": model_type}, str(folder))
    library = tokenizers.Tokenizer.from_str(made["tokenizer.json"].decode())

    def content(name):
        return made.get(name) or content_of(folder)(name)

    return published_tokenizer(content, str(folder)), library


def check_equal(ours, theirs, encode):
    """Compares ids without special tokens, and the templates of one text and of two."""
    ours, library = ours
    for text in TEXTS:
        theirs.encode_special_tokens = library.encode_special_tokens = True
        wanted = encode(text) if encode else theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids == wanted, text
    for pair in (("the dog",), ("the dog", "a house")):
        assert (library.encode(*pair).ids, library.encode(*pair).type_ids) == (
            theirs.encode(*pair).ids,
            theirs.encode(*pair).type_ids,
        )


WORD_KINDS = {
    "bert": {},
    "distilbert": {"do_lower_case": False},
    "electra": {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
}


@pytest.mark.parametrize("kind", WORD_KINDS)
def test_word_pieces(kind, tmp_path):
    words(tmp_path, **WORD_KINDS[kind])
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    found = ours(tmp_path, kind)
    check_equal(found, theirs._tokenizer, None)
    assert (found[0].eos_id, found[0].pad_id, found[0].mask_id) == (3, 0, 4)


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}])
@pytest.mark.parametrize("kind", ["gpt2", "roberta", "bart"])
def test_byte_level_pairs(kind, options, tmp_path):
    byte_level(tmp_path, ["<|endoftext|>"] if kind == "gpt2" else ROBERTA_TOKENS, **options)
    cls = transformers.GPT2Tokenizer if kind == "gpt2" else transformers.RobertaTokenizer
    check_equal(ours(tmp_path, kind), cls.from_pretrained(tmp_path)._tokenizer, None)


def test_t5_with_extra_ids(tmp_path):
    pieces(tmp_path / "spiece.model", **NORMAL)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 20}))
    original = SimpleNamespace(vocab_file=str(tmp_path / "spiece.model"), _extra_ids=20)
    original.convert_tokens_to_ids = {"</s>": 1}.get
    found = ours(tmp_path, "t5")
    check_equal(found, conversion.T5Converter(original).converted(), None)
    size = found[1].get_vocab_size()
    assert [found[1].token_to_id(f"<extra_id_{n}>") for n in (0, 19)] == [size - 1, size - 20]
    # SentencePiece itself agrees where the text holds no special token of its own.
    processor = sentencepiece.SentencePieceProcessor(model_file=original.vocab_file)
    for text in TEXTS[:5]:
        assert processor.encode(text) == found[0].encode(text)


@pytest.mark.parametrize("options", [{"legacy": False}, {"add_prefix_space": False}])
def test_t5_with_fewer_added_spaces(options, tmp_path):
    pieces(tmp_path / "spiece.model", **NORMAL)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 20, **options}))
    original = SimpleNamespace(vocab_file=str(tmp_path / "spiece.model"), _extra_ids=20, **options)
    original.convert_tokens_to_ids = {"</s>": 1}.get
    theirs = conversion.T5Converter(original).converted()
    theirs.add_special_tokens([tokenizers.AddedToken(f"<extra_id_{n}>", normalized=False) for n in range(20)])
    found = ours(tmp_path, "t5")
    check_equal(found, theirs, None)
    found[1].encode_special_tokens = theirs.encode_special_tokens = False
    for text in ("the dog <extra_id_3>sleeps", "<extra_id_0>the dog</s>a house", "the"):
        assert found[1].encode(text).ids == theirs.encode(text).ids, text
    ids = theirs.encode("the dog").ids
    assert found[1].decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("option", ["legacy", "add_prefix_space"])
@pytest.mark.parametrize("kind", ["XLMRoberta", "MBart", "MBart50", "Albert"])
def test_fewer_added_spaces_are_refused_where_versions_of_transformers_differ(kind, option, tmp_path):
    pieces(tmp_path / ("spiece.model" if kind == "Albert" else "sentencepiece.bpe.model"))
    options = {"tokenizer_class": f"{kind}Tokenizer", option: False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(UserError, match=f"{option}=False is not supported for this tokenizer class"):
        ours(tmp_path, "")


def test_xlm_roberta_with_the_ids_of_fairseq(tmp_path):
    pieces(tmp_path / "sentencepiece.bpe.model")
    original = SimpleNamespace(vocab_file=str(tmp_path / "sentencepiece.bpe.model"))
    original.convert_tokens_to_ids = {"<s>": 0, "</s>": 2}.get
    found = ours(tmp_path, "xlm-roberta")
    check_equal(found, conversion.XLMRobertaConverter(original).converted(), None)
    processor = sentencepiece.SentencePieceProcessor(model_file=original.vocab_file)
    assert found[0].encode("the dog sleeps") == [token + 1 for token in processor.encode("the dog sleeps")]
    assert found[0].special_tokens.mask == processor.get_piece_size() + 1


@pytest.mark.parametrize("name", ["MBart", "MBart50"])
def test_mbart_with_codes_of_languages(name, tmp_path):
    pieces(tmp_path / "sentencepiece.bpe.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{name}Tokenizer"}))
    found = ours(tmp_path, "mbart")
    original = SimpleNamespace(vocab_file=str(tmp_path / "sentencepiece.bpe.model"))
    original.convert_tokens_to_ids = found[1].token_to_id
    theirs = getattr(conversion, f"{name}Converter")(original).converted()
    check_equal(found, theirs, None)
    assert {code: found[1].token_to_id(code) for code in ("ar_AR", "zh_CN", "<mask>")} == {
        code: theirs.token_to_id(code) for code in ("ar_AR", "zh_CN", "<mask>")
    }
    source = found[0].source_template.fill([9])[0].tolist()
    language = found[1].token_to_id("en_XX")
    assert source == ([9, 2, language] if name == "MBart" else [language, 9, 2])
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": f"{name}Tokenizer", "src_lang": "xx_XX"})
    )
    with pytest.raises(UserError, match="src_lang='xx_XX' is not a language"):
        ours(tmp_path, "mbart")


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False, "keep_accents": True}])
def test_albert(options, tmp_path):
    special = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    pieces(tmp_path / "spiece.model", **special)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    original = SimpleNamespace(vocab_file=str(tmp_path / "spiece.model"), do_lower_case=True, keep_accents=False)
    vars(original).update(options)
    original.convert_tokens_to_ids = {"[CLS]": 2, "[SEP]": 3}.get
    check_equal(ours(tmp_path, "albert"), conversion.AlbertConverter(original).converted(), None)


@pytest.mark.parametrize("legacy", [True, False])
def test_llama(legacy, tmp_path):
    options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 700}
    pieces(tmp_path / "tokenizer.model", **options, remove_extra_whitespaces=False, num_threads=1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy, "add_bos_token": True}))
    found, library = ours(tmp_path, "llama")
    assert (found.bos_id, found.eos_id) == (1, 2) and library.encode("a").ids[0] == 1
    if legacy:  # as the model was trained
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    else:
        theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
        theirs._tokenizer.encode_special_tokens = True
    options = {} if legacy else {"add_special_tokens": False}
    same = [
        found.encode(text) == theirs.encode(text, **options)
        for text in TEXTS
        if "\u2581" not in text and "<" not in text
    ]
    assert all(same) and len(same) > 300


def test_listed_tokens_keep_their_ids(tmp_path):
    byte_level(tmp_path, ["<|endoftext|>"])
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    listed = {str(size): {"content": "<|user|>", "special": True}, str(size + 1): {"content": "<tool>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    assert ours(tmp_path, "gpt2")[1].token_to_id("<tool>") == size + 1
    listed = {str(size + 5): {"content": "<|user|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    with pytest.raises(UserError, match=r"'<\|user\|>' of tokenizer_config.json cannot have the id"):
        ours(tmp_path, "gpt2")


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_added_tokens_in_their_own_file(kind, tmp_path):
    """Ids and flags are those of transformers, also for a special token that the vocabulary lacks."""
    if kind == "bert":
        words(tmp_path)
        size = len((tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines())
        named = {"mask_token": {"content": "<gap>", "lstrip": False, "rstrip": False, "normalized": False}}
    else:
        byte_level(tmp_path, ["<|endoftext|>"])
        size = len(json.loads((tmp_path / "vocab.json").read_text()))
        named = {"bos_token": "<gap>"}
    added = {"dogHouse": size + 2, "<gap>": size, "<User>": size + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": ["<User>"]}))
    theirs = (transformers.BertTokenizer if kind == "bert" else transformers.GPT2Tokenizer).from_pretrained(tmp_path)
    found, library = ours(tmp_path, kind)
    assert {token: library.token_to_id(token) for token in added} == added
    flags = {number: (token.special, token.normalized) for number, token in library.get_added_tokens_decoder().items()}
    assert [flags[size + n] for n in range(3)] == [(True, False), (True, False), (False, True)]
    for text in ("a doghouse, a dogHouse", "<user> <User>the dog<gap>", "the <gap>dogHouse"):
        assert library.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False), text
    check_equal((found, library), theirs._tokenizer, None)
    for ids, message in (
        ({"<gap>": size + 9}, "of added_tokens.json cannot have the id"),
        ({"<gap>": "1"}, "distinct"),
    ):
        (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
        with pytest.raises(UserError, match=message):
            ours(tmp_path, kind)


def test_other_classes_and_damaged_files_are_refused(tmp_path):
    def refusal(model_type, **files):
        content = {name.replace("__", "."): value for name, value in files.items()}.get
        with pytest.raises(UserError) as caught:
            converted(content, {"model_type": model_type}, "FOLDER")
        return str(caught.value)

    message = "building model_type='pegasus' from spiece.model is not supported; create tokenizer.json"
    assert message in refusal("pegasus", spiece__model=b"x")
    assert "building BertJapaneseTokenizer from vocab.txt is not supported" in refusal(
        "bert", vocab__txt=b"[PAD]", tokenizer_config__json=b'{"tokenizer_class": "BertJapaneseTokenizer"}'
    )
    assert "FOLDER: spiece.model cannot be read: " in refusal("t5", spiece__model=b"\x0a\xff\x01broken")
    assert "lacks the special token '[UNK]'" in refusal("bert", vocab__txt=b"[PAD]\nthe\n")
    assert converted({}.get, {"model_type": "bert"}, "FOLDER") == {}
