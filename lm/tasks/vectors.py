"""Computes vectors for texts, using any layer of a model and any pooling method. Supports models trained on any task.

A text or a pair of texts is encoded as in training, with the same special tokens. Mean and maximum pooling include the
special tokens, as in training.

E is the number of texts, T is the number of tokens per text, and D is the size of a vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lm.batch import Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.config.experiment import replace_settings
from lm.data.examples.example import cut_notes
from lm.data.examples.labelled import TextExamples, TextTokens
from lm.data.packing.rows import EvalRows, RowLayout
from lm.data.reading.inputs import TextInput
from lm.data.reading.readers import Labelled
from lm.data.storing import example_store
from lm.data.storing.example_store import ExampleStore
from lm.data.storing.splits import LabelledCleaner
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.errors import UserError
from lm.evaluation.prediction_evaluator import whole_examples
from lm.models.protocol import Model
from lm.objectives.losses import LossSums
from lm.tasks.classification import texts_of
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import Task

# Each function pools the token vectors of a text, (T, D), into one vector, (D,).
POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first": lambda vectors_TD: vectors_TD[0],
    "last": lambda vectors_TD: vectors_TD[-1],
    "mean": lambda vectors_TD: vectors_TD.mean(axis=0, dtype=np.float64).astype(np.float32),
    "max": lambda vectors_TD: vectors_TD.max(axis=0),
}


@dataclass(frozen=True)
class TextVectors:
    """A `Labeller` that computes one vector per text. Equal instances share their compiled programs."""

    pooling: str  # a key of POOLINGS
    cleans: bool  # whether texts are cleaned as in training
    is_source: bool  # whether texts are encoded as sources for an encoder-decoder that generates text
    layer: int | None = None  # from 0 (the embedding) to the model's `text_layers`; None means the last layer
    unit_length: bool = False  # whether each vector is scaled to length 1
    prefix: str = ""  # prepended to each text after cleaning

    input_reader = TextInput
    may_lack_answers = False
    loss_name = "loss"  # the loss is always 0

    @classmethod
    def of(cls, task: Task, config: Config, pooling: str, **options: Any) -> TextVectors:
        """Builds a `Labeller` for models trained on a task.

        Raises UserError if the pooling does not suit the model family.
        """
        family = config.model.family
        if pooling == "first" and family == "decoder":
            raise UserError("--pooling=first: the first token of a decoder sees no other token; use last, mean or max.")
        return cls(pooling, task.cleans, family == "encoder_decoder" and task.head(config).predicts_text, **options)

    def input_rows(
        self, config: Config, tokenizers: Tokenizers, inputs: Sequence[Labelled], unanswerable: bool = False
    ) -> EvalRows:
        rules = LabelledCleaner(config.data.cleaning)
        raw = [dataclasses.replace(rules.clean(each) if self.cleans else each, label="0") for each in inputs]
        tokenizer = tokenizers.source if self.is_source else tokenizers.target
        prefixed = [dataclasses.replace(each, text=self.prefix + each.text) for each in raw]
        store = example_store.of_inputs(raw, TextTokens.encode(prefixed, tokenizer), tokenizer)
        length = config.data.source_length if self.is_source else config.data.sequence_length
        layout = RowLayout(length, with_types=config.model.token_types > 1, real_targets=True)
        unlabelled = replace_settings(config, {"data.labels": ()})
        return EvalRows(self.kind_of_examples()(store, unlabelled, tokenizer, False), layout)

    def kind_of_examples(self) -> type[TextExamples]:
        return SourceTexts if self.is_source else TextExamples

    def applied(self, model: Model) -> LayerOutput:
        """Returns a model that outputs the token vectors of `layer`. Raises UserError if there is no such layer."""
        layer, layers = self.layer, model.text_layers
        if layer is not None and not -layers - 1 <= layer <= layers:
            numbers = f"a number from 0 (the embedding) to {layers}, or -1 (the last layer)"
            raise UserError(f"--layer={layer}: the model has {layers} layers that read text; choose {numbers}.")
        return LayerOutput(model, layers if layer is None else layer % (layers + 1))

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return LossSums()

    def predict(self, config: Config, examples: TextExamples, logits: Mapping[int, np.ndarray]) -> Vectors:
        whole = whole_examples(examples, logits)
        vectors_ED = np.stack([POOLINGS[self.pooling](logits[number]) for (number,) in whole.values()])
        if self.unit_length:
            vectors_ED = vectors_ED / np.maximum(np.linalg.norm(vectors_ED, axis=1, keepdims=True), 1e-6)
        return Vectors([examples.store.raw[number] for number in whole], vectors_ED)


@dataclass(frozen=True)
class LayerOutput:
    """A wrapper around a model that returns the token vectors of a layer in place of the logits."""

    model: Model
    layer: int

    def apply(self, variables: Any, batch: Batch, *, train: bool = False) -> Output:
        return Output(self.model.token_vectors(variables, batch, self.layer))


@dataclass(frozen=True)
class Vectors:
    """Texts and their vectors, float32 (E, D)."""

    raw: list[Labelled]
    vectors_ED: np.ndarray

    def input_line(self, index: int) -> dict[str, Any]:
        """Returns a text and its `vector`, whose numbers have just enough digits to restore the float32 values."""
        vector = [float(str(value)) for value in self.vectors_ED[index]]
        return {**texts_of(self.raw[index]), "vector": vector}


# Makes predictions for new inputs; `LabelledTask` describes the methods.
Labeller: TypeAlias = LabelledTask | TextVectors


class SourceTexts(TextExamples):
    """Unlabelled sources of an encoder-decoder, with the same special tokens as in training."""

    def __init__(self, store: ExampleStore, config: Config, *args: Any):
        super().__init__(store, replace_settings(config, {"data.sequence_length": config.data.source_length}), *args)

    @staticmethod
    def special(tokenizer: Tokenizer) -> SpecialTokens:
        return tokenizer.special_tokens.as_source()

    def _note_cut(self, number: int, total: int, what: str) -> None:
        self.notes += cut_notes(number, total, what, "source_length", self._length)
