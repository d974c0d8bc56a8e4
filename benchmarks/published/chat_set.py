"""Writes a small set of conversations about the commands of this project, to fine-tune a chat model on.

    python -m benchmarks.published.chat_set --output=DIR

DIR/train.jsonl gets 360 conversations, and DIR/test.jsonl one about each of the 32 commands in each of two wordings.
The sentences are ours. No published model knows the commands, and an answer can be compared word for word: it is a
sentence with the command, or, if the system prompt asks for it, the command alone. Conversations have up to three
turns: a question, what the command does, and the command again. The questions of the test set are worded in other ways,
both the frame ("How do I ...?") and the task ("score a checkpoint"). The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.files import writing_flag

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Fact:
    """A command, what it does, and three wordings of the task; the last one is only in the test set."""

    command: str
    does: str
    tasks: tuple[str, str, str]


EVAL, GENERATE, PREDICT = "python eval.py --workdir=RUN", "python -m lm.generate --workdir=RUN", "python -m lm.predict"
TRAIN, HF, MERGE = "python train.py --config=FILE --workdir=RUN", "python -m lm.hf", "python -m lm.merge_lora"
# fmt: off
FACTS = tuple(Fact(command, does, (first, second, third)) for command, does, first, second, third in (
    (TRAIN, "trains a model and keeps everything in a run directory",
     "train a model", "start training from a config file", "fit a model to my config"),
    (f"{TRAIN} --seeds=0,1,2", "trains one model per seed and prints their mean",
     "train with three seeds", "repeat a training with several seeds", "train three times with different random seeds"),
    (f"{TRAIN} --folds=5", "trains one model per fold and prints their mean",
     "do a cross-validation", "train on five folds", "cross-validate with five folds"),
    (EVAL, "scores the best checkpoint on the validation split",
     "score a run", "evaluate my model", "measure how good my run is"),
    (f"{EVAL} --split=test", "scores the best checkpoint on the test split",
     "score the test split", "evaluate on the test data", "get the result on the test set"),
    (f"{EVAL} --average=5", "averages the last five checkpoints and scores them",
     "average five checkpoints", "score the mean of the last checkpoints", "evaluate averaged checkpoints"),
    (f"{EVAL} --stride=64", "scores overlapping windows, which give each token more context",
     "score overlapping windows", "evaluate with a stride", "score windows that overlap"),
    (f"{EVAL} --text=BOOK", "scores a text file with the tokenizer of the run",
     "score a text file", "evaluate my model on a book", "measure the loss on a text of my own"),
    (f"{GENERATE} --prompt=TEXT", "continues a prompt",
     "continue a prompt", "generate text", "let the model write on from a prompt"),
    (f"{GENERATE} --input=LINES --num_beams=5", "translates each line with five beams",
     "use beam search", "translate lines with five beams", "translate a file with beams"),
    ("python -m lm.chat --workdir=RUN", "talks with a chat model in the terminal",
     "talk with a chat model", "chat in the terminal", "have a conversation with my model"),
    (f"{PREDICT} --workdir=RUN --input=LINES", "labels each line of a file",
     "label new texts", "predict the labels of a file", "get labels for new lines"),
    (f"{PREDICT} --workdir=RUN --input=LINES --pooling=mean", "writes a vector for each text",
     "turn texts into vectors", "get sentence vectors", "make a vector of each sentence"),
    ("python -m lm.data.show --config=FILE", "shows the examples as the model reads them",
     "look at the data", "see what the model reads", "inspect the examples of a config"),
    ("python -m lm.compare --workdir=RUN,OTHER", "tests with a bootstrap whether two runs differ",
     "compare two runs", "test whether one run is better", "find out if two runs differ significantly"),
    (f"{MERGE} --workdir=RUN --output=MERGED", "adds the adapters to the weights",
     "merge LoRA adapters", "add the adapters to the weights", "fold the adapters into the model"),
    (f"{MERGE} --workdir=RUN --adapters=ADAPTERS", "writes the adapters without the weights",
     "export only the adapters", "write the LoRA adapters to a file", "get the adapters without the weights"),
    ("python -m lm.aot --config=FILE --topology=v5e:8x8", "compiles the step for a TPU that you do not have",
     "compile for a TPU", "see whether a step fits on a TPU", "check the memory on a TPU that I lack"),
    (f"{HF} import --model=DIR --workdir=RUN", "makes a run directory of a published model",
     "import a published model", "make a run of a Hugging Face folder", "bring published weights in"),
    (f"{HF} export --workdir=RUN --out=DIR", "writes a folder that other libraries load",
     "export a run", "write a folder for other libraries", "publish my run as a Hugging Face folder"),
    (f"{HF} export --workdir=RUN --out=DIR --dtype=bfloat16", "writes a folder of half the size",
     "export in bfloat16", "write a folder of half the size", "publish my run in sixteen bits"),
    (f"{HF} inspect --model=DIR", "shows what a published model is, without reading weights",
     "look into a published folder", "see what an import would refuse", "find out what a published folder holds"),
    (f"{HF} check --model=DIR", "compares an imported model with transformers",
     "compare with transformers", "check the logits of an import", "verify an import against transformers"),
    ("make train", "sets up the environment and trains the quickstart model",
     "train the quickstart", "try the project quickly", "run the quickstart"),
    ("make test", "runs the tests",
     "run the tests", "test the code", "see whether all tests pass"),
    ("make lint", "checks the format and the style",
     "check the style", "run ruff", "check the formatting of the code"),
    ("make types", "checks the types",
     "check the types", "run mypy", "verify the type hints"),
    ("make lock", "updates the lock files to the newest versions",
     "update the lock files", "move to newer versions of the packages", "refresh the locked versions"),
    ("make clean", "removes the environment and the caches",
     "remove the environment", "delete the caches", "clean up the directory"),
    ("python -m benchmarks.table", "makes the table of results in the README again",
     "update the table of results", "write the results into the README", "refresh the results in the README"),
    ("python -m benchmarks.record --workdir=RUN --name=NAME", "records the results of a run as a small file",
     "record a run", "keep the results of a run", "store the results of a finished run"),
    ("python -m benchmarks.code_map", "writes one line about each file",
     "update the code map", "list all files with a line each", "refresh the overview of the files"),
))
# fmt: on
FRAMES = (
    "How do I {}?",
    "I want to {}. What do I run?",
    "What is the command to {}?",
    "Please tell me how to {}.",
    "Which command should I use to {}?",
)
TEST_FRAMES = ("Could you show me how I can {}?", "I would like to {}; what must I type?")
WHAT = ("What does it do?", "And what does this command do?", "What is that for?")
TEST_WHAT = "Please explain what it does."
AGAIN = ("Repeat only the command.", "Give me the command again, please.", "Once more, just the command.")
TEST_AGAIN = "Can I have just the command again?"
BRIEF = ("Answer with the command alone.", "Reply with nothing but the command.")
TEST_BRIEF = "Write the command and nothing else."
FULL = ("", "You help the users of lm.", "You are the assistant of the project lm.")
TEST_FULL = "You help people who use lm."


def sentence(fact: Fact) -> str:
    return f"Run `{fact.command}`. It {fact.does}."


def conversation(fact: Fact, system: str, question: str, brief: bool, then: list[tuple[str, str]]) -> Conversation:
    """Returns the messages: a question, its answer, and further turns."""
    turns = [(question, fact.command if brief else sentence(fact)), *then]
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return messages


def train_set(number: int = 360, seed: int = 0) -> Iterator[Conversation]:
    """Yields conversations about all facts in turn."""
    draw = random.Random(seed)
    for index in range(number):
        fact = FACTS[index % len(FACTS)]
        brief = draw.random() < 0.4
        question = draw.choice(FRAMES).format(draw.choice(fact.tasks[:2]))
        then = []
        if draw.random() < 0.4:
            then.append((draw.choice(WHAT), f"It {fact.does}."))
        if draw.random() < 0.3:
            then.append((draw.choice(AGAIN), fact.command))
        yield conversation(fact, draw.choice(BRIEF if brief else FULL), question, brief, then)


def held_out_set() -> Iterator[Conversation]:
    """Yields two conversations about each fact: one asks for the command alone, the other for a sentence and more."""
    for fact in FACTS:
        brief, full = (frame.format(fact.tasks[2]) for frame in TEST_FRAMES)
        yield conversation(fact, TEST_BRIEF, brief, True, [(TEST_WHAT, f"It {fact.does}.")])
        yield conversation(fact, TEST_FULL, full, False, [(TEST_AGAIN, fact.command)])


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, conversations in (("train", train_set()), ("test", held_out_set())):
        lines = [json.dumps({"messages": messages}) + "\n" for messages in conversations]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files")
    output = parser.parse_args().output
    with writing_flag("output", output):
        write(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
