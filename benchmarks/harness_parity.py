"""Compares our answers to the requests of lm-evaluation-harness with those of its own `hf` model, request by request.

    python -m benchmarks.harness_parity --directory=/tmp/parity [--folder=FOLDER [--apply_chat_template]] [--limit=N]
        [--output=parity.json]

Three tasks are written to the directory, one for each kind of request: choosing the capital of a country
(multiple_choice), the log-probability of docstrings of Python's library (loglikelihood_rolling) and completing a
sentence (generate_until). Without --folder, three tiny models with random weights are made, imported and exported: a
decoder without a BOS token (as GPT-2), one with it (as Llama) and an encoder-decoder (as T5). With --folder, the
published decoder in that folder is imported and compared.

Log-probabilities must agree within 1e-4 (those of whole texts, within 1e-4 or a millionth); greedy flags and generated
texts must be equal. Otherwise, the exit status is 1. The `hf` model computes in float64: in float32, its sums over a
thousand tokens are off by up to 4e-4.

The `hf` model gets the same tokens as ours, which takes three changes: it would put two BOS tokens before each document
of a rolling task, or score an EOS token after it; it would let an encoder-decoder write as many more tokens as its
source has; and it would write BOS and padding tokens, which are never chosen here. It drops the BOS token of a context
that is cut, which we keep, so no context is too long for the decoder with a BOS token.

Needs requirements-harness.txt and requirements-benchmarks.txt. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.huggingface_peer import frameworks
from lm.decoding.sampling import choosable, vocabulary_of
from lm.huggingface.exporting import Original, export
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import import_folder
from lm.huggingface.provenance import provenance_of
from lm.huggingface.recognising import recognise
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options
from lm.runs.harness import HarnessOptions, HarnessRun, as_language_model
from lm.runs.prepare import load_tokenizers
from lm.training.startup import versions

TOLERANCE = 1e-4  # for the log-probability of a continuation or text, in nats
RELATIVE_TOLERANCE = 1e-6  # for the log-probability of a text, which may be thousands of nats
BATCH_SIZE = 5
MAX_LENGTH = 128
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Norway": "Oslo",
    "Finland": "Helsinki",
}
MODULES = "abc argparse ast bisect calendar cmd collections copy csv datetime decimal difflib".split()
TASKS = {
    "capitals": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}Question: What is the capital of {{country}}?\nAnswer:",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "docstrings": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "completions": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}The capital of {{country}} is",
        "doc_to_target": "answer",
        # The texts of the random models contain neither full stops nor empty lines.
        "generation_kwargs": {"until": [".", "\n\n", "he", "u"], "do_sample": False, "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@dataclass(frozen=True)
class Case:
    name: str
    folder: Path  # the published model, which both sides read
    run: Path  # the same model as a run directory
    special: bool  # whether the tokenizer adds special tokens to a text
    two_sided: bool


def docstrings() -> list[str]:
    return [importlib.import_module(name).__doc__ or name for name in MODULES]


def documents(run: HarnessRun, long_contexts: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns the documents of each task. With `long_contexts`, every fourth context is longer than MAX_LENGTH.

    One of the choices is the most probable token, so that some continuations are greedy.
    """
    docs, cities, found = docstrings(), list(CAPITALS.values()), []
    for number, (country, city) in enumerate(CAPITALS.items()):
        choices = [f" {cities[(number + shift) % len(cities)]}" for shift in (0, 3)] + [f" the city of {city}"]
        context = f"{docs[number % len(docs)] * 4}\n\n" if long_contexts and number % 4 == 0 else ""
        found.append({"context": context, "country": country, "choices": choices, "label": 0, "answer": city})
    prompts = [f"{each['context']}Question: What is the capital of {each['country']}?\nAnswer:" for each in found]
    tokens = run.generate([(prompt, {"max_gen_toks": 1}) for prompt in prompts])
    for each, token in zip(found, tokens, strict=True):
        each["choices"].append(token.strip("\ufffd") or " one")
    texts = [*docs, "One.", " ".join(docs[:3])]
    return {"capitals": found, "docstrings": [{"text": text} for text in texts], "completions": found}


