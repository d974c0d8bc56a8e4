"""The task chat: rows, masks and losses of conversations, training of both families, and what is refused."""

import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from rich.console import Console

from lm.config import Config, defaults, source
from lm.data import show
from lm.data.packing.rows import EvalRows
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.errors import UserError
from lm.models import build_model
from lm.runs.prepare import Prepared, prepare
from lm.tasks import TASKS
from lm.training.loop import train
from tests.chats import CONVERSATIONS, NAMES, TEMPLATES, TOOL, assistant, chat_tokenizer, library_tokenizer, user
from tests.run_helpers import assert_same_run

TASK = TASKS["chat"]
SYSTEM = {"role": "system", "content": "Be brief."}
SOUNDS = {"cat": "Meow!", "dog": "Woof!", "cow": "Moo!", "duck": "Quack!"}


def values_of(folder: Path, records: list[dict], template: str = "thinking", **changes: Any) -> Any:
    """Returns a config for conversations in the format of OpenAI, which are both training and validation data."""
    (folder / "talk.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    (folder / "tokenizer.json").write_text(library_tokenizer().to_str(), encoding="utf-8")
    text = {"chat_template": TEMPLATES[template]} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**NAMES, **text}), encoding="utf-8")
    values = defaults()
    for split in ("train", "valid"):
        values.data[split].talk = source(kind="jsonl", path=str(folder / "talk.jsonl"))
    values.data.tokenizer.update(kind="huggingface", path=str(folder / "tokenizer.json"))
    values.data.sequence_length = 256
    values.objective.name = "chat"
    values.model.update(num_layers=1, d_model=32, num_heads=2, scan_layers=False)
    values.train.update(batch_size=8, num_steps=4)
    values.optimizer.update(warmup_steps=0)
    values.eval.update(every_steps=2, prompts=())
    values.log.update(every_steps=1, tensorboard=False)
    values.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return values


def prepared(folder: Path, records: list[dict], template: str = "thinking", **changes: Any) -> Prepared:
    config = Config.from_dict(values_of(folder, records, template, **changes).to_dict())
    return prepare(config, folder / "run")


def records_of(*names: str) -> list[dict]:
    return [{"messages": CONVERSATIONS[name], "tools": [TOOL] if name == "tools" else None} for name in names]


def eval_rows(found: Prepared) -> EvalRows:
    return TASK.eval_rows(found.config, found.tokenizer, found.stores["valid"])["talk"]


def train_examples(found: Prepared) -> Any:
    return TASK.examples(found.config, found.tokenizer, found.stores["train"], True)["talk"]


def test_rows_hold_conversations_whose_answers_are_the_only_targets(tmp_path):
    found = prepared(tmp_path, records_of("one", "turns", "tools"), data__sequence_length=512)
    rows, template = eval_rows(found), ChatTemplate(chat_tokenizer(TEMPLATES["thinking"]))
    batch = rows.rows(range(rows.num_rows))
    seen = 0
    for record in records_of("one", "turns", "tools"):
        expected = template.encode(record["messages"], record["tools"])
        (row, segment) = next(
            (row, segment)
            for row, segments in enumerate(batch.segments)
            for segment in range(1, segments.max() + 1)
            if batch.tokens[row][segments == segment].tolist() == expected.ids[:-1]
        )
        inside = batch.segments[row] == segment
        assert batch.targets[row][inside].tolist() == expected.ids[1:]
        np.testing.assert_array_equal(batch.weights[row][inside], expected.scored[1:])
        assert batch.positions[row][inside].tolist() == list(range(len(expected.ids) - 1))
        seen += int(expected.scored.sum())
    assert rows.totals["targets"] == seen == batch.weights.sum()


def losses(found: Prepared, batch: Any, params: Any) -> np.ndarray:
    """Returns the summed cross-entropy and the weight of a batch."""
    model = build_model(found.config.model, TASK.head(found.config))
    sums = TASK.loss(model.apply({"params": params}, batch, train=False), batch, found.config.objective)
    return np.array([float(sums.nll), float(sums.weight)])


@pytest.mark.parametrize("family", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.exhaustive)])
def test_packed_conversations_have_the_losses_of_single_ones(tmp_path, family):
    changes = {"model__family": family} | ({"data__source_length": 512} if family == "encoder_decoder" else {})
    found = prepared(tmp_path, records_of("one", "turns", "tools", "special"), data__sequence_length=512, **changes)
    model = build_model(found.config.model, TASK.head(found.config))
    params = nn.unbox(model.initial_params(jax.random.key(0)))
    rows = eval_rows(found)
    assert rows.num_rows < len(rows.examples), "some rows hold several examples"
    packed = losses(found, rows.rows(range(rows.num_rows)), params)
    layout = TASK.layout(found.config)
    each = [losses(found, layout.lay_out([[rows.examples.make(0, i)]]), params) for i in range(len(rows.examples))]
    np.testing.assert_allclose(packed, np.sum(each, axis=0), rtol=1e-5)


