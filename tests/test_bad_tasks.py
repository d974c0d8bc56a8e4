"""Bad settings and data of tasks with labels, heads or encoders: one line names the culprit (see test_bad_input.py)."""

import dataclasses
import json

import pytest

from lm.config import Config
from lm.errors import UserError
from lm.runs.directory import RunDirectory
from lm.runs.prepare import prepare
from lm.tasks import TASKS
from tests.run_helpers import config_of

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections

ALL = ("decoder", "encoder_decoder", "encoder")
# Overrides that turn `tiny` and `tiny_labels` into other tasks.
MASKED = ["model.family=encoder", "objective.name=masked", "data.tokenizer.extra_ids=1"]
WITHOUT_LABEL = [f"data.{split}.lines.label_field=" for split in ("train", "valid", "test")]
PLAIN_BEST = "checkpoint.best_metric=valid/loss"


def of_all(setting):
    return [f"data.{split}.lines.{setting}" for split in ("train", "valid", "test")]


@pytest.mark.parametrize(
    ("objective", "family"),
    [(name, family) for name, task in TASKS.items() for family in ALL if family not in task.families],
)
def test_objectives_of_other_families_are_refused_and_fitting_ones_offered(tiny, objective, family):
    values = config_of(tiny).to_dict()
    values["objective"]["name"], values["model"]["family"] = objective, family
    message = rf"config\.objective\.name: '{objective}' does not support model\.family={family}; choose "
    with pytest.raises(UserError, match=message) as caught:
        Config.from_dict(values)
    offered = str(caught.value).rpartition("choose ")[2].removesuffix(".").replace(" or ", ", ").split(", ")
    assert offered == [name for name, task in TASKS.items() if family in task.families]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.train.lines.kind=conll"],
            "config.data.train.lines.kind: conll does not support labels; use text or jsonl or",
        ),
        (
            ["data.test.lines.kind=squad"],
            "config.data.test.lines.kind: squad does not support labels; use text or jsonl or",
        ),
        (["data.train.lines.kind=embedded"], "lines.kind: embedded does not support labels; use"),
        (["data.valid.lines.part=(0.5,)"], "config.data.valid.lines.part: (0.5,) is not a subrange of [0, 1]"),
        (["data.valid.lines.part=(0.5, 0.5)"], "lines.part: (0.5, 0.5) is not a subrange"),
        (["data.valid.lines.part=(0.5, 1.5)"], "lines.part: (0.5, 1.5) is not a subrange"),
        (
            ["data.train.lines.kind=text", "data.train.lines.label_field="],
            "config.data.train.lines.label_pattern: give a pattern that finds the label",
        ),
        (["data.train.lines.label_field="], "config.data.train.lines.label_field: name the field that holds the label"),
        (
            ["data.fold=4"],
            "config.data.fold: 4 is not less than data.folds=4; folds are numbered from 0",
        ),
        (["data.labels=('a', 'b', 'a')"], "config.data.labels: the same label appears more than once"),
        (
            ["objective.class_weights=(1.0, 2.0)"],
            "config.objective.class_weights: give each label in data.labels a weight of 0 or more",
        ),
        (
            ["objective.class_weights=(1.0, 2.0, 3.0)", "data.labels=('is_x', 'is_y')"],
            "config.objective.class_weights: give each label in data.labels a weight",
        ),
        (
            ["objective.class_weights=(1.0, -1.0)", "data.labels=('is_x', 'is_y')"],
            "config.objective.class_weights: give each label in data.labels a weight",
        ),
        (
            ["objective.class_weights=(0.0, 0.0)", "data.labels=('is_x', 'is_y')"],
            "config.objective.class_weights: all weights are 0, so nothing would be learnt",
        ),
        (
            ["objective.class_weights=(1.0, 2.0)", "objective.balance_classes=True"],
            "config.objective.class_weights: class_weights and balance_classes cannot both be set",
        ),
        (
            ["objective.class_weights=(1.0, 2.0)", "objective.name=regression", PLAIN_BEST],
            "config.objective.class_weights: this setting is not read by objective.name=regression",
        ),
        (
            ["objective.balance_classes=True", "objective.name=tagging"],
            "objective.balance_classes: this setting is not read by",
        ),
        (["objective.whole_words=True"], "config.objective.whole_words: this setting is not read by objective"),
        (
            ["objective.next_sentence=True"],
            "config.objective.next_sentence: this setting is not read by objective",
        ),
        (["objective.name=regression", "model.num_classes=2"], "config.model.num_classes is no longer a setting"),
        (["model.family=decoder", "model.pooling=first"], "config.model.pooling: the first token of a decoder sees no"),
        (["model.pooling=none"], "config.model.pooling: 'none' is not one of '', 'first', 'last', 'mean'"),
        (["model.head=span"], "config.model.head is no longer a setting; it is now determined by objective.name"),
        (
            ["model.global_every=2"],
            "config.model.global_every: this setting requires a sliding window; set model.window",
        ),
        (
            ["model.token_types=2", "model.family=decoder"],
            "config.model.token_types: this setting applies only to model.family=encoder",
        ),
        (["model.lora_targets=('query', 'values')"], "config.model.lora_targets: 'values' is not one of query, key"),
        (["optimizer.freeze_layers=2"], "config.optimizer.freeze_layers: the model has fewer layers (1)"),
        (
            ["checkpoint.best_metric=valid/f1"],
            "this run does not compute 'valid/f1'; choose valid/ followed by one of loss, acc",
        ),
        (
            ["objective.name=masked", "data.tokenizer.extra_ids=1"],
            "label_field: this setting applies only to labels or numbers or tags, but",
        ),
        (["init_from=nowhere"], "config.init_from: nowhere is not a run directory (it has no config.json)"),
    ],
)
def test_bad_settings_of_labels_are_refused(refused_settings, tiny_labels, overrides, message):
    refused_settings(message, tiny_labels, overrides)


