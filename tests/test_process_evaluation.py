"""Whatever evaluation does, several processes do it too, and all of them get the same results."""

import json
import random
import socket
from pathlib import Path

import pytest

from tests.conftest import Tiny
from tests.run_helpers import config_of, save_untrained

CONFIG = """
from lm.config import defaults, source

TASKS = {
    "decode": ("seq2seq", "encoder_decoder", dict(kind="tsv", field="one", target_field="other")),
    "tag": ("tagging", "encoder", dict(kind="conll")),
    "answer": ("span_qa", "encoder_decoder", dict(kind="squad")),
    "embed": ("contrastive", "decoder", dict(kind="tsv", field="one", target_field="other")),
}


def get_config(path):
    objective, family, how = TASKS[path.rpartition("/")[2]]
    config = defaults()
    for split in ("train", "valid"):
        config.data[split].all = source(path=path, **how)
    config.data.tokenizer.kind = "bytes"
    config.data.sequence_length = 48
    config.objective.name = objective
    config.model.update(family=family, num_layers=1, d_model=16, num_heads=2, dropout=0.0, scan_layers=False)
    if objective == "seq2seq":
        config.eval.generation.update(metrics=("bleu", "chrf"), num_beams=2, max_new_tokens=8, batch_size=4)
    if objective == "span_qa":
        config.data.context_overlap = 8
    if objective == "contrastive":
        config.model.pooling = "mean"
    config.optimizer.update(learning_rate=1e-2, warmup_steps=1)
    config.train.update(num_steps=2, batch_size=8)
    config.eval.update(every_steps=1, batch_size=8)
    config.log.tensorboard = False
    return config
"""
TASKS = ["decode", "tag", "answer", "embed"]


def lines_of(task: str, draw: random.Random) -> str:
    words = [draw.choices("abcdefgh", k=draw.randint(2, 7)) for _ in range(30)]
    if task == "tag":
        return "".join("".join(f"{word} {'B-X' if word < 'd' else 'O'}\n" for word in each) + "\n" for each in words)
    if task == "answer":
        paragraphs = []
        for number, each in enumerate(words):
            answer = {"text": each[1], "answer_start": 2}
            question = {"id": str(number), "question": f"after {each[0]}?", "answers": [answer]}
            paragraphs.append({"context": " ".join(each), "qas": [question]})
        return json.dumps({"version": "1.1", "data": [{"title": "letters", "paragraphs": paragraphs}]})
    return "one\tother\n" + "".join(f"{' '.join(each)}\t{' '.join(reversed(each))}\n" for each in words)


@pytest.fixture(scope="module")
def experiments(tiny, tmp_path_factory) -> dict[str, Tiny]:
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "any.py").write_text(CONFIG)
    draw = random.Random(0)
    for task in TASKS:
        (folder / task).write_text(lines_of(task, draw))
    return {task: Tiny(folder / task, folder / "any.py", tiny.cache) for task in TASKS}


def launch_processes(launch, count: int, *command: object) -> None:
    """Runs a command on four devices in all."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    shared = [f"--coordinator=localhost:{port}", f"--num_processes={count}"] if count > 1 else []
    numbers = range(count)
    processes = [
        launch(*command, *shared, *([f"--process_id={i}"] if shared else []), devices=4 // count) for i in numbers
    ]
    assert [each.wait() for each in processes] == [0] * count, "".join(each.stderr for each in processes)


@pytest.fixture(scope="module")
def runs(experiments, launch, tmp_path_factory) -> Path:
    """A run of each task. That of `decode` is trained and evaluated by two processes, the others are untrained."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS[1:]:
        save_untrained(folder / task, config_of(experiments[task]))
    launch_processes(launch, 2, "train.py", *experiments["decode"].flags(folder / "decode"))
    return folder


def evaluated(launch, runs: Path, count: int) -> dict[str, tuple[dict, list[dict]]]:
    """Returns the metrics and predictions of each task, all evaluated by the same processes."""
    launch_processes(launch, count, "eval.py", f"--workdir={','.join(str(runs / task) for task in TASKS)}")
    found = {}
    for task in TASKS:
        (folder,) = (each for each in (runs / task / "eval").iterdir() if each.is_dir())
        path = folder / "predictions.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        metrics = json.loads((folder / "results.json").read_text())["metrics"]
        found[task] = metrics, [json.loads(line) for line in lines]
    return found


@pytest.fixture(scope="module")
def alone(launch, runs):
    return evaluated(launch, runs, 1)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.exhaustive)])
def several(request, launch, runs, alone):
    return evaluated(launch, runs, request.param)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.exhaustive
def test_several_processes_get_the_results_of_one(task, alone, several):
    (expected, texts), (found, others) = alone[task], several[task]
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert (len(texts) > 0) == (task != "embed")
    for one, other in zip(texts, others, strict=True):
        assert {**one, "score": 0} == {**other, "score": 0}