def write_tasks(directory: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, docs in found.items():
        data = directory / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(doc)}\n" for doc in docs))
        files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        # JSON is a subset of YAML.
        (directory / f"{name}.yaml").write_text(json.dumps({"task": name, **files, **TASKS[name]}, indent=2))


def tiny_folder(name: str, folder: Path) -> None:
    """Writes a tiny model with random weights and a tokenizer that is trained on docstrings."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    torch, transformers = frameworks()
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    frame = {"gpt2": "$A", "llama": "<s> $A", "t5": "$A </s>"}[name]
    if frame != "$A":
        ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, pair=f"{frame} $B", special_tokens=ids)
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", **({"bos_token": "<s>"} if name == "llama" else {})}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.2, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=None, **sizes)
        model = transformers.GPT2LMHeadModel(config)
    elif name == "llama":
        layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(
            **layers, intermediate_size=48, max_position_embeddings=256, bos_token_id=2, **sizes
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        layers = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        del sizes["initializer_range"]
        config = transformers.T5Config(**layers, initializer_factor=1.0, decoder_start_token_id=0, **sizes)
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)


def import_run(folder: Path, root: Path) -> RunDirectory:
    if not (root / "config.json").exists():
        opened = open_folder(str(folder))
        import_folder(opened, recognise(opened, "", 0, "float32"), root)
    return RunDirectory.existing(root)


def export_run(directory: RunDirectory, out: Path) -> None:
    config = directory.load_config()
    with directory.open_checkpoints(config) as checkpoints:
        params, _ = checkpoints.restore_params(None, "best", ema=False)
    found = provenance_of(directory.root, config, lambda root: RunDirectory(root).load_config())
    assert found is not None
    export(params, config, out, Original.read(found), special_ids={}, dtype="", max_shard_bytes=10**9)


def make_cases(directory: Path, folder: Path | None) -> list[Case]:
    if folder is not None:
        run = import_run(folder, directory / "run")
        special = load_tokenizers(run.load_config(), run.root).target.bos_id is not None
        return [Case(folder.name, folder, run.root, special, two_sided=False)]
    cases = []
    for name in ("gpt2", "llama", "t5"):
        drawn, exported = directory / f"{name}_drawn", directory / name
        if not exported.exists():
            tiny_folder(name, drawn)
            export_run(import_run(drawn, directory / f"{name}_run"), exported)
        cases.append(Case(name, exported, directory / f"{name}_run", name != "gpt2", two_sided=name == "t5"))
    return cases


def hf_model(case: Case, run: HarnessRun, **settings: Any) -> Any:
    """Returns the harness's own model of the folder, with the changes that the module describes."""
    from lm_eval.models.huggingface import HFLM

    _, transformers = frameworks()

    class Peer(HFLM):
        def _model_generate(self, context: Any, max_length: int, stop: list[str], **others: Any) -> Any:
            if case.two_sided:  # the length includes the start token
                max_length = max_length - context.shape[1] + 1
            return super()._model_generate(context, max_length, stop, **others)

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(case.folder)
    sizes: dict[str, Any] = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "device": "cpu", "dtype": "float64"}
    peer = Peer(pretrained=str(case.folder), tokenizer=tokenizer, **sizes, **settings)
    never = ~np.asarray(choosable(vocabulary_of(run.tokenizer), peer.model.config.vocab_size))
    peer.model.generation_config.suppress_tokens = np.flatnonzero(never).tolist() or None
    return peer


