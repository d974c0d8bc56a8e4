"""Records the behaviour of tiny runs of every task, family and data format, to show that a redesign preserves it.

    python -m benchmarks.behaviour --output=before.json [--runs=DIR]
    python -m benchmarks.behaviour --output=after.json --compare=before.json
    python -m benchmarks.behaviour --output=after.json --compare=before.json --continue_runs=DIR

Each case trains for 20 steps and records the hash and loss of every batch, the metrics of the final evaluation, a hash
of the predictions, and for some cases the text that `lm.generate` writes. With `--compare`, the script names the cases
that differ from an earlier record, made on the same machine with the same package versions, and exits with status 1
unless all cases are bitwise equal. `--runs` keeps the run directories in their state after ten steps; `--continue_runs`
continues directories kept by another version of the code. To compare commits, run the script in a checkout of each.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
from absl import flags

from lm.config import Config, defaults, source
from lm.errors import UserError
from lm.training.loop import train

try:
    from lm.config import command
except ImportError:  # the code before the redesign
    from lm import command  # type: ignore[no-redef]

FLAGS = flags.FLAGS
STEPS, HALF = 20, 10
# Code before the redesign could not continue a run with two vocabularies, so this case has no kept run directory.
NOT_CONTINUED = ("seq2seq-apart",)
WORDS = "a quick brown fox jumps over the lazy dog while seven wizards brew zé 猫".split()
TIMING = ("train/seconds", "train/tokens_per_second", "train/peak_share")


def define_flags() -> None:
    flags.DEFINE_string("output", None, "JSON file in which to write the record.")
    flags.DEFINE_string("compare", None, "Earlier record, which the new record must equal.")
    flags.DEFINE_string("runs", None, "Folder in which to keep the run directories after ten steps.")
    flags.DEFINE_string("continue_runs", None, "Folder of run directories to continue, as kept by --runs.")
    flags.DEFINE_list("only", [], "Names of the cases to run; by default, all cases.")


# --- data ---------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Writes small files of every format, with the same content in every call."""
    draw = random.Random(0)

    def sentence(low: int = 3, high: int = 14) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high))) + draw.choice(".!?")

    paragraphs = [" ".join(sentence() for _ in range(draw.randint(1, 4))) for _ in range(120)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs) + "\n")
    (folder / "lines.txt").write_text("".join(sentence() + "\n" for _ in range(240)))
    (folder / "separated.txt").write_text("<|endoftext|>".join(paragraphs))
    _write_jsonl(folder / "text.jsonl", [{"text": each} for each in paragraphs])
    pairs = [draw.choices("abcdefgh", k=draw.randint(2, 10)) for _ in range(240)]
    for side, step in (("source", 1), ("target", -1)):
        (folder / f"pairs.{side}").write_text("".join(" ".join(each[::step]) + "\n" for each in pairs))
    (folder / "pairs.txt").write_text("".join(f"IN: {' '.join(p)} OUT: {' '.join(p[::-1])}\n" for p in pairs))
    rows = [{"s": " ".join(p), "t": [" ".join(p[::-1]), "x"]} for p in pairs]
    _write_jsonl(folder / "pairs.jsonl", rows)
    (folder / "pairs.tsv").write_text("s\tt\n" + "".join(f"{' '.join(p)}\t{' '.join(p[::-1])}\n" for p in pairs))

    labelled = [(sentence(), sentence(2, 6), draw.choice("xyz"), draw.randint(0, 40) / 8) for _ in range(200)]
    labelled = [(f"{text} {label}", pair, f"is_{label}", number) for text, pair, label, number in labelled]
    (folder / "labels.tsv").write_text(
        "text\tpair\tlabel\tnumber\n" + "".join("\t".join(map(str, each)) + "\n" for each in labelled)
    )
    records = [dict(zip(("text", "pair", "label", "number"), each, strict=True)) for each in labelled]
    _write_jsonl(folder / "labels.jsonl", records)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "labels.parquet")
    for label in ("neg", "pos"):
        (folder / label).mkdir(exist_ok=True)
        (folder / label / "some.txt").write_text("".join(f"{sentence()} {label[:1]}\n" for _ in range(100)))
    tagged = []
    for _ in range(160):
        words = draw.choices(WORDS, k=draw.randint(2, 9))
        tagged.append([(word, "B-ANIMAL" if word in ("fox", "dog", "猫") else "O") for word in words])
    (folder / "tags.conll").write_text("\n".join("".join(f"{w}\t{t}\n" for w, t in each) for each in tagged))
    _write_jsonl(
        folder / "tags.jsonl", [dict(zip(("words", "tags"), zip(*each, strict=True), strict=True)) for each in tagged]
    )
    articles = []
    for number in range(30):
        context = " ".join(sentence() for _ in range(3))
        questions = []
        for position in range(4):
            word = draw.choice(context.split())
            answer = [] if draw.random() < 0.1 else [{"text": word, "answer_start": context.index(word)}]
            name = f"{number}-{position}"
            questions.append({"id": name, "question": f"where is {word}?", "answers": answer})
        articles.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": questions}]})
    (folder / "squad.json").write_text(json.dumps({"data": articles}))


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


