"""Continues prompts with a trained model, or makes the outputs of an encoder-decoder.

python -m lm.generate --workdir=runs/quickstart --prompt="Once upon a time" --temperature=0.8 --top_p=0.95
python -m lm.generate --workdir=runs/multi30k_en_de --input=test.en --output=test.de --num_beams=5

One prompt with one sample appears as it is made. The order in which the sampling flags work is told
in lm/decoding/sampling.py. Equal flags give the same text.

An encoder-decoder reads each line of --input, or each --prompt, as a source, and gives a line for each in
the same order. Sources are cleaned and get their prefix as in training; an empty line gives an empty line.
Outputs are searched for by --num_beams and the flags after it, by default those of eval.generation. With
--temperature, and without --num_beams, they are drawn. Ends of lines within an output become spaces. With
several outputs of a source each has a line of three columns, with tabs between them: number of the source,
score (or number of the sample), text. --output appears when it is whole. Models of span corruption, UL2 and infilling
read and write <extra_id_0>, <extra_id_1>, ... as these tokens: --prompt="Thank you <extra_id_0> me to your party". A
source for UL2 begins with its mode, <extra_id_100> (R), 101 (S) or 102 (X).

The texts made at a time are split over all devices of this machine, each of which holds the whole model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.checkpoints.averaging import averaged_params
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, MeshConfig
from lm.config.command import DONE, run
from lm.data.tokenizing.tokenizers import load_tokenizer
from lm.decoding.beam import BeamSettings
from lm.decoding.lines import output_lines, prefix_of, read_lines, source_text, whole_file
from lm.decoding.loop import check_room
from lm.decoding.sampling import Sampling
from lm.decoding.text import encode_prompts, sample_many, stream_text
from lm.decoding.translate import cut_sources, encode_sources, sample_texts, search_texts
from lm.errors import UserError
from lm.models.transformer.wiring import Model, build_model
from lm.parallel.mesh import make_mesh, on_mesh
from lm.reporting.progress import bar, duration, fit
from lm.runs.directory import RunDirectory
from lm.runs.prepare import cache_directory, load_tokenizers
from lm.tasks import task_of

LONGEST_DEFAULT = 256
BATCH_SIZE_DEFAULT = 16  # of continuations

FLAGS = flags.FLAGS
DEFAULTS = Sampling()
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SEARCH = ("num_beams", "penalty", "length_penalty", "min_new_tokens", "no_repeat_ngram", "exact", "num_hypotheses")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of the model.")
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times. Empty: from the beginning.")
    flags.DEFINE_string("prompts_file", None, "UTF-8 file with a prompt on every line; empty lines are skipped.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the best if not given.")
    flags.DEFINE_integer(
        "average", 1, "Average the parameters of so many checkpoints, the latest up to --step.", lower_bound=1
    )
    flags.DEFINE_integer("num_samples", 1, "Continuations of every prompt.", lower_bound=1)
    flags.DEFINE_integer(
        "seed", 0, "Of the draws; each prompt and sample draws its own.", lower_bound=0, upper_bound=2**31 - 1
    )
    flags.DEFINE_integer(
        "max_new_tokens",
        None,
        f"Tokens to make at the most; if not given as many as fit, up to {LONGEST_DEFAULT} (encoder-decoder: "
        "eval.generation.max_new_tokens).",
    )
    flags.DEFINE_float("temperature", DEFAULTS.temperature, "Divides the logits; 0 takes the most probable token.")
    flags.DEFINE_integer("top_k", DEFAULTS.top_k, "Draw from the k most probable tokens only; 0 for all.")
    flags.DEFINE_float("top_p", DEFAULTS.top_p, "Draw from the most probable that together reach p; 1 for all.")
    flags.DEFINE_float("min_p", DEFAULTS.min_p, "Draw from those with p times the largest probability or more; 0: all.")
    flags.DEFINE_float(
        "repetition_penalty", DEFAULTS.repetition_penalty, "Above 1: tokens that were there before get less probable."
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        f"Texts made at a time; if not given {BATCH_SIZE_DEFAULT} (encoder-decoder: eval.generation.batch_size). "
        "Changes memory and speed, not the texts.",
        lower_bound=1,
    )
    flags.DEFINE_string("input", None, "Encoder-decoder: UTF-8 file with a source on every line.")
    flags.DEFINE_string("output", None, "Encoder-decoder: file to write; printed if not given.")
    flags.DEFINE_string("prefix", None, "Encoder-decoder: put before every source; if not given that of the training.")
    flags.DEFINE_string(
        "output_prefix", "", "Encoder-decoder: text that every output begins with; --max_new_tokens counts it too."
    )
    flags.DEFINE_integer("num_beams", None, "Encoder-decoder: hypotheses kept by beam search; 1 is greedy.")
    flags.DEFINE_string("penalty", None, "Encoder-decoder: power or gnmt; see eval.generation.penalty.")
    flags.DEFINE_float("length_penalty", None, "Encoder-decoder: 0 for none, more for longer outputs.")
    flags.DEFINE_integer("min_new_tokens", None, "Encoder-decoder: no end token before so many.")
    flags.DEFINE_integer("no_repeat_ngram", None, "Encoder-decoder: no n-gram of so many tokens comes twice; 0: may.")
    flags.DEFINE_bool("exact", None, "Encoder-decoder: search until no hypothesis can win; see eval.generation.exact.")
    flags.DEFINE_integer("num_hypotheses", 1, "Encoder-decoder: the best so many outputs of every source.")


def main() -> int:
    values: dict[str, Any] = {name: FLAGS[name].value for name in SAMPLING}
    sampling = Sampling(**values)
    sampling.check()
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name the run directory of the model, e.g. --workdir=runs/quickstart.")
    run_directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = run_directory.load_config()
    if not task_of(config).writes_text:
        raise UserError(
            f"--workdir={FLAGS.workdir}: a model of objective.name={config.objective.name} writes no text; score it "
            f"with eval.py --workdir={FLAGS.workdir}."
        )
    if config.model.family == "encoder_decoder":
        return translate(run_directory, config, sampling)
    return continue_prompts(run_directory, config, sampling)


def load_model(run_directory: RunDirectory, config: Config, rows: int) -> tuple[Model, Any, Mesh]:
    """The model, and parameters of the checkpoint asked for, or the mean of several, on a mesh for that many rows.

    Each device of the mesh has all parameters and takes a part of the rows.
    """
    jax.config.update("jax_compilation_cache_dir", str(cache_directory(config) / "xla"))
    # Cached decoding always uses xla, so a model trained with another chip's kernel runs here too.
    model = build_model(dataclasses.replace(config.model, attention="xla"), task_of(config).head(config))
    ema = config.optimizer.ema_decay > 0
    with Checkpoints(run_directory.checkpoints_dir, config.checkpoint, read_only=True) as checkpoints:
        if FLAGS.average > 1:
            params, _ = averaged_params(checkpoints, None, FLAGS.average, FLAGS.step, ema)
        else:
            params, _ = checkpoints.restore_params(step="best" if FLAGS.step is None else FLAGS.step, ema=ema)
    mesh = make_mesh(MeshConfig(), jax.local_devices()[: max(rows, 1)])
    return model, jax.device_put(params, NamedSharding(mesh, PartitionSpec())), mesh


def refuse(names: tuple[str, ...], because: str) -> None:
    """Raises UserError for the first of these flags that was given."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name}: {because}")


