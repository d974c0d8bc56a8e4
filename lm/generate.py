"""Continues prompts with a trained model, or generates the outputs of an encoder-decoder.

python -m lm.generate --workdir=runs/quickstart --prompt="Once upon a time" --temperature=0.8 --top_p=0.95
python -m lm.generate --workdir=runs/multi30k_en_de --input=test.en --output=test.de --num_beams=5

If there is only one continuation, it is printed as it is generated. The sampling flags apply in the order documented in
lm/decoding/sampling.py. The same flags always produce the same text. On a terminal, control characters are escaped.

An encoder-decoder reads each line of --input, or each --prompt, as a source, and writes one output line per source, in
the same order. Sources are cleaned and prefixed as in training. An empty source produces an empty output. By default,
outputs come from beam search with the settings in eval.generation, which --num_beams and the other beam-search flags
override. With --temperature but without --num_beams, outputs are sampled. Line breaks within an output become spaces.
If a source has several outputs, each of them is a line with three tab-separated columns: source index, score (or sample
index), text. The --output file is created only once all outputs are complete. Models trained on span corruption, UL2 or
infilling read and write <extra_id_0>, <extra_id_1>, ... as tokens: --prompt="Thank you <extra_id_0> me to your party".
A UL2 source starts with the token of its mode: <extra_id_100> (R), <extra_id_101> (S) or <extra_id_102> (X).

An autoencoder (objective.name="autoencoding") reconstructs its sources. It can also decode other latent vectors:

python -m lm.generate --workdir=runs/autoencoder --from_prior --num_samples=5
python -m lm.generate --workdir=runs/autoencoder --prompt="one text" --prompt="another" --walk=spherical --points=7

The first command decodes latent vectors drawn from the prior of a variational autoencoder. The second decodes the
vectors of two texts and points between them. Each output text is one line.

--draft=runs/small speeds up a decoder without changing the distribution of its continuations: the small model, which
must have the same tokenizer, drafts tokens, and the large model checks them all in one call
(lm/decoding/speculative.py).
--int8 rounds the weights to 8 bits, which saves memory and changes the outputs slightly (lm/models/int8.py).

Each batch is split across all devices on this machine, and every device holds a copy of the model.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from absl import flags

from lm.config import GenerationConfig, SamplingConfig
from lm.config.command import DONE, check_speed_flags, define_path, define_speed_flags, run
from lm.config.schema import docs
from lm.decoding.beam import BeamSettings
from lm.decoding.lines import read_lines, refuse_same_file, show, whole_file
from lm.decoding.sampling import Sampling
from lm.errors import UserError
from lm.reporting.progress import duration
from lm.runs.directory import RunDirectory
from lm.runs.generation import (
    BATCH_SIZE_DEFAULT,
    LONGEST_DEFAULT,
    Generator,
    Translation,
    continue_prompts,
    translate,
)
from lm.runs.latent_texts import WALKS, sample_prior, walk
from lm.tasks import task_of

FLAGS = flags.FLAGS
DEFINE: dict[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
SAMPLING = tuple(docs(SamplingConfig))
SEARCH_SETTINGS = ("num_beams", "penalty", "length_penalty", "min_new_tokens", "no_repeat_ngram", "exact")
SEARCH = (*SEARCH_SETTINGS, "num_hypotheses")


def define_flags() -> None:
    define_path("workdir", "Run directory of the model.")
    flags.DEFINE_multi_string("prompt", [], "Text to continue (repeatable). An empty prompt starts a new text.")
    flags.DEFINE_bool("chat", False, "Treat each prompt as a message, to be rendered with the model's chat template.")
    define_path("prompts_file", "UTF-8 file with one prompt per line. Empty lines are skipped.")
    flags.DEFINE_integer("step", None, "Checkpoint step to use. By default, the best step is used.")
    flags.DEFINE_integer("average", 1, "Average this many checkpoints, ending with --step.", lower_bound=1)
    flags.DEFINE_integer("num_samples", 1, "Number of continuations per prompt.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed for sampling.", lower_bound=0, upper_bound=2**31 - 1)
    doc = f"Maximum number of new tokens. The default is as many as fit, up to {LONGEST_DEFAULT}, or"
    flags.DEFINE_integer("max_new_tokens", None, f"{doc} eval.generation.max_new_tokens for encoder-decoders.")
    for name, doc in docs(SamplingConfig).items():
        DEFINE[type(getattr(SamplingConfig(), name))](name, None, f"{doc} The default is eval.sampling.{name}.")
    doc = f"Number of texts per batch, which affects only memory and speed. The default is {BATCH_SIZE_DEFAULT}, or"
    flags.DEFINE_integer("batch_size", None, f"{doc} eval.generation.batch_size for encoder-decoders.", lower_bound=1)

    define_speed_flags()

    only = "For encoder-decoders:"
    define_path("input", f"{only} UTF-8 file with one source per line.")
    define_path("output", f"{only} file to write. By default, the outputs are printed.")
    flags.DEFINE_string("prefix", None, f"{only} prefix of every source. The default is the prefix used in training.")
    doc = "text with which every output must begin; it counts towards --max_new_tokens."
    flags.DEFINE_string("output_prefix", "", f"{only} {doc}")
    for name in SEARCH_SETTINGS:
        doc = f"{only} overrides eval.generation.{name}. {docs(GenerationConfig)[name]}"
        DEFINE[type(getattr(GenerationConfig(), name))](name, None, doc)
    flags.DEFINE_integer("num_hypotheses", 1, f"{only} number of best outputs to write per source.")

    only = "For autoencoders:"
    flags.DEFINE_bool("from_prior", False, f"{only} write --num_samples texts that are sampled from the prior.")
    doc = "write texts at points on a path through the latent space from the first --prompt to the second."
    flags.DEFINE_enum("walk", None, list(WALKS), f"{only} {doc}")
    flags.DEFINE_integer("points", 7, "Number of texts of a --walk, including both ends.", lower_bound=2)


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; specify the run directory of the model, e.g. --workdir=runs/quickstart.")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if not task_of(config).writes_text:
        problem = f"a model with objective.name={config.objective.name} generates no text"
        raise UserError(f"--workdir={FLAGS.workdir}: {problem}; score it with eval.py --workdir={FLAGS.workdir}.")
    sampling = Sampling.of(config.eval.sampling, values_of(SAMPLING))
    names = ("step", "average", "max_new_tokens", "num_samples", "seed", "batch_size", "int8", "draft", "draft_tokens")
    generator = Generator(directory, config, **values_of(names))
    check_speed_flags()
    from_latents = FLAGS.from_prior or FLAGS.walk is not None
    if from_latents and not task_of(config).head(config).compresses_source:
        flag = "from_prior" if FLAGS.from_prior else "walk"
        problem = f"applies only to autoencoders, but {FLAGS.workdir} has objective.name={config.objective.name}"
        raise UserError(f"--{flag} {problem}; omit the flag.")
    if from_latents:
        refuse(("draft",), "does not apply to autoencoders; omit it.")
        write_latent_texts(generator, sampling)
    elif config.model.family == "encoder_decoder":
        refuse(("draft",), f"applies only to models that continue text, unlike the one in {FLAGS.workdir}; omit it.")
        write_outputs(generator, sampling)
    else:
        print_continuations(generator, sampling)
    return DONE


def values_of(names: Iterable[str]) -> dict[str, Any]:
    return {name: FLAGS[name].value for name in names}


def refuse(names: Iterable[str], because: str) -> None:
    """Raises UserError if any of the flags in `names` was given."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} {because}")


