"""GGUF files: settings, names, layouts, quantised tensors and tokenizers, beside files that the gguf package writes."""

import io
import math
import string
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tokenizers

from lm.errors import UserError
from lm.huggingface.folder import open_folder
from lm.huggingface.gguf_tokenizer import PRE_TOKENIZERS

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, HEAD_DIM, WIDTH, HIDDEN, LAYERS, ROWS = 4, 2, 8, 32, 64, 2, 300
SETTINGS = {
    "block_count": LAYERS,
    "context_length": 128,
    "embedding_length": WIDTH,
    "feed_forward_length": HIDDEN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
    "rope.dimension_count": HEAD_DIM,
    "vocab_size": ROWS,
}
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


def tensors_of(architecture: str = "llama") -> dict[str, np.ndarray]:
    """Random tensors under the names of Hugging Face."""
    shapes = {
        "model.embed_tokens.weight": (ROWS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (ROWS, WIDTH),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows * HEAD_DIM, WIDTH)
            if architecture == "qwen2":
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows * HEAD_DIM,)
            if architecture == "qwen3" and name != "v":
                shapes[f"{prefix}self_attn.{name}_norm.weight"] = (HEAD_DIM,)
        shapes |= {
            f"{prefix}self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
            f"{prefix}mlp.gate_proj.weight": (HIDDEN, WIDTH),
            f"{prefix}mlp.up_proj.weight": (HIDDEN, WIDTH),
            f"{prefix}mlp.down_proj.weight": (WIDTH, HIDDEN),
            f"{prefix}input_layernorm.weight": (WIDTH,),
            f"{prefix}post_attention_layernorm.weight": (WIDTH,),
        }
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def file_name(name: str) -> str:
    """The name of a tensor in GGUF, by the gguf package's own table."""
    module, _, kind = name.rpartition(".")
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, LAYERS).get_name(module) + f".{kind}"


def write(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    architecture: str = "llama",
    settings: dict = SETTINGS,
    kind: str = "F32",
    raw: dict[str, tuple[np.ndarray, str]] | None = None,
    metadata: dict | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        **{f"{architecture}.{name}": value for name, value in settings.items()},
        **(metadata or {}),
    }.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            add = {bool: "bool", int: "uint32", float: "float32", str: "string"}[type(value)]
            getattr(writer, f"add_{add}")(name, value)
    for name, array in tensors.items():
        if architecture == "llama" and (".q_proj" in name or ".k_proj" in name):
            array = permuted(array, HEADS if ".q_proj" in name else KV_HEADS)
        type_ = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(file_name(name), gguf.quants.quantize(array, type_), raw_dtype=type_)
    for name, (array, type_name) in (raw or {}).items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_tensors_have_the_names_and_layouts_of_hugging_face(architecture, tmp_path):
    tensors = tensors_of(architecture)
    folder = open_folder(write(tmp_path / "model.gguf", tensors, architecture=architecture))
    assert folder.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        assert folder.tensors[name].shape == array.shape and np.array_equal(folder.read(name), array), name


def test_settings_become_those_of_config_json(tmp_path):
    path = write(tmp_path / "model.gguf", tensors_of())
    folder = open_folder(tmp_path)  # which holds no other GGUF file
    assert folder.source == str(tmp_path) and open_folder(path).config == folder.config
    assert folder.config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 128,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,  # stored as the float32 9.999999747378752e-06
        "vocab_size": ROWS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "attention_bias": False,
        "mlp_bias": False,
    }
    assert folder.generation_config is None and folder.other_files == {}


def test_tied_and_absent_settings(tmp_path):
    tensors = tensors_of()
    del tensors["lm_head.weight"]
    few = {name: value for name, value in SETTINGS.items() if not name.startswith("rope") and "kv" not in name}
    tensors |= {name: np.ones((WIDTH, WIDTH), np.float32) for name in tensors if ".k_proj" in name or ".v_proj" in name}
    config = open_folder(write(tmp_path / "model.gguf", tensors, settings=few)).config
    assert config["tie_word_embeddings"] is True
    assert (config["num_key_value_heads"], config["rope_theta"], config["head_dim"]) == (HEADS, 10000.0, HEAD_DIM)


