"""Hugging Face's T5, BART, Marian, GPT-2 and Llama with weights of ours: the same function under other names.

A product is (in, out) here, with the heads apart, and (out, in) there; in GPT-2 it is (in, out) too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.huggingface_peer import build_peer, frameworks, peer_weights
from lm.config import ModelConfig
from lm.decoding.inputs import Vocabulary
from lm.models.stack import LAYER_PREFIX

# Ids that a model of theirs wants to know; none of them changes a logit.
VOCABULARY = Vocabulary(size=4, bos_id=2, eos_id=1, pad_id=0)
Named = dict[str, np.ndarray]


def build_published(kind: str, config: ModelConfig, params: dict[str, Any]) -> Any:
    """The PyTorch model of a kind ("t5", "bart", "marian", "gpt2", "llama") with our unrolled layers' weights."""
    if kind == "marian":
        return build_peer(config, params, VOCABULARY, config.max_length)
    torch, transformers = frameworks()
    make = {"t5": _t5, "bart": _bart, "gpt2": _gpt2, "llama": _llama}[kind]
    model, named = make(transformers, config, params)
    if not config.tie_embeddings:  # T5 ties the two whatever the config says
        model.lm_head.weight = torch.nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        named["lm_head.weight"] = _matrix(params["output"])
    missing, unknown = model.load_state_dict({k: torch.tensor(v) for k, v in named.items()}, strict=False)
    tied = ("lm_head.weight", "embed_tokens.weight", "final_logits_bias")
    assert not unknown and all(name.endswith(tied) for name in missing), (missing, unknown)
    return model.eval()


def published_logits(model: Any, tokens_BL: np.ndarray, source_BS: np.ndarray | None, mask_B: np.ndarray) -> np.ndarray:
    """float32 (B, L, V). The mask is that of the source where there is one, else that of the tokens."""
    torch, _ = frameworks()
    tokens, mask = torch.tensor(tokens_BL, dtype=torch.int64), torch.tensor(mask_B, dtype=torch.int64)
    with torch.inference_mode():
        if source_BS is None:
            return model(input_ids=tokens, attention_mask=mask).logits.numpy()
        source = torch.tensor(source_BS, dtype=torch.int64)
        return model(input_ids=source, attention_mask=mask, decoder_input_ids=tokens).logits.numpy()


def published_buckets(distances: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int) -> np.ndarray:
    """T5's bucket of each distance (key's place less the query's)."""
    torch, _ = frameworks()
    from transformers.models.t5.modeling_t5 import T5Attention

    there = T5Attention._relative_position_bucket(torch.tensor(distances), bidirectional, num_buckets, max_distance)
    return there.numpy()


def _matrix(product: dict[str, Any], inputs: int = 1) -> np.ndarray:
    """A kernel with so many dimensions of inputs, as (out, in)."""
    kernel = np.asarray(product["kernel"])
    return kernel.reshape(math.prod(kernel.shape[:inputs]), -1).T


def _layers(tower: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    names = [name for name in tower if name.startswith(LAYER_PREFIX)]
    return [(int(name.removeprefix(LAYER_PREFIX)), tower[name]) for name in names]


def _t5(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Named]:
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.head_dim,
            d_ff=config.d_ff,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.relative_buckets,
            relative_attention_max_distance=config.relative_max_distance,
            layer_norm_epsilon=config.norm_epsilon,
            feed_forward_proj="gated-gelu" if config.gated else "relu",
            tie_word_embeddings=config.tie_embeddings,
            decoder_start_token_id=VOCABULARY.pad_id,
        )
    )
    named: Named = {"shared.weight": params["token_embedding"]["embedding"]}
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    for tower in ("encoder", "decoder"):
        named[f"{tower}.final_layer_norm.weight"] = params[tower]["final_norm"]["scale"]
        bias = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        named[bias] = params[tower]["relative_bias"]["embedding"]
        parts = {"attention": "SelfAttention", "cross_attention": "EncDecAttention", "mlp": "DenseReluDense"}
        for n, layer in _layers(params[tower]):
            for place, part in enumerate(part for part in parts if part in layer):
                prefix = f"{tower}.block.{n}.layer.{place}"
                named[f"{prefix}.layer_norm.weight"] = layer[f"{part}_norm"]["scale"]
                names = mlp if part == "mlp" else {"query": "q", "key": "k", "value": "v", "out": "o"}
                for ours, theirs in names.items():
                    named[f"{prefix}.{parts[part]}.{theirs}.weight"] = _matrix(layer[part][ours], 1 + (ours == "out"))
    return model, named


