"""Settings of the training task and its loss."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the training task and its loss. The plain cross-entropy is always reported as well."""

    name: str = option("causal", "Training task.", registry="lm.tasks.TASKS", affects="shapes")
    noise_density: float = option(
        0.15,
        "Fraction of tokens that are masked, for objective.name='span_corruption', 'infilling' or 'masked'.",
        minimum=0.01,
        maximum=0.9,
        affects="batches",
    )
    mean_span_length: float = option(
        3.0,
        "Mean length of a masked span, in tokens, for objective.name='span_corruption' or 'infilling'.",
        minimum=1.0,
        affects="batches",
    )
    permute_sentences: bool = option(
        False, "Shuffle the sentences of the source, as BART does (objective.name='infilling' only).", affects="batches"
    )
    whole_words: bool = option(False, "Mask only whole words (objective.name='masked' only).", affects="batches")
    next_sentence: bool = option(
        False,
        "Join two texts and also predict whether the second follows the first, as in BERT (objective.name='masked' "
        "only).",
        affects="batches",
    )
    class_weights: tuple[float, ...] = option(
        (), "Loss weight of each label, in the order of data.labels, for objective.name='classification' or 'tagging'."
    )
    balance_classes: bool = option(
        False, "Weight each label inversely to its frequency (objective.name='classification' only)."
    )
    temperature: float = option(
        0.05, "Temperature by which the similarities are divided (objective.name='contrastive' only).", minimum=0.001
    )
    label_smoothing: float = option(
        0.0,
        "Probability mass that is moved from the target class to the classes selected by label_smoothing_over.",
        minimum=0.0,
        maximum=0.9,
    )
    label_smoothing_over: str = option(
        "vocabulary",
        "Classes that share the smoothed probability mass. 'vocabulary' selects all V entries of the vocabulary "
        "(Szegedy 2016, Hugging Face); 'others' selects the V - 1 entries other than the target (fairseq).",
        choices=("vocabulary", "others"),
        needs=("label_smoothing",),
    )
    z_loss: float = option(0.0, "Weight of the log(Z)^2 penalty, which keeps logits small (PaLM: 1e-4).", minimum=0.0)