# --- decoder ----------------------------------------------------------------------------------------------


def continue_prompts(run_directory: RunDirectory, config: Config, sampling: Sampling) -> int:
    refuse(
        ("input", "output", "prefix", "output_prefix", *SEARCH),
        f"is for encoder-decoders, and the model of {FLAGS.workdir} continues text; give --prompt or --prompts_file.",
    )
    texts = read_prompts()
    tokenizer = load_tokenizer(run_directory.tokenizer_dir)
    prompts = encode_prompts(tokenizer, texts)
    longest, max_new_tokens = max(len(prompt) for prompt in prompts), FLAGS.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = max(1, min(LONGEST_DEFAULT, config.model.max_length - longest))
    check_room(prompts, max_new_tokens, config.model.max_length)
    rows = len(prompts) * FLAGS.num_samples
    batch_size = min(rows, FLAGS.batch_size or BATCH_SIZE_DEFAULT)
    model, params, mesh = load_model(run_directory, config, batch_size)
    common = sampling, max_new_tokens, FLAGS.seed
    with on_mesh(mesh):
        if rows == 1:
            print(texts[0], end="", flush=True)
            for text in stream_text(model, params, tokenizer, prompts[0], *common):
                print(text, end="", flush=True)
            print()
            return DONE
        samples = sample_many(model, params, tokenizer, prompts, *common, FLAGS.num_samples, batch_size)
        for prompt, sample, text in samples:
            print(f"--- prompt {prompt + 1}, sample {sample + 1} ---\n{texts[prompt]}{text}", flush=True)
    return DONE


def read_prompts() -> list[str]:
    """The prompts of --prompt and --prompts_file, in this order."""
    prompts = list(FLAGS.prompt)
    if FLAGS.prompts_file is not None:
        lines = [line for line in read_lines(FLAGS.prompts_file, "prompts_file") if line.strip()]
        if not lines:
            raise UserError(f"--prompts_file={FLAGS.prompts_file}: holds no prompt; write one on every line.")
        prompts += lines
    if not prompts:
        raise UserError('there is no prompt; give --prompt="..." (it may be empty) or --prompts_file=FILE.')
    return prompts


# --- encoder-decoder --------------------------------------------------------------------------------------