def test_answers_of_an_encoder_decoder_have_all_that_precedes_them_as_source(tmp_path):
    messages = [SYSTEM, user("a?"), assistant("One."), user("b?"), assistant("Two.")]
    found = prepared(
        tmp_path, [{"messages": messages}], "", model__family="encoder_decoder", data__chat_template="texts"
    )
    tokenizer, examples = found.tokenizer, train_examples(found)
    shown = []
    for index in range(len(examples)):
        example = examples.make(0, index)
        assert example.source_S[-1] == example.targets_T[-1] == tokenizer.eos_id and example.weights_T.all()
        assert example.tokens_T.tolist() == [tokenizer.decoder_start_id, *example.targets_T[:-1]]
        assert [len(example.targets_T), len(example.source_S)] == [each[index] for each in examples.sizes(0)]
        shown.append((tokenizer.decode(example.source_S), tokenizer.decode(example.targets_T)))
    assert shown == [("Be brief.\na?", "One."), ("Be brief.\na?\nOne.\nb?", "Two.")]


def test_long_sources_lose_their_oldest_turns_and_then_their_end(tmp_path):
    messages = [SYSTEM, user("a" * 30), assistant("One."), user("b" * 9), assistant("Two.")]
    changes = {"model__family": "encoder_decoder", "data__chat_template": "texts", "data__source_length": 21}
    found = prepared(tmp_path, [{"messages": messages}], "", **changes)
    examples = train_examples(found)
    shown = [found.tokenizer.decode(examples.make(0, index).source_S) for index in range(2)]
    assert shown == ["Be brief.\naaaaaaaaaa", "Be brief.\nbbbbbbbbb"]
    assert "2 of 2 sources are shortened (data.source_length=21)" in examples.notes


@pytest.mark.parametrize(("overlong", "kept"), [("truncate", 2), ("drop", 1)])
def test_long_conversations_are_cut_or_dropped_and_those_without_an_answer_are_omitted(tmp_path, overlong, kept):
    records = [
        {"messages": [user("a"), assistant("b")]},
        {"messages": [user("a"), assistant("c" * 99)]},
        {"messages": [user("a" * 99), assistant("b")]},
    ]
    found = prepared(tmp_path, records, "headers", data__sequence_length=48, data__pairs__overlong=overlong)
    examples = train_examples(found)
    fate = "are truncated" if overlong == "truncate" else "are too long and are dropped"
    omitted = "1 of 3 conversations have no answer within a row and are omitted"
    assert len(examples) == kept
    assert examples.notes == [f"2 of 3 conversations {fate} (data.sequence_length=48)", *([omitted] * (kept == 2))]
    assert all(len(examples.make(0, index).tokens_T) == examples.sizes(0)[0][index] <= 48 for index in range(kept))
    assert all(examples.make(0, index).weights_T.any() for index in range(kept))
    evaluated = eval_rows(found)
    assert len(evaluated.examples) == 3, "evaluations keep all"
    assert evaluated.totals["targets"] == evaluated.rows(range(evaluated.num_rows)).weights.sum()
    again = pickle.loads(pickle.dumps(examples))
    assert again.make(0, 0).targets_T.tolist() == examples.make(0, 0).targets_T.tolist()