@pytest.mark.parametrize(
    ("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 0.02), ("Q4_0", 0.3), ("Q4_1", 0.2)]
)
def test_values_of_each_kind_are_near_those_before(kind, error, tmp_path):
    tensors = tensors_of()
    folder = open_folder(write(tmp_path / "model.gguf", tensors, kind=kind))
    exact = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
    for name, array in tensors.items():
        found = folder.read(name)
        assert (
            found.dtype == folder.tensors[name].dtype == (exact.get(kind, np.float32) if array.ndim > 1 else np.float32)
        )
        if kind in exact:
            assert np.array_equal(found, array.astype(found.dtype)), name
        assert np.abs(found.astype(np.float32) - array).max() < error * max(1, np.abs(array).max()), name


def test_q4_k_follows_the_formula_of_llama_cpp(tmp_path):
    """A block of 256 values: two float16, 12 bytes with 8 scales and 8 minima of 6 bits, and 128 bytes of values."""
    random = np.random.default_rng(1)
    row = np.concatenate([np.float16([0.5, 0.25]).view(np.uint8), random.integers(0, 256, 140, np.uint8)])
    data = np.stack([row, row])
    settings = {**SETTINGS, "feed_forward_length": 256}
    raw = {"blk.0.ffn_down.weight": (data, "Q4_K")}
    tensors = {name: array for name, array in tensors_of().items() if name != "model.layers.0.mlp.down_proj.weight"}
    found = open_folder(write(tmp_path / "model.gguf", tensors, settings=settings, raw=raw)).read(
        "model.layers.0.mlp.down_proj.weight"
    )
    packed, values = [int(each) for each in row[4:16]], [int(each) for each in row[16:]]
    expected = []
    for block in range(8):
        if block < 4:
            scale, minimum = packed[block] & 63, packed[block + 4] & 63
        else:
            scale = (packed[block + 4] & 15) | ((packed[block - 4] >> 6) << 4)
            minimum = (packed[block + 4] >> 4) | ((packed[block] >> 6) << 4)
        for value in values[block // 2 * 32 : block // 2 * 32 + 32]:
            expected.append(0.5 * scale * (value >> 4 if block % 2 else value & 15) - 0.25 * minimum)
    assert found.shape == (2, 256) and np.array_equal(found[0], np.float32(expected)) and np.array_equal(*found)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequency_factors_become_the_scaling_of_llama_3(factor, tmp_path):
    factors = []
    for index in range(HEAD_DIM // 2):  # as in llama.cpp's convert_hf_to_gguf.py
        wavelength = 2 * math.pi * 500000.0 ** (2 * index / HEAD_DIM)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    assert len(set(factors)) == 3
    path = write(tmp_path / "model.gguf", tensors_of(), raw={"rope_freqs.weight": (np.float32(factors), "F32")})
    folder = open_folder(path)
    assert "rope_freqs.weight" not in folder.tensors
    assert folder.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    other = write(tmp_path / "b.gguf", tensors_of(), raw={"rope_freqs.weight": (np.float32([1, 1, 2, 3]), "F32")})
    with pytest.raises(UserError, match=r"the factors in rope_freqs\.weight are not those of Llama 3\.1"):
        open_folder(other)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_of_positions_is_read(kind, tmp_path):
    settings = {
        **SETTINGS,
        "rope.scaling.type": kind,
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    config = open_folder(write(tmp_path / "model.gguf", tensors_of(), settings=settings)).config
    assert config["rope_scaling"] == {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 32}


# --- tokenizers -----------------------------------------------------------------------------------------------


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

BYTE_PAIRS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": list("abc"),
    "tokenizer.ggml.token_type": [1, 1, 1],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, "the architecture 'gemma' is not supported in GGUF (llama, qwen2, qwen3 are)"),
        ({"settings": {**SETTINGS, "expert_count": 8}}, "the setting llama.expert_count=8 is not supported"),
        ({"settings": {**SETTINGS, "logit_scale": 0.5}}, "the setting llama.logit_scale=0.5 is not supported"),
        ({"settings": {**SETTINGS, "rope.scaling.type": "longrope"}}, "rope.scaling.type='longrope' is not supported"),
        (
            {"settings": {**SETTINGS, "rope.dimension_count": 4}},
            "rope.dimension_count=4 differs from the size of a head",
        ),
        ({"settings": {**SETTINGS, "block_count": "two"}}, "llama.block_count is missing or not a number"),
        ({"settings": {"block_count": 2}}, "llama.context_length is missing or not a number"),
        ({"tensors": {}}, "the tensor token_embd.weight is missing"),
        ({"kind": "Q5_0"}, "has the type Q5_0, not one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"),
        ({"raw": {"blk.0.ffn_gate_exps.weight": (np.ones((2, 2), np.float32), "F32")}}, "'blk.0.ffn_gate_exps.weight'"),
        ({"metadata": {"split.count": 3}}, "is one part of a divided GGUF file"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.pre": "tekken"}}, "the pre-tokenizer 'tekken' is not supported"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.model": "bert"}}, "the kind of tokenizer 'bert' is not supported"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.token_type": [1]}}, "not one type for each"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.model": "llama"}}, "not one score for each"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.eos_token_id": 3}}, "tokenizer.ggml.eos_token_id=3 is no token"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.tokens": [1, 2, 3]}}, "the tokenizer has no tokens"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.merges": [1]}}, "its merges are damaged"),
        ({"settings": {**SETTINGS, "block_count": 2.5}}, "llama.block_count is missing or not a number"),
    ],
)
def test_unsupported_file_gets_one_line(changes, message, tmp_path):
    path = write(tmp_path / "model.gguf", **{"tensors": tensors_of(), **changes})
    with pytest.raises(UserError) as caught:
        open_folder(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.99])
def test_truncated_file_gets_one_line(share, tmp_path):
    path = write(tmp_path / "model.gguf", tensors_of())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"truncated or damaged|or it is damaged"):
        open_folder(path)


def test_pointer_and_other_files_are_named(tmp_path):
    (tmp_path / "model.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        open_folder(tmp_path)
    (tmp_path / "model.gguf").write_text("something else")
    with pytest.raises(UserError, match="this is not a GGUF file"):
        open_folder(tmp_path)


def test_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", tensors_of())
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match="run `pip install gguf`"):
        open_folder(path)
