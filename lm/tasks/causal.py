"""Causal language modelling: predict each token from the tokens before it."""

from __future__ import annotations

from functools import partial
from typing import Any

from lm.config import Config
from lm.data.packing.rows import EvalRows, TrainRows, WindowExamples, WindowRows
from lm.data.storing.words import clean_words
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.language import BigramBaseline, UnigramBaseline, XzBaseline
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import language_metrics, missing_metrics, xz_bits_per_byte
from lm.tasks.task import SAMPLING, SMOOTHING, EvaluationSetup, Metrics, Stores
from lm.tasks.texts import DocumentTask

WITHOUT_BOS = "the first token of each document is predicted from EOS, since the tokenizer has no BOS token"


class Causal(DocumentTask):
    """Cuts the concatenated documents into windows, one per row. Evaluation windows may overlap (eval.stride)."""

    name = "causal"
    doc = "predict each token from all earlier tokens"
    families = ("decoder",)
    metric_names = ("loss", "perplexity", "token_accuracy", "bits_per_byte", "word_perplexity")
    settings = SAMPLING | SMOOTHING | {"eval.stride", "eval.compare_with_xz", "eval.sample_tokens"}
    settings |= {"data.cleaning.lowercase", "data.cleaning.segment"}
    writes_text = True
    windowed = True

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        return "loss", "bits_per_byte"

    def check_train(self, config: Config, where: str, store: Any) -> None:
        needed, found = config.data.sequence_length + 1, 0 if store is None else store.num_tokens
        if found < needed:
            raise UserError(
                f"{where} has {found} tokens for training, but one row needs {needed} (data.sequence_length + 1); "
                "add text, or lower data.sequence_length."
            )

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        length = config.data.sequence_length
        sources = {name: WindowRows(name, store, config.seed, length) for name, store in stores.items()}
        return TrainRows(config, sources, self.layout(config))

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        length, stride, layout = config.data.sequence_length, config.eval.stride, self.layout(config)
        return {name: EvalRows(WindowExamples(store, length, stride), layout) for name, store in stores.items()}

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        missing = partial(missing_metrics, with_xz=setup.config.eval.compare_with_xz)
        has_bos = setup.tokenizers.target.bos_id is not None
        signatures = {} if has_bos else {"perplexity": WITHOUT_BOS}
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
