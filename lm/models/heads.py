from dataclasses import dataclass, fields
from typing import Any

from lm.config import ModelConfig


@dataclass(frozen=True)
class NextToken:
    head: str = "tokens"


@dataclass(frozen=True)
class MaskedTokens:
    max_masked: int
    next_sentence: bool
    head: str = "masked"


@dataclass(frozen=True)
class Classes:
    num_classes: int
    pooling: str
    head: str = "classes"


@dataclass(frozen=True)
class AnswerSpan:
    head: str = "span"


@dataclass(frozen=True)
class TextEmbedding:
    pooling: str
    head: str = "embedding"


@dataclass(frozen=True)
class Headed(ModelConfig):
    head: str = "tokens"
    num_classes: int = 0
    max_hidden: int = 0
    pair_head: bool = False


def headed(config: ModelConfig, head: Any) -> Headed:
    values = {each.name: getattr(config, each.name) for each in fields(ModelConfig)}
    values["pooling"] = getattr(head, "pooling", values["pooling"])
    return Headed(
        **values,
        head=head.head,
        num_classes=getattr(head, "num_classes", 0),
        max_hidden=getattr(head, "max_masked", 0),
        pair_head=getattr(head, "next_sentence", False),
    )
