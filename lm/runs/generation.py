"""Generates text with a run's model: continuations of prompts, or outputs of an encoder-decoder."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lm.config import Config, MeshConfig
from lm.config.experiment import replace_settings
from lm.data.tokenizing import load_tokenizer
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.decoding.answers import chat_vocabulary
from lm.decoding.beam import BeamSettings
from lm.decoding.lines import output_lines, prefix_of, source_text
from lm.decoding.loop import Sampler, check_fits
from lm.decoding.sampling import Sampling, Vocabulary, vocabulary_of
from lm.decoding.speculative import Pair
from lm.decoding.text import (
    SourceDecoder,
    cut_sources,
    encode_prompts,
    encode_sources,
    encode_texts,
    sample_many,
    stream_text,
    with_text,
)
from lm.errors import UserError
from lm.models import MODELS, build_model
from lm.models.parameters import with_int8_matrices
from lm.models.protocol import Model
from lm.parallel.mesh import make_mesh, on_mesh
from lm.reporting.progress import counting
from lm.runs.compile_cache import use_compile_cache
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, read_params
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of

LONGEST_DEFAULT = 256  # default maximum number of tokens in a continuation
BATCH_SIZE_DEFAULT = 16  # default number of continuations generated together


@dataclass(frozen=True)
class Generator:
    """A run and the settings for generating text with its model."""

    directory: RunDirectory
    config: Config
    step: int | None  # step of the checkpoint; None means the best checkpoint
    average: int  # number of checkpoints to average (the latest ones up to `step`)
    max_new_tokens: int | None  # number of new tokens per sampled text; None means the default
    num_samples: int  # number of samples per text
    seed: int
    batch_size: int | None  # number of texts to generate together; None means the default
    int8: bool = False  # whether to round matrices to 8 bits
    # The run directory of a small model that drafts tokens for sampling; None means no drafts. The small model
    # is loaded from its best checkpoint, and `int8` applies to it as well.
    draft: str | None = None
    draft_tokens: int = 4  # number of tokens that are drafted at a time

    def load(self, rows: int) -> tuple[Model, Any, Mesh]:
        """Returns the model, its parameters, and the mesh on which the parameters are replicated.

        The mesh has at most `rows` devices. Raises UserError if the model does not support 8-bit matrices, or if the
        saved parameters do not belong to the model described by config.json.
        """
        if self.int8 and not MODELS[self.config.model.architecture].int8:
            problem = f"does not support model.architecture={self.config.model.architecture}"
            raise UserError(f"--int8 {problem}; omit it.")
        use_compile_cache(self.config)
        # Cached decoding always uses xla, so a model trained with a kernel for other hardware also runs here.
        config = replace_settings(self.config, {"model.attention": "xla"})
        model = build_model(config.model, task_of(config).head(config))
        mesh = make_mesh(MeshConfig(), jax.local_devices()[: max(rows, 1)])
        options = Options(step="best" if self.step is None else str(self.step), average=self.average)
        params, *_ = read_params(self.directory, config, model, mesh, options)
        return model, jax.jit(with_int8_matrices)(params) if self.int8 else params, mesh

    def sampler(
        self, rows: int, sampling: Sampling, vocabulary: Vocabulary, max_new_tokens: int
    ) -> tuple[Sampler, Mesh]:
        """Returns a sampler and the mesh from `load`. Raises UserError if the draft model is incompatible."""
        directory = None if self.draft is None else self._draft_directory()  # checked before anything is loaded
        model, params, mesh = self.load(rows)
        if directory is None:
            return Sampler(model, params, sampling, vocabulary, max_new_tokens), mesh
        draft = dataclasses.replace(self, directory=directory, step=None, average=1, draft=None)
        draft = dataclasses.replace(draft, config=directory.load_config())
        small_model, small_params, _ = draft.load(rows)
        pair: Any = Pair(model, small_model)
        both = {"target": params, "draft": small_params}
        return Sampler(pair, both, sampling, vocabulary, max_new_tokens, self.draft_tokens), mesh

    def _draft_directory(self) -> RunDirectory:
        """Returns the run directory of the draft model. Raises UserError if it is incompatible with the run's model."""
        flag, directory = f"--draft={self.draft}", RunDirectory.existing(Path(self.draft or ""))
        own, other = self.config, directory.load_config()
        for config, root in ((own, self.directory.root), (other, directory.root)):
            if not MODELS[config.model.architecture].rewinds:
                problem = f"does not support model.architecture={config.model.architecture} ({root})"
                raise UserError(f"{flag}: speculative decoding {problem}; omit --draft.")
            if config.model.family != "decoder" or not task_of(config).writes_text:
                raise UserError(f"{flag}: the model in {root} does not continue texts; both models must be decoders.")
        if other.model.max_length < own.model.max_length:
            lengths = f"{other.model.max_length} positions, fewer than the {own.model.max_length}"
            problem = f"its model has {lengths} of {self.directory.root}"
            raise UserError(f"{flag}: {problem}; name a run with at least as many.")
        both = load_tokenizers(own, self.directory.root), load_tokenizers(other, directory.root)
        if len({(each.source.fingerprint, each.target.fingerprint) for each in both}) > 1:
            problem = f"its tokenizer differs from that of {self.directory.root}"
            raise UserError(f"{flag}: {problem}; train it with the same tokenizer (data.tokenizer.path).")
        return directory


