"""Builds Hugging Face's BERT, RoBERTa and ModernBERT with our weights under their names."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.renamed import Weights, joined, numbered_layers, single_stack_sizes
from lm.config import ModelConfig

PADDING = 1  # RoBERTa counts positions from PADDING + 1; in the other models, this id is an ordinary token
ATTENTION = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
}


def published_bert(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    """Returns BertForMaskedLM, or BertForPreTraining if the model also predicts next sentences."""
    theirs = transformers.BertConfig(**_bert_settings(config), type_vocab_size=config.token_types)
    model = (transformers.BertForPreTraining if "next_sentence" in params else transformers.BertForMaskedLM)(theirs)
    weights = _bert_weights("bert", params)
    weights["bert.embeddings.position_embeddings.weight"] = params["position_embedding"]["embedding"]
    weights["bert.embeddings.token_type_embeddings.weight"] = params["type_embedding"]["embedding"]
    weights.linear("cls.predictions.transform.dense", params["head_product"])
    weights.norm("cls.predictions.transform.LayerNorm", params["head_norm"])
    weights["cls.predictions.bias"] = weights["cls.predictions.decoder.bias"] = params["output_bias"]["bias"]
    weights["cls.predictions.decoder.weight"] = params["token_embedding"]["embedding"]
    if "next_sentence" in params:
        weights.linear("bert.pooler.dense", params["pooler"])
        weights.linear("cls.seq_relationship", params["next_sentence"])
    return model, weights


def published_roberta(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    """Returns RobertaForMaskedLM. Ours lacks its two unused positions and its only type; they do not affect logits."""
    settings = {**_bert_settings(config), "max_position_embeddings": config.max_length + PADDING + 1}
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**settings, type_vocab_size=1))
    weights = _bert_weights("roberta", params)
    # Each of our position embeddings is the sum of one of theirs and their only type embedding, which may thus be
    # arbitrary.
    table = np.asarray(params["position_embedding"]["embedding"])
    type_1D = np.random.RandomState(0).standard_normal((1, config.d_model)).astype(np.float32)
    # The row before the padding row must have no influence.
    unused = np.concatenate([np.full((PADDING, config.d_model), np.nan, np.float32), np.zeros_like(type_1D)])
    weights["roberta.embeddings.position_embeddings.weight"] = np.concatenate([unused, table - type_1D])
    weights["roberta.embeddings.token_type_embeddings.weight"] = type_1D
    weights.linear("lm_head.dense", params["head_product"])
    weights.norm("lm_head.layer_norm", params["head_norm"])
    weights["lm_head.bias"] = weights["lm_head.decoder.bias"] = params["output_bias"]["bias"]
    weights["lm_head.decoder.weight"] = params["token_embedding"]["embedding"]
    return model, weights


def published_modernbert(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    """Returns ModernBertForMaskedLM."""
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
            local_attention=2
            * (config.window - 1),  # theirs counts both sides; ours counts one side and the token itself
            pad_token_id=PADDING,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
    )
    embedding_VD = params["token_embedding"]["embedding"]
    weights = Weights({"model.embeddings.tok_embeddings.weight": embedding_VD, "decoder.weight": embedding_VD})
    weights.norm("model.embeddings.norm", params["embedding_norm"])
    weights.norm("model.final_norm", params["final_norm"])
    for n, layer in numbered_layers(params):
        prefix = f"model.layers.{n}"
        if n > 0:
            weights.norm(f"{prefix}.attn_norm", layer["attention_norm"])
        weights.norm(f"{prefix}.mlp_norm", layer["mlp_norm"])
        weights.linear(f"{prefix}.attn.Wqkv", joined(layer["attention"], "query", "key", "value"))
        weights.linears(f"{prefix}.attn", layer["attention"], {"out": "Wo"})
        weights.linear(f"{prefix}.mlp.Wi", joined(layer["mlp"], "gate", "up"))
        weights.linear(f"{prefix}.mlp.Wo", layer["mlp"]["down"])
    weights.linear("head.dense", params["head_product"])
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
    """Returns all weights except those of positions, types and heads; `name` is the name of the body."""
    weights = Weights({f"{name}.embeddings.word_embeddings.weight": params["token_embedding"]["embedding"]})
    weights.norm(f"{name}.embeddings.LayerNorm", params["embedding_norm"])
    for n, layer in numbered_layers(params):
        prefix = f"{name}.encoder.layer.{n}"
        weights.linears(prefix, layer["attention"], ATTENTION)
        weights.norm(f"{prefix}.attention.output.LayerNorm", layer["attention_norm"])
        weights.linears(prefix, layer["mlp"], {"up": "intermediate.dense", "down": "output.dense"})
        weights.norm(f"{prefix}.output.LayerNorm", layer["mlp_norm"])
    return weights
