"""`python -m lm.predict`: predictions equal those of eval.py, in every format, and bad input is refused."""

import dataclasses
import io
import json
import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, defaults, source
from lm.runs.directory import RunDirectory
from lm.tasks import TASKS
from tests import run_helpers

WORDS = "a quick brown fox jumps over the lazy dog while seven wizards brew".split()
TAGS = ("B-A", "I-A", "O")
# Each case: objective, family, pooling, format, settings of the data source.
CASES = {
    "classification": ("classification", "encoder", "first", "tsv", {"field": "sentence", "label_field": "label"}),
    "pairs": (
        "classification",
        "decoder",
        "last",
        "jsonl",
        {"field": "text", "pair_field": "other", "label_field": "label"},
    ),
    "regression": ("regression", "encoder_decoder", "mean", "csv", {"label_field": "label"}),
    "tagging": ("tagging", "encoder", "", "conll", {}),
    "span_qa": ("span_qa", "encoder", "", "json", {}),
    "unanswerable": ("span_qa", "encoder", "", "json", {}),
    "multiple_choice": (
        "multiple_choice",
        "decoder",
        "last",
        "jsonl",
        {"field": "text", "pair_field": "choices", "label_field": "label"},
    ),
}


def records(case, number, seed):
    """Returns random examples of a case, as objects whose key for the label is `label`."""
    draw = random.Random(seed)
    text = lambda low=1, high=14: " ".join(draw.choices(WORDS, k=draw.randint(low, high)))  # noqa: E731
    for index in range(number):
        match case:
            case "classification":
                yield {"sentence": text(), "label": draw.choice("xyz")}
            case "pairs":
                yield {"text": text(), "other": text(), "label": draw.choice("xy")}
            case "regression":
                yield {"text": text(), "label": draw.random()}
            case "tagging":
                words = text(1, 20).split()
                yield {"words": words, "label": draw.choices(TAGS, k=len(words))}
            case "multiple_choice":
                yield {"text": text(), "choices": [text(1, 3) for _ in range(draw.randint(2, 4))], "label": 1}
            case _:
                context, lacks = text(10, 40), case == "unanswerable" and index % 2
                answers = [{"text": context[: context.index(" ")], "answer_start": 0}]
                yield {"id": f"q{index}", "question": text(2, 5), "context": context, "label": [] if lacks else answers}


def written(path, examples, labels=True):
    """Writes examples in the format that the path's extension implies, with or without labels."""
    names = [name for name in examples[0] if labels or name != "label"]
    match path.suffix:
        case ".jsonl":
            lines = [json.dumps({name: each[name] for name in names}) for each in examples]
        case ".tsv" | ".csv":
            between = "\t" if path.suffix == ".tsv" else ","
            lines = [between.join(names), *(between.join(str(each[name]) for name in names) for each in examples)]
        case ".conll":
            lines = []
            for each in examples:
                columns = [each["words"], *([each["label"]] if labels else [])]
                lines += [" ".join(row) for row in zip(*columns, strict=True)] + [""]
        case ".txt":
            lines = [each[names[0]] for each in examples]
        case _:
            found = []
            for each in examples:
                answers = {"answers": each["label"]} if labels else {}
                asked = {"id": each["id"], "question": each["question"], **answers}
                found.append({"title": each["id"], "paragraphs": [{"context": each["context"], "qas": [asked]}]})
            lines = [json.dumps({"data": found})]
    path.write_text("\n".join(lines) + "\n")
    return path


def save_untrained(root, values, **model):
    """Makes a run whose checkpoint of step 1 has initial parameters that are large enough to differ between texts."""
    values.data.tokenizer.kind = "bytes"
    values.data.update(sequence_length=32)
    small = {"num_layers": 1, "d_model": 16, "num_heads": 2, "scan_layers": False, "init_std": 0.5}
    values.model.update({**small, **model})
    values.eval.batch_size = 8
    config = Config.from_dict(values.to_dict())
    run_helpers.save_untrained(root, config)