def answers(model: Any, tasks: Path, names: list[str], **settings: Any) -> tuple[dict[str, list[Any]], dict]:
    """Returns the answers to the requests of each task, in order, and the metrics."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks, include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, **settings)
    by_task = {}
    for name in names:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        by_task[name] = [answer for sample in samples for (answer,) in sample["resps"]]
    return by_task, {name: found["results"][name] for name in names}


def compare(case: Case, tasks: Path, limit: int | None, as_chat: bool) -> dict[str, Any]:
    """Returns the figures of a comparison, for which tasks are written to the directory `tasks`."""
    settings: dict[str, Any] = {"limit": limit, "apply_chat_template": as_chat}
    directory = RunDirectory.existing(case.run)
    options, harness = Options(batch_size=BATCH_SIZE), HarnessOptions(max_length=MAX_LENGTH, as_chat=as_chat)
    run = HarnessRun(directory, directory.load_config(), options, harness)
    docs = documents(run, long_contexts=not case.special or case.two_sided)
    write_tasks(tasks, docs)
    ours, our_metrics = answers(as_language_model(run), tasks, list(TASKS), **settings)
    theirs, their_metrics = answers(hf_model(case, run), tasks, ["capitals", "completions"], **settings)
    without = hf_model(case, run, add_bos_token=False) if case.special else hf_model(case, run)
    rolling, rolling_metrics = answers(without, tasks, ["docstrings"], **settings)
    theirs, their_metrics = theirs | rolling, their_metrics | rolling_metrics
    lengths = np.array([len(run.tokenizer.encode(doc["text"])) for doc in docs["docstrings"][:limit]])
    choices = [np.array([answer[0] for answer in each["capitals"]]) for each in (ours, theirs)]
    flags = [[answer[1] for answer in each["capitals"]] for each in (ours, theirs)]
    whole = [np.array(each["docstrings"]).ravel() for each in (ours, theirs)]
    return {
        "requests": {name: len(each) for name, each in ours.items()},
        "largest difference of log-probabilities": {
            "capitals": float(np.abs(choices[0] - choices[1]).max()),
            "docstrings": float(np.abs(whole[0] - whole[1]).max()),
            "docstrings, relative": float(np.abs(whole[0] / whole[1] - 1).max()),
        },
        "tokens of the docstrings": lengths.tolist(),
        "equal greedy flags": sum(map(bool.__eq__, *flags)),
        "continuations that are greedy": sum(flags[0]),
        "equal texts": sum(one == two for one, two in zip(ours["completions"], theirs["completions"], strict=True)),
        "texts that end at a stop": sum(len(run.tokenizer.encode(each)) < 24 for each in ours["completions"]),
        "example": ours["completions"][0],
        "metrics": {"ours": numbers(our_metrics), "hf": numbers(their_metrics)},
    }


def numbers(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {task: {name: x for name, x in found.items() if isinstance(x, float)} for task, found in metrics.items()}


def agrees(found: dict[str, Any]) -> bool:
    differences = found["largest difference of log-probabilities"]
    return (
        differences["capitals"] <= TOLERANCE
        and (differences["docstrings"] <= TOLERANCE or differences["docstrings, relative"] <= RELATIVE_TOLERANCE)
        and found["equal greedy flags"] == found["requests"]["capitals"]
        and found["equal texts"] == found["requests"]["completions"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="directory for tasks, models and runs")
    parser.add_argument("--folder", type=Path, help="published decoder to compare; default: tiny random models")
    parser.add_argument("--limit", type=int, help="number of documents per task")
    parser.add_argument("--apply_chat_template", action="store_true", help="render prompts with the chat template")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    directory, figures = arguments.directory.resolve(), {}
    for case in make_cases(directory, arguments.folder):
        figures[case.name] = compare(
            case, directory / f"tasks_{case.name}", arguments.limit, arguments.apply_chat_template
        )
        shown = {name: value for name, value in figures[case.name].items() if name != "metrics"}
        print(f"{case.name}: {json.dumps(shown, ensure_ascii=False)}", flush=True)
    if arguments.output:
        peers = {name: importlib.metadata.version(name) for name in ("lm_eval", "torch", "transformers")}
        record = {"tolerance": TOLERANCE, "versions": versions() | peers, **figures}
        arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    differing = [name for name, each in figures.items() if not agrees(each)]
    print(f"DIFFERENT: {', '.join(differing)}" if differing else "all answers agree")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
