"""Text from the model of a run: continuations of prompts, and an encoder-decoder's outputs for sources."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.checkpoints.averaging import averaged_params
from lm.config import Config, MeshConfig
from lm.data.tokenizing import load_tokenizer
from lm.decoding.beam import BeamSettings
from lm.decoding.lines import output_lines, prefix_of, source_text
from lm.decoding.loop import check_room
from lm.decoding.sampling import Sampling
from lm.decoding.text import encode_prompts, sample_many, stream_text
from lm.decoding.translate import cut_sources, encode_sources, sample_texts, search_texts
from lm.errors import UserError
from lm.models.transformer.wiring import Model, build_model
from lm.parallel.mesh import make_mesh, on_mesh
from lm.reporting.progress import counting
from lm.runs.directory import RunDirectory
from lm.runs.prepare import cache_directory, load_tokenizers
from lm.tasks import task_of

LONGEST_DEFAULT = 256  # tokens of a continuation
BATCH_SIZE_DEFAULT = 16  # continuations at a time


@dataclass(frozen=True)
class TrainedRun:
    """A run and which of its parameters to use.

    Attributes:
        step: of the checkpoint; None for the best.
        average: number of checkpoints to average, the latest up to `step`.
    """

    directory: RunDirectory
    config: Config
    step: int | None = None
    average: int = 1

    def load(self, rows: int) -> tuple[Model, Any, Mesh]:
        """Returns the model, its parameters, and a mesh on which the texts of a batch are split.

        Each device of the mesh holds all parameters.

        Args:
            rows: texts in a batch; no more devices are used.
        """
        config = self.config
        jax.config.update("jax_compilation_cache_dir", str(cache_directory(config) / "xla"))
        # Cached decoding always uses xla, so a model trained with another chip's kernel runs here too.
        model = build_model(dataclasses.replace(config.model, attention="xla"), task_of(config).head(config))
        ema = config.optimizer.ema_decay > 0
        with self.directory.open_checkpoints(config) as checkpoints:
            if self.average > 1:
                params, _ = averaged_params(checkpoints, None, self.average, self.step, ema)
            else:
                params, _ = checkpoints.restore_params(step="best" if self.step is None else self.step, ema=ema)
        mesh = make_mesh(MeshConfig(), jax.local_devices()[: max(rows, 1)])
        return model, jax.device_put(params, NamedSharding(mesh, PartitionSpec())), mesh


def continue_prompts(
    run: TrainedRun,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_new_tokens: int | None = None,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> Iterator[str]:
    """Yields what to print, as soon as it is known: each prompt with its continuations.

    One prompt with one sample comes token by token; of several, each has a heading.

    Args:
        max_new_tokens: None for as many as fit, up to LONGEST_DEFAULT.
        batch_size: None for BATCH_SIZE_DEFAULT. Changes memory and speed, not the texts.

    Raises UserError if a prompt does not fit into the model's positions.
    """
    tokenizer = load_tokenizer(run.directory.tokenizer_dir)
    encoded = encode_prompts(tokenizer, prompts)
    max_length = run.config.model.max_length
    if max_new_tokens is None:
        max_new_tokens = max(1, min(LONGEST_DEFAULT, max_length - max(map(len, encoded))))
    check_room(encoded, max_new_tokens, max_length)
    rows = len(encoded) * num_samples
    batch_size = min(rows, batch_size or BATCH_SIZE_DEFAULT)
    model, params, mesh = run.load(batch_size)
    common = sampling, max_new_tokens, seed
    with on_mesh(mesh):
        if rows == 1:
            yield prompts[0]
            yield from stream_text(model, params, tokenizer, encoded[0], *common)
            yield "\n"
            return
        samples = sample_many(model, params, tokenizer, encoded, *common, num_samples, batch_size)
        for prompt, sample, text in samples:
            yield f"--- prompt {prompt + 1}, sample {sample + 1} ---\n{prompts[prompt]}{text}\n"


@dataclass(frozen=True)
class Translation:
    """Outputs of an encoder-decoder.

    Attributes:
        lines: without their ends; see `lm.decoding.lines.output_lines`.
        num_decoded: sources that are not empty.
        seconds: time spent on decoding.
    """

    lines: Iterator[str]
    num_decoded: int
    seconds: float


def translate(
    run: TrainedRun,
    texts: Sequence[str],
    settings: BeamSettings | Sampling,
    *,
    max_new_tokens: int,
    prefix: str | None = None,
    output_prefix: str = "",
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> Translation:
    """Returns the outputs of an encoder-decoder for each text, in the same order.

    Texts are cleaned and get a prefix as in training. An empty text has an empty output. Sources that are too long
    are cut, with a warning on stderr.

    Args:
        settings: of beam search, or of sampling.
        max_new_tokens: of each output, `output_prefix` included.
        prefix: put before every source; None for the prefix of the training data.
        output_prefix: text that every output starts with.
        num_samples: outputs per source, for sampling.
        batch_size: None for eval.generation.batch_size. Changes memory and speed, not the outputs.

    Raises UserError for settings out of range, or an output prefix as long as the longest output.
    """
    config, task = run.config, task_of(run.config)
    prefix = prefix_of(config) if prefix is None else prefix
    sources = [source_text(prefix, task.clean_source(config, text)) for text in texts]
    numbers = [number for number, source in enumerate(sources, start=1) if source is not None]
    tokenizers = load_tokenizers(config, run.directory.root)
    # Such a model has learned to read and write <extra_id_N> as tokens; for others they are text like any other.
    spelled = task.spells_extra_ids
    ids = encode_sources(tokenizers.source, [each for each in sources if each is not None], spelled=spelled)
    _warn_of_cuts(ids, numbers, config.data.source_length)
    ids = cut_sources(ids, config.data.source_length)
    ((*output_start, _),) = encode_sources(tokenizers.target, [output_prefix], spelled=spelled)  # without the end token
    if output_start and len(output_start) >= max_new_tokens:
        raise UserError(
            f"--output_prefix: has {len(output_start)} tokens, and an output has {max_new_tokens}; raise "
            "--max_new_tokens."
        )
    batch_size = min(len(ids), batch_size or config.eval.generation.batch_size)
    model, params, mesh = run.load(batch_size)
    common = model, params, tokenizers.target, ids
    start = time.monotonic()
    with on_mesh(mesh), counting(len(ids), "sentences") as report:
        rest = batch_size, report, output_start, spelled
        if isinstance(settings, Sampling):
            drawn = sample_texts(*common, settings, max_new_tokens, seed, num_samples, *rest)
            outputs = [[(text, str(number)) for number, text in enumerate(each, start=1)] for each in drawn]
        else:
            settings = dataclasses.replace(settings, max_new_tokens=max_new_tokens)
            found = search_texts(*common, settings, *rest)
            outputs = [[(text, f"{score:.6f}") for text, score in each] for each in found]
    seconds = time.monotonic() - start
    several = (num_samples if isinstance(settings, Sampling) else settings.num_hypotheses) > 1
    return Translation(output_lines(len(texts), dict(zip(numbers, outputs, strict=True)), several), len(ids), seconds)


def _warn_of_cuts(sources: list[list[int]], numbers: list[int], source_length: int) -> None:
    long = [number for number, ids in zip(numbers, sources, strict=True) if len(ids) > source_length]
    if long:
        print(
            f"warning: {len(long):,} of {len(sources):,} sources are longer than {source_length} tokens "
            f"(config.data.source_length) and were cut, the first in line {long[0]:,}.",
            file=sys.stderr,
        )