def _bart(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Named]:
    model = transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_length,
            encoder_layers=config.num_encoder_layers,
            decoder_layers=config.num_layers,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
            d_model=config.d_model,
            activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}[config.activation],
            scale_embedding=config.scale_embeddings,
            pad_token_id=VOCABULARY.pad_id,
            bos_token_id=VOCABULARY.bos_id,
            eos_token_id=VOCABULARY.eos_id,
            decoder_start_token_id=VOCABULARY.eos_id,
            forced_eos_token_id=None,
        )
    )
    own = ("position_embedding", "embedding_norm")  # what Marian lacks; all else has the same names there
    named = peer_weights(
        {name: {key: value for key, value in tower.items() if key not in own} for name, tower in params.items()}
    )
    for tower in ("encoder", "decoder"):
        table = np.asarray(params[tower]["position_embedding"]["embedding"])
        # Two rows stand before that of position 0. What is in them must not matter.
        named[f"model.{tower}.embed_positions.weight"] = np.concatenate([np.full_like(table[:2], np.nan), table])
        norm = params[tower]["embedding_norm"]
        named[f"model.{tower}.layernorm_embedding.weight"] = norm["scale"]
        named[f"model.{tower}.layernorm_embedding.bias"] = norm["bias"]
    return model, named


def _gpt2(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Named]:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_length,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            activation_function={"gelu_tanh": "gelu_new", "gelu": "gelu"}[config.activation],
            layer_norm_epsilon=config.norm_epsilon,
            bos_token_id=VOCABULARY.bos_id,
            eos_token_id=VOCABULARY.eos_id,
        )
    )
    named: Named = {
        "transformer.wte.weight": params["token_embedding"]["embedding"],
        "transformer.wpe.weight": params["position_embedding"]["embedding"],
    }

    def norm(name: str, part: dict[str, Any]) -> None:
        named[f"transformer.{name}.weight"], named[f"transformer.{name}.bias"] = part["scale"], part["bias"]

    norm("ln_f", params["final_norm"])
    for n, layer in _layers(params):
        norm(f"h.{n}.ln_1", layer["attention_norm"])
        norm(f"h.{n}.ln_2", layer["mlp_norm"])
        attention, mlp = layer["attention"], layer["mlp"]
        joined = [attention[name] for name in ("query", "key", "value")]
        prefix = f"transformer.h.{n}"
        named[f"{prefix}.attn.c_attn.weight"] = np.concatenate([_matrix(part).T for part in joined], axis=1)
        named[f"{prefix}.attn.c_attn.bias"] = np.concatenate([part["bias"].reshape(-1) for part in joined])
        for name, part, inputs in (
            ("attn.c_proj", attention["out"], 2),
            ("mlp.c_fc", mlp["up"], 1),
            ("mlp.c_proj", mlp["down"], 1),
        ):
            named[f"{prefix}.{name}.weight"], named[f"{prefix}.{name}.bias"] = _matrix(part, inputs).T, part["bias"]
    return model, named


def _llama(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Named]:
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_length,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_theta},
            tie_word_embeddings=config.tie_embeddings,
            pad_token_id=VOCABULARY.pad_id,
            bos_token_id=VOCABULARY.bos_id,
            eos_token_id=VOCABULARY.eos_id,
        )
    )
    named: Named = {
        "model.embed_tokens.weight": params["token_embedding"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    for n, layer in _layers(params):
        prefix = f"model.layers.{n}"
        named[f"{prefix}.input_layernorm.weight"] = layer["attention_norm"]["scale"]
        named[f"{prefix}.post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"]
        for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
            matrix = _matrix(layer["attention"][ours], 1 + (ours == "out"))
            named[f"{prefix}.self_attn.{theirs}_proj.weight"] = matrix
        for name in ("gate", "up", "down"):
            named[f"{prefix}.mlp.{name}_proj.weight"] = _matrix(layer["mlp"][name])
    return model, named
