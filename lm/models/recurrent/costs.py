"""Closed-form costs of a recurrent model: parameters, FLOPs and activation memory."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config import ModelConfig
from lm.models.bottleneck import bottleneck_cost, memory_length
from lm.models.heads import Head
from lm.models.layers import NORMS, embedding_width
from lm.models.protocol import Flops, ParameterCounts
from lm.models.recurrent.attention import SCORES
from lm.models.recurrent.cells import CELLS
from lm.models.recurrent.latents import latent_cost


@dataclass(frozen=True)
class StackSize:
    """The size of a stack of layers, and the length of the rows that it reads."""

    layers: int
    directions: int
    length: int

    def widths(self, config: ModelConfig) -> list[tuple[int, int]]:
        """Returns (number of inputs, number of units) for each direction of each layer."""
        inputs = [embedding_width(config), *[config.d_model] * (self.layers - 1)]
        return [(each, config.d_model // self.directions) for each in inputs for _ in range(self.directions)]


def stacks(config: ModelConfig, length: int, source_length: int) -> list[StackSize]:
    if config.family == "encoder_decoder":
        return [StackSize(config.num_encoder_layers, 2, source_length), StackSize(config.num_layers, 1, length)]
    return [StackSize(config.num_layers, 2 if config.family == "encoder" else 1, length)]


def _attends(config: ModelConfig) -> bool:
    return config.family == "encoder_decoder" and SCORES[config.source_attention].function is not None


def parameter_counts(config: ModelConfig, head: Head) -> ParameterCounts:
    """Returns the exact parameter counts of a resolved config."""
    cell, D, E = CELLS[config.cell], config.d_model, embedding_width(config)
    both = stacks(config, 1, 1)
    layers = norms = 0
    for inputs, units in (widths for each in both for widths in each.widths(config)):
        layers += (inputs + units + 1) * cell.gates * units + cell.candidate_bias * units
        if config.cell_norm:
            norms += NORMS[config.norm].num_parameters(config, cell.gates * units)  # the norm of the input
            norms += (cell.gates + cell.state_norm) * units
    if _attends(config):
        score = SCORES[config.source_attention]
        layers += (2 + score.matrices) * D * D + score.vectors * D
    if head.compresses_source:
        layers += bottleneck_cost(config, 1)[0] + latent_cost(config)[0]
    source = 0
    if config.family == "encoder_decoder" and not config.share_embeddings:
        source = config.source_vocab_size or config.vocab_size
    num_layers = sum(each.layers for each in both)
    embeddings = (config.vocab_size + source) * E
    return ParameterCounts(embeddings, 0, layers, norms, head.cost(config).parameters, num_layers=num_layers)


def flops_per_row(config: ModelConfig, head: Head, length: int, source_length: int = 0) -> Flops:
    """Returns the FLOPs for one row of `length` tokens, plus `source_length` source tokens if there is an encoder."""
    gates, D, total = CELLS[config.cell].gates, config.d_model, 0
    for each in stacks(config, length, source_length):
        total += sum(2 * each.length * (inputs + units) * gates * units for inputs, units in each.widths(config))
    if _attends(config):
        score = SCORES[config.source_attention]
        vectors = memory_length(config, head, source_length)
        total += 2 * D * D * (2 * length + length * (score.matrices > 0) + vectors * (score.matrices > 1))
        total += 2 * 2 * length * vectors * D  # the scores and the weighted mean
    if head.compresses_source:
        total += bottleneck_cost(config, source_length)[1] + latent_cost(config)[1]
    return Flops(layers=head.texts_per_row * total, head=head.cost(config, length).flops)


def activation_bytes(config: ModelConfig, head: Head, length: int, source_length: int) -> float:
    """Estimates how many bytes of activations are kept per row for the backward pass, in float32.

    Each direction keeps its input, x W and h U of all gates, its states before and after each token, and its output.
    """
    cell, total = CELLS[config.cell], 0.0
    for each in stacks(config, length, source_length):
        for inputs, units in each.widths(config):
            total += 4 * each.length * (inputs + (2 * cell.gates + 2 * len(cell.states) + 1) * units)
    if _attends(config):
        vectors = memory_length(config, head, source_length)
        kept = 2 * length * vectors + 4 * length * config.d_model
        additive = length * vectors * config.d_model * SCORES[config.source_attention].vectors
        total += 4 * (kept + additive)
    return total
