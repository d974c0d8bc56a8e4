"""Reads Llama-like models from GGUF files, the format of llama.cpp, using the optional package gguf.

A GGUF file contains the model, its settings and its tokenizer. They are presented as a Hugging Face folder with
config.json, tokenizer.json, tokenizer_config.json, and tensors whose names and layouts are those of LlamaForCausalLM,
Qwen2ForCausalLM or Qwen3ForCausalLM. Quantised tensors are dequantised to float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.errors import UserError
from lm.huggingface.base import Folder
from lm.huggingface.documents import read_head
from lm.huggingface.gguf_tokenizer import special_ids, tokenizer_files
from lm.huggingface.weights import TensorInfo

# Maps the supported architectures to the Hugging Face classes that have the same tensors.
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
PERMUTED = "llama"  # the architecture whose query and key rows llama.cpp reorders
EXACT = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TENSOR = re.compile(r"(blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"  # the divisors of the rotary frequencies in Llama 3.1 and later
# The RoPE settings of Llama 3.1 to 3.3, which differ only in `factor`. GGUF files store only the resulting divisors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_FACTORS = (8.0, 32.0)
# The settings in FIELDS, OTHERS and SCALING are read. Others must have the value in NEUTRAL, where None means any.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
OTHERS = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base", "vocab_size")
SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "rope.scaling.finetuned": None}


class GgufFolder(Folder):
    """A GGUF file, presented as a folder."""

    def __init__(self, path: Path, source: str) -> None:
        """Reads everything except the tensors.

        Raises UserError if the file is damaged or its model is not supported.
        """
        self.path, self.source = path, source
        if not read_head(path).startswith(b"GGUF"):
            raise UserError(f"{path}: this is not a GGUF file, or it is damaged; download it again.")
        try:
            import gguf
        except ImportError:
            raise UserError(f"{path}: reading GGUF files requires the package gguf; run `pip install gguf`.") from None
        self._package = gguf
        try:
            reader = gguf.GGUFReader(path)
            metadata = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:  # the library raises many kinds of errors
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{path}: this GGUF file is truncated or damaged ({reason}); download it again.") from None
        architecture = metadata.get("general.architecture")
        if architecture not in CLASSES:
            known = ", ".join(CLASSES)
            raise UserError(
                f"{path}: the architecture {architecture!r:.40} is not supported in GGUF; supported: {known}."
            )
        if metadata.get("split.count", 1) > 1:
            raise UserError(
                f"{path} is one part of a split GGUF file; merge the parts with llama.cpp's llama-gguf-split."
            )
        self._permuted = architecture == PERMUTED
        self._tensors: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        factors = None
        for tensor in reader.tensors:
            if tensor.name == ROPE_FACTORS:
                factors = np.asarray(tensor.data)
            else:
                self._add(tensor)
        self.config = self._config(architecture, metadata, factors)
        ids = special_ids(metadata)
        self.config |= ids
        self.other_files: Mapping[str, Path | bytes] = tokenizer_files(metadata, str(path))
        self._generation = ids or None

    def _add(self, tensor: Any) -> None:
        """Adds a tensor under its Hugging Face name."""
        found = TENSOR.fullmatch(tensor.name)
        if found is None or found["part"] not in NAMES:
            raise UserError(f"{self.path}: the tensor {tensor.name!r:.80} does not belong to a supported model.")
        kind = tensor.tensor_type.name
        if kind not in (*EXACT, *QUANTISED):
            supported = ", ".join((*EXACT, *QUANTISED))
            raise UserError(
                f"{self.path}: tensor {tensor.name!r} has the unsupported type {kind}; supported: {supported}."
            )
        layer = "" if found["layer"] is None else f"model.layers.{found['layer']}."
        name = f"{layer}{NAMES[found['part']]}.{found['kind']}"
        shape = tuple(int(size) for size in reversed(tensor.shape))
        self._tensors[name] = tensor
        self.tensors[name] = TensorInfo(shape, EXACT.get(kind, np.dtype(np.float32)), self.path.name)

    def _read(self, name: str) -> np.ndarray:
        tensor, info = self._tensors[name], self.tensors[name]
        if (kind := tensor.tensor_type.name) in EXACT:
            array = np.asarray(tensor.data).view(EXACT[kind]).reshape(info.shape)
        else:
            array = self._package.quants.dequantize(tensor.data, tensor.tensor_type)
        if self._permuted and (".q_proj." in name or ".k_proj." in name):
            heads = self.config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            array = unpermuted(array, heads)
        return array

    @property
    def generation_config(self) -> dict[str, Any] | None:
        return self._generation

    def _config(self, architecture: str, metadata: Mapping[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
        """Returns the content of config.json. Raises UserError if a setting is missing or not supported."""
        settings = {
            name.removeprefix(f"{architecture}."): decimal(value)
            for name, value in metadata.items()
            if name.startswith(f"{architecture}.")
        }
        settings.setdefault("attention.head_count_kv", settings.get("attention.head_count"))
        for name, value in settings.items():
            read = name in FIELDS or name in OTHERS or name in SCALING
            if not read and (name not in NEUTRAL or NEUTRAL[name] not in (None, value)):
                raise UserError(f"{self.path}: the setting {architecture}.{name}={value!r:.60} is not supported.")
        for name in FIELDS:
            if type(settings.get(name)) is not (float if name.endswith("epsilon") else int):
                raise UserError(f"{self.path}: the setting {architecture}.{name} is missing or is not a number.")
        config: dict[str, Any] = {"model_type": architecture, "architectures": [CLASSES[architecture]]}
        config |= {field: settings[name] for name, field in FIELDS.items()}
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise UserError(f"{self.path}: the tensor token_embd.weight is missing.")
        head_dim = settings.get("attention.key_length", config["hidden_size"] // max(1, config["num_attention_heads"]))
        for name in ("attention.value_length", "rope.dimension_count"):
            if settings.get(name, head_dim) != head_dim:
                problem = f"{architecture}.{name}={settings[name]} differs from the head size, {head_dim}"
                raise UserError(f"{self.path}: {problem}; this is not supported.")
        config |= {
            "vocab_size": embedding.shape[0],
            "head_dim": head_dim,
            "hidden_act": "silu",
            "rope_theta": settings.get("rope.freq_base", 10000.0),
            "rope_scaling": self._scaling(settings, factors, head_dim),
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "torch_dtype": "float32",
        }
        if architecture == "llama":
            config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in self.tensors
            config["mlp_bias"] = "model.layers.0.mlp.up_proj.bias" in self.tensors
        return config

    def _scaling(self, settings: Mapping[str, Any], factors: np.ndarray | None, head_dim: int) -> dict[str, Any] | None:
        """Returns the value of the rope_scaling field."""
        scaling = {field: settings[name] for name, field in SCALING.items() if name in settings}
        kind = scaling.get("rope_type", "none")
        if factors is not None:
            theta = settings.get("rope.freq_base", 10000.0)
            for factor in LLAMA3_FACTORS if kind == "none" else ():
                if factors.shape == (head_dim // 2,) and np.allclose(
                    factors, llama3_factors(theta, head_dim, factor), rtol=1e-5
                ):
                    return {"rope_type": "llama3", "factor": factor, **LLAMA3}
            raise UserError(f"{self.path}: the factors in {ROPE_FACTORS} are not those of Llama 3.1 to 3.3.")
        if kind == "none":
            return None
        if kind not in ("linear", "yarn"):
            raise UserError(f"{self.path}: rope.scaling.type={kind!r:.40} is not supported.")
        return scaling


def unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's reordering of rows in a query or key tensor of shape (heads * head_dim, ...).

    Within a head, Hugging Face rotates dimension i together with i + head_dim / 2, but llama.cpp rotates 2 i together
    with 2 i + 1 and therefore stores their rows next to each other.
    """
    pairs = array.shape[0] // heads // 2
    return array.reshape(heads, pairs, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """Returns the divisors of the rotary frequencies in Llama 3.1 to 3.3, of shape (head_dim / 2,)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, original = LLAMA3.values()
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def decimal(value: Any) -> Any:
    """Rounds a float to the shortest decimal with the same float32 value: 9.999999747378752e-06 becomes 1e-05.

    Other values are returned unchanged.
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value
