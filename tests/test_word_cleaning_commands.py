"""Word-level cleaning in the commands: new inputs and prompts are cleaned as in training, and data.show prints it."""

import json

import pytest

from lm.config import Config, defaults, source
from tests.run_helpers import config_of, save_untrained


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run whose words are cleaned; its file of stop words no longer exists."""
    folder = tmp_path_factory.mktemp("cleaned")
    (folder / "stop.txt").write_text("the\nfilm\n")
    values = defaults()
    for split in ("train", "valid"):
        path = folder / f"{split}.tsv"
        path.write_text("text\tlabel\n" + "The Films RUN\tx\nA bad Ending !\ty\nthe\tx\n" * 6)
        values.data[split].s = source(kind="tsv", path=str(path), label_field="label")
    values.objective.name = "classification"
    values.data.update(cache_dir=str(tiny.cache), sequence_length=16)
    values.data.cleaning.update(lowercase=True, stem="english", stop_words=str(folder / "stop.txt"))
    values.data.tokenizer.kind = "words"
    values.model.update(family="encoder", num_layers=1, d_model=16, num_heads=2, init_std=0.5, scan_layers=False)
    save_untrained(folder / "run", Config.from_dict(values.to_dict()))
    (folder / "stop.txt").unlink()
    return folder / "run"


def test_predictions_for_new_inputs_equal_those_of_an_evaluation(run, call, tmp_path):
    assert call("eval.py", f"--workdir={run}").status == 0
    lines = (run / "eval" / "1" / "predictions.jsonl").read_text().splitlines()
    evaluated = [{name: json.loads(line)[name] for name in ("text", "prediction", "score")} for line in lines]
    assert [each["text"] for each in evaluated[:3]] == ["film run", "a bad end !", ""], "evaluations keep every text"
    texts = ["--text=The Films RUN", "--text=A bad Ending !", "--text=the", "--text=film runs"]
    outcome = call("lm.predict", f"--workdir={run}", *texts)
    found = [json.loads(line) for line in outcome.stdout.splitlines()]
    same = [{name: line[name] for name in evaluated[0]} for line in found]
    assert same[:3] == evaluated[:3]
    assert same[3]["text"] == "run" and "note: 1 of 4 texts are empty" in outcome.stderr
    vocabulary = json.loads((run / "tokenizer" / "words.json").read_text())
    assert sorted(vocabulary) == ["!", "a", "bad", "end", "film", "run"], "only cleaned words are tokens"


def test_data_show_prints_the_steps_and_cleaned_words(tiny_labels, tmp_path, call):
    settings = tiny_labels.flags(tmp_path, data__cleaning__lowercase=True, data__cleaning__stem="porter")
    outcome = call("lm.data.show", settings[0], *settings[2:], "--n=1")
    assert outcome.status == 0, outcome.stderr
    assert "\ncleaning: lowercase=True, stem='porter'\n" in outcome.stdout


def test_prompts_of_language_models_are_cleaned(tiny, tmp_path, call):
    config = config_of(tiny, data__cleaning__lowercase=True, optimizer__ema_decay=0.0, eval__prompts=("The FOX",))
    assert config.data.cleaning.lowercase
    save_untrained(tmp_path / "run", config)
    outcome = call("lm.generate", f"--workdir={tmp_path / 'run'}", "--prompt=The FOX", "--max_new_tokens=2")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.startswith("the fox")


def test_words_of_generated_or_tagged_text_are_not_changed(refused_settings, tiny, tiny_pairs):
    refused_settings("config.data.cleaning.stem: this setting is not read by", tiny, ["data.cleaning.stem=porter"])
    for setting in ("lowercase=True", "stop_words=english", "stem=porter", "segment=jieba"):
        name = setting.partition("=")[0]
        message = f"config.data.cleaning.{name}: this setting is not read by objective.name=seq2seq, only by "
        refused_settings(message, tiny_pairs, [f"data.cleaning.{setting}"])


def test_changed_words_are_refused_when_a_run_is_continued(tiny_labels, tmp_path, call, refused):
    root = tmp_path / "run"
    save_untrained(root, config_of(tiny_labels, data__cleaning__stop_words="english"))
    (tmp_path / "stop.txt").write_text("".join(f"word{number}\n" for number in range(2000)))
    flags = tiny_labels.flags(root, data__cleaning__stop_words=tmp_path / "stop.txt")
    refused("data.cleaning.stop_words", "train.py", *flags, keeping=root)
