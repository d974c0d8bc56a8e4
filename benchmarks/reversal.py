"""Trains an encoder-decoder on a task that every working model solves: writing words in reverse order.

    python -m benchmarks.reversal --output=results/reversal.json

Writes 20,000 random lines of 3 to 8 words into a temporary directory, trains a small encoder-decoder on them with the
loop of train.py, and prints the exact match on 1,000 further lines, as well as how many of them are not in the training
text (short lines may be). An exact match below 99 % means that something is broken. The script takes a minute on two
CPU cores.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks.record import surroundings, write_record
from lm.config import Config, defaults, source
from lm.training.loop import train

OUTPUT = flags.DEFINE_string("output", "", "JSON file in which to write the record.")
WORDS = "amber birch cedar delta ember flint grove heath inlet jetty knoll lotus".split()


def write_lines(folder: Path, name: str, count: int, seed: int) -> None:
    draw = random.Random(seed)
    lines = [draw.choices(WORDS, k=draw.randint(3, 8)) for _ in range(count)]
    (folder / f"{name}.source").write_text("".join(" ".join(line) + "\n" for line in lines))
    (folder / f"{name}.target").write_text("".join(" ".join(line[::-1]) + "\n" for line in lines))


def experiment(folder: Path) -> Config:
    config = defaults()
    for split in ("train", "valid"):
        path, target = (str(folder / f"{split}.{side}") for side in ("source", "target"))
        config.data[split].reversal = source(path=path, target_path=target, document="line")
    config.data.tokenizer.update(kind="sentencepiece", algorithm="bpe", vocab_size=330)
    config.data.update(sequence_length=64, source_length=64, cache_dir=str(folder / "cache"))
    config.objective.name = "seq2seq"
    config.model.update(family="encoder_decoder", num_layers=2, d_model=64, num_heads=4, scan_layers=False)
    config.optimizer.update(name="muon", learning_rate=4e-3, schedule="warmup_stable_decay", warmup_steps=20)
    config.train.update(batch_size=32, num_steps=600)
    config.eval.update(every_steps=200)
    config.eval.generation.update(metrics=("exact_match",), max_new_tokens=48, batch_size=250, max_examples=250)
    config.checkpoint.every_steps = 600
    return Config.from_dict(config.to_dict())


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder, "train", 20_000, seed=1)
        write_lines(folder, "valid", 1_000, seed=2)
        seen = set((folder / "train.source").read_text().split("\n"))
        fresh = sum(line not in seen for line in (folder / "valid.source").read_text().splitlines())
        config, began = experiment(folder), time.monotonic()
        train(config, folder / "run")
        seconds = time.monotonic() - began
        results = json.loads((folder / "run" / "eval" / str(config.train.num_steps) / "results.json").read_text())
    match = results["metrics"]["exact_match"]
    print(f"exact match {match:.2f} % of 1,000 lines ({fresh} of them not in the training text) after {seconds:.0f} s")
    if OUTPUT.value:
        record = {"exact_match": match, "lines": 1000, "not_in_training": fresh, "seconds": round(seconds)}
        write_record(Path(OUTPUT.value), record | surroundings())
    sys.exit(0 if match >= 99 else 1)


if __name__ == "__main__":
    app.run(main)