def report_unused(names: Iterable[str], because: str) -> None:
    """Prints a note for each flag in `names` that was given but has no effect."""
    for name in names:
        if FLAGS[name].present:
            print(f"note: --{name}={FLAGS[name].value} has no effect: {because}.", file=sys.stderr)


def report_unused_sampling(sampling: Sampling, read: Collection[str] = ()) -> None:
    """Prints a note for each flag that has no effect in greedy decoding, except for those in `read`."""
    if sampling.greedy:
        because = "with temperature 0, the most probable token is always chosen"
        names = ("top_k", "top_p", "min_p", "seed", "num_samples")
        report_unused([name for name in names if name not in read], because)


def print_continuations(generator: Generator, sampling: Sampling) -> None:
    because = f"applies only to encoder-decoders, but the model in {FLAGS.workdir} continues text"
    refuse(
        ("input", "output", "prefix", "output_prefix", "points", *SEARCH),
        f"{because}; give --prompt or --prompts_file.",
    )
    report_unused_sampling(sampling)
    for text in continue_prompts(generator, read_prompts(), sampling, FLAGS.chat):
        show(text)


def read_prompts() -> list[str]:
    prompts = list(FLAGS.prompt)
    if FLAGS.prompts_file is not None:
        lines = [line for line in read_lines(FLAGS.prompts_file, "prompts_file") if line.strip()]
        if not lines:
            raise UserError(f"--prompts_file={FLAGS.prompts_file} contains no prompts; write one prompt per line.")
        prompts += lines
    if not prompts:
        raise UserError('there is no prompt; give --prompt="..." (possibly empty) or --prompts_file=FILE.')
    return prompts


