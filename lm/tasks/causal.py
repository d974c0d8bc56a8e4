"""Causal language modelling: predict each token from the tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lm.config import Config
from lm.data.packing.rows import EvalRows, RowSource, TrainRows, WindowExamples, WindowRows
from lm.data.packing.stateful import StatefulEvalRows, StatefulRows
from lm.data.storing.words import clean_words
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.language import BigramBaseline, UnigramBaseline, XzBaseline
from lm.evaluation.evaluator import EvaluationRows
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.stateful_evaluator import StatefulEvaluator
from lm.evaluation.token_metrics import language_metrics, missing_metrics, xz_bits_per_byte
from lm.tasks.task import SAMPLING, VOCABULARY, EvaluationSetup, Metrics, Refuse, Stores
from lm.tasks.texts import STORING, DocumentTask

WITHOUT_BOS = "the first token of each document is predicted from EOS, since the tokenizer has no BOS token"


class Causal(DocumentTask):
    """Cuts the concatenated documents into windows, one per row. Evaluation windows may overlap (eval.stride)."""

    name = "causal"
    doc = "predict each token from all earlier tokens"
    families = ("decoder",)
    metric_names = ("loss", "perplexity", "token_accuracy", "bits_per_byte", "word_perplexity")
    settings = (
        STORING | SAMPLING | VOCABULARY | {"eval.stride", "eval.compare_with_xz", "eval.sample_tokens", "data.stateful"}
    )
    settings |= {"data.cleaning.lowercase", "data.cleaning.segment", "model.output_penalty", "model.change_penalty"}
    writes_text = True
    windowed = True

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        return "loss", "bits_per_byte"

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if not config.data.stateful:
            return
        if sum(source.weight > 0 for source in config.data.train.values()) > 1:
            refuse("data.stateful", "rows continue within one data source, but data.train has several; use only one.")
        if config.eval.stride != config.data.sequence_length:
            refuse("eval.stride", "with data.stateful, windows are consecutive and do not overlap; set this to 0.")

    def batch_settings(self, config: Config) -> list[Any]:
        return ["stateful"] if config.data.stateful else []

    def check_train(self, config: Config, where: str, store: Any) -> None:
        needed, found = config.data.sequence_length + 1, 0 if store is None else store.num_tokens
        if config.data.stateful and found < (rows := config.train.batch_size * config.data.sequence_length):
            raise UserError(
                f"{where} has {found} tokens for training, but the rows of one step need {rows} (train.batch_size * "
                "data.sequence_length, since data.stateful is set); add text, or lower one of these settings."
            )
        if found < needed:
            raise UserError(
                f"{where} has {found} tokens for training, but one row needs {needed} (data.sequence_length + 1); "
                "add text, or lower data.sequence_length."
            )

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        seed, length, batch_size = config.seed, config.data.sequence_length, config.train.batch_size
        rows_of: Callable[[str, Any], RowSource] = partial(WindowRows, seed=seed, length=length)
        if config.data.stateful:
            rows_of = partial(StatefulRows, seed=seed, length=length, batch_size=batch_size)
        sources = {name: rows_of(name, store) for name, store in stores.items()}
        return TrainRows(config, sources, self.layout(config))

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> Mapping[str, EvaluationRows]:
        length, stride, layout = config.data.sequence_length, config.eval.stride, self.layout(config)
        if config.data.stateful:
            rows_of = partial(StatefulEvalRows, length=length, stretches=config.eval.batch_size, layout=layout)
            return {name: rows_of(store) for name, store in stores.items()}
        return {name: EvalRows(WindowExamples(store, length, stride), layout) for name, store in stores.items()}

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        missing = partial(missing_metrics, with_xz=setup.config.eval.compare_with_xz)
        has_bos = setup.tokenizers.target.bos_id is not None
        signatures = {} if has_bos else {"perplexity": WITHOUT_BOS}
        if setup.config.data.stateful:
            stretches = setup.config.eval.batch_size
            signatures["context"] = f"the state is carried along each of {stretches} stretches (eval.batch_size)"
            return [StatefulEvaluator(self, setup, language_metrics, missing, signatures)]
        return [TokenEvaluator(self, setup, language_metrics, missing, signatures)]

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        return UnigramBaseline(), BigramBaseline(), XzBaseline()

    def yardsticks(self, config: Config, stores: Stores, tokenizer: Tokenizer, metrics: Metrics) -> dict[str, float]:
        if not config.eval.compare_with_xz or "bits_per_byte" not in metrics:
            return {}
        return {"xz_bits_per_byte": xz_bits_per_byte(stores, tokenizer)}

    def sample_prompts(self, config: Config) -> tuple[str, ...]:
        return tuple(self.clean_source(config, prompt) for prompt in config.eval.prompts)

    def clean_source(self, config: Config, text: str) -> str:
        return clean_words(config.data.cleaning, text)
