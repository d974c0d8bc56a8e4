"""Sequence to sequence: predict the target of a pair from its source, as in translation and summarisation."""

from __future__ import annotations

from typing import Any

from lm.config import Config
from lm.data.examples.example import Examples
from lm.data.examples.pairs import PairExamples
from lm.data.reading.readers import Pair
from lm.data.storing.splits import clean_text, split_sources
from lm.data.tokenizing.base import Tokenizer
from lm.decoding.lines import source_text
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.texts import Copy, Lead
from lm.evaluation.text_metrics import TEXT_METRICS
from lm.tasks.generating import SCORING, GeneratingTask
from lm.tasks.task import SEARCH, VOCABULARY, Refuse, Stores
from lm.tasks.texts import PairTask


class Seq2Seq(GeneratingTask, PairTask):
    """Learns to generate targets. If eval.generation.metrics is not empty, evaluations also score generated text."""

    name = "seq2seq"
    doc = "generate the target of a pair from its source"
    families = ("encoder_decoder",)
    settings = PairTask.settings | SEARCH | VOCABULARY | SCORING
    settings |= {"data.separate_vocabularies", "data.source_length", "data.pairs.overlong"}
    loss_name = "nll"
    plain_text_refusal = f"{PairTask.plain_text_refusal}, or generate text with lm.generate --input"

    baselines_need = "set eval.generation.metrics"

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        """Returns lead-k baselines if a metric scores summaries, and the copy baseline if any other metric is set."""
        metrics = [TEXT_METRICS[name] for name in config.eval.generation.metrics]
        leads = (Lead(1), Lead(3)) if any(metric.scores_summaries for metric in metrics) else ()
        return *leads, *((Copy(),) if any(not metric.scores_summaries for metric in metrics) else ())

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.data.separate_vocabularies and config.model.share_embeddings:
            refuse("model.share_embeddings", "two vocabularies cannot share embeddings; set share_embeddings to False.")

    def references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Returns the pairs whose targets are generated and scored, in the same order as in the stores.

        Sources are cleaned and prefixed as in training. As in lm.generate, a blank source becomes an empty text, which
        gets an empty output. References are unchanged, because metrics need the raw text.
        """
        found: dict[str, list[Any]] = {}
        for source in split_sources(config.data, split) if config.eval.generation.metrics else ():
            prefix = source.config.prefix
            pairs = [
                Pair(source_text(prefix, pair.source.removeprefix(prefix)) or "", raw.references)
                for pair, raw in source.read(*self.open(source))
            ]
            if pairs:
                found[source.name] = pairs
        return found

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Examples]:
        lengths = config.data.source_length, config.data.sequence_length
        drop = train and config.data.pairs.overlong == "drop"
        special = tokenizer.special_tokens
        return {name: PairExamples(store, *lengths, special, drop=drop) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        return (
            "every pair is longer than a row, so there is nothing to train on; use longer rows, or set "
            "data.pairs.overlong to 'truncate'."
        )

    def clean_source(self, config: Config, text: str) -> str:
        return clean_text(config.data.cleaning, text)