def continue_prompts(
    run: Generator, prompts: Sequence[str], sampling: Sampling, as_chat: bool = False
) -> Iterator[str]:
    """Yields the text to print, each prompt followed by its continuation, as soon as it is generated.

    If `as_chat` is true, each prompt starts a separate conversation. A single continuation is yielded token by token.
    If there are several, each gets a heading. Raises UserError if a prompt is too long.
    """
    tokenizer = load_tokenizer(run.directory.tokenizer_dir)
    if as_chat:
        template = ChatTemplate(tokenizer, run.config.data.chat_template, datetime.now())
        encoded = [template.prompt_ids([{"role": "user", "content": prompt}]) for prompt in prompts]
        vocabulary, prompts = chat_vocabulary(template), [f"{prompt}\n" for prompt in prompts]
    else:
        prompts = [task_of(run.config).clean_source(run.config, prompt) for prompt in prompts]
        encoded, vocabulary = encode_prompts(tokenizer, prompts), vocabulary_of(tokenizer)
    max_length, max_new_tokens = run.config.model.max_length, run.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = max(1, min(LONGEST_DEFAULT, max_length - max(map(len, encoded))))
    check_fits(encoded, max_new_tokens, max_length)
    rows = len(encoded) * run.num_samples
    batch_size = min(rows, run.batch_size or BATCH_SIZE_DEFAULT)
    sampler, mesh = run.sampler(batch_size, sampling, vocabulary, max_new_tokens)
    with on_mesh(mesh):
        if rows == 1:
            yield prompts[0]
            yield from stream_text(sampler, tokenizer, encoded[0], run.seed)
            yield "\n"
            return
        samples = sample_many(sampler, tokenizer, encoded, run.seed, run.num_samples, batch_size)
        for prompt, sample, text in samples:
            yield f"--- prompt {prompt + 1}, sample {sample + 1} ---\n{prompts[prompt]}{text}\n"


@dataclass(frozen=True)
class Translation:
    """The outputs of an encoder-decoder, with the number of decoded sources and the time spent."""

    lines: Iterator[str]  # output lines without line endings; see `lm.decoding.lines.output_lines`
    num_decoded: int  # number of non-empty sources
    seconds: float  # time spent on decoding


