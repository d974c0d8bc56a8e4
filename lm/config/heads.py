"""Settings of the layers above the last block."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class HeadSettings:
    pooling: str = option("", choices=("", "first", "last", "mean"))
    """Vector that represents a text: the vector of the first token, the vector of the last token, or the mean over all
    tokens. If empty, an encoder uses 'first' and the other families use 'last'."""
    pooler: bool = option(False, parameters=("pooler", "pooler_norm"))
    """Add a linear layer and an activation function before the classifier, as in BERT."""
    pooler_activation: str = option("tanh", registry="lm.models.heads.POOLER_ACTIVATIONS")
    """Activation function of the pooler (DistilBERT: relu; ELECTRA and ModernBERT: gelu)."""
    pooler_bias: bool = option(True, parameters=("pooler",))
    """Use a bias in the pooler. ModernBERT has none."""
    pooler_norm: bool = option(False, parameters=("pooler_norm",))
    """Add a norm after the pooler (ModernBERT)."""
    answer_pooler: bool = option(False, parameters=("pooler", "pooler_norm"))
    """Add the pooler before the linear layer that scores the start and the end of an answer (ModernBERT), for
    objective.name='span_qa'."""
    classifier_bias: bool = option(True, parameters=("classifier",))
    """Use a bias in the text or token classifier. Published text classifiers based on decoders have none."""
    head_transform: bool = option(False, parameters=("head_product", "head_norm"))
    """Apply a linear layer, an activation and a norm before the output projection (objective.name='masked' only)."""
    output_bias: bool = option(False, parameters=("output_bias",))
    """Add a learned bias to the logit of each vocabulary entry, as in BERT and Marian."""
