"""Compares SentencePiece's two training algorithms, bpe and unigram, on several kinds of text.

    taskset -c 1 python -m benchmarks.subwords --data=DIR --output=results/tokenizers.json

DIR holds the directories wikitext2, mr, poetry_zh and multi30k; the set `python` is the embedded corpus. For each set,
algorithm and vocabulary size, the script trains a tokenizer on the training split and reports the bytes per token of
the validation text, and the share of the 1,000 most frequent training words that are one token after a space. With the
tokenizers of the first vocabulary size, it then trains the same small model and scores it on the validation split.

What the models of a set have in common: the training text, the number of epochs, the bytes per row (the length of a row
in tokens is this number divided by the bytes per token), and therefore, to within a few per cent, the number of steps;
the number of rows per step, all other settings and the seeds. The models differ in the tokens per row, and thus in the
computation per byte. Bits per byte do not depend on the tokenizer.

Measurements that are already in the output file are kept, so the command can be stopped and run again.
"""

from __future__ import annotations

import collections
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.record import surroundings, write_record
from configs import classify_mr, multi30k_en_de, quickstart, wikitext2
from lm.config import Config, command, defaults, source
from lm.data.storing.splits import split_sources
from lm.data.tokenizing import build_tokenizer
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.tasks import task_of
from lm.training.loop import train

ALGORITHMS = ("bpe", "unigram")
TRAIN_MEGABYTES = 4.0  # of text for each tokenizer
SCORES = ("bits_per_byte", "accuracy", "bleu")

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("data", None, "Directory of the data sets.")
    flags.DEFINE_list("sets", list(SETS), "Names of the data sets.")
    flags.DEFINE_list("algorithms", list(ALGORITHMS), "Names of the algorithms.")
    flags.DEFINE_list("vocab_sizes", [], "Vocabulary sizes, for all sets; by default, those in SETS.")
    flags.DEFINE_bool("train", True, "Whether to train models.")
    flags.DEFINE_string("output", None, "JSON file that holds the measurements.")


@dataclass(frozen=True)
class Set:
    """A data set with its task, and how to train a model on it."""

    about: str
    config: Callable[[Path], Any]  # the data and the task, from the directory of the data sets
    parts: tuple[float, float]  # shares of the training and validation data on which models are trained and scored
    vocab_sizes: tuple[int, ...]
    row_bytes: int
    epochs: float
    seeds: int = 1


def _wikitext2(folder: Path) -> Any:
    config = wikitext2.get_config(str(folder / "wikitext2"))
    for split in ("train", "valid"):
        config.data[split].wikitext2.document = "line"  # so that `part` selects lines
    return config


def _python(folder: Path) -> Any:
    return quickstart.get_config()


def _songci(folder: Path) -> Any:
    config = defaults()
    config.data.train.songci = source(path=str(folder / "poetry_zh" / "songci.txt"), document="paragraph")
    return config


def _multi30k(folder: Path) -> Any:
    return multi30k_en_de.get_config(str(folder / "multi30k" / "raw"))


def _mr(folder: Path) -> Any:
    return classify_mr.get_config(str(folder / "mr"))


SETS = {
    "wikitext2": Set("language model, English, spaces round tokens", _wikitext2, (0.06, 0.2), (4096, 8192), 512, 1),
    "python": Set("language model, English prose and code", _python, (0.35, 0.5), (4096, 8192), 512, 1),
    "mr": Set("classification, English, spaces round tokens", _mr, (1.0, 1.0), (6000, 4096), 512, 2, 2),
    "songci": Set("language model, Chinese", _songci, (0.07, 0.1), (8192, 16384), 512, 1),
    "multi30k": Set("translation, English to German", _multi30k, (0.35, 1.0), (4096, 8192), 384, 2),
}


def texts_of(config: Config, split: str) -> list[str]:
    """Returns all texts of a split, cleaned as for training; for pairs, both sides."""
    task = task_of(config)
    return [text for each in split_sources(config.data, split) for text in task.texts(each, ("source", "target"))]


def num_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    return num_bytes(texts) / sum(map(len, tokenizer.encode_batch(texts)))


def whole_words(tokenizer: Tokenizer, texts: Iterable[str]) -> float | None:
    """Returns the share of the 1,000 most frequent words that are one token; None if too few words follow spaces."""
    counts = collections.Counter(word for text in texts for word in re.findall(r" (\w+)", text))
    if len(counts) < 1000:
        return None
    return sum(len(tokenizer.encode(f" {word}")) == 1 for word, _ in counts.most_common(1000)) / 1000


def train_tokenizer(values: Any, algorithm: str, vocab_size: int, texts: list[str]) -> Tokenizer:
    """Trains a tokenizer and checks on some of the texts that it is lossless."""
    values.data.tokenizer.update(vocab_size=vocab_size, algorithm=algorithm)
    values.data.tokenizer.train_megabytes = TRAIN_MEGABYTES
    tokenizer = build_tokenizer(Config.from_dict(values.to_dict()).data.tokenizer, texts)
    for text in texts[:1000]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    return tokenizer


