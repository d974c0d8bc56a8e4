"""What a model computes from its last layer. A task chooses the head; `with_head` joins it to the model's settings."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lm.config import ModelConfig


@dataclass(frozen=True)
class HeadedConfig(ModelConfig):
    """The settings of a model together with its head, which follows from the task and is no setting of the user's."""

    head: str = "tokens"  # tokens, masked, classes, span or embedding
    num_classes: int = 0  # of head=classes
    max_hidden: int = 0  # of head=masked: the largest number of masked tokens in a row; 0: all tokens get logits
    pair_head: bool = False  # of head=masked: also whether the second text follows the first


@dataclass(frozen=True)
class Head:
    """Base of the heads. `pooling` overrides model.pooling where it is not empty."""

    name: str = ""
    num_classes: int = 0
    max_masked: int = 0
    next_sentence: bool = False
    pooling: str = ""


def NextToken() -> Head:
    """Logits of the token that follows each one."""
    return Head("tokens")


def MaskedTokens(max_masked: int = 0, next_sentence: bool = False) -> Head:
    """Logits of masked tokens, for at most `max_masked` of each row; 0 for all."""
    return Head("masked", max_masked=max_masked, next_sentence=next_sentence)


def Classes(num_classes: int, pooling: str) -> Head:
    """Logits of labels, or one number, for each text (pooling first, last or mean) or each token (none)."""
    return Head("classes", num_classes=num_classes, pooling=pooling)


def AnswerSpan() -> Head:
    """Scores of each token as the first and as the last of an answer."""
    return Head("span")


def TextEmbedding(pooling: str) -> Head:
    """A vector of length 1 for the text of each row and for the one it is paired with."""
    return Head("embedding", pooling=pooling)


def with_head(config: ModelConfig, head: Head | None) -> HeadedConfig:
    """Returns the settings with a head; None for the next token, or for the head that `config` has already."""
    if isinstance(config, HeadedConfig) and head is None:
        return config
    head = head or NextToken()
    values = {each.name: getattr(config, each.name) for each in fields(ModelConfig)}
    values["pooling"] = head.pooling or values["pooling"]
    return HeadedConfig(
        **values,
        head=head.name,
        num_classes=head.num_classes,
        max_hidden=head.max_masked,
        pair_head=head.next_sentence,
    )