def write_outputs(generator: Generator, sampling: Sampling) -> None:
    refuse(("points",), "applies only to walks; give --walk too.")
    settings = search_or_sampling(generator, sampling)
    texts = read_sources()
    write_lines(lambda: translate(generator, texts, settings, FLAGS.prefix, FLAGS.output_prefix), len(texts), "sources")


def write_latent_texts(generator: Generator, sampling: Sampling) -> None:
    if FLAGS.from_prior and FLAGS.walk is not None:
        raise UserError("give either --from_prior or --walk, not both.")
    flag, unread = ("from_prior", ("prompt", "points")) if FLAGS.from_prior else ("walk", ("num_samples",))
    others = ("prompts_file", "chat", "input", "prefix", "output_prefix", "num_hypotheses")
    refuse((*unread, *others), f"cannot be combined with --{flag}; omit one of them.")
    settings = search_or_sampling(generator, sampling, read=("num_samples", "seed") if FLAGS.from_prior else ())
    if FLAGS.from_prior:
        write_lines(lambda: sample_prior(generator, settings), generator.num_samples, "texts")
    else:
        write_lines(lambda: walk(generator, settings, FLAGS.prompt, FLAGS.walk, FLAGS.points), FLAGS.points, "texts")


def search_or_sampling(generator: Generator, sampling: Sampling, read: Collection[str] = ()) -> BeamSettings | Sampling:
    """Returns the settings of beam search or, with --temperature, of sampling.

    Args:
        read: flags that have an effect in any case, because latent vectors are sampled.
    """
    if FLAGS["temperature"].present and not FLAGS["num_beams"].present:
        because = "applies only to beam search, but --temperature selects sampling"
        refuse(SEARCH, f"{because}; omit one of them, or give --num_beams.")
        report_unused_sampling(sampling, read)
        return sampling
    report_unused({"seed"}.difference(read), "beam search involves no randomness")
    because = "applies only to sampling; give --temperature too, and omit all beam-search flags."
    refuse([name for name in (*SAMPLING, "num_samples") if name not in read], because)
    # The flags override the settings in eval.generation.
    names = [each.name for each in dataclasses.fields(BeamSettings)]
    values: dict[str, Any] = {name: getattr(generator.config.eval.generation, name, None) for name in names}
    values |= {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    settings = BeamSettings(**values)
    settings.check()
    return settings


def write_lines(make: Callable[[], Translation], count: int, noun: str) -> None:
    """Prints the lines that `make` returns, or writes them to --output."""
    if FLAGS.output is None:
        for line in make().lines:
            show(f"{line}\n")
        return
    refuse_same_file(FLAGS.output, FLAGS.input, "input")
    with whole_file(FLAGS.output, "output") as write:
        made = make()
        write(made.lines)
    speed = f" ({made.num_decoded / made.seconds:.1f} sentences/s)" if made.num_decoded else ""
    print(f"written: {FLAGS.output}, {count:,} {noun} in {duration(made.seconds)}{speed}")


def read_sources() -> list[str]:
    refuse(("prompts_file", "chat"), "applies only to models that continue text; give --input.")
    if FLAGS.input is None and not FLAGS.prompt:
        raise UserError('there is no source; give --input=FILE or --prompt="...".')
    if FLAGS.input is not None and FLAGS.prompt:
        raise UserError("give either --input or --prompt, not both.")
    return list(FLAGS.prompt) if FLAGS.input is None else read_lines(FLAGS.input, "input")


if __name__ == "__main__":
    define_flags()
    run(main)
