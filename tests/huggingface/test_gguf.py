"""GGUF files: settings, names, layouts and quantised tensors, compared with what the gguf package writes."""

import math

import ml_dtypes
import numpy as np
import pytest

from lm.errors import UserError
from lm.huggingface.folder import open_folder
from tests.huggingface.gguf_files import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    ROWS,
    SETTINGS,
    WIDTH,
    tensors_of,
    write,
)

gguf = pytest.importorskip("gguf")

BYTE_PAIRS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": list("abc"),
    "tokenizer.ggml.token_type": [1, 1, 1],
}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gemma"},
            "the architecture 'gemma' is not supported in GGUF; supported: llama, qwen2, qwen3",
        ),
        ({"settings": {**SETTINGS, "expert_count": 8}}, "the setting llama.expert_count=8 is not supported"),
        ({"settings": {**SETTINGS, "logit_scale": 0.5}}, "the setting llama.logit_scale=0.5 is not supported"),
        ({"settings": {**SETTINGS, "rope.scaling.type": "longrope"}}, "rope.scaling.type='longrope' is not supported"),
        (
            {"settings": {**SETTINGS, "rope.dimension_count": 4}},
            "rope.dimension_count=4 differs from the head size",
        ),
        ({"settings": {**SETTINGS, "block_count": "two"}}, "llama.block_count is missing or is not a number"),
        ({"settings": {"block_count": 2}}, "llama.context_length is missing or is not a number"),
        ({"tensors": {}}, "the tensor token_embd.weight is missing"),
        ({"kind": "Q5_0"}, "has the unsupported type Q5_0; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"),
        ({"raw": {"blk.0.ffn_gate_exps.weight": (np.ones((2, 2), np.float32), "F32")}}, "'blk.0.ffn_gate_exps.weight'"),
        ({"metadata": {"split.count": 3}}, "is one part of a split GGUF file"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.pre": "tekken"}}, "the pre-tokenizer 'tekken' is not supported"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.model": "bert"}}, "the tokenizer type 'bert' is not supported"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.token_type": [1]}}, "one type for each token"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.model": "llama"}}, "one score for each"),
        (
            {"metadata": {**BYTE_PAIRS, "tokenizer.ggml.eos_token_id": 3}},
            "tokenizer.ggml.eos_token_id=3 is not a token",
        ),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.tokens": [1, 2, 3]}}, "the tokenizer must have tokens"),
        ({"metadata": {**BYTE_PAIRS, "tokenizer.ggml.merges": [1]}}, "the merges are damaged"),
        ({"settings": {**SETTINGS, "block_count": 2.5}}, "llama.block_count is missing or is not a number"),
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