def make_run(folder, case, cache):
    objective, family, pooling, ending, fields = CASES[case]
    folder.mkdir()
    values = defaults()
    for split, number in (("train", 40), ("valid", 23)):
        path = written(folder / f"{split}.{ending}", list(records(case, number, split)))
        kind = "squad" if ending == "json" else ending
        values.data[split].s = source(kind=kind, path=str(path), **fields)
    values.data.cache_dir = str(cache)
    values.objective.name = objective
    values.model.update(family=family, **({"pooling": pooling} if pooling else {}))
    if objective == "span_qa":
        values.data.context_overlap = 8
    save_untrained(folder / "run", values)
    return SimpleNamespace(folder=folder, root=folder / "run", examples=list(records(case, 23, "valid")))


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Returns a function that makes the run of a case, once."""
    folder, made = tmp_path_factory.mktemp("predict"), {}

    def of(case):
        if case not in made:
            made[case] = make_run(folder / case, case, tiny.cache)
        return made[case]

    return of


def objects(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(run, call):
    """Returns the lines that eval.py writes for the validation examples, without their labels."""
    path = run.root / "eval" / "1" / "predictions.jsonl"
    if not path.exists():
        outcome = call("eval.py", f"--workdir={run.root}")
        assert outcome.status == 0, outcome.stderr
    labels = ("label", "tags", "answers")
    return [{name: value for name, value in line.items() if name not in labels} for line in objects(path)]


FURTHER = ("pairs", "unanswerable", "multiple_choice")  # variants of other cases


def test_every_task_that_makes_predictions_has_a_case():
    assert {objective for objective, *_ in CASES.values()} == {
        name for name, task in TASKS.items() if task.predictions is not None
    }


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.exhaustive) if case in FURTHER else case for case in CASES]
)
def test_predictions_without_labels_equal_those_of_an_evaluation(runs, call, tmp_path, case):
    run = runs(case)
    given = written(tmp_path / f"given.{CASES[case][3]}", run.examples, labels=False)
    flags = ["--unanswerable"] if case == "unanswerable" else []
    outcome = call("lm.predict", f"--workdir={run.root}", f"--input={given}", f"--output={tmp_path / 'out'}", *flags)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.startswith(f"written: {tmp_path / 'out'}, 23 predictions in ")
    found, expected = objects(tmp_path / "out"), evaluated(run, call)
    assert [{name: line[name] for name in right} for line, right in zip(found, expected, strict=True)] == expected
    assert len({str(line["prediction"]) for line in expected}) > 1
    details = {
        "classification": lambda line: line["probabilities"][line["prediction"]] == line["score"],
        "regression": lambda line: line.keys() == {"text", "prediction"},
        "tagging": lambda line: len(line["words"]) == len(line["prediction"]),
        "multiple_choice": lambda line: max(line["probabilities"]) == line["probabilities"][line["prediction"]],
        "span_qa": lambda line: True,
    }
    assert all(map(details[CASES[case][0]], found))


@pytest.mark.parametrize("case", ["span_qa", "unanswerable"])
def test_offsets_of_answers_are_those_in_the_context(runs, call, tmp_path, case):
    """With --unanswerable, a question has no answer exactly if the score of "no answer" is the highest."""
    run = runs(case)
    given = written(tmp_path / "given.json", run.examples, labels=False)
    by_flag = {}
    for flag in ("--unanswerable", "--nounanswerable"):
        outcome = call("lm.predict", f"--workdir={run.root}", f"--input={given}", flag)
        by_flag[flag] = [json.loads(line) for line in outcome.stdout.splitlines()]
        for line, example in zip(by_flag[flag], run.examples, strict=True):
            if line["prediction"]:
                assert example["context"][line["start"] : line["end"]] == line["prediction"]
            else:
                assert line["start"] is line["end"] is None
    assert all(line["prediction"] for line in by_flag["--nounanswerable"])
    for may, must in zip(*by_flag.values(), strict=True):
        assert (may["prediction"] == "") == (must["no_answer_score"] >= must["score"])


@pytest.mark.parametrize("case", ["classification", "tagging"])
def test_every_format_gives_the_same_predictions(runs, call, tmp_path, monkeypatch, case):
    run = runs(case)
    renamed = [
        {"sentence" if name == "words" else name: value for name, value in each.items()} for each in run.examples
    ]
    texts = [" ".join(each["sentence"]) if case == "tagging" else each["sentence"] for each in renamed]
    expected = call("lm.predict", f"--workdir={run.root}", f"--input={run.folder / f'valid.{CASES[case][3]}'}").stdout
    assert len(expected.splitlines()) == 23
    as_text = "".join(f"{text}\n" for text in texts)
    (tmp_path / "x.txt").write_bytes(as_text.replace("\n", "\r\n").encode())
    inputs = [
        [f"--input={written(tmp_path / 'x.jsonl', renamed, labels=False)}", "--field=sentence"],
        [f"--input={written(tmp_path / 'x.tsv', [{'sentence': text} for text in texts])}", "--field=sentence"],
        [f"--input={tmp_path / 'x.txt'}"],
        ["--input=-"],
        [f"--text={text}" for text in texts],
    ]
    for flags in inputs:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(as_text.encode())))
        outcome = call("lm.predict", f"--workdir={run.root}", *flags)
        assert (outcome.status, outcome.stdout) == (0, expected), (flags[0], outcome.stderr)


@pytest.mark.parametrize("case", ["pairs", "span_qa"])
def test_batch_size_does_not_change_predictions(runs, call, case):
    run, found = runs(case), []
    for size in (8, 16):
        flags = f"--workdir={run.root}", f"--input={run.folder / f'valid.{CASES[case][3]}'}", f"--batch_size={size}"
        found.append([json.loads(line) for line in call("lm.predict", *flags).stdout.splitlines()])
    for one, other in zip(*found, strict=True):
        assert one["prediction"] == other["prediction"] and one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_text_with_several_fields_is_a_json_object(runs, call, refused):
    run = runs("pairs")
    given = {"text": run.examples[0]["text"], "other": run.examples[0]["other"]}
    outcome = call("lm.predict", f"--workdir={run.root}", f"--text={json.dumps(given)}")
    assert json.loads(outcome.stdout)["prediction"] in ("x", "y"), outcome.stderr
    message = """reads the fields text and other; give a JSON object: --text='{"text": "...", "other": "..."}'."""
    refused(message, "lm.predict", f"--workdir={run.root}", "--text=only one")
    refused("--text: there is no field 'other'", "lm.predict", f"--workdir={run.root}", '--text={"text": "a"}')


def test_cut_and_empty_texts_are_reported(runs, call):
    outcome = call("lm.predict", f"--workdir={runs('classification').root}", f"--text={'abc ' * 20}", "--text= ")
    assert "note: 1 of 2 texts are truncated (data.sequence_length=32)\n" in outcome.stderr
    assert "note: 1 of 2 texts are empty\n" in outcome.stderr and len(outcome.stdout.splitlines()) == 2


def test_control_characters_are_visible(runs, call):
    outcome = call("lm.predict", f"--workdir={runs('classification').root}", "--text=a\x9b31m\x1b[0m")
    assert not {"\x9b", "\x1b"} & set(outcome.stdout) and json.loads(outcome.stdout)["text"] == "a\x9b31m\x1b[0m"


def test_input_is_never_overwritten(runs, refused, tmp_path):
    run = runs("classification")
    given = written(tmp_path / "given.tsv", run.examples)
    (tmp_path / "link").symlink_to(given)
    (tmp_path / "hard").hardlink_to(given)
    for name in ("given.tsv", "link", "hard"):
        flags = f"--workdir={run.root}", f"--input={tmp_path}/g*.tsv", f"--output={tmp_path / name}"
        refused("this file is also the input; choose another file", "lm.predict", *flags, keeping=tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give either --input=FILE"),
        (("--input=x", "--text=x"), "give either --input=FILE"),
        (("--input=/nowhere.txt",), "/nowhere.txt: there is no such file"),
        (("--input=/tmp",), "/tmp is a directory; select its files with a glob"),
        (("--input={odd}",), "odd.dat: the file name has none of the extensions .txt .jsonl"),
        (("--text=x", "--step=first"), "--step=first: use best, latest or a step number"),
        (("--text=x", "--step=7"), "7"),
        (("--text=x", "--layer=1"), "--layer applies only to vectors; give --pooling=first|last|mean|max too."),
        (("--text=x", "--unanswerable"), "--unanswerable applies only to models that answer questions"),
        (("--text=x", "--output=x.npy"), "--output=x.npy: .npy files hold vectors, but this model predicts labels"),
        (("--text=x", "--output="), "--output"),
        (("--text=x", "--output=/nowhere/x"), "--output=/nowhere/x cannot be written"),
        (("--text=x", "--pooling=mean", "--layer=2"), "--layer=2: the model has 1 layers that read text"),
        (
            ("--input={bad}",),
            "bad.jsonl, line 2: there is no field 'sentence'; available fields: 'x'. Choose one with --field.",
        ),
        (
            ("--input={bad}", "--format=conll"),
            "--format: conll does not support documents; use one of text, jsonl, tsv, csv, parquet.",
        ),
        (("--input={bad}", "--columns=a"), "--columns: this setting applies only to --format=tsv or csv; omit it."),
        (
            ("--input={wide}",),
            "wide.jsonl: the file begins with the byte-order mark of utf-16-le, but is read as utf-8; set --encoding "
            "to utf-16.",
        ),
        (("--input={bad}", "--encoding=utf-9"), "error: --encoding 'utf-9' is unknown; use e.g. utf-8"),
        (("--input={bad}", "--field={{x"), "--field '{x' is not a valid template"),
        (("--input={bad}", "--format=squad"), "--format: squad does not support documents; use one of text"),
        (
            ("--input={json}",),
            "x.json: the file extension implies the format squad, which does not support documents; "
            "use a file with the extension .txt .jsonl .ndjson .tsv .tab .csv .parquet, or set --format to one of text",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(runs, refused, tmp_path, flags, message):
    run, bad, odd = runs("classification"), tmp_path / "bad.jsonl", tmp_path / "odd.dat"
    odd.touch()
    json_file, wide = tmp_path / "x.json", tmp_path / "wide.jsonl"
    json_file.write_text("{}")
    wide.write_text('{"sentence": "a"}\n', encoding="utf-16")
    bad.write_text('{"sentence": "a"}\n{"x": "b"}\n')
    refused(
        message,
        "lm.predict",
        f"--workdir={run.root}",
        *(each.format(bad=bad, odd=odd, json=json_file, wide=wide) for each in flags),
        keeping=tmp_path,
    )


def test_labels_outside_the_training_data_do_not_matter(runs, call, tmp_path):
    run = runs("classification")
    given = written(tmp_path / "given.tsv", [{**each, "label": "new"} for each in run.examples])
    outcome = call("lm.predict", f"--workdir={run.root}", f"--input={given}")
    assert outcome.stdout == call("lm.predict", f"--workdir={run.root}", f"--input={run.folder}/valid.tsv").stdout


def test_outputs_that_are_not_finite_are_refused(runs, refused, monkeypatch):
    run = runs("classification")

    def broken(self, *arguments, **options):
        params, step = read(self, *arguments, **options)
        return jax.tree.map(lambda x: x * np.nan, params), step

    read = Checkpoints.restore_params
    monkeypatch.setattr(Checkpoints, "restore_params", broken)
    refused("the model's outputs are not finite numbers", "lm.predict", f"--workdir={run.root}", "--text=a")


def test_pairs_are_not_read_from_single_texts(runs, refused, tmp_path):
    (tmp_path / "x.txt").write_text("a\n")
    message = (
        "this model reads pairs of texts, but the format text holds single texts; use one of jsonl, tsv, csv, parquet."
    )
    refused(message, "lm.predict", f"--workdir={runs('pairs').root}", f"--input={tmp_path / 'x.txt'}")


def test_field_that_differs_between_training_sources_must_be_given(runs, refused, call, tmp_path):
    run = runs("classification")
    config = RunDirectory.existing(run.root).load_config()
    train = {"a": config.data.train["s"], "b": dataclasses.replace(config.data.train["s"], field="title")}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=train))
    other = tmp_path / "run"
    other.mkdir()
    for name in ("tokenizer", "checkpoints"):
        (other / name).symlink_to(run.root / name)
    (other / "config.json").write_text(config.to_json())
    flags = f"--workdir={other}", f"--input={run.folder}/valid.tsv"
    refused(
        "--field is required: its value differs between the training data sources ('sentence', 'title')",
        "lm.predict",
        *flags,
    )
    outcome = call("lm.predict", *flags, "--field=sentence")
    assert len(outcome.stdout.splitlines()) == 23, outcome.stderr
