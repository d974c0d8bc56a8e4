"""What every task of the registry declares, which settings it refuses, and that nobody else compares its name."""

import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.config import Config
from lm.config.checks import default_of, unread
from lm.config.experiment import replace_settings
from lm.config.schema import describe_settings
from lm.errors import UserError
from lm.tasks import TASKS, task_of
from lm.tasks.task import Task

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [(name, family) for name, task in TASKS.items() for family in task.families]
ALL_SETTINGS = frozenset().union(*(task.settings for task in TASKS.values()))
# Other values than the default, where adding 1 or taking the other of two choices is not allowed.
CHANGED: dict[str, Any] = {
    "data.beam": "--runner=DirectRunner",
    "data.chat_template": "plain",
    "data.cleaning.stop_words": "english",
    "data.labels": ("a", "b"),
    "data.pairs.source_script": "LATIN",
    "data.pairs.target_script": "LATIN",
    "eval.generation.metrics": ("bleu",),
    "eval.sampling.top_p": 0.5,
    "eval.sampling.min_p": 0.5,
    "model.pooling": "mean",
    "objective.class_weights": (1.0, 2.0),
    "objective.label_smoothing": 0.1,
    "objective.noise_density": 0.3,
    "objective.count_power": 0.5,
    "objective.source_dropout": 0.1,
    "objective.subsample": 0.01,
    "eval.word_pairs": "pairs.tsv",
}


def values_of(name: str, family: str, **settings: Any) -> dict[str, Any]:
    """Returns a config of a task as plain values, with a data source that has every field of the task's reader."""
    fields = {setting: "given" for setting in TASKS[name].reader.roles.values() if setting not in ("", "field")}
    values: dict[str, Any] = {
        "data": {
            "train": {"a": {"kind": "jsonl", "path": "unread.jsonl", **fields}},
            "tokenizer": {"extra_ids": 103},
        },
        "model": {"family": family, "architecture": "word_vectors" if TASKS[name].trains_words else "transformer"},
        "objective": {"name": name},
    }
    return replace_settings(Config.from_dict(values), settings).to_dict()


def changed(setting: str) -> Any:
    default = default_of(setting)
    if setting in CHANGED:
        return CHANGED[setting]
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 1
    return next(each for each in choices_of(setting) if each != default)


def choices_of(setting: str) -> tuple[str, ...]:
    (doc,) = (doc for name, _, doc in describe_settings(Config) if name == setting)
    assert "One of: " in doc, f"{setting} needs a value in CHANGED"
    return ast.literal_eval(doc.rpartition("One of: ")[2].removesuffix(".") + ",")


# --- what a task declares ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_name_a_line_of_help_families_metrics_and_settings_that_exist(name):
    task = TASKS[name]
    assert isinstance(task, Task) and task.name == name and name.isidentifier()
    assert task.doc.strip() == task.doc != "" and "\n" not in task.doc
    families = choices_of("model.family")
    assert task.families and set(task.families) <= set(families) and len(set(task.families)) == len(task.families)
    leaves = {setting for setting, *_ in describe_settings(Config)}
    assert task.settings <= leaves, "each is the dotted name of a single value"
    for setting in task.settings:
        default_of(setting)
    for family in task.families:
        config = Config.from_dict(values_of(name, family))
        assert task_of(config) is task
        metrics, console = task.metrics(config), task.console_metrics(config)
        assert len(set(metrics)) == len(metrics) > 0 and all(metrics) and console
        first = replace_settings(config, {"checkpoint.best_metric": f"valid/{metrics[0]}"})
        if not config.checkpoint.best_metric:  # the loss does not rank steps
            continue
        assert Config.from_dict(first.to_dict()) == first, "its first metric can decide what is best"