def small(values: Any, chosen: Set) -> Any:
    """Returns the config with a small model, and with the data on which it is trained and scored."""
    for split, share in zip(("train", "valid"), chosen.parts, strict=True):
        for each in values.data[split].values():
            low, high = each.part
            each.part = (low, low + (high - low) * share)
    two_sided = values.model.family == "encoder_decoder"
    classes = values.model.family == "encoder"
    values.model = defaults().model
    values.model.update(
        family="encoder_decoder" if two_sided else "encoder" if classes else "decoder",
        num_layers=2,
        d_model=64 if classes else 128,
        num_heads=2 if classes else 4,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        d_ff=160 if classes else 320,
        use_bias=False,
        scan_layers=False,
    )
    if classes:
        values.model.update(pooling="mean", dropout=0.5)
    values.objective.label_smoothing = 0.0
    values.optimizer = defaults().optimizer
    values.optimizer.update(name="muon", learning_rate=4e-3, schedule="linear", final_fraction=0.0)
    values.train = defaults().train
    values.train.update(num_epochs=float(chosen.epochs), batch_size=8)
    never = 1_000_000
    values.eval = defaults().eval
    values.eval.update(every_steps=never, batch_size=16, prompts=())
    if two_sided:
        values.eval.generation.update(metrics=("bleu",), max_new_tokens=64)
    values.checkpoint = defaults().checkpoint
    values.checkpoint.every_steps = never
    values.log.tensorboard = False
    return values


def train_model(values: Any, chosen: Set, tokenizer: Tokenizer, seed: int) -> dict[str, float]:
    """Returns the number of steps and the final validation metrics of a model."""
    values = small(values, chosen)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder / "tokenizer")
        extra_ids = values.data.tokenizer.extra_ids
        values.data.tokenizer = defaults().data.tokenizer
        path = folder / "tokenizer" / "sentencepiece.model"
        values.data.tokenizer.update(kind="sentencepiece", path=str(path), extra_ids=extra_ids)
        config = Config.from_dict(values.to_dict())
        length = round(chosen.row_bytes / bytes_per_token(tokenizer, texts_of(config, "train")))
        values.data.sequence_length = length
        values.data.source_length = length if values.model.family == "encoder_decoder" else 0
        values.seed = seed
        config = Config.from_dict(values.to_dict())
        train(config, folder / "run")
        (path,) = (folder / "run" / "eval").glob("*/results.json")
        results = json.loads(path.read_text())
    found = results["metrics"]
    if "bleu" in found:  # the targets are all that the model predicts
        targets = num_bytes(
            text for each in split_sources(config.data, "valid") for text in task_of(config).texts(each, ("target",))
        )
        found["bits_per_byte"] = found["nll"] * found["tokens"] / math.log(2) / targets
    return {"seed": seed, "steps": results["step"], "row_tokens": length} | {
        metric: found[metric] for metric in SCORES if metric in found
    }


class Record:
    """The measurements so far, in the output file if there is one."""

    def __init__(self, path: Path | None):
        self._path = path
        old = path is not None and path.exists()
        self.sets: dict[str, Any] = json.loads(path.read_text())["sets"] if old else {}

    def entry(self, name: str, algorithm: str, vocab_size: int) -> dict[str, Any]:
        algorithms = self.sets.setdefault(name, {"about": SETS[name].about, "algorithms": {}})["algorithms"]
        return algorithms.setdefault(algorithm, {}).setdefault(str(vocab_size), {})

    def write(self) -> None:
        if self._path is not None:
            write_record(self._path, {"name": self._path.stem, "sets": self.sets, **surroundings()})


def measure(name: str, algorithm: str, record: Record) -> None:
    chosen, folder = SETS[name], Path(FLAGS.data)
    sizes = [int(each) for each in FLAGS.vocab_sizes] or chosen.vocab_sizes
    for vocab_size in sizes:
        entry = record.entry(name, algorithm, vocab_size)
        seeds = range(chosen.seeds) if FLAGS.train and vocab_size == sizes[0] else range(0)
        models = entry.setdefault("models", [])
        todo = [seed for seed in seeds if all(each["seed"] != seed for each in models)]
        if "bytes_per_token" in entry and not todo:
            continue
        config = Config.from_dict(chosen.config(folder).to_dict())
        texts = texts_of(config, "train")
        tokenizer = train_tokenizer(chosen.config(folder), algorithm, vocab_size, texts)
        entry["vocab_size"] = tokenizer.base_size  # may be smaller than requested
        entry["bytes_per_token"] = bytes_per_token(tokenizer, texts_of(config, "valid"))
        entry["whole_words"] = whole_words(tokenizer, texts)
        print(f"=== {name}, {algorithm}, {vocab_size}: {entry}", flush=True)
        record.write()
        for seed in todo:
            models.append(train_model(chosen.config(folder), chosen, tokenizer, seed))
            print(f"=== {name}, {algorithm}, {vocab_size}: {models[-1]}", flush=True)
            record.write()


def summary(record: Record) -> str:
    """Returns a Markdown table with a row per set, algorithm and vocabulary size; scores are means over the seeds."""
    lines = ["| set | vocabulary | algorithm | bytes per token | whole words | steps | score |", "|---" * 7 + "|"]
    for name, each in record.sets.items():
        by_size = collections.defaultdict(list)
        for algorithm, entries in each["algorithms"].items():
            for size, entry in entries.items():
                by_size[int(size)].append((algorithm, entry))
        for algorithm, entry in (row for _, rows in sorted(by_size.items()) for row in rows):
            models = entry["models"]
            scores = {m: [model[m] for model in models] for m in SCORES if models and m in models[0]}
            shown = ", ".join(f"{m.replace('_', ' ')} {sum(found) / len(found):.4g}" for m, found in scores.items())
            words = entry.get("whole_words")
            cells = [name, f"{entry['vocab_size']:,}", algorithm, f"{entry['bytes_per_token']:.3f}"]
            cells += ["" if words is None else f"{words:.1%}", str(models[0]["steps"]) if models else "", shown]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    if not FLAGS.data:
        raise UserError("--data is missing; name the directory of the data sets.")
    record = Record(Path(FLAGS.output) if FLAGS.output else None)
    for name in FLAGS.sets:
        for algorithm in FLAGS.algorithms:
            measure(name, algorithm, record)
    print(summary(record))
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
