"""What a config costs: parameters, FLOPs and bytes, from closed forms, and what chips can give.

FLOPs count every matrix product, a multiply-add as two, and nothing else (norms, softmax and the like
are a few percent more). Attention scores are counted in full, L keys for each of L queries, as is the
custom for the share of peak (Chowdhery 2022, appendix B); a causal kernel that skips the upper half, or
what lies outside a window, does less. What rematerialisation computes twice is counted once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from lm.config import Config, ModelConfig
from lm.config.schema import entries
from lm.models.heads import Head, HeadedConfig, with_head

TRAINING_FACTOR = 3  # forward, and backward one product for the input's gradient and one for the weight's


@dataclass(frozen=True)
class Stack:
    """One of a model's stacks of blocks, and the row that goes through it."""

    layers: int
    length: int  # tokens of the row
    source_length: int = 0  # tokens that cross-attention looks at; 0 where there is none

    @property
    def norms(self) -> int:
        return self.layers * (3 if self.source_length else 2)


def stacks(model: ModelConfig, length: int, source_length: int = 0) -> list[Stack]:
    """Of a resolved config, for rows of so many tokens on each side."""
    if model.family != "encoder_decoder":
        return [Stack(model.num_layers, length)]
    return [Stack(model.num_encoder_layers, source_length), Stack(model.num_layers, length, source_length)]


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by what they do."""

    token_embedding: int  # both, where source and target have their own; and that of token types
    position_embedding: int
    attention: int  # all layers of all stacks, biases included
    mlp: int
    norms: int
    heads: int  # 0 where the output is the embedding
    adapters: int = 0  # of low rank, beside products of the blocks

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def parameter_counts(model: ModelConfig, head: Head | None = None) -> ParameterCounts:
    """Exact counts of a resolved config."""
    config = with_head(model, head)
    D, F, bias = config.d_model, config.d_ff, int(config.use_bias)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norm = D * (1 + int(config.norm == "layernorm" and config.use_bias))
    towers = stacks(config, 1, 1)
    attentions = sum(each.layers * (2 if each.source_length else 1) for each in towers)
    own = (
        0
        if config.family != "encoder_decoder" or config.share_embeddings
        else config.source_vocab_size or config.vocab_size
    )
    positions = {"learned": config.max_length * D, "relative": config.relative_buckets * config.num_heads}
    outside = int(config.norm_position == "pre") + int(config.norm_embeddings)
    return ParameterCounts(
        token_embedding=(config.vocab_size + own + config.token_types) * D,
        position_embedding=len(towers) * positions.get(config.positions, 0),
        attention=attentions * (2 * D * (queries + keys) + bias * (queries + 2 * keys + D)),
        mlp=sum(each.layers for each in towers) * ((_gates(config) + 1) * D * F + bias * (_gates(config) * F + D)),
        norms=norm * sum(each.norms + outside for each in towers),
        heads=_head_parameters(config, norm),
        adapters=attentions * _adapters(config, "query", "key", "value", "out")
        + sum(each.layers for each in towers) * _adapters(config, "up", "gate", "down"),
    )


def _adapters(config: ModelConfig, *products: str) -> int:
    """Parameters of the adapters beside these products of one layer."""
    D, queries, keys = config.d_model, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sides = dict.fromkeys(("query", "out"), D + queries) | dict.fromkeys(("key", "value"), D + keys)
    sides |= dict.fromkeys(("up", "down"), D + config.d_ff) | {"gate": (D + config.d_ff) * config.gated}
    return config.lora_rank * sum(sides[name] for name in products if name in config.lora_targets)


def _head_parameters(config: HeadedConfig, norm: int) -> int:
    D, V = config.d_model, config.vocab_size
    square = D * D + D
    output = 0 if config.tie_embeddings or config.head not in ("tokens", "masked") else V * D
    if config.head == "masked":
        output += V * config.output_bias + (D * D + D * config.use_bias + norm) * config.head_transform
        output += (square + 2 * D + 2) * config.pair_head
    if config.head == "classes":
        output += (D + 1) * config.num_classes + square * config.pooler
    return output + (2 * D + 2) * (config.head == "span")


def _gates(config: ModelConfig) -> int:
    """Products from the width to the hidden width."""
    return 2 if config.gated else 1


@dataclass(frozen=True)
class Flops:
    """Of one row in a forward pass, by part; all layers together."""

    projections: int  # query, key, value and output products
    scores: int  # q k^T and weights x v, over the full length
    mlp: int
    logits: int  # and all else of the head

    @property
    def forward(self) -> int:
        return sum(dataclasses.astuple(self))

    @property
    def train(self) -> int:
        """Forward and backward."""
        return TRAINING_FACTOR * self.forward


def flops_per_row(model: ModelConfig, length: int, source_length: int = 0, head: Head | None = None) -> Flops:
    """FLOPs of one row of `length` tokens (and with an encoder `source_length`); a step's are `.train` x batch_size."""
    config = with_head(model, head)
    D, K, H, G = config.d_model, config.head_dim, config.num_heads, config.num_kv_heads
    projections = scores = mlp = 0
    for each in stacks(config, length, source_length):
        N, L, S = each.layers, each.length, each.source_length
        projections += N * 2 * D * K * (2 * H + 2 * G) * L
        scores += N * 2 * 2 * L * L * H * K
        if S:
            projections += N * 2 * D * K * (2 * H * L + 2 * G * S)
            scores += N * 2 * 2 * L * S * H * K
        mlp += N * 2 * (_gates(config) + 1) * D * config.d_ff * L
    twice = 2 if config.head == "embedding" else 1  # a text and its partner
    places = min(config.max_hidden or length, length) if config.head == "masked" else length
    logits = 2 * (_head_products(config) * places + _pair_products(config) * length)
    return Flops(projections=twice * projections, scores=twice * scores, mlp=twice * mlp, logits=logits)


