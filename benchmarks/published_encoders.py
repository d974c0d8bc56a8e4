"""Hugging Face's BERT, RoBERTa and ModernBERT with weights of ours: the same function under other names."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.renamed import Weights, joined, numbered_layers, single_stack_sizes
from lm.config import ModelConfig

PADDING = 1  # RoBERTa counts its positions from PADDING + 1; to the others it is a token like any other
PRODUCTS = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"}


def published_bert(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    """BertForMaskedLM, or BertForPreTraining where next sentences are told too."""
    theirs = transformers.BertConfig(**_bert_settings(config), type_vocab_size=config.token_types)
    model = (transformers.BertForPreTraining if "next_sentence" in params else transformers.BertForMaskedLM)(theirs)
    weights = _bert_weights("bert", params)
    weights["bert.embeddings.position_embeddings.weight"] = params["position_embedding"]["embedding"]
    weights["bert.embeddings.token_type_embeddings.weight"] = params["type_embedding"]["embedding"]
    weights.product("cls.predictions.transform.dense", params["head_product"])
    weights.norm("cls.predictions.transform.LayerNorm", params["head_norm"])
    weights["cls.predictions.bias"] = weights["cls.predictions.decoder.bias"] = params["output_bias"]["bias"]
    weights["cls.predictions.decoder.weight"] = params["token_embedding"]["embedding"]
    if "next_sentence" in params:
        weights.product("bert.pooler.dense", params["pooler"])
        weights.product("cls.seq_relationship", params["next_sentence"])
    return model, weights


def published_roberta(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    """Its two unused positions and its one type, which ours does not have, change nothing: see below."""
    settings = {**_bert_settings(config), "max_position_embeddings": config.max_length + PADDING + 1}
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**settings, type_vocab_size=1))
    weights = _bert_weights("roberta", params)
    # Ours is the sum of a position and the type: so theirs is any type, and our positions less that.
    table = np.asarray(params["position_embedding"]["embedding"])
    type_1D = np.random.RandomState(0).standard_normal((1, config.d_model)).astype(np.float32)
    # What is in the row before that of padding must not matter.
    unused = np.concatenate([np.full((PADDING, config.d_model), np.nan, np.float32), np.zeros_like(type_1D)])
    weights["roberta.embeddings.position_embeddings.weight"] = np.concatenate([unused, table - type_1D])
    weights["roberta.embeddings.token_type_embeddings.weight"] = type_1D
    weights.product("lm_head.dense", params["head_product"])
    weights.norm("lm_head.layer_norm", params["head_norm"])
    weights["lm_head.bias"] = weights["lm_head.decoder.bias"] = params["output_bias"]["bias"]
    weights["lm_head.decoder.weight"] = params["token_embedding"]["embedding"]
    return model, weights


def published_modernbert(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    """Theirs has no norm before the first attention: it is given one, with our weights, to compute what ours does."""
    from torch import nn

    rotary = {
        "full_attention": {"rope_type": "default", "rope_theta": config.rotary_theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rotary_theta},
    }
    model = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            **single_stack_sizes(config),
            norm_eps=config.norm_epsilon,
            rope_parameters=rotary,
            global_attn_every_n_layers=config.global_every,
            local_attention=2 * (config.window - 1),  # theirs counts both sides, ours one and the token itself
            pad_token_id=PADDING,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
    )
    model.model.layers[0].attn_norm = nn.LayerNorm(config.d_model, eps=config.norm_epsilon, bias=False)
    embedding_VD = params["token_embedding"]["embedding"]
    weights = Weights({"model.embeddings.tok_embeddings.weight": embedding_VD, "decoder.weight": embedding_VD})
    weights.norm("model.embeddings.norm", params["embedding_norm"])
    weights.norm("model.final_norm", params["final_norm"])
    for n, layer in numbered_layers(params):
        prefix = f"model.layers.{n}"
        weights.norm(f"{prefix}.attn_norm", layer["attention_norm"])
        weights.norm(f"{prefix}.mlp_norm", layer["mlp_norm"])
        weights.product(f"{prefix}.attn.Wqkv", joined(layer["attention"], "query", "key", "value"))
        weights.product(f"{prefix}.attn.Wo", layer["attention"]["out"], inputs=2)
        weights.product(f"{prefix}.mlp.Wi", joined(layer["mlp"], "gate", "up"))
        weights.product(f"{prefix}.mlp.Wo", layer["mlp"]["down"])
    weights.product("head.dense", params["head_product"])
    weights.norm("head.norm", params["head_norm"])
    weights["decoder.bias"] = params["output_bias"]["bias"]
    return model, weights


def _bert_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        **single_stack_sizes(config),
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_epsilon,
        "pad_token_id": PADDING,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _bert_weights(name: str, params: dict[str, Any]) -> Weights:
    """All but positions, types and heads; `name` is that of the body."""
    weights = Weights({f"{name}.embeddings.word_embeddings.weight": params["token_embedding"]["embedding"]})
    weights.norm(f"{name}.embeddings.LayerNorm", params["embedding_norm"])
    for n, layer in numbered_layers(params):
        prefix = f"{name}.encoder.layer.{n}"
        weights.products(prefix, layer["attention"], {**PRODUCTS, "out": "attention.output.dense"})
        weights.norm(f"{prefix}.attention.output.LayerNorm", layer["attention_norm"])
        weights.products(prefix, layer["mlp"], {"up": "intermediate.dense", "down": "output.dense"})
        weights.norm(f"{prefix}.output.LayerNorm", layer["mlp_norm"])
    return weights