def test_every_family_is_served_and_the_names_are_in_the_help():
    assert {family for task in TASKS.values() for family in task.families} == {"decoder", "encoder", "encoder_decoder"}
    assert choices_of("objective.name") == tuple(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_families_that_a_task_does_not_serve_are_refused_with_the_tasks_that_they_learn(name):
    for family in {"decoder", "encoder", "encoder_decoder"} - set(TASKS[name].families):
        with pytest.raises(
            UserError, match=rf"config\.objective\.name: '{name}' does not support model\.family={family}"
        ) as caught:
            values_of(name, family)
        offered = str(caught.value).rpartition("choose ")[2].removesuffix(".").replace(" or ", ", ").split(", ")
        assert offered == [other for other, task in TASKS.items() if family in task.families]


# --- settings that a task does not read --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_a_resolved_config_is_accepted_again_and_does_not_change(name, family):
    config = Config.from_dict(values_of(name, family))
    assert Config.from_dict(config.to_dict()) == config == Config.from_dict(json.loads(config.to_json()))
    assert Config.from_dict(config.to_dict(), reset_unread=True) == config


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_a_setting_that_the_task_does_not_read_is_accepted_only_at_its_default(name, family):
    task = TASKS[name]
    config = Config.from_dict(values_of(name, family))
    settings = dict(unread(TASKS, name))
    assert set(settings) == ALL_SETTINGS - task.settings
    assert Config.from_dict(replace_settings(config, settings).to_dict()) == config, "at their defaults"
    for setting, default in settings.items():
        values = values_of(name, family, **{setting: changed(setting)})
        with pytest.raises(UserError) as caught:
            Config.from_dict(values)
        message = str(caught.value)
        assert message.startswith(f"config.{setting}: this setting is not read by objective.name={name}, only by "), (
            message
        )
        assert message.endswith(f"; leave it at {default!r}.")
        readers = message.partition("only by ")[2].partition(";")[0].replace(" or ", ", ").split(", ")
        assert readers == [other for other, each in TASKS.items() if setting in each.settings] and readers
        assert Config.from_dict(values, reset_unread=True) == config, "older configs get the default"


@pytest.mark.parametrize("name", TASKS)
def test_a_setting_that_the_task_reads_can_be_changed(name):
    # The settings that Transformers derive get their defaults.
    recurrent = {"model.architecture": "recurrent", "model.head_dim": 0, "model.num_kv_heads": 0, "model.d_ff": 0}
    other = {
        "data.separate_vocabularies": {"model.share_embeddings": False},
        "data.source_length": {"data.source_length": 200},
        **dict.fromkeys(("data.stateful", "model.output_penalty", "model.change_penalty"), recurrent),
        "eval.generation.max_new_tokens": {"eval.generation.max_new_tokens": 7},
        "eval.stride": {"eval.stride": 7},
        "objective.class_weights": {"data.labels": ("a", "b")},
    }
    for setting in sorted(TASKS[name].settings):
        values = {setting: changed(setting), **other.get(setting, {})}
        config = Config.from_dict(values_of(name, TASKS[name].families[0], **values))
        assert replace_settings(config, values) == config


# --- who compares the name of a task -----------------------------------------------------------------------------


def comparisons(source: str) -> list[int]:
    """Returns the lines of a module on which the name of a task is compared, or looked up in a dict.

    A name of a task is `.name` of something called objective or task, or of `task_of(...)`; a variable that one was
    assigned to; or one called objective_name or task_name. Comparisons are ==, !=, in, not in, match, `.startswith()`
    and the like; also of anything with a string that is the name of a task, except for `.head`.
    """
    tree = ast.parse(source)
    aliases = {"objective_name", "task_name"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value and is_name(node.value, aliases):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            aliases |= {each.id for each in targets if isinstance(each, ast.Name)}
    return sorted({node.lineno for node in ast.walk(tree) if compares(node, aliases)})


def is_name(node: ast.AST, aliases: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in aliases
    if not (isinstance(node, ast.Attribute) and node.attr == "name"):
        return False
    owner = node.value.func if isinstance(node.value, ast.Call) else node.value
    called = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return called in ("objective", "task", "task_of")


def names_task(node: ast.AST) -> bool:
    """Whether an expression is a string that is the name of a task, or a collection with such a string."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(names_task, node.elts))
    return isinstance(node, ast.Constant) and node.value in TASKS


def compares(node: ast.AST, aliases: set[str]) -> bool:
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        if any(isinstance(each, ast.Attribute) and each.attr == "head" for each in operands):
            return False  # heads have names of their own
        return any(is_name(each, aliases) or names_task(each) for each in operands)
    if isinstance(node, ast.Match):
        patterns = [
            each.value for case in node.cases for each in ast.walk(case.pattern) if isinstance(each, ast.MatchValue)
        ]
        return is_name(node.subject, aliases) or any(map(names_task, patterns))
    if isinstance(node, ast.Subscript):
        registry = isinstance(node.value, ast.Name) and node.value.id == "TASKS"
        registry = registry or ast.unparse(node.value) in ("entries('lm.tasks.TASKS')", "entries(TASKS)")
        return is_name(node.slice, aliases) and not registry
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        looked_up = node.func.attr in ("get", "pop", "setdefault", "index", "count", "__contains__", "__getitem__")
        asked = node.func.attr in ("startswith", "endswith", "__eq__", "find")
        return (looked_up and any(is_name(each, aliases) for each in node.args)) or (
            asked and is_name(node.func.value, aliases)
        )
    return False


def modules() -> Iterator[Path]:
    """Yields the modules of lm/ outside lm/tasks, of benchmarks/, and the two commands."""
    for folder in ("lm", "benchmarks"):
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if ROOT / "lm" / "tasks" not in path.parents)
    yield from (ROOT / "train.py", ROOT / "eval.py")


def test_nothing_outside_the_tasks_compares_the_name_of_a_task():
    found = {str(path.relative_to(ROOT)): comparisons(path.read_text(encoding="utf-8")) for path in modules()}
    assert len(found) > 50
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "config.objective.name == other",
        "objective.name != 'causal'",
        "if 'span_qa' == each: pass",
        "task.name in NAMES",
        "task_of(config).name not in ('a', 'b')",
        "name = config.objective.name\nname == 'x'",
        "if (found := self.task.name) and found != x: pass",
        "{'a': 1}[config.objective.name]",
        "LOSSES.get(objective.name, None)",
        "match objective.name:\n    case _: pass",
        "match kind:\n    case 'masked' | 'x': pass",
        "[each for each in names if each in ('tagging', 'x')]",
        "config.objective.name.startswith('span')",
        "def f(objective_name):\n    return objective_name == 'x'",
    ],
)
def test_comparisons_of_all_forms_are_found(code):
    assert comparisons(textwrap.dedent(code))


@pytest.mark.parametrize(
    "code",
    [
        "TASKS[config.objective.name]",
        "entries('lm.tasks.TASKS')[given.objective.name]",
        "print(f'objective.name={task.name}')",
        "self.name == 'test'",
        "config.head == 'masked'",
        "config.objective.name = 'seq2seq'",
        "optimizer.name == 'adamw'",
        "record = {'task': task.name}",
    ],
)
def test_other_uses_of_names_are_allowed(code):
    assert not comparisons(code)
