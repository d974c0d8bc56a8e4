"""Each shipped config resolves to a known form.

After a change that is meant: UPDATE_GOLDEN=1 pytest tests/test_configs.py
"""

import importlib
import os
from pathlib import Path

import pytest

from lm.config import Config, defaults
from lm.schema import describe_settings

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
ARGUMENTS = {
    "multi30k_en_de": "raw",
    "scan": "scan",
    "scitldr": "scitldr",
    "shakespeare_char": "input.txt",
    "shakespeare_char_cpu": "input.txt",
    "tatoeba_en_zh": "tatoeba",
    "wikitext2": "wikitext2",
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
    assert Config.from_json(found).to_json() == found  # what a run directory holds reads back as the same


@pytest.mark.parametrize("name", NAMES)
def test_config_tells_command_cost_and_score(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in doc
    for word in ("Cost", "Expected"):
        assert f"{word}" in doc, word


def test_every_setting_is_documented():
    names = [name for name, _, doc in describe_settings(Config) if len(doc) > 3]
    assert len(names) == len(describe_settings(Config))
    assert defaults().to_dict() == Config().to_dict()
