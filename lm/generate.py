"""Continues prompts with a trained model, or generates the outputs of an encoder-decoder.

python -m lm.generate --workdir=runs/quickstart --prompt="Once upon a time" --temperature=0.8 --top_p=0.95
python -m lm.generate --workdir=runs/multi30k_en_de --input=test.en --output=test.de --num_beams=5

A single continuation is printed as it is generated. The sampling flags apply in the order documented in
lm/decoding/sampling.py. The same flags always produce the same text. On a terminal, control characters are spelled out.

An encoder-decoder reads each line of --input, or each --prompt, as a source, and writes one output line per source, in
the same order. Sources are cleaned and prefixed as in training; an empty source has an empty output. Outputs come from
beam search with the settings in eval.generation, which --num_beams and the flags listed after it override; with
--temperature and no --num_beams, outputs are sampled. Line breaks within an output become spaces. If a source has
several outputs, each is a line of three tab-separated columns: source index, score (or sample index), text. The file
--output is created only when it is complete. Models trained on span corruption, UL2 or infilling read and write
<extra_id_0>, <extra_id_1>, ... as tokens: --prompt="Thank you <extra_id_0> me to your party". A UL2 source starts with
the token of its mode: <extra_id_100> (R), <extra_id_101> (S) or <extra_id_102> (X).

Each batch is split across all devices of this machine, and the model is replicated on each.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags

from lm.config.command import DONE, define_path, run
from lm.decoding.beam import BeamSettings
from lm.decoding.lines import read_lines, refuse_same_file, visible, whole_file
from lm.decoding.sampling import Sampling
from lm.errors import UserError
from lm.reporting.progress import duration
from lm.runs.directory import RunDirectory
from lm.runs.generation import BATCH_SIZE_DEFAULT, LONGEST_DEFAULT, Generator, continue_prompts, translate
from lm.tasks import task_of

FLAGS = flags.FLAGS
DEFAULTS = Sampling()
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SEARCH = ("num_beams", "penalty", "length_penalty", "min_new_tokens", "no_repeat_ngram", "exact", "num_hypotheses")


def define_flags() -> None:
    define_path("workdir", "Run directory of the model.")
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be repeated. If empty, starts a new text.")
    define_path("prompts_file", "UTF-8 file with one prompt per line; empty lines are skipped.")
    flags.DEFINE_integer("step", None, "Checkpoint step to use; by default the best.")
    flags.DEFINE_integer("average", 1, "Number of checkpoints to average, ending at --step.", lower_bound=1)
    flags.DEFINE_integer("num_samples", 1, "Number of continuations per prompt.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed for sampling.", lower_bound=0, upper_bound=2**31 - 1)
    flags.DEFINE_integer(
        "max_new_tokens",
        None,
        f"Maximum number of new tokens; by default as many as fit, up to {LONGEST_DEFAULT} (encoder-decoder: "
        "eval.generation.max_new_tokens).",
    )
    flags.DEFINE_float("temperature", DEFAULTS.temperature, "Divisor of the logits; 0 always picks the top token.")
    flags.DEFINE_integer("top_k", DEFAULTS.top_k, "Sample only from the k most probable tokens; 0 for all.")
    flags.DEFINE_float(
        "top_p", DEFAULTS.top_p, "Sample from the fewest top tokens whose total probability reaches p; 1 for all."
    )
    flags.DEFINE_float(
        "min_p", DEFAULTS.min_p, "Drop tokens less probable than min_p times the most probable one; 0 for none."
    )
    flags.DEFINE_float("repetition_penalty", DEFAULTS.repetition_penalty, "Above 1, makes repetition less likely.")
    flags.DEFINE_integer(
        "batch_size",
        None,
        f"Number of texts per batch; by default {BATCH_SIZE_DEFAULT} (encoder-decoder: eval.generation.batch_size). "
        "Affects memory and speed, not the texts.",
        lower_bound=1,
    )
    define_path("input", "Encoder-decoder: UTF-8 file with one source per line.")
    define_path("output", "Encoder-decoder: file to write; by default the outputs are printed.")
    flags.DEFINE_string("prefix", None, "Encoder-decoder: text before every source; by default as in training.")
    flags.DEFINE_string(
        "output_prefix", "", "Encoder-decoder: forced start of every output; counts towards --max_new_tokens."
    )
    flags.DEFINE_integer("num_beams", None, "Encoder-decoder: beam size; 1 is greedy.")
    flags.DEFINE_string("penalty", None, "Encoder-decoder: power or gnmt; see eval.generation.penalty.")
    flags.DEFINE_float("length_penalty", None, "Encoder-decoder: 0 for none; larger values favour longer outputs.")
    flags.DEFINE_integer("min_new_tokens", None, "Encoder-decoder: minimum number of tokens before the EOS token.")
    flags.DEFINE_integer(
        "no_repeat_ngram", None, "Encoder-decoder: never repeat an n-gram of this length; 0 for no limit."
    )
    flags.DEFINE_bool("exact", None, "Encoder-decoder: whether to search exhaustively; see eval.generation.exact.")
    flags.DEFINE_integer("num_hypotheses", 1, "Encoder-decoder: number of best outputs to write per source.")


def main() -> int:
    values: dict[str, Any] = {name: FLAGS[name].value for name in SAMPLING}
    sampling = Sampling(**values)
    sampling.check()
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name the run directory of the model, e.g. --workdir=runs/quickstart.")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if not task_of(config).writes_text:
        problem = f"a model with objective.name={config.objective.name} generates no text"
        raise UserError(f"--workdir={FLAGS.workdir}: {problem}; score it with eval.py --workdir={FLAGS.workdir}.")
    names = ("step", "average", "max_new_tokens", "num_samples", "seed", "batch_size")
    options: dict[str, Any] = {name: FLAGS[name].value for name in names}
    generator = Generator(directory, config, **options)
    if config.model.family == "encoder_decoder":
        write_outputs(generator, sampling)
    else:
        print_continuations(generator, sampling)
    return DONE


def refuse(names: tuple[str, ...], because: str) -> None:
    """Raises UserError if any of the flags in `names` was given."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name}: {because}")