def translate(run_directory: RunDirectory, config: Config, sampling: Sampling) -> int:
    draws = FLAGS["temperature"].present and not FLAGS["num_beams"].present
    settings, max_new_tokens = search_settings(config), FLAGS.max_new_tokens
    if draws:
        refuse(SEARCH, "is for beam search, and --temperature draws; leave one out, or give --num_beams too.")
        if max_new_tokens is None:  # one position is the begin token's
            max_new_tokens = min(settings.max_new_tokens, config.model.max_length - 1)
    else:
        refuse((*SAMPLING, "num_samples"), "is for drawing; give --temperature too, and no flag of beam search.")
        settings.check()
    texts = read_sources()
    prefix = prefix_of(config) if FLAGS.prefix is None else FLAGS.prefix
    clean = task_of(config).clean_source
    sources = [source_text(prefix, clean(config, text)) for text in texts]
    with print_lines() if FLAGS.output is None else whole_file(FLAGS.output, "output") as write:
        tokenizers = load_tokenizers(config, run_directory.root)
        tokenizer, source_tokenizer = tokenizers.target, tokenizers.source
        numbers = [number for number, source in enumerate(sources, start=1) if source is not None]
        # What such a model has learned to read and write holds these tokens; in other text they are as it says.
        spelled = task_of(config).spells_extra_ids
        ids = encode_sources(source_tokenizer, [source for source in sources if source is not None], spelled=spelled)
        warn_of_cuts(ids, numbers, config.data.source_length)
        ids = cut_sources(ids, config.data.source_length)
        (output_prefix,) = encode_sources(tokenizer, [FLAGS.output_prefix], spelled=spelled)
        output_prefix.pop()  # the end token
        if output_prefix and len(output_prefix) >= (limit := max_new_tokens or settings.max_new_tokens):
            raise UserError(
                f"--output_prefix: has {len(output_prefix)} tokens, and an output has {limit}; raise --max_new_tokens."
            )
        batch_size = min(len(ids), FLAGS.batch_size or config.eval.generation.batch_size)
        model, params, mesh = load_model(run_directory, config, batch_size)
        common = model, params, tokenizer, ids
        rest = batch_size, progress(len(ids)), output_prefix, spelled
        began = time.monotonic()
        with on_mesh(mesh):
            if draws:
                drawn = sample_texts(*common, sampling, max_new_tokens, FLAGS.seed, FLAGS.num_samples, *rest)
                outputs = [[(text, str(number)) for number, text in enumerate(each, start=1)] for each in drawn]
            else:
                found = search_texts(*common, settings, *rest)
                outputs = [[(text, f"{score:.6f}") for text, score in each] for each in found]
        seconds = time.monotonic() - began
        several = (FLAGS.num_samples if draws else settings.num_hypotheses) > 1
        write(output_lines(len(texts), dict(zip(numbers, outputs, strict=True)), several))
    if FLAGS.output is not None:
        speed = f" ({len(ids) / seconds:.1f} sentences/s)" if ids else ""
        print(f"written: {FLAGS.output}, {len(texts):,} sources in {duration(seconds)}{speed}")
    return DONE


@contextlib.contextmanager
def print_lines() -> Iterator[Callable[[Iterable[str]], None]]:
    """In place of `whole_file`."""
    yield lambda lines: sys.stdout.writelines(f"{line}\n" for line in lines)


def search_settings(config: Config) -> BeamSettings:
    """Those of eval.generation, with what the flags say otherwise."""
    names = [each.name for each in dataclasses.fields(BeamSettings)]
    values: dict[str, Any] = {name: getattr(config.eval.generation, name, None) for name in names}
    values |= {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    return BeamSettings(**values)


def read_sources() -> list[str]:
    """The lines of --input, or the prompts."""
    refuse(("prompts_file",), "is for models that continue text; give --input.")
    if FLAGS.input is None and not FLAGS.prompt:
        raise UserError('there is no source; give --input=FILE or --prompt="...".')
    if FLAGS.input is not None and FLAGS.prompt:
        raise UserError("--input and --prompt: give one of them.")
    return list(FLAGS.prompt) if FLAGS.input is None else read_lines(FLAGS.input, "input")


def warn_of_cuts(sources: list[list[int]], numbers: list[int], source_length: int) -> None:
    long = [number for number, ids in zip(numbers, sources, strict=True) if len(ids) > source_length]
    if long:
        print(
            f"warning: {len(long):,} of {len(sources):,} sources are longer than {source_length} tokens "
            f"(config.data.source_length) and were cut, the first in line {long[0]:,}.",
            file=sys.stderr,
        )


def progress(total: int) -> Callable[[int, int], None] | None:
    """On a terminal, a line with how far it is, which goes at the end; None elsewhere."""
    if not total or not sys.stderr.isatty():
        return None
    first: list[tuple[int, float]] = []

    def report(done: int, total: int) -> None:
        now = time.monotonic()
        parts = [(0, f"{done:,} of {total:,} sentences")]
        if first:
            speed = (done - first[0][0]) / max(now - first[0][1], 1e-9)
            parts += [(2, f"{speed:.1f} sentences/s"), (1, f"{duration((total - done) / speed)} left")]
        elif done:  # what comes before is compiling
            first.append((done, now))
        line = fit(parts, shutil.get_terminal_size().columns - 1, lambda width: bar(width, done / total, sys.stderr))
        print("\r\x1b[K" + (line if done < total else ""), end="", file=sys.stderr, flush=True)

    report(0, total)
    return report


if __name__ == "__main__":
    define_flags()
    run(main)
