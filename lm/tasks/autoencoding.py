"""Autoencoding: compress a text into latent vectors and reconstruct it from them alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.examples.autoencoding import AutoencodingExamples, DropAndShuffle
from lm.data.examples.example import Examples
from lm.data.examples.labelled import TextExamples
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.metric import names
from lm.evaluation.reconstruction import RECONSTRUCTION_METRICS, ReconstructionEvaluator
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import autoencoding_metrics, token_metrics
from lm.models.heads import Reconstruction
from lm.models.latents import DrawnLatents, MeanLatents
from lm.objectives.autoencoding import autoencoding_loss, kl_weight
from lm.objectives.losses import LossSums
from lm.tasks.denoising import Denoising
from lm.tasks.task import EvaluationSetup, Stores
from lm.tasks.vectors import SourceTexts, TextVectors

MODEL_SETTINGS = "latent_size latent_vectors variational"
OBJECTIVE_SETTINGS = "source_dropout shuffle_distance word_dropout kl_weight kl_annealing_steps kl_annealing free_bits"
VARIATIONAL_METRICS = ("kl", "negative_elbo", "perplexity_bound")


class Autoencoding(Denoising):
    """Plain, denoising and variational autoencoders (Hinton 2006, Vincent 2008, Kingma 2014; for text: Bowman 2016)."""

    name = "autoencoding"
    doc = "reconstruct a text from the latent vectors into which it is compressed"
    settings = Denoising.settings | {
        *(f"model.{name}" for name in MODEL_SETTINGS.split()),
        *(f"objective.{name}" for name in OBJECTIVE_SETTINGS.split()),
    }
    needed_ids = 0
    spells_extra_ids = False

    def head(self, config: Config) -> Any:
        return Reconstruction()

    def metrics(self, config: Config) -> tuple[str, ...]:
        more = VARIATIONAL_METRICS if config.model.variational else ("perplexity",)
        return "loss", *more, "token_accuracy", *names(RECONSTRUCTION_METRICS)

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        return "loss", *(("kl",) if config.model.variational else ()), "restored_tokens", "active_units"

    def batch_settings(self, config: Config) -> list[Any]:
        objective = config.objective
        corruption = [objective.source_dropout, objective.shuffle_distance, objective.word_dropout]
        return [config.data.source_length, objective.name, *corruption]

    def denoiser(self, config: Config, tokenizer: Tokenizer, extra_ids: list[int]) -> DropAndShuffle:
        objective = config.objective
        return DropAndShuffle(objective.source_dropout, objective.shuffle_distance, tokenizer.eos_id)

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Examples]:
        """Maps each data source to its examples, which are corrupted only in training."""
        denoiser, dropout = DropAndShuffle(0.0, 0, tokenizer.eos_id), 0.0
        if train:
            denoiser, dropout = self.denoiser(config, tokenizer, []), config.objective.word_dropout
        lengths, special = (config.data.source_length, config.data.sequence_length), tokenizer.special_tokens
        unknown = tokenizer.pad_id if tokenizer.unk_id is None else tokenizer.unk_id
        if dropout and tokenizer.unk_id is None and not tokenizer.is_special(unknown):
            problem = "the tokenizer has neither an unknown token nor a padding token to replace tokens with"
            raise UserError(f"config.objective.word_dropout: {problem}; set this to 0, or use a different tokenizer.")
        words: dict[str, Any] = {"word_dropout": dropout, "unknown": unknown}
        return {
            name: AutoencodingExamples(store, denoiser, lengths, special, config.seed, name, **words)
            for name, store in stores.items()
        }

    def training_loss(self, output: Output, batch: Batch, config: ObjectiveConfig, step: Array) -> LossSums:
        return autoencoding_loss(output, batch, config, kl_weight(step, config))

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return autoencoding_loss(output, batch, config, config.kl_weight)

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        """Returns the evaluator of the loss and the evaluator of the reconstructions.

        When the loss is computed, the latent vectors of a variational model are sampled.
        """
        scored, metrics = setup, token_metrics
        if setup.config.model.variational:
            scored, metrics = dataclasses.replace(setup, model=DrawnLatents(setup.model)), autoencoding_metrics
        reconstructions = ReconstructionEvaluator(self.labeller(setup.config), setup)
        return [TokenEvaluator(self, scored, metrics), reconstructions]

    def labeller(self, config: Config) -> LatentVectors:
        return LatentVectors("first", self.cleans, is_source=True)


class LoneSources(SourceTexts):
    """Sources that each occupy a whole row, because a row has latent vectors for only one text."""

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return (np.full(len(self), self._length, np.int64),)


@dataclasses.dataclass(frozen=True)
class LatentVectors(TextVectors):
    """A `Labeller` that returns the means of the latent vectors of each text, concatenated into one vector."""

    def kind_of_examples(self) -> type[TextExamples]:
        return LoneSources

    def applied(self, model: Any) -> Any:
        return MeanLatents(model)
