"""Closed-form costs of a Transformer: parameters, FLOPs and activation memory.

The FLOPs of attention include the scores between each of the L queries and all L keys, as is usual for model FLOPs
utilisation (Chowdhery 2022, appendix B). Kernels that skip later keys or keys outside a window perform fewer FLOPs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp

from lm.config import ModelConfig
from lm.models.bottleneck import bottleneck_cost, memory_length
from lm.models.heads import Head
from lm.models.layers import ACTIVATIONS, NORM_POSITIONS, NORMS, activation_dtype, embedding_width, has_bias
from lm.models.protocol import Flops, ParameterCounts
from lm.models.transformer.attention_kernels import kernel_for_call
from lm.models.transformer.remat import REMAT_POLICIES


@dataclass(frozen=True)
class TowerSize:
    """The size of a tower, and the length of the rows that it processes."""

    layers: int
    length: int  # number of tokens in the row
    source_length: int = 0  # number of vectors that cross-attention reads; 0 if there is no cross-attention

    @property
    def attentions(self) -> int:
        return self.layers * (2 if self.source_length else 1)

    @property
    def sublayers(self) -> int:
        return self.layers + self.attentions


def towers(config: ModelConfig, head: Head, length: int, source_length: int = 0) -> list[TowerSize]:
    """Returns the tower sizes of a resolved config for `length` target tokens and `source_length` source tokens."""
    if config.family != "encoder_decoder":
        return [TowerSize(config.num_layers, length)]
    encoder = TowerSize(config.num_encoder_layers, source_length)
    return [encoder, TowerSize(config.num_layers, length, memory_length(config, head, source_length))]


def projections(config: ModelConfig) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """Returns two dicts {name: (inputs, outputs)}, for the projections of an attention layer and of an MLP."""
    D, F, K = config.d_model, config.d_ff, config.head_dim
    queries, keys = config.num_heads * K, config.num_kv_heads * K
    attention = {"query": (D, queries), "key": (D, keys), "value": (D, keys), "out": (queries, D)}
    gate = {"gate": (D, F)} if ACTIVATIONS[config.activation].gated else {}
    return attention, {"up": (D, F), "down": (F, D)} | gate


def parameter_counts(config: ModelConfig, head: Head) -> ParameterCounts:
    """Returns the exact parameter counts of a resolved config."""
    D, E, both = config.d_model, embedding_width(config), towers(config, head, 1, 1)
    if config.share_layers:
        both = [dataclasses.replace(each, layers=1) for each in both]
    source = 0
    if config.family == "encoder_decoder" and not config.share_embeddings:
        source = config.source_vocab_size or config.vocab_size
    positions = {"learned": config.max_length * E, "relative": config.relative_buckets * config.num_heads}
    num_layers, num_attentions = sum(each.layers for each in both), sum(each.attentions for each in both)
    layers = adapters = 0
    for number, group in zip((num_attentions, num_layers), projections(config), strict=True):
        for name, (inputs, outputs) in group.items():
            layers += number * (inputs + has_bias(config, name)) * outputs
            adapters += number * (inputs + outputs) * config.lora_rank * (name in config.lora_targets)
    if head.compresses_source:
        layers += bottleneck_cost(config, 1)[0]
    return ParameterCounts(
        token_embedding=(config.vocab_size + source + config.token_types) * E
        + len(both) * (E * D + D) * bool(config.embedding_width),
        position_embedding=len(both) * positions.get(config.positions, 0),
        layers=layers,
        norms=sum(_norm_parameters(config, each) for each in both),
        head=head.cost(config).parameters,
        adapters=adapters,
        num_layers=num_layers,
    )


def _norm_parameters(config: ModelConfig, tower: TowerSize) -> int:
    kind, position = NORMS[config.norm], NORM_POSITIONS[config.norm_position]
    heads = {"none": (0, 0), "head": (1, 1), "width": (config.num_heads, config.num_kv_heads)}[config.qk_norm]
    per_attention = sum(kind.num_parameters(config, each * config.head_dim) for each in heads if each)
    number = tower.sublayers * position.per_sublayer + (not position.sums)
    embedding_norm = kind.num_parameters(config, embedding_width(config)) * config.norm_embeddings
    return number * kind.num_parameters(config) + tower.attentions * per_attention + embedding_norm


def flops_per_row(config: ModelConfig, head: Head, length: int, source_length: int = 0) -> Flops:
    """Returns the FLOPs for one row of `length` tokens, plus `source_length` source tokens if there is an encoder."""
    D, queries, keys = config.d_model, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    per_token = sum(inputs * outputs for group in projections(config) for inputs, outputs in group.values())
    total = 0
    for each in towers(config, head, length, source_length):
        L, S = each.length, each.source_length
        products = per_token * L + 2 * L * L * queries  # the projections, then q k^T and weights times v
        if S:
            products += 2 * D * (queries * L + keys * S) + 2 * L * S * queries
        total += 2 * (each.layers * products + L * D * config.embedding_width)
    if head.compresses_source:
        total += bottleneck_cost(config, source_length)[1]
    return Flops(layers=head.texts_per_row * total, head=head.cost(config, length).flops)


def kernels(config: ModelConfig, tower: TowerSize, kernel: str) -> list[str]:
    """Returns the kernels that training uses for self-attention and, if there is any, for cross-attention.

    Args:
        kernel: the kernel of the model, which may not support the lengths of the tower.
    """
    L, S = tower.length, tower.source_length
    of_itself = kernel_for_call(kernel, L, L, cached=False, relative=config.positions == "relative")
    return [of_itself, kernel_for_call(kernel, L, S, cached=False)] if S else [of_itself]


def activation_bytes(
    config: ModelConfig, head: Head, length: int, source_length: int, tensor: int, kernel: str
) -> float:
    """Estimates how many bytes of activations each of the `tensor` devices keeps per row for the backward pass.

    The estimate counts the arrays that JAX's automatic differentiation saves in each block. XLA may save fewer arrays.
    """
    return sum(_tower_bytes(config, each, tensor, kernel) for each in towers(config, head, length, source_length))


def _tower_bytes(config: ModelConfig, tower: TowerSize, tensor: int, kernel: str) -> float:
    size = jnp.dtype(activation_dtype(config)).itemsize
    activation = ACTIVATIONS[config.activation]
    L, S, inputs = tower.length, tower.source_length, 1 + activation.gated
    D, F, queries = config.d_model, config.d_ff / tensor, config.num_heads * config.head_dim / tensor
    keys = config.num_kv_heads * config.head_dim / tensor
    num_norms = tower.sublayers / tower.layers * NORM_POSITIONS[config.norm_position].per_sublayer
    norms = num_norms * 3 * 4 * D * L  # saved in float32
    if config.qk_norm != "none":
        norms += 3 * 4 * (L * queries + (L + S) * keys + (L * queries if S else 0))
    attention = size * L * (3 * D + 3 * queries + 2 * keys)
    scores = 2 if config.attention_softcap else 1  # the capped scores are saved as well
    plain = sum(seen for seen, name in zip((L, S), kernels(config, tower, kernel), strict=False) if name == "xla")
    attention += config.num_heads / tensor * L * plain * (4 * scores + size)  # weights in float32 and in the dtype of v
    if S:
        attention += size * (L * (2 * D + 3 * queries) + S * 2 * keys)
    everything = norms + attention + size * L * (inputs * D + activation.tensors_kept * F)
    if config.remat == "none":
        return tower.layers * everything
    kept: float = size * D * L  # the output of each block
    policy = REMAT_POLICIES[config.remat]
    if policy.attention_projections:
        kept += size * L * (queries + 2 * keys + D)
        kept += size * (L * (queries + D) + S * 2 * keys) if S else 0
    if policy.attention_output:
        kept += size * L * queries * (2 if S else 1)
    if policy.mlp:
        kept += size * L * inputs * F
    return tower.layers * kept + everything  # one block at a time is recomputed in full
