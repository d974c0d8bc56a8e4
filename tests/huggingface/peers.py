"""Tiny models of `transformers` with random weights, saved as folders, to compare ours with."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers.logging.set_verbosity_error()

VOCABULARY = 64
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 96}

# family -> (class, settings of its config)
MODELS = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}),
    "llama": ("LlamaForCausalLM", {**LLAMA, "rms_norm_eps": 1e-5}),
    "smollm2": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True, "rope_theta": 100000.0}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 9}),
}


def tokenizer_json(special=("<s>", "</s>", "<pad>", "<mask>")):
    """Returns a tokenizer.json of words w4, w5, ..., with the special tokens first."""
    words = {**{token: n for n, token in enumerate(special)}, **{f"w{n}": n for n in range(4, VOCABULARY)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=special[2]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str()


def build(kind, settings, seed=0, dtype=torch.float32, spread=True):
    """Returns a model in evaluation mode, all of whose parameters are random, norms and biases included."""
    cls = getattr(transformers, kind)
    torch.manual_seed(seed)
    config = cls.config_class(**{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **settings})
    config._attn_implementation = "eager"
    model = cls(config).eval()
    if spread:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:
                    base = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
                    base = 0.0 if name.endswith("bias") else base
                    parameter.copy_(base + 0.3 * noise)
                else:
                    parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
    return model.to(dtype)


def save(model, path: Path, **options):
    model.save_pretrained(path, **options)
    (path / "tokenizer.json").write_text(tokenizer_json())
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    return path


def rows(seed=0, count=3, length=30):
    """Returns random tokens (B, L) and a mask of the same shape; rows end (or begin) with padding."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4, VOCABULARY, (count, length))
    lengths = np.array([length, length // 2, 5])[:count]
    return tokens, np.arange(length)[None] < lengths[:, None]
