"""Estimates of training memory, and the peak speed and memory of chips. Models count their own parameters and FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from lm.config import Config
from lm.config.checks import MODELS
from lm.config.schema import entries
from lm.models.protocol import Model
from lm.objectives.chunks import chunks_for

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """The dense peak speed (in TFLOP/s) and the memory of one JAX device."""

    bfloat16: float | None  # None if the hardware does not support bfloat16
    float32: float  # float32 matmuls at JAX's default precision: TF32 on Ampere and later, bfloat16 on TPUs
    memory_gib: float  # approximate memory that a program can use, less than the nominal size


# The keys are values of `jax.Device.device_kind`. To support another chip, add a line and cite the source. GPU memory
# is approximately the "total capacity" that PyTorch reports. Where a comment says "halved", it quotes the data sheet,
# whose numbers are peaks "with sparsity": twice the dense peaks given here. Two third-party tables are cited: "Marin"
# is lib/fray/src/fray/device_flops.py in marin-community/marin; "titan" is torchtitan/tools/utils.py.
CHIPS: dict[str, Chip] = {
    # cloud.google.com/tpu/docs/v3 (and v4, v5e, v5p, v6e, tpu7x): peak and memory per chip. A device is a chip, except
    # on v3 and tpu7x, where it is one of a chip's two cores. This fact and the names are from
    # jax/_src/pallas/mosaic/tpu_info.py.
    "TPU v3": Chip(123 / 2, 123 / 2, 16),
    "TPU v4": Chip(275, 275, 32),
    "TPU v5 lite": Chip(197, 197, 16),
    "TPU v5e": Chip(197, 197, 16),
    "TPU v5": Chip(459, 459, 95),
    "TPU v5p": Chip(459, 459, 95),
    "TPU v6 lite": Chip(918, 918, 32),
    "TPU v6e": Chip(918, 918, 32),
    "TPU7x": Chip(2307 / 2, 2307 / 2, 96),
    # NVIDIA V100 data sheet (via Marin): float32 15.7 (SXM2), 14 (PCIe); float16 only on its tensor cores.
    "Tesla V100-SXM2-16GB": Chip(None, 15.7, 15),
    "Tesla V100-SXM2-32GB": Chip(None, 15.7, 31),
    "Tesla V100-PCIE-16GB": Chip(None, 14.0, 15),
    "Tesla V100-PCIE-32GB": Chip(None, 14.0, 31),
    # NVIDIA T4 data sheet (via Marin): float32 8.1.
    "Tesla T4": Chip(None, 8.1, 14),
    # NVIDIA A100 data sheet (via Marin, titan): BF16 312, TF32 156, for all form factors.
    "NVIDIA A100-SXM4-40GB": Chip(312, 156, 39),
    "NVIDIA A100-SXM4-80GB": Chip(312, 156, 79),
    "NVIDIA A100-PCIE-40GB": Chip(312, 156, 39),
    "NVIDIA A100 80GB PCIe": Chip(312, 156, 79),
    # NVIDIA A10 data sheet (via Marin): BF16 125, TF32 62.5. The A10G (AWS g5) has no public data sheet: 70 is from
    # baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference; other tables, including Marin, list the A10's numbers.
    "NVIDIA A10": Chip(125, 62.5, 22),
    "NVIDIA A10G": Chip(70, 35, 22),
    # NVIDIA L4 and L40S data sheets (via resellers; L40S also via Marin), halved: BF16 242 and 733, TF32 120 and 366.
    # The L40S sheet also gives 362.05 without sparsity, which matches neither its 733 nor its clock (2.52 GHz: 366.5).
    "NVIDIA L4": Chip(121, 60, 22),
    "NVIDIA L40S": Chip(366.5, 183, 44),
    # NVIDIA H100 sheet (via Marin, titan), halved: BF16 1,979 (SXM), 1,513 (PCIe), 1,671 (NVL); TF32 989, 756, 835.
    "NVIDIA H100 80GB HBM3": Chip(989.5, 494.5, 79),
    "NVIDIA H100 PCIe": Chip(756.5, 378, 79),
    "NVIDIA H100 NVL": Chip(835.5, 417.5, 93),
    # NVIDIA H200 data sheet (SXM via Marin, titan): as fast as the H100 of the same form factor.
    "NVIDIA H200": Chip(989.5, 494.5, 139),
    "NVIDIA H200 NVL": Chip(835.5, 417.5, 139),
    # NVIDIA HGX B200 data sheet (via titan, pytorch/ao), halved: BF16 4,500; TF32 is half that, though listed as 2,200.
    "NVIDIA B200": Chip(2250, 1125, 178),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the dense peak FLOP/s of a device for dtype "bfloat16" or "float32", or None if it is unknown."""
    peak = getattr(CHIPS.get(device_kind), dtype, None)
    return None if peak is None else peak * 1e12


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes per device.

    The values for parameters and optimizer state are computed from array shapes; the other values are approximate.
    """

    parameters: int  # float32 parameters, including their moving average if there is one
    optimizer: int
    gradients: int
    copies: int  # copies of the weights in the compute dtype, gathered if fsdp splits them
    logits: int  # the logits that are computed together, and their gradients
    activations: int  # the activations that the forward pass keeps for the backward pass

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def estimate_memory(config: Config, model: Model, mesh: Mapping[str, int], platform: str) -> MemoryEstimate:
    """Estimates the memory per device on a mesh {"data": ..., "fsdp": ..., "tensor": ...} of devices of a platform.

    The estimate helps in choosing a batch size. `python -m lm.aot` compiles the step and prints its exact memory use.
    """
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    layers_split = fsdp * (tensor if entries(MODELS)[config.model.architecture].splits_layers else 1)
    lengths = config.data.sequence_length, config.data.source_length
    counts = model.parameter_counts()
    others = counts.total - counts.norms - counts.position_embedding - counts.layers
    in_layers = counts.layers / layers_split
    held = others / (fsdp * tensor) + in_layers + counts.position_embedding / fsdp + counts.norms
    trained, in_matrices = held, held - counts.norms
    if config.model.lora_rank:  # only the adapters and the head are trained; other kinds of freezing are ignored
        trained, in_layers, in_matrices = (counts.adapters + counts.head) / (fsdp * tensor), 0, 0
    optimizer = entries("lm.training.optimizers.OPTIMIZERS")[config.optimizer.name]
    state = optimizer.state_size(config.optimizer)
    of_layers = in_layers * layers_split / math.prod(mesh.values()) if optimizer.divides_matrices else in_layers
    moments = state.block_matrix * of_layers + state.matrix * (in_matrices - in_layers)
    moments += state.vector * (trained - in_matrices)
    size = 2 if config.model.dtype == "bfloat16" else 4
    copied = held if config.model.dtype == "bfloat16" else 0
    if fsdp > 1:  # one layer and the output matrix are gathered at a time
        copied = (counts.layers / counts.num_layers + counts.token_embedding) / tensor
    rows = config.train.batch_size / (mesh["data"] * fsdp * config.train.accumulation)
    of_head = model.head.cost(config.model, lengths[0])
    logits, tokens = rows * of_head.logits / tensor, of_head.vocabulary_tokens
    wanted, matrix = config.objective.logit_chunks, of_head.output_matrix // tensor
    chunks = chunks_for(wanted, round(logits), matrix, tokens, platform) if tokens else 1
    return MemoryEstimate(
        parameters=round(4 * held * (2 if config.optimizer.ema_decay > 0 else 1)),
        optimizer=round(4 * moments),
        gradients=round(4 * trained * (2 if config.train.accumulation > 1 else 1)),
        copies=round(size * copied),
        logits=round(2 * 4 * logits / chunks),
        activations=round(rows * model.activation_bytes(*lengths, tensor)),
    )
