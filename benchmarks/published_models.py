"""Builds Hugging Face's T5, BART, Marian, GPT-2, Llama and encoders with our weights, and computes their logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.huggingface_peer import build_peer, frameworks, peer_weights
from benchmarks.published_encoders import published_bert, published_modernbert, published_roberta
from benchmarks.renamed import (
    ACTIVATIONS,
    Weights,
    encoder_decoder_sizes,
    joined,
    numbered_layers,
    single_stack_sizes,
)
from lm.batch import Batch
from lm.config import ModelConfig
from lm.decoding.sampling import Vocabulary
from lm.models.layers import ACTIVATIONS as OUR_ACTIVATIONS

# Special token ids that the published models require; none affects the logits.
VOCABULARY = Vocabulary(size=4, bos_id=2, eos_id=1, pad_id=0)
SPECIAL = {"pad_token_id": VOCABULARY.pad_id, "bos_token_id": VOCABULARY.bos_id, "eos_token_id": VOCABULARY.eos_id}


def build_published(kind: str, config: ModelConfig, params: dict[str, Any]) -> Any:
    """Returns the PyTorch model of a kind ("marian" or a key of MAKERS) with the weights of our unrolled layers."""
    if kind == "marian":
        return build_peer(config, params, VOCABULARY, config.max_length)
    torch, transformers = frameworks()
    model, weights = MAKERS[kind](transformers, config, params)
    if not config.tie_embeddings:  # T5 always ties the output matrix to the embedding
        model.lm_head.weight = torch.nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        weights.linear("lm_head", params["output"])
    missing, unknown = model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=False)
    tied = ("lm_head.weight", "embed_tokens.weight", "final_logits_bias")
    assert not unknown and all(name.endswith(tied) for name in missing), (missing, unknown)
    return model.eval()


def published_logits(model: Any, batch: Batch) -> np.ndarray:
    """Returns float32 (B, L, V) logits, or (B, 1, 2) next-sentence logits if the model predicts next sentences."""
    torch, _ = frameworks()
    read = batch if batch.source is None else batch.source
    real_BL = read.segments > 0
    inputs = {"input_ids": np.where(real_BL, read.tokens, model.config.pad_token_id), "attention_mask": real_BL}
    if batch.source is not None:
        inputs["decoder_input_ids"] = batch.tokens
    if batch.types is not None:
        inputs["token_type_ids"] = batch.types
    with torch.inference_mode():
        output = model(**{name: torch.tensor(value, dtype=torch.int64) for name, value in inputs.items()})
    pairs = "seq_relationship_logits" in output
    return (output.seq_relationship_logits[:, None] if pairs else output.logits).numpy()


def published_buckets(distances: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns T5's bucket for each distance (key position minus query position)."""
    torch, _ = frameworks()
    from transformers.models.t5.modeling_t5 import T5Attention

    tensor = torch.tensor(distances)
    return T5Attention._relative_position_bucket(tensor, bidirectional, num_buckets, max_distance).numpy()


def _t5(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    gated = OUR_ACTIVATIONS[config.activation].gated
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
            feed_forward_proj="gated-gelu" if gated else "relu",
            tie_word_embeddings=config.tie_embeddings,
            decoder_start_token_id=VOCABULARY.pad_id,
        )
    )
    weights = Weights({"shared.weight": params["token_embedding"]["embedding"]})
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    parts = {"attention": "SelfAttention", "cross_attention": "EncDecAttention", "mlp": "DenseReluDense"}
    for tower in ("encoder", "decoder"):
        weights.norm(f"{tower}.final_layer_norm", params[tower]["final_norm"])
        bias = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights[bias] = params[tower]["relative_bias"]["embedding"]
        for n, layer in numbered_layers(params[tower]):
            for number, part in enumerate(part for part in parts if part in layer):
                prefix = f"{tower}.block.{n}.layer.{number}"
                weights.norm(f"{prefix}.layer_norm", layer[f"{part}_norm"])
                names = mlp if part == "mlp" else {"query": "q", "key": "k", "value": "v", "out": "o"}
                weights.linears(f"{prefix}.{parts[part]}", layer[part], names)
    return model, weights


def _bart(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    model = transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            **encoder_decoder_sizes(config),
            **SPECIAL,
            max_position_embeddings=config.max_length,
            decoder_start_token_id=VOCABULARY.eos_id,
            forced_eos_token_id=None,
        )
    )
    weights = peer_weights(params)
    for tower in ("encoder", "decoder"):
        table = np.asarray(params[tower]["position_embedding"]["embedding"])
        # The two rows before the row of position 0 must have no influence.
        weights[f"model.{tower}.embed_positions.weight"] = np.concatenate([np.full_like(table[:2], np.nan), table])
        weights.norm(f"model.{tower}.layernorm_embedding", params[tower]["embedding_norm"])
    return model, weights


def _gpt2(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_length,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            activation_function=ACTIVATIONS[config.activation],
            layer_norm_epsilon=config.norm_epsilon,
            **SPECIAL,
        )
    )
    weights = Weights(
        {
            "transformer.wte.weight": params["token_embedding"]["embedding"],
            "transformer.wpe.weight": params["position_embedding"]["embedding"],
        }
    )
    weights.norm("transformer.ln_f", params["final_norm"])
    for n, layer in numbered_layers(params):
        prefix, attention = f"transformer.h.{n}", layer["attention"]
        weights.norm(f"{prefix}.ln_1", layer["attention_norm"])
        weights.norm(f"{prefix}.ln_2", layer["mlp_norm"])
        weights.linear(f"{prefix}.attn.c_attn", joined(attention, "query", "key", "value"))
        weights.linears(prefix, attention, {"out": "attn.c_proj"})
        weights.linears(prefix, layer["mlp"], {"up": "mlp.c_fc", "down": "mlp.c_proj"})
    for name, weight in weights.items():
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            weights[name] = weight.T  # GPT-2's kernels are (in, out), like ours
    return model, weights


def _llama(transformers: Any, config: ModelConfig, params: dict[str, Any]) -> tuple[Any, Weights]:
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **single_stack_sizes(config),
            **SPECIAL,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_theta},
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    weights = Weights({"model.embed_tokens.weight": params["token_embedding"]["embedding"]})
    weights.norm("model.norm", params["final_norm"])
    for n, layer in numbered_layers(params):
        prefix = f"model.layers.{n}"
        weights.norm(f"{prefix}.input_layernorm", layer["attention_norm"])
        weights.norm(f"{prefix}.post_attention_layernorm", layer["mlp_norm"])
        attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
        weights.linears(f"{prefix}.self_attn", layer["attention"], attention)
        weights.linears(f"{prefix}.mlp", layer["mlp"], {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
    return model, weights


MAKERS = {
    "t5": _t5,
    "bart": _bart,
    "gpt2": _gpt2,
    "llama": _llama,
    "bert": published_bert,
    "roberta": published_roberta,
    "modernbert": published_modernbert,
}