# --- cases --------------------------------------------------------------------------------------------------


def base(folder: Path, family: str, objective: str, **sources: Any) -> Any:
    config = defaults()
    config.data.cache_dir = str(folder / "cache")
    for name, values in sources.items():
        if values.get("kind") != "embedded":
            values["path"] = str(folder / values["path"])
        config.data.train[name] = source(**values)
    config.data.holdout_fraction = 0.2
    config.data.tokenizer.kind = "bytes"
    config.data.sequence_length = 64
    config.model.update(family=family, num_layers=2, d_model=16, num_heads=2, dropout=0.1)
    config.objective.name = objective
    config.optimizer.update(schedule="constant", warmup_steps=4, learning_rate=3e-3)
    config.train.update(num_steps=STEPS, batch_size=8)
    config.checkpoint.update(every_steps=HALF, keep_latest=3)
    config.eval.every_steps = HALF
    config.log.update(every_steps=1, tensorboard=False)
    return config


def plain_text(folder: Path, **sources: Any) -> Any:
    config = base(folder, "decoder", "causal", **sources)
    config.eval.sample_tokens = 16
    return config


LABELS = {"kind": "tsv", "path": "labels.tsv", "label_field": "label"}
NUMBERS = {"kind": "tsv", "path": "labels.tsv", "label_field": "number"}
PAIRS = {"path": "pairs.source", "document": "line"}
CONLL = {"kind": "conll", "path": "tags.conll"}
SQUAD = {"kind": "squad", "path": "squad.json"}
FAMILIES = ("decoder", "encoder", "encoder_decoder")


