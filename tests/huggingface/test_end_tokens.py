"""A folder names all tokens that end a text, as `transformers` reads them."""

import dataclasses
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lm.config.experiment import replace_settings
from lm.data.tokenizing import load_tokenizer
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import import_folder
from lm.huggingface.recognising import recognise
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, save

TURNS = "{% for each in messages %}{{ each.role }} {{ each.content }}{{ '<mask>' }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}assistant {% endif %}"


def imported(path, name="llama", generation=None, **changes):
    """Imports a model with changed settings and returns the run directory."""
    save(build(*MODELS[name]), path / "in")
    (path / "in" / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (path / "in" / "generation_config.json").write_text(json.dumps(generation))
    folder = open_folder(path / "in")
    published = recognise(folder)
    config = replace_settings(published.config, changes)
    import_folder(folder, dataclasses.replace(published, config=config), path / "run")
    return path / "run"


def test_end_tokens_in_the_generation_config_are_imported(tmp_path):
    run = imported(tmp_path, generation={"eos_token_id": [3, 2]})
    assert load_tokenizer(run / "tokenizer").stop_ids == (2, 3)
