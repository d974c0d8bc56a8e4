"""Compares the decoding speed with `transformers` in PyTorch, using the same weights and batches in the same run.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.decode --workdir=runs/multi30k --input=test_2016_flickr.en --output=results/decode.json

Decodes the first --sentences lines of a file with the best checkpoint of a trained encoder-decoder, greedily and by
beam search, both with `lm.decoding.beam.beam_search` and with `model.generate`, in float32 on the CPU. Both systems get
the same token ids in the same batches, sorted by length, and return token ids; tokenisation is not timed. The script
first checks that the logits agree within 1e-4. The systems take turns, in alternating order, and their median times are
reported; the first call, in which ours is compiled, is reported separately.

A beam search ends when no hypothesis can win any more (our default; early_stopping="never" in `model.generate`), or
earlier, when no hypothesis can win at its present length (`exact=False` in ours; early_stopping=False, the default, in
`model.generate`).

Nothing else should run at the same time. OMP_NUM_THREADS sets the number of PyTorch threads, which is recorded.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks.huggingface_peer import build_peer, frameworks, peer_logits, peer_search
from benchmarks.record import surroundings, write_record
from lm.config import command
from lm.decoding.beam import BeamSettings, beam_search
from lm.decoding.inputs import model_batch, pad_sources
from lm.decoding.lines import read_lines
from lm.decoding.sampling import Vocabulary, vocabulary_of
from lm.decoding.text import batches_by_length, encode_sources
from lm.errors import UserError
from lm.models import build_model
from lm.models.parameters import count_parameters
from lm.models.protocol import Model
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers

OURS = "ours"
TOLERANCE = 1e-4  # largest allowed difference between logits

FLAGS = flags.FLAGS

Ids = list[int]
Decode = Callable[[Sequence[Ids]], list[Ids]]  # decodes one batch: returns the new tokens of each source


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of a trained encoder-decoder.")
    flags.DEFINE_string("input", None, "UTF-8 file with one source per line.")
    flags.DEFINE_string("output", "", "JSON file in which to write the record.")
    flags.DEFINE_integer("sentences", 200, "Number of lines to decode from the start; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("num_beams", 5, "Beam size for beam search.", lower_bound=2)
    flags.DEFINE_integer("batch_size", 32, "Number of sources per batch.", lower_bound=1)
    flags.DEFINE_integer("repetitions", 5, "Number of timed calls of each system after the first call.", lower_bound=1)


@dataclass
class Timed:
    """A system with its settings, its outputs and its measured times."""

    name: str
    settings: BeamSettings
    decode: Decode
    outputs: list[Ids] = field(default_factory=list)
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def metrics(self, reference: Timed) -> dict[str, Any]:
        """Compares this system with `reference`, which is ours; ours is faster if `speed_of_ours` is above 1."""
        median = statistics.median(self.seconds)
        tokens = sum(map(len, self.outputs))
        return {
            "system": self.name,
            "num_beams": self.settings.num_beams,
            "sentences_per_second": round(len(self.outputs) / median, 2),
            "tokens_per_second": round(tokens / median, 1),
            "tokens": tokens,
            "median_seconds": round(median, 4),
            "seconds": [round(each, 4) for each in self.seconds],
            "first_call_seconds": round(self.first_seconds, 4),
            "speed_of_ours": round(median / statistics.median(reference.seconds), 3),
            "same_as_ours": sum(a == b for a, b in zip(self.outputs, reference.outputs, strict=True)),
        }


def in_batches(decode: Decode, sources: Sequence[Ids], batch_size: int) -> list[Ids]:
    """Decodes the sources in batches, and returns the new tokens of each source, in the original order."""
    outputs: list[Ids] = [[] for _ in sources]
    for numbers in batches_by_length(sources, batch_size):
        for number, tokens in zip(numbers, decode([sources[number] for number in numbers]), strict=True):
            outputs[number] = tokens
    return outputs


def logits_difference(model: Model, params: Any, peer: Any, sources: Sequence[Ids], vocabulary: Vocabulary) -> float:
    """Returns the largest difference between the two systems' logits on random targets."""
    targets_BL = np.random.default_rng(0).integers(0, vocabulary.size, (len(sources), 16), dtype=np.int32)
    targets_BL[:, 0] = vocabulary.bos_id
    positions_BL = np.broadcast_to(np.arange(16, dtype=np.int32), targets_BL.shape)
    source = pad_sources(sources, len(sources), model.max_source_length, vocabulary.pad_id)
    batch = model_batch(targets_BL, positions_BL, np.ones_like(targets_BL), source)
    ours = jax.jit(lambda params, batch: model.apply({"params": params}, batch).logits)(params, batch)
    return float(np.max(np.abs(np.asarray(ours) - peer_logits(peer, sources, targets_BL.tolist(), vocabulary))))