def cases(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields (name, config) for every case; all data is in `folder`."""

    def target(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "target_path": str(folder / "pairs.target")}

    def case(name: str, config: Any, **changes: Any) -> tuple[str, Any]:
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        return name, config

    text = {"kind": "text", "path": "text.txt"}
    yield case("causal-embedded", plain_text(folder, e={"kind": "embedded"}))
    for document in ("file", "line", "paragraph", "separator"):
        path = "separated.txt" if document == "separator" else "text.txt"
        config = plain_text(folder, t={"kind": "text", "path": path, "document": document})
        changes = {"data__holdout": "tail", "eval__stride": 16} if document == "file" else {}
        yield case(f"causal-{document}", config, **changes)
    two = plain_text(folder, a={**text, "document": "line"}, b={"kind": "jsonl", "path": "text.jsonl"})
    yield case("causal-two-sources", two, data__train__a__weight=0.3, data__num_workers=1, eval__max_rows=9)
    subwords = plain_text(folder, e={"kind": "embedded"})
    changes = {"data__tokenizer__vocab_size": 400, "data__tokenizer__train_megabytes": 0.2}
    yield case("causal-sentencepiece", subwords, data__tokenizer__kind="sentencepiece", eval__max_rows=64, **changes)
    clean = plain_text(folder, t={**text, "document": "line"})
    changes = {"data__tokenizer__kind": "characters", "train__accumulation": 2, "optimizer__ema_decay": 0.9}
    yield case("causal-cleaned", clean, data__cleaning__deduplicate=True, data__cleaning__whitespace="lines", **changes)

    beams = {"eval__generation__metrics": ("bleu", "rouge", "exact_match", "wer", "chrf", "ter")}
    beams |= {"eval__generation__num_beams": 3, "eval__generation__max_new_tokens": 24}
    formats = {
        "aligned": target(PAIRS),
        "pattern": {
            "path": "pairs.txt",
            "document": "line",
            "pattern": "IN: (?P<source>.*) OUT: (?P<target>.*)",
            "prefix": "reverse: ",
        },
        "jsonl": {"kind": "jsonl", "path": "pairs.jsonl", "field": "s", "target_field": "t"},
        "tsv": {"kind": "tsv", "path": "pairs.tsv", "field": "s", "target_field": "t"},
    }
    for name, values in formats.items():
        yield case(f"seq2seq-{name}", base(folder, "encoder_decoder", "seq2seq", p=values), **beams)
    apart = base(folder, "encoder_decoder", "seq2seq", p=target(PAIRS))
    changes = {"data__separate_vocabularies": True, "model__share_embeddings": False, "data__source_length": 12}
    changes |= {"data__tokenizer__kind": "words", "objective__label_smoothing": 0.1, "data__pairs__overlong": "drop"}
    yield case("seq2seq-apart", apart, eval__generation__metrics=("exact_match",), **changes)
    lines = {"path": "lines.txt", "document": "line"}
    for name, ids, permute in (("span_corruption", 20, False), ("ul2", 103, False), ("infilling", 1, True)):
        config = base(folder, "encoder_decoder", name, t=lines)
        yield case(name, config, data__tokenizer__extra_ids=ids, objective__permute_sentences=permute)
    yield case("prefix_lm", base(folder, "encoder_decoder", "prefix_lm", t=lines))

    masked = {"data__tokenizer__extra_ids": 1}
    yield case("masked", base(folder, "encoder", "masked", t=lines), **masked)
    whole = base(folder, "encoder", "masked", t=lines)
    yield case("masked-whole-words", whole, objective__whole_words=True, model__head_transform=True, **masked)
    following = base(folder, "encoder", "masked", t=lines)
    changes = {"objective__next_sentence": True, "model__token_types": 2, "model__output_bias": True, **masked}
    yield case("masked-next-sentence", following, train__accumulation=2, **changes)

    for family in FAMILIES:
        pooling = {"decoder": "last", "encoder": "mean", "encoder_decoder": ""}[family]
        config = base(folder, family, "classification", c=LABELS)
        yield case(f"classification-{family}", config, model__pooling=pooling, eval__bootstrap=10)
        yield case(f"regression-{family}", base(folder, family, "regression", r=NUMBERS), model__pooler=True)
        yield case(f"tagging-{family}", base(folder, family, "tagging", t=CONLL))
        yield case(f"span_qa-{family}", base(folder, family, "span_qa", q=SQUAD), data__context_overlap=12)
    two_texts = base(folder, "encoder", "classification", c={**LABELS, "pair_field": "pair"})
    changes = {"model__token_types": 2, "objective__balance_classes": True, "eval__max_rows": 4}
    yield case("classification-pairs", two_texts, checkpoint__best_metric="valid/accuracy", **changes)
    for kind in ("jsonl", "parquet"):
        config = base(folder, "encoder", "classification", c={**LABELS, "kind": kind, "path": f"labels.{kind}"})
        yield case(f"classification-{kind}", config)
    files = {"path": "*/some.txt", "document": "line", "label_pattern": "/(?P<label>neg|pos)/"}
    yield case("classification-files", base(folder, "encoder", "classification", c=files))
    records = {"kind": "jsonl", "path": "tags.jsonl", "field": "words", "label_field": "tags"}
    yield case("tagging-jsonl", base(folder, "encoder", "tagging", t=records), data__sequence_length=16)
    for family in ("decoder", "encoder"):
        yield case(f"contrastive-{family}", base(folder, family, "contrastive", p=target(PAIRS)))


GENERATED = {
    "causal-line": [
        ["--prompt=a quick", "--prompt=", "--temperature=0", "--max_new_tokens=20"],
        ["--prompt=a quick", "--num_samples=2", "--top_p=0.9", "--max_new_tokens=20"],
    ],
    "seq2seq-aligned": [["--prompt=a b c", "--prompt=h g", "--num_beams=4", "--num_hypotheses=2"]],
    "seq2seq-pattern": [["--prompt=a b c", "--temperature=1", "--num_samples=2"]],
    "span_corruption": [["--prompt=a quick <extra_id_0> fox", "--num_beams=2", "--max_new_tokens=12"]],
    "prefix_lm": [["--prompt=a quick", "--temperature=0.7", "--max_new_tokens=12"]],
}


# --- the record ---------------------------------------------------------------------------------------------


def run_case(name: str, values: Any, root: Path, keep: Path | None, old: Path | None) -> dict[str, Any]:
    """Trains one case, in two halves if the state after the first is to be kept, and returns its record."""
    config = Config.from_dict(values.to_dict())
    if name in NOT_CONTINUED:
        keep = old = None
    if old is not None:
        shutil.copytree(old / name, root)
    elif keep is not None:
        half = values.copy_and_resolve_references()
        half.train.num_steps = HALF
        _train(Config.from_dict(half.to_dict()), root)
        shutil.copytree(root, keep / name)
    _train(config, root)
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    evaluation = root / "eval" / str(STEPS)
    result = json.loads((evaluation / "results.json").read_text())
    return {
        "batches": [int(line["train/batch_hash"]) for line in steps],
        "losses": [line["train/loss"] for line in steps],
        "evaluations": [_without_time(line) for line in lines if "train/loss" not in line],
        "metrics": result["metrics"],
        "missing": result["missing"],
        "signatures": result["signatures"],
        "predictions": {each.name: _hash(each) for each in sorted(evaluation.glob("predictions*.jsonl"))},
        "generated": [_generate(root, each) for each in GENERATED.get(name, [])],
    }


def _train(config: Config, root: Path) -> None:
    with redirect_stdout(sys.stderr):
        status = train(config, root)
    assert status == command.DONE, status


def _without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMING}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _generate(root: Path, arguments: list[str]) -> str:
    argv = [sys.executable, "-m", "lm.generate", f"--workdir={root}", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns a line for each part of a case that differs between the records."""
    lines = [f"{name}: only in one of the records" for name in sorted(before.keys() ^ after.keys())]
    for name in sorted(before.keys() & after.keys()):
        for part in before[name].keys() | after[name].keys():
            old, new = before[name].get(part), after[name].get(part)
            if old != new:
                lines.append(f"{name}, {part}: {_first_difference(old, new)}")
    return lines


def _first_difference(old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        index = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        return f"entry {index}: {old[index]!r} -> {new[index]!r}"
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        return ", ".join(f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names[:4])
    return f"{old!r} -> {new!r}"


def main() -> int:
    if not FLAGS.output:
        raise UserError("--output is missing; name the file in which to write the record.")
    jax.config.update("jax_default_matmul_precision", "highest")
    data = Path(tempfile.gettempdir()) / "lm-behaviour"  # a fixed path, because paths are part of a config
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    write_data(data)
    record: dict[str, Any] = {}
    keep, old = (None if each is None else Path(each) for each in (FLAGS.runs, FLAGS.continue_runs))
    if keep is not None:
        keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, config in cases(data):
            if not FLAGS.only or name in FLAGS.only:
                print(f"=== {name}", file=sys.stderr, flush=True)
                record[name] = run_case(name, config, Path(folder) / name, keep, old)
    Path(FLAGS.output).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(record)} cases written to {FLAGS.output}")
    if not FLAGS.compare:
        return command.DONE
    before = json.loads(Path(FLAGS.compare).read_text())
    before = {name: each for name, each in before.items() if not FLAGS.only or name in FLAGS.only}
    lines = differences(before, record)
    print("\n".join(lines) or f"equal to {FLAGS.compare} in every case")
    return command.USER_ERROR if lines else command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
