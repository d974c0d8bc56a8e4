"""Measures the speed of decoding beside `transformers` and CTranslate2, with the same weights, in turns, on the CPU.

    pip install -r requirements-benchmarks.txt     (and, to include it, ctranslate2)
    python -m benchmarks.decode --workdir=runs/multi30k --input=test_2016_flickr.en --output=results/decode.json

All systems compute in float32, get the same token ids and return token ids; tokenisation is not timed. For each row of
the table, the systems take turns, in alternating order, and their median times are reported. The first call of each
system, in which ours is compiled, is reported separately.

- The first --sentences lines are translated with the best checkpoint of a trained encoder-decoder: greedily, sampled
  (temperature 1, top-k 10), and by beam search with two rules for stopping. A search ends when no hypothesis can win
  any more (exact; early_stopping="never" in `transformers`), or earlier, when no hypothesis can win at its present
  length (early; early_stopping=False, the default in `transformers`). The script first checks that the logits agree
  within 1e-4.
- All lines are translated with finished sentences replaced by waiting ones (`lm.decoding.rows`), and in batches of
  sentences of similar length, each of which runs until its last sentence ends. The record also holds the number of
  decoder steps times rows.
- A decoder with random weights (6 layers of width 384) continues prompts of 4 to 32 tokens by sampling.

`transformers` decodes batches of sentences of similar length. CTranslate2 forms such batches itself, has one rule for
stopping, and is compared if the package is installed. Nothing else should run at the same time. The number of threads
is recorded.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks.decoding_systems import (
    Decode,
    Ids,
    batch_by_batch,
    continuing,
    ctranslate2,
    logits_difference,
    random_decoder,
    row_steps,
    sampling,
    searching,
)
from benchmarks.huggingface_peer import (
    build_decoder_peer,
    build_peer,
    frameworks,
    peer_continuations,
    peer_sample,
    peer_search,
)
from benchmarks.record import surroundings, write_record
from lm.config import command
from lm.decoding.beam import BeamSettings
from lm.decoding.lines import read_lines
from lm.decoding.sampling import Vocabulary, vocabulary_of
from lm.decoding.text import encode_sources
from lm.errors import UserError
from lm.models import build_model
from lm.models.parameters import count_parameters
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers

OURS = "ours"
TOLERANCE = 1e-4  # largest allowed difference between logits

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of a trained encoder-decoder.")
    flags.DEFINE_string("input", None, "UTF-8 file with one source per line.")
    flags.DEFINE_string("output", "", "JSON file in which to write the record.")
    flags.DEFINE_integer("sentences", 200, "Number of lines to decode beside other systems; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("num_beams", 5, "Beam size for beam search.", lower_bound=2)
    flags.DEFINE_integer("batch_size", 32, "Number of sources decoded at the same time.", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 128, "Number of tokens that continue each prompt of the decoder.", lower_bound=1)
    flags.DEFINE_integer("repetitions", 5, "Number of timed calls of each system after the first call.", lower_bound=1)
    flags.DEFINE_list("only", [], "Rows of the table to measure, such as greedy or beams_exact. By default, all.")


@dataclass
class Timed:
    """A system with its outputs and its measured times."""

    name: str
    decode: Decode
    outputs: list[Ids] = field(default_factory=list)
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def metrics(self, row: str, reference: Timed) -> dict[str, Any]:
        """Compares this system with `reference`, which is ours; ours is faster if `speed_of_ours` is above 1.

        Speeds are compared per token, since sampled outputs have different lengths.
        """
        median, tokens = statistics.median(self.seconds), sum(map(len, self.outputs))
        per_token = statistics.median(reference.seconds) / sum(map(len, reference.outputs))
        return {
            "row": row,
            "system": self.name,
            "sentences_per_second": round(len(self.outputs) / median, 2),
            "tokens_per_second": round(tokens / median, 1),
            "tokens": tokens,
            "median_seconds": round(median, 4),
            "seconds": [round(each, 4) for each in self.seconds],
            "first_call_seconds": round(self.first_seconds, 4),
            "speed_of_ours": round(median / tokens / per_token, 3),
            "same_as_ours": sum(a == b for a, b in zip(self.outputs, reference.outputs, strict=True)),
        }


def measure(ways: Sequence[Timed], repetitions: int, *, is_sampled: bool = False) -> None:
    """Runs the systems in turn, and sets the outputs and seconds of each system."""

    def timed(way: Timed) -> tuple[float, list[Ids]]:
        start = time.perf_counter()
        outputs = way.decode()
        return time.perf_counter() - start, outputs

    for way in ways:
        way.first_seconds, way.outputs = timed(way)
    for turn in range(repetitions):
        for way in ways[:: -1 if turn % 2 else 1]:
            seconds, outputs = timed(way)
            assert is_sampled or outputs == way.outputs, f"{way.name} decodes differently from call to call"
            way.seconds.append(seconds)


def print_table(figures: Sequence[dict[str, Any]]) -> None:
    table = Table()
    for column in ("", "system", "sentences/s", "tokens/s", "seconds", "(from, to)", "first call"):
        table.add_column(column, justify="left" if column in ("", "system") else "right")
    table.add_column("time / ours", justify="right")
    table.add_column("same as ours", justify="right")
    for each in figures:
        seconds = each["seconds"]
        table.add_row(
            each["row"],
            each["system"],
            f"{each['sentences_per_second']:.1f}",
            f"{each['tokens_per_second']:.0f}",
            f"{each['median_seconds']:.3f}",
            f"({min(seconds):.3f}, {max(seconds):.3f})",
            f"{each['first_call_seconds']:.2f} s",
            f"{each['speed_of_ours']:.2f}",
            str(each["same_as_ours"]),
        )
    Console(width=None if os.isatty(1) else 150).print(table)


@dataclass(frozen=True)
class Sizes:
    few: int  # number of sentences that all systems translate
    num_beams: int
    rows: int  # number of sentences or prompts that are decoded at the same time


def translation_rows(
    model: Any,
    params: Any,
    peer: Any,
    vocabulary: Vocabulary,
    sources: Sequence[Ids],
    greedy: BeamSettings,
    sizes: Sizes,
) -> dict[str, list[Timed]]:
    """Returns the systems to compare for each way of translating the first sentences; ours comes first."""
    few, rows = sources[: sizes.few], sizes.rows
    exact = dataclasses.replace(greedy, num_beams=sizes.num_beams)
    early = dataclasses.replace(exact, exact=False)
    other = ctranslate2(peer, vocabulary)
    found: dict[str, list[Timed]] = {}
    rules = ("greedy", greedy, False), ("beams_exact", exact, "never"), ("beams_early", early, False)
    for name, settings, rule in rules:
        theirs = functools.partial(peer_search, peer, settings=settings, vocabulary=vocabulary, early_stopping=rule)
        found[name] = [
            Timed(OURS, searching(model, params, few, settings, vocabulary, rows)),
            Timed("transformers", batch_by_batch(few, rows, theirs)),
        ]
        if other is not None and name != "beams_exact":
            found[name].append(Timed("CTranslate2", other.search(few, settings, rows)))
    length = greedy.max_new_tokens
    found["sampled"] = [
        Timed(OURS, sampling(model, params, few, vocabulary, length, rows)),
        Timed("transformers", batch_by_batch(few, rows, functools.partial(peer_sample, peer, vocabulary, length))),
    ]
    if other is not None:
        found["sampled"].append(Timed("CTranslate2", other.sample(few, length, rows)))
    for name, settings, _ in rules:
        arguments = settings, vocabulary, rows

        def one_batch(batch: Sequence[Ids], arguments: Any = arguments) -> list[Ids]:
            return searching(model, params, batch, *arguments)()

        found[f"all_{name}"] = [
            Timed(OURS, searching(model, params, sources, *arguments)),
            Timed(f"{OURS}, batch by batch", batch_by_batch(sources, rows, one_batch)),
        ]
    return found


def continuation_row() -> list[Timed]:
    """Returns the systems to compare for continuing prompts with a decoder."""
    model, params, vocabulary = random_decoder(FLAGS.new_tokens)
    peer = build_decoder_peer(model.config, params, vocabulary)
    random, rows, new = np.random.default_rng(0), FLAGS.batch_size, FLAGS.new_tokens
    prompts = [random.integers(3, vocabulary.size, size).tolist() for size in random.integers(4, 33, rows)]
    ways = [
        Timed(OURS, continuing(model, params, prompts, vocabulary, new, rows)),
        Timed("transformers", lambda: peer_continuations(peer, prompts, vocabulary, new)),
    ]
    if (other := ctranslate2(peer, vocabulary)) is not None:
        ways.append(Timed("CTranslate2", other.continue_prompts(prompts, new, rows)))
    return ways


def main() -> int:
    if not FLAGS.workdir or not FLAGS.input:
        raise UserError("--workdir and --input are needed (see --help).")
    if jax.default_backend() != "cpu":
        raise UserError("the comparison runs on the CPU: set JAX_PLATFORMS=cpu.")
    torch, transformers = frameworks()
    run = RunDirectory.existing(Path(FLAGS.workdir))
    config = run.load_config()
    if config.model.family != "encoder_decoder":
        raise UserError(f"--workdir={FLAGS.workdir}: is not an encoder-decoder (model.family={config.model.family}).")
    lines = read_lines(FLAGS.input, "input")
    if not lines:
        raise UserError(f"--input={FLAGS.input}: is empty.")
    tokenizers = load_tokenizers(config, run.root)
    vocabulary = vocabulary_of(tokenizers.target)
    sources = encode_sources(tokenizers.source, lines, config.data.source_length)
    with run.open_checkpoints(config) as checkpoints:
        params, step = checkpoints.restore_params(step="best", ema=config.optimizer.ema_decay > 0)
    params = jax.device_put(params)

    model_config = dataclasses.replace(config.model, dtype="float32")
    model = build_model(model_config)
    peer = build_peer(model_config, params, vocabulary, max(map(len, sources)))
    difference = logits_difference(model, params, peer, sources[: FLAGS.batch_size], vocabulary)
    assert difference <= TOLERANCE, f"logits differ by {difference}"
    greedy = BeamSettings(
        length_penalty=config.eval.generation.length_penalty,
        max_new_tokens=min(config.eval.generation.max_new_tokens, config.model.max_length),
    )
    sizes = Sizes(FLAGS.sentences or len(sources), FLAGS.num_beams, FLAGS.batch_size)
    rows = translation_rows(model, params, peer, vocabulary, sources, greedy, sizes)
    rows["continued"] = continuation_row()
    if unknown := set(FLAGS.only) - set(rows):
        raise UserError(f"--only={','.join(sorted(unknown))}: unknown; the rows are {', '.join(rows)}.")
    figures, steps = [], {}
    for name in FLAGS.only or rows:
        ways = rows[name]
        measure(ways, FLAGS.repetitions, is_sampled=name in ("sampled", "continued"))
        figures += [way.metrics(name, ways[0]) for way in ways]
        if name.startswith("all_"):
            steps[name] = {way.name: row_steps(way.decode) for way in ways}
    print_table(figures)
    for name, counts in steps.items():
        listed = ", ".join(f"{way} {count:,}" for way, count in counts.items())
        print(f"{name}: decoder steps x rows: {listed}")
    print(f"Logits differ by at most {difference:.1e}; PyTorch with {torch.get_num_threads()} threads.")
    if FLAGS.output:
        record = {
            "name": Path(FLAGS.output).stem,
            "figures": figures,
            "row_steps": steps,
            "sentences": {"few": len(sources[: sizes.few]), "all": len(sources)},
            "source_tokens": sum(map(len, sources)),
            "batch_size": FLAGS.batch_size,
            "num_beams": FLAGS.num_beams,
            "length_penalty": greedy.length_penalty,
            "max_new_tokens": greedy.max_new_tokens,
            "new_tokens_of_the_decoder": FLAGS.new_tokens,
            "largest_difference_of_logits": difference,
            "step": step,
            "parameters": count_parameters(params),
            "model": dataclasses.asdict(model_config),
            "torch_threads": torch.get_num_threads(),
            **surroundings(),
        }
        record["versions"] |= {"torch": torch.__version__, "transformers": transformers.__version__}
        write_record(Path(FLAGS.output), record)
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
