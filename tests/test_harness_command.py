"""`python -m lm.harness` with lm-evaluation-harness: local tasks of each kind, without PyTorch, and bad input."""

import json
import math

import pytest

from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options
from lm.runs.harness import HarnessOptions, HarnessRun, as_language_model
from tests.run_helpers import config_of, save_untrained

pytest.importorskip("lm_eval")

import datasets
import lm_eval.utils

from lm.evaluation.continuations import rolling_windows

DOCS = [
    {"question": f"the lazy {word}", "choices": ["dog", "fox", "quick"], "text": f"a {word} fox"} for word in "abcd"
]
METRICS = {
    "choose": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": 0},
    "perplexity": {"output_type": "loglikelihood_rolling", "doc_to_target": "text"},
    "complete": {
        "output_type": "generate_until",
        "doc_to_target": "text",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    },
}
NAMES = {"choose": "acc", "perplexity": "bits_per_byte", "complete": "exact_match"}


# The harness asks whether PyTorch is installed, which the launcher answers with an error if it is.
WITHOUT_TORCH = """
import importlib.util
import runpy

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find_spec(name, package)
runpy.run_module("lm.harness", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "docs.jsonl"
    data.write_text("".join(f"{json.dumps(doc)}\n" for doc in DOCS))
    for name, settings in METRICS.items():
        files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        metric = {"metric_list": [{"metric": NAMES[name]}]}
        text = "" if name == "perplexity" else "{{question}}"
        task = {"task": name, **files, "doc_to_text": text, **settings, **metric}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("harness") / "decoder"
    save_untrained(root, config_of(tiny, model__init_std=0.5), steps=(16,))
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Keeps the library that reads the data of tasks off the network and out of the user's cache."""
    cache = tmp_path_factory.getbasetemp() / "datasets"
    for name, value in {"HF_DATASETS_OFFLINE": True, "HF_DATASETS_CACHE": cache}.items():
        monkeypatch.setattr(datasets.config, name, value)
        monkeypatch.setenv(name, str(value))


def model_of(root):
    directory = RunDirectory.existing(root)
    return HarnessRun(directory, directory.load_config(), Options(), HarnessOptions())


def test_command_prints_a_table_and_writes_results_without_torch(run, tasks, launch, tmp_path):
    names, script = ",".join(METRICS), tmp_path / "harness.py"
    script.write_text(WITHOUT_TORCH)
    process = launch(script, f"--workdir={run}", f"--tasks={names}", f"--include_path={tasks}", devices=2)
    assert process.wait() == 0, process.stderr  # PyTorch cannot be imported there
    path = run / "eval" / "16" / "harness-choose-perplexity-complete.json"
    found = json.loads(path.read_text())
    for name, metric in NAMES.items():
        (line,) = [line for line in process.stdout.splitlines() if line.startswith(f"|{name}")]
        value = found["results"][name][f"{metric},none"]
        assert f"|{metric}" in line and float(line.split("|")[7]) == pytest.approx(value, abs=5e-3)
    settings = found["config"]
    assert (settings["run"], settings["step"], settings["max_length"]) == (str(run), 16, 32)
    assert settings["devices"].startswith("2 x") and settings["mesh"]["data"] == 2
    assert process.stdout.splitlines()[-1] == f"written: {path}"

    model = model_of(run)  # on eight devices
    texts = [doc["text"] for doc in DOCS]
    total = -sum(model.log_probabilities(texts)) / math.log(2) / sum(map(len, texts))
    assert found["results"]["perplexity"]["bits_per_byte,none"] == pytest.approx(total, rel=1e-5)
    correct = 0
    for doc in DOCS:
        context = model.encode_prompt(doc["question"])
        scores = model.score([(context, model.encode(f" {choice}")) for choice in doc["choices"]])
        correct += max(range(3), key=lambda index: scores[index].log_probability) == 0
    assert found["results"]["choose"]["acc,none"] == correct / len(DOCS)