SQUAD = ["objective.name=span_qa", "data.train.text.kind=squad"]
CONLL = ["objective.name=tagging", "data.train.text.kind=conll"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.family=encoder", "objective.name=masked"],
            "objective.name='masked' needs a mask token; set extra_ids",
        ),
        ([*MASKED, "objective.next_sentence=True", "data.sequence_length=15"], "objective.next_sentence: rows must"),
        ([*SQUAD, "data.context_overlap=16"], "config.data.context_overlap: the overlap must be less than half"),
        ([*CONLL, "data.holdout=tail"], "config.data.holdout: examples can only be held out by hash"),
        (["objective.name=tagging"], "config.data.train.text.kind: text does not support tags; use jsonl or parquet"),
        (["objective.name=contrastive"], "config.data.train.text.target_path: name the file with the targets"),
    ],
)
def test_bad_settings_of_other_tasks_are_refused(refused, tiny, tmp_path, overrides, message):
    """Some of them are found only when the data is read."""
    refused(message, "train.py", *tiny.flags(tmp_path / "run"), *(f"--config.{each}" for each in overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.accumulation=2"],
            "config.train.accumulation: texts are compared across the batch",
        ),
        (
            ["data.separate_vocabularies=True"],
            "config.data.separate_vocabularies: this setting is not read by",
        ),
        (["model.pooling=first"], "config.model.pooling: the first token of a decoder"),
        (["checkpoint.best_metric=valid/f1"], "valid/ followed by one of loss, accuracy."),
    ],
)
def test_bad_settings_of_contrastive_pairs_are_refused(refused_settings, tiny_pairs, overrides, message):
    task = ["objective.name=contrastive", "model.family=decoder", "data.source_length=0"]
    refused_settings(message, tiny_pairs, [*task, *overrides])


LINES = "text\tlabel\n" + "".join(f"line {i}\t{'ab'[i % 2]}\n" for i in range(60))
LATIN = LINES.replace("line 3", "caf\xe9").encode("latin-1")
OVERLONG = "text\tlabel\n" + "".join(f"line {i}\tlabel {i}\n" for i in range(60))


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (LINES.replace("label", "class", 1), [], "there is no field 'label'; available fields: 'text', 'class'"),
        (LINES.replace("\tb", "\ta"), [], "labels are 'a', so there is nothing to distinguish; check label_field"),
        (OVERLONG, [], "examples have different labels"),
        (LINES.replace("line 3\tb", "line 3\t"), [], "lines.tsv, line 5: field 'label' holds no label"),
        (LINES, ["data.labels=('a',)"], "lines: label 'b' is not one of a (from data.labels, or"),
        (LINES, ["model.num_classes=3"], "config.model.num_classes is no longer a setting"),
        (LINES, of_all("label_names=('x', 'y')"), "line 2: label 'a' is neither an integer nor one of label_names"),
        (LINES, ["objective.name=regression", PLAIN_BEST], "line 2: 'a' is not a finite number; regression"),
        (LINES, ["data.sequence_length=7"], "config.data.sequence_length: 7 is too short for objective.name='classif"),
        (LINES, ["data.valid.lines.part=(0.1, 0.100001)"], "config.data.valid: no examples of lines"),
        (LATIN, [], "lines.tsv: the text is not valid utf-8 at line 5, byte 41: 0xe9"),
        (LATIN, [], "set the source's encoding to the file's encoding (e.g. cp1252, latin-1, gb18030)"),
        (LATIN, of_all("encoding=ascii"), "lines.tsv: the text is not valid ascii at line 5, byte 41"),
        ("", [], "lines.tsv"),
        (
            LINES,
            [*WITHOUT_LABEL, "objective.name=tagging", PLAIN_BEST],
            "kind: tsv does not support tags; use jsonl or",
        ),
        (
            LINES,
            [*WITHOUT_LABEL, *of_all("kind=text"), *of_all("document=line"), *of_all("label_pattern=/(?P<label>dog)/")],
            "label_pattern '/(?P<label>dog)/' finds no label in this path",
        ),
        (
            LINES,
            [*WITHOUT_LABEL, *of_all("kind=text"), *of_all("document=line"), *of_all("label_pattern=(dog)")],
            "config.data.train.lines.label_pattern: '(dog)' has no group named label; use a pattern such as",
        ),
    ],
)
def test_bad_files_with_labels_are_refused(refused, tiny_labels, tmp_path, content, overrides, message):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "lines.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = [f"--config={tiny_labels.config}:{folder / 'lines.tsv'}", f"--workdir={tmp_path / 'run'}"]
    refused(message, "train.py", *flags, *(f"--config.{each}" for each in overrides), keeping=folder)