@pytest.mark.parametrize(
    ("records", "changes", "message"),
    [
        (
            [{"messages": [user("a"), assistant("b")]}, {"messages": [user("a"), user("b"), assistant("c")]}],
            {"template": "alternating"},
            "config.data.train.talk: {path}, line 2: the chat template rejects the conversation: Roles must alternate",
        ),
        (
            [{"messages": [user("a"), assistant("b")]}],
            {"data__chat_template": "{{ messages[0].content }}"},
            "line 1: the chat template renders no text from the assistant, so there is nothing to learn",
        ),
        (
            [{"messages": [user("a"), assistant("b")]}],
            {"template": ""},
            "config.data.chat_template: the tokenizer has no chat template; set this to plain or texts or to the text",
        ),
        (
            [{"messages": [user("a" * 99), assistant("b")]}],
            {"data__sequence_length": 32},
            "config.data.train.talk: no answer by the assistant fits in a row, so there is nothing to train on",
        ),
        ([], {"data__cleaning__whitespace": "trim"}, "config.data.cleaning: conversations are never cleaned"),
        ([], {"data__source_length": 64}, "config.data.source_length: a decoder reads the whole conversation as one"),
        ([], {"model__family": "encoder"}, "config.objective.name: 'chat' does not support model.family=encoder"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path, records, changes, message):
    with pytest.raises(UserError) as caught:
        found = prepared(tmp_path, records, **changes)
        TASK.train_rows(found.config, found.tokenizer, found.stores["train"])
    assert message.format(path=tmp_path / "talk.jsonl") in str(caught.value)


def test_a_change_of_the_template_changes_the_fingerprint(tmp_path):
    prints = []
    for name in ("plain", "texts"):
        (tmp_path / name).mkdir()
        found = prepared(tmp_path / name, records_of("one"), data__chat_template=name)
        prints.append(found.fingerprint["train/talk"])
    assert len(set(prints)) == 2


def test_the_preview_shows_which_tokens_are_targets(tmp_path):
    found = prepared(tmp_path, [{"messages": [user("Hi"), assistant("Yo")]}], "headers", data__sequence_length=64)
    out = io.StringIO()
    show.show(Console(file=out, width=400), found, 1, 1, 9)
    lines = out.getvalue().splitlines()
    reads, predicts = (next(line for line in lines if line.startswith(name)) for name in ("reads", "predicts"))
    targets = predicts[10:].split()
    assert targets[-3:] == ["Y", "o", "<|end|>"] and set(targets[:-3]) == {show.NOT_SCORED}
    assert reads[9:].split()[0] == "|<|begin|>"


def sounds(draw: random.Random) -> dict:
    messages = []
    for animal in draw.choices(list(SOUNDS), k=draw.randint(1, 3)):
        messages += [user(f"What does a {animal} say?"), assistant(SOUNDS[animal])]
    return {"messages": messages}


@pytest.mark.exhaustive
def test_stopped_run_continues_to_the_bit(tmp_path, tiny):
    draw = random.Random(1)
    values = values_of(
        tmp_path, [sounds(draw) for _ in range(20)], "thinking", train__num_steps=8, data__cache_dir=str(tiny.cache)
    )
    values.update_from_flattened_dict({"optimizer.decay_steps": 8, "checkpoint.every_steps": 4, "eval.every_steps": 4})
    assert train(Config.from_dict(values.to_dict()), tmp_path / "straight") == 0
    for steps in (4, 8):
        values.train.num_steps = steps
        assert train(Config.from_dict(values.to_dict()), tmp_path / "stopped") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize(
    "changes",
    [
        {"model__lora_rank": 2},
        pytest.param({"model__family": "encoder_decoder"}, marks=pytest.mark.exhaustive),
    ],
)
def test_training_learns_the_answers_and_writes_the_metrics(tmp_path, tiny, changes):
    draw = random.Random(0)
    records = [sounds(draw) for _ in range(40)]
    values = values_of(tmp_path, records, "headers", train__num_steps=30, optimizer__learning_rate=1e-2, **changes)
    values.data.cache_dir = str(tiny.cache)
    values.eval.every_steps = values.checkpoint.every_steps = 10
    values.eval.generation.update(metrics=("exact_match",), max_new_tokens=12)
    assert train(Config.from_dict(values.to_dict()), tmp_path / "run") == 0
    results = json.loads((tmp_path / "run/eval/30/results.json").read_text())["metrics"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    measured = [each["valid/loss"] for each in map(json.loads, lines) if "valid/loss" in each]
    assert results["loss"] == measured[-1] < measured[0]
    assert results["perplexity"] == pytest.approx(np.exp(results["loss"])) and 0 < results["token_accuracy"] <= 1
    written = [json.loads(line) for line in (tmp_path / "run/eval/30/predictions.jsonl").read_text().splitlines()]
    right = [each["prediction"].strip() == each["reference"] for each in written]
    assert len(right) == 40 and results["exact_match"] == pytest.approx(100 * np.mean(right))
    assert written[0]["reference"] in SOUNDS.values() and written[0]["source"].startswith("user: ")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_beams", 4),
        ("penalty", "gnmt"),
        ("length_penalty", 0.5),
        ("exact", False),
        ("no_repeat_ngram", 3),
        ("min_new_tokens", 2),
    ],
)
@pytest.mark.parametrize("metrics", [(), ("exact_match",)])
def test_decoder_refuses_settings_of_beam_search(tmp_path, setting, value, metrics):
    values = values_of(tmp_path, records_of("one"))
    values.eval.generation.update(metrics=metrics, max_new_tokens=12, batch_size=2)
    Config.from_dict(values.to_dict())
    values.eval.generation[setting] = value
    with pytest.raises(UserError, match=rf"^config.eval.generation.{setting}: a decoder writes its answers greedily"):
        Config.from_dict(values.to_dict())
    values.model.family = "encoder_decoder"
    Config.from_dict(values.to_dict())