def measure(ways: Sequence[Timed], sources: Sequence[Ids], batch_size: int, repetitions: int) -> None:
    """Runs the systems in turn, and sets the outputs and seconds of each system."""

    def timed(way: Timed) -> tuple[float, list[Ids]]:
        start = time.perf_counter()
        outputs = in_batches(way.decode, sources, batch_size)
        return time.perf_counter() - start, outputs

    for way in ways:
        way.first_seconds, way.outputs = timed(way)
    for turn in range(repetitions):
        for way in ways[:: -1 if turn % 2 else 1]:
            seconds, outputs = timed(way)
            assert outputs == way.outputs, f"{way.name} decodes differently from call to call"
            way.seconds.append(seconds)


def ways_to_decode(
    model: Model, params: Any, peer: Any, vocabulary: Vocabulary, greedy: BeamSettings, num_beams: int, min_rows: int
) -> list[list[Timed]]:
    """Returns groups of systems to compare with one another; ours comes first in each group."""

    def ours(settings: BeamSettings, name: str = OURS) -> Timed:
        def decode(sources: Sequence[Ids]) -> list[Ids]:
            found = beam_search(model, params, sources, settings, vocabulary, min_rows=min_rows)
            return [hypotheses[0].tokens for hypotheses in found]

        return Timed(name, settings, decode)

    def theirs(name: str, settings: BeamSettings, early_stopping: bool | str = False) -> Timed:
        return Timed(name, settings, lambda sources: peer_search(peer, sources, settings, vocabulary, early_stopping))

    beams = dataclasses.replace(greedy, num_beams=num_beams)
    return [
        [ours(greedy), theirs("transformers", greedy)],
        [
            ours(beams),
            theirs("transformers, early_stopping=never", beams, "never"),
            ours(dataclasses.replace(beams, exact=False), f"{OURS}, exact=False"),
            theirs("transformers, early_stopping=False", beams),
        ],
    ]


def print_table(figures: Sequence[dict[str, Any]], count: int) -> None:
    table = Table()
    for column in ("beams", "system", "sentences/s", "tokens/s", "seconds", "(from, to)", "first call"):
        table.add_column(column, justify="left" if column == "system" else "right")
    table.add_column("time / ours", justify="right")
    table.add_column(f"same as ours (of {count})", justify="right")
    for each in figures:
        seconds = each["seconds"]
        table.add_row(
            str(each["num_beams"]),
            each["system"],
            f"{each['sentences_per_second']:.1f}",
            f"{each['tokens_per_second']:.0f}",
            f"{each['median_seconds']:.3f}",
            f"({min(seconds):.3f}, {max(seconds):.3f})",
            f"{each['first_call_seconds']:.2f} s",
            f"{each['speed_of_ours']:.2f}",
            str(each["same_as_ours"]),
        )
    Console(width=None if os.isatty(1) else 140).print(table)


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
    lines = read_lines(FLAGS.input, "input")[: FLAGS.sentences or None]
    if not lines:
        raise UserError(f"--input={FLAGS.input}: is empty.")
    tokenizers = load_tokenizers(config, run.root)
    tokenizer, source_tokenizer = tokenizers.target, tokenizers.source
    vocabulary = vocabulary_of(tokenizer)
    sources = encode_sources(source_tokenizer, lines, config.data.source_length)
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
    batch_size = min(FLAGS.batch_size, len(sources))
    figures = []
    for ways in ways_to_decode(model, params, peer, vocabulary, greedy, FLAGS.num_beams, batch_size):
        measure(ways, sources, batch_size, FLAGS.repetitions)
        figures += [way.metrics(ways[0]) for way in ways]
    print_table(figures, len(sources))
    print(f"Logits differ by at most {difference:.1e}; PyTorch with {torch.get_num_threads()} threads.")
    if FLAGS.output:
        record = {
            "name": Path(FLAGS.output).stem,
            "figures": figures,
            "sentences": len(sources),
            "source_tokens": sum(map(len, sources)),
            "batch_size": batch_size,
            "length_penalty": greedy.length_penalty,
            "max_new_tokens": greedy.max_new_tokens,
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
