"""Settings of the layers above the last block."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class HeadSettings:
    pooling: str = option(
        "",
        "Vector that represents a text: the vector of the first token, the vector of the last token, or the mean "
        "over all tokens. If empty, an encoder uses 'first' and the other families use 'last'.",
        choices=("", "first", "last", "mean"),
    )
    pooler: bool = option(
        False,
        "Add a linear layer and an activation function before the classifier, as in BERT.",
        parameters=("pooler", "pooler_norm"),
    )
    pooler_activation: str = option(
        "tanh",
        "Activation function of the pooler (DistilBERT: relu, ELECTRA and ModernBERT: gelu).",
        registry="lm.models.heads.POOLER_ACTIVATIONS",
    )
    pooler_bias: bool = option(True, "Use a bias in the pooler. ModernBERT has none.", parameters=("pooler",))
    pooler_norm: bool = option(False, "Add a norm after the pooler (ModernBERT).", parameters=("pooler_norm",))
    head_transform: bool = option(
        False,
        "Apply a linear layer, an activation function and a norm before the output projection, as in BERT "
        "(objective.name='masked' only).",
        parameters=("head_product", "head_norm"),
    )
    output_bias: bool = option(
        False,
        "Add a learned bias to the logit of each vocabulary entry, as in BERT and Marian.",
        parameters=("output_bias",),
    )