def report_unused(names: tuple[str, ...], because: str) -> None:
    """Prints a line for each of the given flags that has no effect."""
    for name in names:
        if FLAGS[name].present:
            print(f"note: --{name}={FLAGS[name].value} has no effect: {because}.", file=sys.stderr)


def report_unused_sampling(sampling: Sampling) -> None:
    """Prints the given sampling flags that have no effect because --temperature=0 chooses the most probable token."""
    if sampling.greedy:
        because = "--temperature=0 always chooses the most probable token"
        report_unused(("top_k", "top_p", "min_p", "seed", "num_samples"), because)


def print_continuations(generator: Generator, sampling: Sampling) -> None:
    refuse(
        ("input", "output", "prefix", "output_prefix", *SEARCH),
        f"is for encoder-decoders, but the model in {FLAGS.workdir} continues text; give --prompt or --prompts_file.",
    )
    report_unused_sampling(sampling)
    for text in continue_prompts(generator, read_prompts(), sampling):
        show(text)


def show(text: str) -> None:
    """Prints text as it is to a file or a pipe, but with control characters spelled out to a terminal."""
    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def read_prompts() -> list[str]:
    prompts = list(FLAGS.prompt)
    if FLAGS.prompts_file is not None:
        lines = [line for line in read_lines(FLAGS.prompts_file, "prompts_file") if line.strip()]
        if not lines:
            raise UserError(f"--prompts_file={FLAGS.prompts_file}: contains no prompts; write one per line.")
        prompts += lines
    if not prompts:
        raise UserError('there is no prompt; give --prompt="..." (possibly empty) or --prompts_file=FILE.')
    return prompts


def write_outputs(generator: Generator, sampling: Sampling) -> None:
    settings: BeamSettings | Sampling = sampling
    if FLAGS["temperature"].present and not FLAGS["num_beams"].present:
        refuse(SEARCH, "is for beam search, but --temperature samples; omit one of them, or give --num_beams too.")
        report_unused_sampling(sampling)
    else:
        report_unused(("seed",), "beam search draws nothing at random")
        refuse((*SAMPLING, "num_samples"), "is for sampling; give --temperature too, and no beam-search flag.")
        # Flags override eval.generation.
        names = [each.name for each in dataclasses.fields(BeamSettings)]
        values: dict[str, Any] = {name: getattr(generator.config.eval.generation, name, None) for name in names}
        values |= {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
        settings = BeamSettings(**values)
        settings.check()
    texts = read_sources()
    if FLAGS.output is None:
        made = translate(generator, texts, settings, FLAGS.prefix, FLAGS.output_prefix)
        for line in made.lines:
            show(f"{line}\n")
        return
    refuse_same_file(FLAGS.output, FLAGS.input, "input")
    with whole_file(FLAGS.output, "output") as write:
        made = translate(generator, texts, settings, FLAGS.prefix, FLAGS.output_prefix)
        write(made.lines)
    speed = f" ({made.num_decoded / made.seconds:.1f} sentences/s)" if made.num_decoded else ""
    print(f"written: {FLAGS.output}, {len(texts):,} sources in {duration(made.seconds)}{speed}")


def read_sources() -> list[str]:
    refuse(("prompts_file",), "is for models that continue text; give --input.")
    if FLAGS.input is None and not FLAGS.prompt:
        raise UserError('there is no source; give --input=FILE or --prompt="...".')
    if FLAGS.input is not None and FLAGS.prompt:
        raise UserError("--input and --prompt: give only one.")
    return list(FLAGS.prompt) if FLAGS.input is None else read_lines(FLAGS.input, "input")


if __name__ == "__main__":
    define_flags()
    run(main)