def longest_output(run: Generator, settings: BeamSettings | Sampling) -> int:
    """Returns the maximum number of new tokens per output."""
    config = run.config
    max_new_tokens = settings.max_new_tokens if isinstance(settings, BeamSettings) else run.max_new_tokens
    if max_new_tokens is None:  # one position is taken by the start token
        max_new_tokens = min(config.eval.generation.max_new_tokens, config.model.max_length - 1)
    return max_new_tokens


def encoded_sources(
    run: Generator, tokenizer: Tokenizer, texts: Sequence[str], prefix: str | None
) -> tuple[list[int], list[list[int]]]:
    """Returns the numbers of the non-empty texts, counted from 1, and their token ids.

    Texts are cleaned and prefixed as in training. If `prefix` is not None, it replaces the training prefix. Long
    sources are truncated, with a warning on stderr.
    """
    config, task = run.config, task_of(run.config)
    prefix = prefix_of(config) if prefix is None else prefix
    sources = [source_text(prefix, task.clean_source(config, text)) for text in texts]
    # For some tasks, models read and write <extra_id_N> as a single token; for other tasks, it is ordinary text.
    every = encode_sources(tokenizer, [each or "" for each in sources], spelled=task.spells_extra_ids)
    decoded = with_text(tokenizer, every)
    numbers, ids = [index + 1 for index in decoded], [every[index] for index in decoded]
    longest = config.data.source_length
    if long := [number for number, each in zip(numbers, ids, strict=True) if len(each) > longest]:
        problem = f"{len(long):,} of {len(ids):,} sources are longer than {longest} tokens (config.data.source_length)"
        print(f"warning: {problem} and were truncated; the first is on line {long[0]:,}.", file=sys.stderr)
    return numbers, cut_sources(tokenizer, ids, longest)


def translate(
    run: Generator, texts: Sequence[str], settings: BeamSettings | Sampling, prefix: str | None, output_prefix: str
) -> Translation:
    """Returns the outputs of an encoder-decoder for each text, in the order of the texts.

    Texts are cleaned and prefixed as in training. If `prefix` is not None, it replaces the training prefix. An empty
    text yields an empty output. Sources that are too long are truncated, with a warning on stderr. Every output starts
    with `output_prefix`. Raises UserError if a setting is out of range, or if the output prefix alone reaches the
    maximum number of new tokens.
    """
    config, spelled = run.config, task_of(run.config).spells_extra_ids
    max_new_tokens = longest_output(run, settings)
    tokenizers = load_tokenizers(config, run.directory.root)
    numbers, ids = encoded_sources(run, tokenizers.source, texts, prefix)
    (output_start,) = encode_texts(tokenizers.target, [output_prefix], spelled=spelled)
    if output_start and len(output_start) >= max_new_tokens:
        sizes = f"the prefix has {len(output_start)} tokens, but outputs have at most {max_new_tokens}"
        raise UserError(f"--output_prefix: {sizes}; increase --max_new_tokens.")
    num_outputs = len(ids) * (run.num_samples if isinstance(settings, Sampling) else 1)  # decoded separately
    batch_size = min(num_outputs, run.batch_size or config.eval.generation.batch_size)
    model, params, mesh = run.load(batch_size)
    start = time.monotonic()
    with on_mesh(mesh), counting(len(ids), "sentences") as report:
        decoder = SourceDecoder(model, params, tokenizers.target, batch_size, report, output_start, spelled)
        if isinstance(settings, Sampling):
            drawn = decoder.sample(ids, settings, max_new_tokens, run.seed, run.num_samples)
            outputs = [[(text, str(number)) for number, text in enumerate(each, start=1)] for each in drawn]
        else:
            found = decoder.search(ids, settings)
            outputs = [[(text, f"{score:.6f}") for text, score in each] for each in found]
    seconds = time.monotonic() - start
    several = (run.num_samples if isinstance(settings, Sampling) else settings.num_hypotheses) > 1
    return Translation(output_lines(len(texts), dict(zip(numbers, outputs, strict=True)), several), len(ids), seconds)
