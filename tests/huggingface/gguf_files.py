"""Writes small GGUF files for tests, with the gguf package."""

from pathlib import Path

import numpy as np
import pytest

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
