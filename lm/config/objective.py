"""Settings of the training task and its loss."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.autoencoding import AutoencodingSettings
from lm.config.schema import option
from lm.config.word_vectors import ContextSettings


@dataclass(frozen=True)
class ObjectiveConfig(AutoencodingSettings, ContextSettings):
    """Settings of the training task and its loss. The plain cross-entropy is always reported as well."""

    name: str = option("causal", registry="lm.tasks.TASKS", affects="shapes")
    """Training task."""
    noise_density: float = option(0.15, minimum=0.01, maximum=0.9, affects="batches")
    """Fraction of tokens that are masked, for the tasks 'span_corruption', 'infilling' and 'masked'."""
    mean_span_length: float = option(3.0, minimum=1.0, affects="batches")
    """Mean length of a masked span, in tokens, for the tasks 'span_corruption' and 'infilling'."""
    permute_sentences: bool = option(False, affects="batches")
    """Shuffle the sentences of the source, as BART does (for the task 'infilling' only)."""
    whole_words: bool = option(False, affects="batches")
    """Mask only whole words (for the task 'masked' only)."""
    next_sentence: bool = option(False, affects="batches")
    """Join two texts and also predict whether the second follows the first (for the task 'masked' only)."""
    class_weights: tuple[float, ...] = ()
    """Loss weight of each label, in the order of data.labels, for the tasks 'classification' and 'tagging'."""
    balance_classes: bool = False
    """Weight each label inversely to its frequency (for the task 'classification' only)."""
    temperature: float = option(0.05, minimum=0.001)
    """Temperature by which the similarities are divided (for the task 'contrastive' only)."""
    label_smoothing: float = option(0.0, minimum=0.0, maximum=0.9)
    """Probability mass that is moved from the target class to the classes selected by label_smoothing_over."""
    label_smoothing_over: str = option("vocabulary", choices=("vocabulary", "others"), needs=("label_smoothing",))
    """Classes that share the smoothed probability mass. 'vocabulary' selects all V entries of the vocabulary (Szegedy
    2016, Hugging Face); 'others' selects the V - 1 entries other than the target (fairseq)."""
    logit_chunks: int = option(0, minimum=0, affects="nothing")
    """Number of parts in which the logits over the vocabulary and their loss are computed, so that only one part is in
    memory at a time. 1 means all at once; 0 means a number that suits their size and the platform."""
    z_loss: float = option(0.0, minimum=0.0)
    """Weight of the log(Z)^2 penalty, which keeps logits small (PaLM: 1e-4)."""