def squad(**changes):
    entry = {"id": "1", "question": "?", "answers": [{"text": "b", "answer_start": 2}], **changes}
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": [entry]}]}]})


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("conll", "Ann\tB-PER\nruns\n\n", "file, line 2: 'runs' does not hold a word and its tag"),
        ("conll", "Ann\tB-PER\nruns\tV\tO\n\n", "file, line 2: this line has 3 columns, but earlier lines have 2"),
        ("conll", "\n\n", "contains no documents"),
        ("squad", "question\tanswer\n", "file: this is not valid JSON"),
        ("squad", '["data"]', "file: the list 'data' is missing"),
        ("squad", squad(id=None), "'id' is missing"),
        ("squad", squad(answers=[{"text": "b", "answer_start": "2"}]), "answer_start '2' is not a character offset"),
        ("squad", squad(answers=[{"text": "b", "answer_start": 1.5}]), "answer_start 1.5 is not a character offset"),
    ],
)
def test_bad_files_with_tags_and_answers_are_refused(refused, tiny_labels, tmp_path, kind, content, message):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_text(content)
    task = {"conll": "tagging", "squad": "span_qa"}[kind]
    overrides = [
        *WITHOUT_LABEL,
        *of_all(f"kind={kind}"),
        f"objective.name={task}",
        *(["data.context_overlap=8"] if kind == "squad" else []),
        PLAIN_BEST,
    ]
    flags = [f"--config={tiny_labels.config}:{folder / 'file'}", f"--workdir={tmp_path / 'run'}"]
    refused(message, "train.py", *flags, *(f"--config.{each}" for each in overrides), keeping=folder)


@pytest.fixture(scope="module")
def started(tiny_labels, tmp_path_factory):
    """A run with labels and a tokenizer but no checkpoint."""
    root = tmp_path_factory.mktemp("started") / "run"
    with RunDirectory.open(root, config_of(tiny_labels)) as directory:
        directory.write_config(prepare(config_of(tiny_labels), root).config)
    return root


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (
            "lm.generate",
            ["--prompt=a"],
            "a model with objective.name=classification generates no text; score it with eval",
        ),
        ("eval.py", ["--text=TEXT"], "--text: RUN needs labelled examples; specify them in data.test of a config"),
        (
            "eval.py",
            ["--split=test/words"],
            "--split=test/words: test has no data source named 'words'; choose one of lines",
        ),
        (
            "eval.py",
            ["--config=CONFIG:TEXT", "--config.data.labels=('is_y', 'is_x')"],
            "--config=tiny_labels: its data.labels (is_y, is_x) must match the labels of RUN, including their order "
            "(is_x, is_y)",
        ),
        ("eval.py", [], "there is no checkpoint"),
    ],
)
def test_bad_uses_of_a_run_with_labels_are_refused(refused, tiny_labels, started, command, flags, message):
    for name, value in (("TEXT", tiny_labels.text), ("CONFIG", tiny_labels.config), ("RUN", started)):
        flags = [flag.replace(name, str(value)) for flag in flags]
        message = message.replace(name, str(value))
    refused(message, command, f"--workdir={started}", *flags, keeping=started)


@pytest.mark.parametrize(
    ("family", "objective"),
    [("decoder", "contrastive"), ("encoder", "contrastive"), ("encoder", "masked"), ("encoder_decoder", "tagging")],
)
def test_heads_without_text_cannot_generate(refused, tiny, tmp_path, family, objective):
    config = config_of(tiny)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, family=family),
        objective=dataclasses.replace(config.objective, name=objective),
    )
    source = {"kind": "conll"} if objective == "tagging" else {"target_path": "x"} if objective == "contrastive" else {}
    values = config.to_dict()
    values["data"]["train"]["text"] |= source
    values["data"]["tokenizer"]["extra_ids"] = 1
    values["model"]["pooling"] = ""
    RunDirectory.open(tmp_path / "run", Config.from_dict(values)).close()
    message = f"--workdir={tmp_path / 'run'}: a model with objective.name={objective} generates no text"
    refused(message, "lm.generate", f"--workdir={tmp_path / 'run'}", "--prompt=a")
