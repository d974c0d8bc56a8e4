"""The models that benchmarks/step_speed.py and benchmarks/gpu_speed.py train, as classes of `transformers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MASKED = 0.15  # share of the masked tokens of an encoder
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that all systems train, and the size of its batches.

    Attributes:
        name: the class in `transformers`.
        settings: the fields of its config that differ from their defaults.
        source_length: the number of tokens of a source, for encoder-decoders.
        masks: whether the model predicts masked tokens, a share MASKED of all, instead of next tokens.
        max_segments: `Batch.max_segments` in training; windows of one long text may have 2, since it begins again.
        peers: the systems that benchmarks/gpu_speed.py compares with ours.
    """

    title: str
    name: str
    settings: dict[str, Any]
    rows: int
    length: int
    source_length: int = 0
    masks: bool = False
    max_segments: int = 0
    peers: tuple[str, ...] = ("pytorch-compiled",)

    @property
    def vocab_size(self) -> int:
        return self.settings["vocab_size"]

    def arrays(self) -> Iterator[Arrays]:
        """Yields batches without end: `tokens`, `targets` and `weights` (B, L), and perhaps `source` (B, S)."""
        random = np.random.default_rng(0)
        while True:
            ids = random.integers(4, self.vocab_size, (self.rows, self.length + 1)).astype(np.int32)
            tokens, targets = ids[:, :-1], ids[:, 1:]
            weights = np.ones_like(tokens, np.float32)
            if self.masks:
                count = round(MASKED * self.length)  # in every row, so that the work is the same in every step
                chosen = np.argsort(random.random(tokens.shape), axis=1)[:, :count]
                weights = np.zeros_like(weights)
                np.put_along_axis(weights, chosen, 1, axis=1)
                tokens, targets = np.where(weights > 0, 3, tokens).astype(np.int32), tokens
            arrays = {"tokens": tokens, "targets": targets, "weights": weights}
            if self.source_length:
                source = random.integers(4, self.vocab_size, (self.rows, self.source_length))
                arrays["source"] = source.astype(np.int32)
            yield arrays


MODELS = {
    "gpt": Model(
        "decoder of nanoGPT's Shakespeare setting",
        "GPT2LMHeadModel",
        {
            **{"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 256, "vocab_size": 65},
            "activation_function": "gelu",
        },
        rows=16,
        length=256,
    ),
    "translation": Model(
        "encoder-decoder of the Multi30k config",
        "MarianMTModel",
        {
            **{f"{side}_layers": 4 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 256 for side in ("encoder", "decoder")},
            "d_model": 128,
            "vocab_size": 6000,
            "max_position_embeddings": 64,
            "activation_function": "relu",
            "scale_embedding": True,
        },
        rows=64,
        length=64,
        source_length=64,
    ),
    "t5": Model(
        "T5-small",
        "T5ForConditionalGeneration",
        {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        rows=8,
        length=64,
        source_length=256,
    ),
    "bert": Model(
        "BERT-base, masked tokens",
        "BertForMaskedLM",
        {"vocab_size": 30522},
        rows=8,
        length=128,
        masks=True,
    ),
}

# Models of the usual sizes, with batches that keep a GPU busy.
GPU_MODELS = {
    "gpt2-124m": Model(
        "GPT-2, 124 M",
        "GPT2LMHeadModel",
        {"n_positions": 1024, "vocab_size": 50304, "activation_function": "gelu"},
        rows=32,
        length=1024,
        max_segments=2,
        peers=("nanogpt",),
    ),
    "gpt-1.3b": Model(
        "decoder, 1.3 B",
        "GPT2LMHeadModel",
        {
            **{"n_layer": 24, "n_embd": 2048, "n_head": 16, "n_positions": 2048, "vocab_size": 50304},
            "activation_function": "gelu",
        },
        rows=8,
        length=2048,
        max_segments=2,
    ),
    "bert-base": Model(
        "BERT-base, masked tokens",
        "BertForMaskedLM",
        {"vocab_size": 30592, "max_position_embeddings": 1024},
        rows=32,
        length=1024,
        masks=True,
    ),
    "t5-base": Model(
        "T5-base",
        "T5ForConditionalGeneration",
        {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        rows=16,
        length=1024,
        source_length=1024,
    ),
    "t5-large": Model(  # with the lengths of T5's span corruption
        "T5-large, version 1.1",
        "T5ForConditionalGeneration",
        {
            **{"vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
            **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        },
        rows=32,
        length=114,
        source_length=512,
    ),
}
NO_DROPOUT = "resid_pdrop embd_pdrop attn_pdrop dropout attention_dropout activation_dropout dropout_rate"
NO_DROPOUT += " hidden_dropout_prob attention_probs_dropout_prob"


def peer_of(model: Model, device: str = "cpu") -> Any:
    """Returns the model of `transformers`, without dropout and with its fused attention."""
    import torch
    import transformers

    cls = getattr(transformers, model.name)
    known = vars(cls.config_class())
    settings = {name: 0.0 for name in NO_DROPOUT.split() if name in known}
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = cls.config_class(**settings, **special, **model.settings)
    torch.manual_seed(0)
    with torch.device(device):
        return cls._from_config(config, attn_implementation="sdpa" if cls._supports_sdpa else "eager")


def write_folder(model: Model, folder: Path, device: str = "cpu") -> None:
    """Writes the initial weights, which all systems read."""
    peer_of(model, device).save_pretrained(folder)
