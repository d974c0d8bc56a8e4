"""Changes to the rotary frequencies that let models read longer texts than those they were first trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lm.config import ModelConfig

# (config, theta, frequencies in radians per position) -> (changed frequencies, factor for all cosines and sines)
Rescale = Callable[[ModelConfig, float, np.ndarray], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class RopeScaling:
    """A value of model.rope_scaling."""

    doc: str
    reads: frozenset[str]  # the settings that have an effect with this value
    rescale: Rescale


def _unchanged(config: ModelConfig, theta: float, rates_K: np.ndarray) -> tuple[np.ndarray, float]:
    return rates_K, 1.0


def _linear(config: ModelConfig, theta: float, rates_K: np.ndarray) -> tuple[np.ndarray, float]:
    return rates_K / config.rope_factor, 1.0


def _llama3(config: ModelConfig, theta: float, rates_K: np.ndarray) -> tuple[np.ndarray, float]:
    """Divides low frequencies by rope_factor, keeps high frequencies unchanged and interpolates in between.

    A frequency is low if it makes at most rope_low_freq_factor full turns within the original length, and high if it
    makes at least rope_high_freq_factor turns (Grattafiori 2024; the code of Llama 3.1).
    """
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns_K = config.rope_original_length * rates_K / (2 * math.pi)
    kept_K = np.clip((turns_K - low) / (high - low), 0.0, 1.0)
    return rates_K * (kept_K + (1 - kept_K) / config.rope_factor), 1.0


def _yarn(config: ModelConfig, theta: float, rates_K: np.ndarray) -> tuple[np.ndarray, float]:
    """Divides low frequencies by rope_factor, keeps high ones unchanged and interpolates in between (Peng 2023).

    The interpolation is linear in the index of the frequency. It begins at the frequency that makes rope_beta_fast
    turns within the original length, and ends at the one that makes rope_beta_slow turns. Cosines and sines are
    multiplied by a factor, which sharpens the attention.
    """
    pairs = len(rates_K)

    def index_of(turns: float) -> float:
        return pairs * math.log(config.rope_original_length / (turns * 2 * math.pi)) / math.log(theta)

    low, high = index_of(config.rope_beta_fast), index_of(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    if low == high:
        high += 0.001
    divided_K = np.clip((np.arange(pairs) - low) / (high - low), 0.0, 1.0)
    factor = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1
    return rates_K * (1 - divided_K + divided_K / config.rope_factor), factor


_COMMON = frozenset({"rope_factor", "rope_scaling_local"})
_LLAMA3 = _COMMON | {"rope_original_length", "rope_low_freq_factor", "rope_high_freq_factor"}
_YARN = _COMMON | {"rope_original_length", "rope_beta_fast", "rope_beta_slow", "rope_attention_factor", "rope_truncate"}

ROPE_SCALINGS: dict[str, RopeScaling] = {
    "none": RopeScaling("", frozenset(), _unchanged),
    "linear": RopeScaling("divides all frequencies (Gemma 3)", _COMMON, _linear),
    "llama3": RopeScaling("divides only low frequencies (Llama 3.1)", _LLAMA3, _llama3),
    "yarn": RopeScaling("divides only low frequencies and sharpens the attention (Qwen 2.5)", _YARN, _yarn),
}