def _head_products(config: HeadedConfig) -> int:
    """Multiply-adds for each token that has logits."""
    D, V, square = config.d_model, config.vocab_size, config.d_model**2
    return {
        "tokens": D * V,
        "masked": D * V + square * config.head_transform,
        "classes": D * config.num_classes + square * config.pooler,
        "span": 2 * D,
        "embedding": 0,
    }[config.head]


@dataclass(frozen=True)
class Chip:
    """One JAX device: dense peak FLOP/s and memory."""

    bfloat16: float | None  # None: not in hardware
    float32: float  # what a float32 product runs at by JAX's default: TF32 on Ampere and later, bfloat16 on TPU
    memory_gib: float  # about what a program gets: less than is printed on the box


def _tpu(peak: float, memory_gib: float) -> Chip:
    return Chip(peak * 1e12, peak * 1e12, memory_gib)


def _gpu(bfloat16: float | None, float32: float, memory_gib: float) -> Chip:
    return Chip(None if bfloat16 is None else bfloat16 * 1e12, float32 * 1e12, memory_gib)


# By `jax.Device.device_kind`. Vendors print GPU peaks "with sparsity": these are the dense ones, half of that.
# An unknown chip is left out of every figure, never guessed: add a line with its source. Memory of GPUs is about the
# "total capacity" that PyTorch reports. Where others' tables were read, and not the vendor's page, they are named:
# Marin is lib/fray/src/fray/device_flops.py of marin-community/marin, titan is torchtitan/tools/utils.py.
CHIPS: dict[str, Chip] = {
    # cloud.google.com/tpu/docs/v3 (and v4, v5e, v5p, v6e, tpu7x): peak and memory per chip. A device is a chip, but on
    # v3 and tpu7x one of its two cores; that, and the names: jax/_src/pallas/mosaic/tpu_info.py.
    "TPU v3": _tpu(123 / 2, 16),
    "TPU v4": _tpu(275, 32),
    "TPU v5 lite": _tpu(197, 16),
    "TPU v5e": _tpu(197, 16),
    "TPU v5": _tpu(459, 95),
    "TPU v5p": _tpu(459, 95),
    "TPU v6 lite": _tpu(918, 32),
    "TPU v6e": _tpu(918, 32),
    "TPU7x": _tpu(2307 / 2, 96),
    # NVIDIA V100 data sheet (by Marin): float32 15.7 (SXM2), 14 (PCIe); float16 only on its tensor cores.
    "Tesla V100-SXM2-16GB": _gpu(None, 15.7, 15),
    "Tesla V100-SXM2-32GB": _gpu(None, 15.7, 31),
    "Tesla V100-PCIE-16GB": _gpu(None, 14.0, 15),
    "Tesla V100-PCIE-32GB": _gpu(None, 14.0, 31),
    # NVIDIA T4 data sheet (by Marin): float32 8.1.
    "Tesla T4": _gpu(None, 8.1, 14),
    # NVIDIA A100 data sheet (by Marin, titan): BF16 312, TF32 156, in all forms.
    "NVIDIA A100-SXM4-40GB": _gpu(312, 156, 39),
    "NVIDIA A100-SXM4-80GB": _gpu(312, 156, 79),
    "NVIDIA A100-PCIE-40GB": _gpu(312, 156, 39),
    "NVIDIA A100 80GB PCIe": _gpu(312, 156, 79),
    # NVIDIA A10 data sheet (by Marin): BF16 125, TF32 62.5. A10G (AWS g5) has no data sheet to be read: 70 by
    # baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference; others, Marin too, give it the A10's figures.
    "NVIDIA A10": _gpu(125, 62.5, 22),
    "NVIDIA A10G": _gpu(70, 35, 22),
    # NVIDIA L4 and L40S data sheets (by resellers; L40S by Marin too), halved: BF16 242 and 733, TF32 120 and 366. For
    # the L40S it also prints 362.05 without sparsity, at odds with its 733 and with its clock (2.52 GHz: 366.5).
    "NVIDIA L4": _gpu(121, 60, 22),
    "NVIDIA L40S": _gpu(366.5, 183, 44),
    # NVIDIA H100 data sheet (by Marin, titan), halved: BF16 1,979 (SXM), 1,513 (PCIe), 1,671 (NVL); TF32 989, 756, 835.
    "NVIDIA H100 80GB HBM3": _gpu(989.5, 494.5, 79),
    "NVIDIA H100 PCIe": _gpu(756.5, 378, 79),
    "NVIDIA H100 NVL": _gpu(835.5, 417.5, 93),
    # NVIDIA H200 data sheet (SXM by Marin, titan): computes as the H100 of the same form.
    "NVIDIA H200": _gpu(989.5, 494.5, 139),
    "NVIDIA H200 NVL": _gpu(835.5, 417.5, 139),
    # NVIDIA HGX B200 data sheet (titan, pytorch/ao), halved: BF16 4,500; TF32 half of that, though printed as 2,200.
    "NVIDIA B200": _gpu(2250, 1125, 178),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense peak FLOP/s of a device for products in "bfloat16" or "float32"; None where it is not known."""
    chip = CHIPS.get(device_kind)
    return None if chip is None else getattr(chip, dtype)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device. Parameters and optimizer state follow from the shapes; the rest is approximate."""

    parameters: int  # float32, and their average if one is kept
    optimizer: int
    gradients: int
    copies: int  # of weights, in the compute dtype, gathered where fsdp splits them
    logits: int  # and their gradient
    activations: int  # kept from the forward for the backward pass

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def estimate_memory(
    config: Config, mesh: Mapping[str, int], kernel: str = "xla", head: Head | None = None
) -> MemoryEstimate:
    """What a training step needs on each device of a mesh {"data": ..., "fsdp": ..., "tensor": ...}.

    An estimate before anything is compiled, to warn with and to choose a batch by. `python -m lm.aot` gives XLA's
    own figure. `kernel` is the attention kernel: only xla keeps the scores.
    """
    model, fsdp, tensor = with_head(config.model, head), mesh["fsdp"], mesh["tensor"]
    counts = parameter_counts(model)
    matrices = (counts.total - counts.norms - counts.position_embedding) / (fsdp * tensor)
    held = matrices + counts.position_embedding / fsdp + counts.norms
    trained, in_blocks, in_matrices = held, (counts.attention + counts.mlp) / (fsdp * tensor), held - counts.norms
    if model.lora_rank:  # all else is frozen (layers that the optimizer's settings freeze are counted)
        trained, in_blocks, in_matrices = (counts.adapters + counts.heads) / (fsdp * tensor), 0, 0
    state = entries("lm.training.optimizers.OPTIMIZERS")[config.optimizer.name].state_size(config.optimizer)
    moments = (
        state.block_matrix * in_blocks
        + state.matrix * (in_matrices - in_blocks)
        + state.vector * (trained - in_matrices)
    )
    size = 2 if model.dtype == "bfloat16" else 4
    towers = stacks(model, config.data.sequence_length, config.data.source_length)
    if fsdp > 1:  # a layer and the output matrix at a time
        layers = sum(each.layers for each in towers)
        copied = ((counts.attention + counts.mlp) / layers + counts.token_embedding) / tensor
    else:
        copied = held if model.dtype == "bfloat16" else 0
    rows = config.train.batch_size / (mesh["data"] * fsdp * config.train.accumulation)
    return MemoryEstimate(
        parameters=round(4 * held * (2 if config.optimizer.ema_decay > 0 else 1)),
        optimizer=round(4 * moments),
        gradients=round(4 * trained * (2 if config.train.accumulation > 1 else 1)),
        copies=round(size * copied),
        logits=round(2 * 4 * rows * (model.max_hidden or config.data.sequence_length) * _logits(model) / tensor),
        activations=round(rows * sum(_activation_bytes(model, each, tensor, kernel) for each in towers)),
    )


def _pair_products(config: HeadedConfig) -> int:
    return (config.d_model**2 + 2 * config.d_model) * config.pair_head


def _logits(model: HeadedConfig) -> int:
    """For each token."""
    if model.head in ("tokens", "masked"):
        return model.vocab_size
    return {"classes": model.num_classes, "span": 2, "embedding": 0}[model.head]


# How many tensors of the hidden width an activation leaves for the backward pass, its product's input included.
HIDDEN_KEPT = {"relu": 2, "gelu": 4, "gelu_tanh": 6, "swiglu": 6, "geglu": 6, "geglu_tanh": 6}


def _activation_bytes(model: ModelConfig, stack: Stack, tensor: int, kernel: str) -> float:
    """What one row leaves behind in a stack, on one of `tensor` devices; approximate.

    The counts are those of the arrays that JAX's differentiation keeps of a block; XLA may keep fewer.
    """
    size = 2 if model.dtype == "bfloat16" else 4
    L, S = stack.length, stack.source_length
    D, F, queries = model.d_model, model.d_ff / tensor, model.num_heads * model.head_dim / tensor
    keys = model.num_kv_heads * model.head_dim / tensor
    norms = stack.norms / stack.layers * 3 * 4 * D * L  # in float32
    attention = size * L * (3 * D + 3 * queries + 2 * keys)
    if kernel == "xla":  # weights in float32, and as they enter their product
        attention += model.num_heads / tensor * L * (L + S) * (4 + size)
    if S:
        attention += size * (L * (2 * D + 3 * queries) + S * 2 * keys)
    everything = norms + attention + size * L * (_gates(model) * D + HIDDEN_KEPT[model.activation] * F)
    if model.remat == "none":
        return stack.layers * everything
    kept: float = size * D * L  # between blocks
    if model.remat == "dots":
        kept += size * L * (queries + 2 * keys + D + _gates(model) * F)
        kept += size * (L * (queries + D) + S * 2 * keys) if S else 0
    return stack.layers * kept + everything  # one block at a time is computed again in full
