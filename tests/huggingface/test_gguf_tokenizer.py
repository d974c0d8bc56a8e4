"""The tokenizers of GGUF files give the ids of the tokenizers that were written."""

import io
import string

import numpy as np
import pytest
import tokenizers

from lm.huggingface.folder import open_folder
from lm.huggingface.gguf_tokenizer import PRE_TOKENIZERS
from tests.huggingface.gguf_files import ROWS, tensors_of, write

gguf = pytest.importorskip("gguf")

TEXTS = (
    *(
        "Hello world",
        "  two  spaces ",
        "it's 12345 or x1y22",
        "I'LL\n\n  go\t!",
        "naïve e\u0301 你好 🎉",
        "",
        " ",
        "a<|end|>b",
    ),
    *("\u2581piece", "<0x41>", "\r\n \n", "can't've", "½ ٣ Ⅷ", "\x00\x7f", "end "),
)


def corpus() -> list[str]:
    words = ["the", "cat", "sat", "on", "it's", "mats", "2024", "hello", "world", "naïve", "你好", "going", "spaces"]
    random = np.random.default_rng(2)
    return [" ".join(random.choice(words, 12)) + random.choice([".", "!\n", "  "]) for _ in range(300)]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_tokenizer_gives_the_ids_of_the_original(pre, tmp_path):
    steps, normalizer, _ = PRE_TOKENIZERS[pre]
    original = tokenizers.Tokenizer(tokenizers.models.BPE())
    splits = [
        tokenizers.pre_tokenizers.Digits(True)
        if step["type"] == "Digits"
        else tokenizers.pre_tokenizers.Split(tokenizers.Regex(step["pattern"]["Regex"]), "isolated")
        for step in steps[:-1]
    ]
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=steps[-1]["use_regex"])
    original.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*splits, level])
    original.decoder = tokenizers.decoders.ByteLevel()
    if normalizer:
        original.normalizer = tokenizers.normalizers.NFC()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=ROWS, special_tokens=["<|start|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    original.train_from_iterator(corpus(), trainer)
    merges = tokenizers_merges(original)
    tokens = [original.id_to_token(token) for token in range(original.get_vocab_size())]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
    }
    folder = open_folder(write(tmp_path / "model.gguf", tensors_of(), metadata=metadata))
    found = tokenizers.Tokenizer.from_str(folder.content("tokenizer.json").decode())
    for text in TEXTS:
        ids = original.encode(text).ids
        assert found.encode(text, add_special_tokens=False).ids == ids, text
        assert found.encode(text).ids == [0, *ids], text
        assert found.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)
    assert 1 in found.encode("a<|end|>b").ids
    assert folder.read_object("tokenizer_config.json") == {
        "bos_token": "<|start|>",
        "eos_token": "<|end|>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{ messages }}",
    }
    assert folder.generation_config == {"bos_token_id": 0, "eos_token_id": [1, 5]}
    assert folder.config["eos_token_id"] == [1, 5]


def tokenizers_merges(tokenizer: tokenizers.Tokenizer) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_sentencepiece_tokenizer_gives_the_ids_of_the_original(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        user_defined_symbols=["<sep>"],
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = original.get_piece_size()
    types = [
        2 if original.is_unknown(n) else 3 if original.is_control(n) else 6 if original.is_byte(n) else 1
        for n in range(size)
    ]
    types[original.piece_to_id("<sep>")] = 4
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(n) for n in range(size)],
        "tokenizer.ggml.scores": [float(original.get_score(n)) for n in range(size)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": original.bos_id(),
        "tokenizer.ggml.eos_token_id": original.eos_id(),
        "tokenizer.ggml.unknown_token_id": original.unk_id(),
    }
    folder = open_folder(write(tmp_path / "model.gguf", tensors_of(), metadata=metadata))
    found = tokenizers.Tokenizer.from_str(folder.content("tokenizer.json").decode())
    for text in (*TEXTS, *corpus()[:50], string.printable):
        if (
            text and "\x00" not in text and "\u2581" not in text and "<0x" not in text
        ):  # SentencePiece stops at a zero byte
            assert found.encode(text, add_special_tokens=False).ids == original.encode(text), text
            assert found.encode(text).ids == [original.bos_id(), *original.encode(text)]
            assert found.decode(found.encode(text).ids, skip_special_tokens=True) == text
    assert folder.read_object("tokenizer_config.json")["unk_token"] == "<unk>"


# --- refusals -------------------------------------------------------------------------------------------------
