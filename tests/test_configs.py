"""Every shipped config resolves to its golden form.

After an intended change: UPDATE_GOLDEN=1 pytest tests/test_configs.py
"""

import importlib
import json
import os
from pathlib import Path

import pytest

from configs import bert_mlm, glue, shakespeare_char_cpu
from lm.config import Config, defaults
from lm.config.schema import build, describe_settings
from lm.config.unused import unused
from lm.errors import UserError

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
ARGUMENTS = {
    "classify_mr": "mr",
    "classify_mr_bilstm": "mr",
    "classify_mr_cnn": "mr",
    "minilm_mr": "mr",
    "minilm_wnut17": "wnut17",
    "multi30k_en_de": "raw",
    "multi30k_lstm_attention": "raw",
    "ner_bilstm": "wnut17",
    "ner_wnut17": "wnut17",
    "scan": "scan",
    "scan_lstm": "scan",
    "scitldr": "scitldr",
    "shakespeare_char": "input.txt",
    "shakespeare_char_cpu": "input.txt",
    "shakespeare_lstm": "input.txt,gru",
    "tatoeba_en_zh": "tatoeba",
    "vectors_wikitext2": "wikitext2",
    "wikitext2": "wikitext2",
    "wikitext2_awd_lstm": "wikitext2",
    "wikitext2_gru": "wikitext2",
    "wikitext2_lstm": "wikitext2",
    "wikitext2_rnn": "wikitext2",
    "wikitext2_words": "wikitext2",
    "wikitext2_ngram": "wikitext2",
    "xquad_en": "xquad",
}


@pytest.mark.parametrize("name", NAMES)
def test_config_resolves_to_its_golden_form(name):
    argument = ARGUMENTS.get(name)
    module = importlib.import_module(f"configs.{name}")
    values = module.get_config(argument) if argument else module.get_config()
    found = Config.from_dict(values.to_dict()).to_json()
    golden = ROOT / "tests" / "golden" / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()
    assert unused(build(Config, values.to_dict())) == [], "every setting has an effect"
    assert Config.from_dict(json.loads(found)).to_json() == found, "a run directory reads back the same config"


def test_laptop_model_of_shakespeare_inherits_no_dropout_from_the_large_one():
    """As in nanoGPT. With the large model's attention dropout, the loss is 1.83 instead of 1.77 nats/character."""
    model = shakespeare_char_cpu.get_config("input.txt").model
    assert (model.dropout, model.attention_dropout) == (0.0, 0.0)


@pytest.mark.parametrize("task", glue.TASKS)
def test_every_task_of_glue_resolves(task):
    config = Config.from_dict(glue.get_config(task).to_dict())
    (train,) = config.data.train.values()
    field, pair_field, labels, metric, _ = glue.TASKS[task]
    assert (train.path, train.field, train.pair_field) == (f"glue/{task}", field, pair_field)
    assert train.label_names == labels and config.checkpoint.best_metric == f"valid/{metric}"
    assert config.objective.name == ("classification" if labels else "regression")
    assert len(config.data.valid) == (2 if task == "mnli" else 1) and not config.data.test
    assert config.model == Config.from_dict(bert_mlm.get_config().to_dict()).model, (
        "it can be initialised from bert_mlm"
    )


def test_unknown_task_of_glue_is_refused():
    with pytest.raises(UserError, match=r"configs/glue\.py:ax: no such task; choose from cola, sst2"):
        glue.get_config("ax")


@pytest.mark.parametrize("name", NAMES)
def test_config_documents_its_command_cost_and_score(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in doc
    measured = "Cost: " in doc and ("Expected" in doc or "Measured" in doc)
    assert measured or "has not been run yet" in doc


def test_every_setting_is_documented():
    names = [name for name, _, doc in describe_settings(Config) if len(doc) > 3]
    assert len(names) == len(describe_settings(Config))
    assert defaults().to_dict() == Config().to_dict()
