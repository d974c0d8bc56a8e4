"""Measures the speed of the data pipeline: from raw text to a token store, and from the store to batches.

    python -m benchmarks.data_speed --texts=DIR/wikitext2,DIR/tinystories_sample [--megabytes=600] [--rounds=3]
        [--workers=1,2,4] [--name=data_speed]

Each text is a file, or a directory with a file train.txt.gz, train.txt or *.txt. It is repeated until it has
--megabytes, so that the start of the worker processes, which takes about a second, counts for little. Each line is a
document. SentencePiece tokenizers of up to 8,192 pieces are trained on the text, one for each algorithm (unigram, bpe).

Each round measures the following, in turn. The table shows the medians, and the record all rounds.

    sentencepiece, algorithm   SentencePiece alone: one thread encodes the lines, already in memory, as lists of ids
    store, algorithm, n        the file is hashed, read, cleaned, tokenised, counted and stored by n processes
    causal                     batches of windows for causal language modelling, from the store, in one process
    labelled                   batches of packed examples for classification, from memory, in one process
    pairs                      batches of packed pairs for an encoder-decoder, from two stores, in one process

Speeds are in MB/s of UTF-8 text or in millions of tokens per second, without padding. `CPU` is the processor time of
all processes together, so its ratio to the time shows how many cores are busy. With --name, a record is written to
results/NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.performance import data_rows
from benchmarks.record import RESULTS, surroundings, write_record
from lm.config import Config, TokenizerConfig, defaults, source
from lm.data.packing.rows import TrainRows
from lm.data.storing.splits import split_sources
from lm.data.tokenizing import build_tokenizer
from lm.data.tokenizing.base import Tokenizers
from lm.data.tokenizing.sentencepiece import SentencePieceTokenizer
from lm.tasks import task_of

NAMES = "train.txt.gz", "train.txt", "*.txt"  # files of a directory, in order of preference
LINES_AT_ONCE = 4096  # lines that SentencePiece alone encodes in one call
EXAMPLES = 100_000  # maximum number of labelled examples and of pairs
ALGORITHMS = ("unigram", "bpe")
SHAPES = ((16, 256), (16, 1024))  # batch size and sequence length
SECONDS_OF_BATCHES = 3.0
Measured = dict[str, float]


def measure(work: Callable[[], float], unit: str) -> Measured:
    """Returns the time, the processor time and the speed of a function that returns the amount of work, in millions."""
    began, before = time.monotonic(), os.times()
    amount = work()
    seconds, after = time.monotonic() - began, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return {"seconds": seconds, "cpu_seconds": cpu, unit: amount / seconds}


def text_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in NAMES:
        if found := sorted(path.glob(name)):
            return found[0]
    raise SystemExit(f"{path}: there is no file {', '.join(NAMES)}.")


def write_inputs(path: Path, folder: Path, megabytes: float) -> dict[str, Any]:
    """Writes the text, repeated, and labelled examples and pairs made of its lines. Returns a description of it."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [line.strip() for line in data.decode("utf-8").split("\n") if line.strip()]
    once = "\n".join(lines) + "\n"
    repeats = max(1, round(megabytes * 1e6 / len(once.encode())))
    (folder / "once.txt").write_text(once, encoding="utf-8")
    with open(folder / "text.txt", "w", encoding="utf-8") as file:
        for _ in range(repeats):
            file.write(once)
    many = (lines * -(-EXAMPLES // len(lines)))[:EXAMPLES]
    labelled = "".join(f"{number % 2} {line}\n" for number, line in enumerate(many))
    (folder / "labelled.txt").write_text(labelled, encoding="utf-8")
    (folder / "source.txt").write_text("\n".join(many), encoding="utf-8")
    (folder / "target.txt").write_text("\n".join(many[1:] + many[:1]), encoding="utf-8")
    size = (folder / "text.txt").stat().st_size
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "repeats": repeats, "bytes": size}


@dataclass(frozen=True)
class Kind:
    """A kind of data: an objective, the family of its models, and the settings of its data source."""

    objective: str
    family: str
    settings: Mapping[str, str]  # the values of `path` and `target_path` are names of files in the folder

    def source(self, folder: Path) -> Any:
        paths = {name: str(folder / value) for name, value in self.settings.items() if name.endswith("path")}
        return source(document="line", **{**self.settings, **paths})


CAUSAL = Kind("causal", "decoder", {"path": "text.txt"})
LABELLED = Kind("classification", "decoder", {"path": "labelled.txt", "pattern": "(?P<label>[01]) (?P<text>.*)"})
PAIRS = Kind("seq2seq", "encoder_decoder", {"path": "source.txt", "target_path": "target.txt"})


def config_of(
    folder: Path, kind: Kind, algorithm: str = "unigram", workers: int = 0, shape: tuple[int, int] = SHAPES[0]
) -> Config:
    values = defaults()
    values.data.train.a = values.data.valid.a = kind.source(folder)  # so that nothing is held out
    values.data.tokenizer.path = str(folder / algorithm / SentencePieceTokenizer.file_name)
    if workers:
        values.data.store_workers = workers
    values.objective.name, values.model.family = kind.objective, kind.family
    values.train.batch_size, values.data.sequence_length = shape
    return Config.from_dict(values.to_dict())


def open_store(config: Config, cache: Path) -> Any:
    tokenizer = build_tokenizer(config.data.tokenizer, ())
    (split,) = split_sources(config.data, "train")
    return task_of(config).open_store(split, config, Tokenizers(tokenizer, tokenizer), cache), tokenizer


def encode_alone(lines: list[str], megabytes: float, tokenizer: SentencePieceTokenizer) -> float:
    """Encodes the lines, whose size in UTF-8 is given, and returns their size."""
    processor = tokenizer._processor
    for begin in range(0, len(lines), LINES_AT_ONCE):
        processor.encode(lines[begin : begin + LINES_AT_ONCE], num_threads=1)
    return megabytes


def build_store(folder: Path, algorithm: str, workers: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        store, _ = open_store(config_of(folder, CAUSAL, algorithm, workers), Path(cache))
        return store.counts["bytes"] / 1e6


def train_rows(folder: Path, kind: Kind, shape: tuple[int, int]) -> TrainRows:
    config = config_of(folder, kind, shape=shape)
    store, tokenizer = open_store(config, folder / "cache")
    config = task_of(config).resolve_data(config, task_of(config).complete(config, "train", {"a": store}))
    return task_of(config).train_rows(config, tokenizer, {"a": store})


def make_batches(rows: TrainRows, batch_size: int) -> float:
    """Makes batches for a few seconds. Returns the number of their tokens, in millions."""
    began, step, tokens = time.monotonic(), 0, 0
    while time.monotonic() - began < SECONDS_OF_BATCHES:
        batch = rows.rows(step, range(batch_size))
        tokens += int(np.count_nonzero(batch.segments))
        tokens += 0 if batch.source is None else int(np.count_nonzero(batch.source.segments))
        step += 1
    return tokens / 1e6


def measure_text(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    workers = [int(number) for number in options.workers.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        described = write_inputs(text_file(path), folder, options.megabytes)
        text = (folder / "once.txt").read_text(encoding="utf-8")
        tokenizers = {
            name: SentencePieceTokenizer.train(TokenizerConfig(algorithm=name), [text]) for name in ALGORITHMS
        }
        for name, tokenizer in tokenizers.items():
            tokenizer.save(folder / name)
        lines = text.removesuffix("\n").split("\n")
        megabytes = described["repeats"] * sum(len(line.encode()) for line in lines) / 1e6
        lines *= described["repeats"]
        rounds = []
        for number in range(options.rounds):
            found = {}
            for name, tokenizer in tokenizers.items():
                found[f"sentencepiece, {name}"] = measure(
                    lambda each=tokenizer: encode_alone(lines, megabytes, each), "MB_per_second"
                )
                for count in workers:
                    found[f"store, {name}, {count}"] = measure(
                        lambda a=name, n=count: build_store(folder, a, n), "MB_per_second"
                    )
            for shape in SHAPES:
                for name, kind in (("causal", CAUSAL), ("labelled", LABELLED), ("pairs", PAIRS)):
                    rows = train_rows(folder, kind, shape)
                    rows.rows(0, range(shape[0]))  # plans the epoch
                    key = f"{name} {shape[0]} x {shape[1]}"
                    found[key] = measure(lambda r=rows, b=shape[0]: make_batches(r, b), "M_tokens_per_second")
            rounds.append(found)
            print(f"{path.name}: round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    medians = {
        name: {unit: round(statistics.median(each[name][unit] for each in rounds), 3) for unit in values}
        for name, values in rounds[0].items()
    }
    speeds = {name: values["MB_per_second"] for name, values in medians.items() if "MB_per_second" in values}
    ratios = {name: round(speed / speeds[f"sentencepiece, {name.split(', ')[1]}"], 3) for name, speed in speeds.items()}
    return {"text": described, "medians": medians, "ratio_to_sentencepiece": ratios, "each_round": rounds}


def table_of(name: str, result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{name} ({result['text']['bytes'] / 1e6:.0f} MB)", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "time", "CPU", "speed", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for each, speed, ratio in data_rows(result):
        values = result["medians"][each]
        table.add_row(each, f"{values['seconds']:.1f} s", f"{values['cpu_seconds']:.1f} s", speed, ratio)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--megabytes", type=float, default=600.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--name", default="")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    results = {}
    for path in map(Path, options.texts.split(",")):
        results[path.name] = measure_text(path, options)
        Console().print(table_of(path.name, results[path.name]))
    if options.name:
        record = {"name": options.name, "note": options.note, "rounds": options.rounds, "results": results}
        write_record(RESULTS / f"{options.name}.json", {**record, **surroundings()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
