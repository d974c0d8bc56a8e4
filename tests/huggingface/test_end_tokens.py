"""A published folder names all tokens that end a text, as `transformers` reads them."""

import dataclasses
import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lm.config.experiment import replace_settings
from lm.data.tokenizing import load_tokenizer
from lm.huggingface.export_directory import export_directory
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


def ends_of(folder):
    return transformers.GenerationConfig.from_pretrained(folder).eos_token_id


CHAT = {"objective.name": "chat", "data.chat_template": TEMPLATE}


def test_end_token_of_a_chat_template_is_added_to_an_imported_folder(tmp_path):
    fields = {"bos_token_id": 0, "eos_token_id": 2, "do_sample": True, "temperature": 0.5}
    export_directory(imported(tmp_path, generation=fields, **CHAT), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {**fields, "eos_token_id": [2, 3]}
    assert ends_of(tmp_path / "out") == [2, 3]
    again = recognise(open_folder(tmp_path / "out"))
    assert again.config.eval.sampling.temperature == 0.5


def test_generation_settings_in_an_old_config_are_kept(tmp_path):
    export_directory(imported(tmp_path, **CHAT), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {"bos_token_id": 0, "eos_token_id": [2, 3], "pad_token_id": 1}


def test_end_tokens_in_the_generation_config_are_imported(tmp_path):
    run = imported(tmp_path, generation={"eos_token_id": [3, 2]})
    assert load_tokenizer(run / "tokenizer").stop_ids == (2, 3)


@pytest.mark.parametrize("generation", [None, {"eos_token_id": [2, 3], "temperature": 0.5}])
def test_folder_with_the_same_end_tokens_keeps_its_files(tmp_path, generation):
    changes = {} if generation is None else CHAT
    export_directory(imported(tmp_path, generation=generation, **changes), tmp_path / "out")
    path = tmp_path / "out" / "generation_config.json"
    assert (json.loads(path.read_text()) if path.exists() else None) == generation


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_model_trained_here_names_all_end_tokens(tmp_path, name):
    generation = {"eos_token_id": [2, 3], "decoder_start_token_id": 2, "forced_bos_token_id": 5}
    run = imported(tmp_path, name, generation)
    for directory in (run / "huggingface").iterdir():  # as if the run had been trained here
        directory.rename(tmp_path / directory.name)
    (run / "huggingface").rmdir()
    export_directory(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == [2, 3]
    assert config.get("forced_bos_token_id") == (5 if name == "bart" else None)
    model = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [2, 3]
    assert model.generation_config.forced_bos_token_id == (5 if name == "bart" else None)
