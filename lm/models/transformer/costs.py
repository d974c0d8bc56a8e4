"""The costs of a Transformer in closed form: parameters, FLOPs and the memory of activations.

Attention scores count in full, L keys for each of L queries, as is usual for the share of peak FLOP/s (Chowdhery 2022,
appendix B). A causal kernel that skips the upper half, or what lies outside a window, does less.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm.config import ModelConfig
from lm.models.heads import Head
from lm.models.layers import ACTIVATIONS, NORMS
from lm.models.protocol import Flops, ParameterCounts


@dataclass(frozen=True)
class TowerSize:
    """One of the model's towers and the row that passes through it."""

    layers: int
    length: int  # tokens of the row
    source_length: int = 0  # tokens that cross-attention reads; 0 without cross-attention

    @property
    def norms(self) -> int:
        return self.layers * (3 if self.source_length else 2)


def towers(config: ModelConfig, length: int, source_length: int = 0) -> list[TowerSize]:
    """Returns the towers of a resolved config, for rows with these numbers of tokens on each side."""
    if config.family != "encoder_decoder":
        return [TowerSize(config.num_layers, length)]
    encoder = TowerSize(config.num_encoder_layers, source_length)
    return [encoder, TowerSize(config.num_layers, length, source_length)]


def attention_parameters(config: ModelConfig) -> int:
    """Returns the parameters of attention in all layers of all towers, without adapters."""
    D, bias = config.d_model, int(config.use_bias)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return _num_attentions(config) * (2 * D * (queries + keys) + bias * (queries + 2 * keys + D))


def mlp_parameters(config: ModelConfig) -> int:
    """Returns the parameters of the MLPs in all layers of all towers, without adapters."""
    D, F, bias = config.d_model, config.d_ff, int(config.use_bias)
    inputs = 1 + ACTIVATIONS[config.activation].gated
    return _num_layers(config) * ((inputs + 1) * D * F + bias * (inputs * F + D))


def parameter_counts(config: ModelConfig, head: Head) -> ParameterCounts:
    """Returns the exact counts of a resolved config."""
    D, both = config.d_model, towers(config, 1, 1)
    source = 0
    if config.family == "encoder_decoder" and not config.share_embeddings:
        source = config.source_vocab_size or config.vocab_size
    positions = {"learned": config.max_length * D, "relative": config.relative_buckets * config.num_heads}
    outside = int(config.norm_position == "pre") + int(config.norm_embeddings)
    return ParameterCounts(
        token_embedding=(config.vocab_size + source + config.token_types) * D,
        position_embedding=len(both) * positions.get(config.positions, 0),
        layers=attention_parameters(config) + mlp_parameters(config),
        norms=NORMS[config.norm].num_parameters(config) * sum(each.norms + outside for each in both),
        head=head.cost(config).parameters,
        adapters=_num_attentions(config) * _adapters(config, "query", "key", "value", "out")
        + _num_layers(config) * _adapters(config, "up", "gate", "down"),
        num_layers=_num_layers(config),
    )


def _num_layers(config: ModelConfig) -> int:
    return sum(each.layers for each in towers(config, 1, 1))


def _num_attentions(config: ModelConfig) -> int:
    return sum(each.layers * (2 if each.source_length else 1) for each in towers(config, 1, 1))


def _adapters(config: ModelConfig, *projections: str) -> int:
    """Returns the parameters of the adapters beside these projections of one layer."""
    D, queries, keys = config.d_model, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sides = dict.fromkeys(("query", "out"), D + queries) | dict.fromkeys(("key", "value"), D + keys)
    sides |= dict.fromkeys(("up", "down"), D + config.d_ff)
    sides["gate"] = (D + config.d_ff) * ACTIVATIONS[config.activation].gated
    return config.lora_rank * sum(sides[name] for name in projections if name in config.lora_targets)


def flops_per_row(config: ModelConfig, head: Head, length: int, source_length: int = 0) -> Flops:
    """Returns the FLOPs of one row of `length` tokens, and with an encoder of `source_length` tokens on its side."""
    D, K, H, G = config.d_model, config.head_dim, config.num_heads, config.num_kv_heads
    inputs = 1 + ACTIVATIONS[config.activation].gated
    total = 0
    for each in towers(config, length, source_length):
        N, L, S = each.layers, each.length, each.source_length
        total += N * 2 * D * K * (2 * H + 2 * G) * L  # query, key, value and output projections
        total += N * 2 * 2 * L * L * H * K  # q k^T and weights x v
        if S:
            total += N * 2 * D * K * (2 * H * L + 2 * G * S)
            total += N * 2 * 2 * L * S * H * K
        total += N * 2 * (inputs + 1) * D * config.d_ff * L
    return Flops(layers=head.texts_per_row * total, head=head.cost(config, length).flops)


def activation_bytes(config: ModelConfig, length: int, source_length: int, tensor: int, kernel: str) -> float:
    """Returns about how many bytes one row leaves behind for the backward pass, on one of `tensor` devices.

    The counts are those of the arrays that JAX's differentiation keeps of a block; XLA may keep fewer.
    """
    return sum(_tower_bytes(config, each, tensor, kernel) for each in towers(config, length, source_length))


def _tower_bytes(config: ModelConfig, tower: TowerSize, tensor: int, kernel: str) -> float:
    size = 2 if config.dtype == "bfloat16" else 4
    activation = ACTIVATIONS[config.activation]
    L, S, inputs = tower.length, tower.source_length, 1 + activation.gated
    D, F, queries = config.d_model, config.d_ff / tensor, config.num_heads * config.head_dim / tensor
    keys = config.num_kv_heads * config.head_dim / tensor
    norms = tower.norms / tower.layers * 3 * 4 * D * L  # in float32
    attention = size * L * (3 * D + 3 * queries + 2 * keys)
    if kernel == "xla":  # weights in float32, and in the dtype of their product
        attention += config.num_heads / tensor * L * (L + S) * (4 + size)
    if S:
        attention += size * (L * (2 * D + 3 * queries) + S * 2 * keys)
    everything = norms + attention + size * L * (inputs * D + activation.tensors_kept * F)
    if config.remat == "none":
        return tower.layers * everything
    kept: float = size * D * L  # between blocks
    if config.remat == "dots":
        kept += size * L * (queries + 2 * keys + D + inputs * F)
        kept += size * (L * (queries + D) + S * 2 * keys) if S else 0
    return tower.layers * kept + everything  # one block at a time is computed again in full
