"""Exported sentence encoders record how they pool, as sentence-transformers and our import read it."""

import dataclasses
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lm.config.experiment import replace_settings
from lm.huggingface.export_directory import export_directory
from lm.huggingface.folder import KeptFiles, open_folder
from lm.huggingface.importing import import_folder
from lm.huggingface.recognising import recognise
from lm.huggingface.sentences import SentenceVectors, sentence_files, sentence_vectors
from lm.huggingface.writing import write_files
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, save

WRITTEN = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")


def exported(path, original=None, **changes):
    """Imports a body with files of sentence-transformers, changes settings of the run, and exports it."""
    save(build(*MODELS["bert_body"]), path / "in")
    for name, content in (original or {}).items():
        (path / "in" / name).parent.mkdir(exist_ok=True)
        (path / "in" / name).write_bytes(content)
    folder = open_folder(path / "in")
    published = recognise(folder)
    config = replace_settings(published.config, changes)
    import_folder(folder, dataclasses.replace(published, config=config), path / "run")
    export_directory(path / "run", path / "out")
    return open_folder(path / "out")


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_folder_without_these_files_gets_them(tmp_path, pooling):
    out = exported(tmp_path, **{"model.pooling": pooling, "data.sequence_length": 48, "data.source_length": 48})
    found = sentence_vectors(out)
    assert (found.pooling, found.length, found.unit_length) == (pooling, 48, True)
    again = recognise(out).config
    assert (again.model.pooling, again.data.sequence_length) == (pooling, 48)


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [("first", "pooling_mode_cls_token"), ("mean", "pooling_mode_mean_tokens"), ("last", "pooling_mode_lasttoken")],
)
def test_written_files_are_read_as_they_were_meant(tmp_path, pooling, mode):
    files = sentence_files(pooling, 48, 32)
    write_files(tmp_path, files)
    assert tuple(files) == WRITTEN
    assert sentence_vectors(KeptFiles(tmp_path)) == SentenceVectors(pooling, 48, unit_length=True)
    declared = json.loads(files["1_Pooling/config.json"])
    assert declared[mode] is True and declared["word_embedding_dimension"] == 32


def test_files_with_the_same_pooling_are_kept_and_others_are_replaced(tmp_path):
    files = {name: content.replace(b"\n", b"\r\n") for name, content in sentence_files("mean", 40, 32).items()}
    for pooling in ("mean", "first"):
        (tmp_path / pooling).mkdir()
        out = exported(tmp_path / pooling, files, **{"model.pooling": pooling})
        kept = [out.content(name) == files[name] for name in WRITTEN]
        assert all(kept) if pooling == "mean" else not any(kept)
        assert sentence_vectors(out).pooling == pooling and sentence_vectors(out).length == 40


def test_other_tasks_keep_their_files(tmp_path):
    modules = json.dumps([{"type": "sentence_transformers.models.Transformer"}]).encode()
    save(build(*MODELS["bert"]), tmp_path / "in")
    (tmp_path / "in" / "modules.json").write_bytes(modules)
    folder = open_folder(tmp_path / "in")
    import_folder(folder, recognise(folder), tmp_path / "run")
    export_directory(tmp_path / "run", tmp_path / "masked")
    assert open_folder(tmp_path / "masked").content("modules.json") == modules