def test_samples_and_other_settings_are_written_to_the_given_file(run, tasks, call, tmp_path):
    output = tmp_path / "scores.json"
    flags = ["--tasks=complete", f"--include_path={tasks}", "--limit=2", "--gen_kwargs=max_gen_toks=3", "--log_samples"]
    outcome = call(
        "lm.harness", f"--workdir={run}", *flags, f"--output={output}", "--batch_size=1", "--checkpoint=last"
    )
    assert outcome.status == 0, outcome.stderr
    found = json.loads(output.read_text())
    samples = found["samples"]["complete"]
    wanted = model_of(run).generate([(doc["question"], {"until": "\n", "max_gen_toks": 3}) for doc in DOCS[:2]])
    assert [sample["resps"][0][0] for sample in samples] == wanted
    assert (found["config"]["limit"], found["config"]["batch_size"]) == (2, 1)


def test_bad_tasks_and_outputs_are_refused(run, tasks, refused, tmp_path):
    command = ("lm.harness", f"--workdir={run}", f"--include_path={tasks}")
    refused(
        "--output=/no/such/scores.json cannot be written", *command, "--tasks=choose", "--output=/no/such/scores.json"
    )
    refused("is not a directory", *command[:2], "--include_path=/no/such", "--tasks=choose")
    refused(f"--output={tmp_path} is not a file", *command, "--tasks=choose", f"--output={tmp_path}", keeping=run)
    settings = (*command, "--tasks=complete")
    refused("--gen_kwargs=top_k: top_k='' is invalid; it must be a whole number", *settings, "--gen_kwargs=top_k")
    refused("--gen_kwargs=beams=3: the generation setting beams=3 is not supported", *settings, "--gen_kwargs=beams=3")
    unsafe = json.loads((tasks / "complete.yaml").read_text()) | {"task": "unsafe", "unsafe_code": True}
    (tmp_path / "unsafe.yaml").write_text(json.dumps(unsafe))
    problem = "the task 'unsafe' runs programs that a model has written, which is not supported"
    refused(problem, *command[:2], f"--include_path={tmp_path}", "--tasks=unsafe")
    broken = json.loads((tasks / "choose.yaml").read_text()) | {"task": "broken"}
    broken["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "none.jsonl")}}
    (tmp_path / "broken.yaml").write_text(json.dumps(broken))
    refused("a task or its data cannot be read", *command[:2], f"--include_path={tmp_path}", "--tasks=broken")
    long = json.loads((tasks / "complete.yaml").read_text()) | {"task": "long", "generation_kwargs": {"until": ["x"]}}
    (tmp_path / "long.yaml").write_text(json.dumps(long))
    refused("leaves no room for a prompt", *command[:2], f"--include_path={tmp_path}", "--tasks=long")


@pytest.mark.exhaustive  # reads the definitions of all tasks of the package, which takes 20 seconds
def test_unknown_task_is_refused_with_similar_names(run, refused):
    refused(
        "there is no task 'arc_eazy' in lm-eval; did you mean arc_easy",
        "lm.harness",
        f"--workdir={run}",
        "--tasks=arc_eazy",
    )


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 30])
def test_windows_equal_those_of_the_harness(length):
    tokens = list(range(100, 100 + length))
    theirs = map(lm_eval.utils.make_disjoint_window, lm_eval.utils.get_rolling_token_windows(tokens, 1, 8, 1))
    assert list(rolling_windows(tokens, 1, 8)) == list(theirs)


def test_contexts_are_split_as_the_harness_does(run):
    model = model_of(run)
    adapter = as_language_model(model)
    assert adapter._encode_pair("the dog ", "fox") == (model.encode_prompt("the dog"), model.encode(" fox"))
    request = type("Request", (), {"args": ("", "dog")})
    assert adapter.loglikelihood([request]) == model.score([([1], model.encode("dog"))])
