"""The files of sentence-transformers: how a text becomes a vector is taken from them, or refused by name."""

import json

import pytest

from lm.errors import UserError
from lm.huggingface.sentences import sentence_vectors

TRANSFORMER, POOLING, NORMALIZE = (f"sentence_transformers.models.{n}" for n in ("Transformer", "Pooling", "Normalize"))


class Files:
    """A folder with these files."""

    source = "FOLDER"

    def __init__(self, **files):
        self.files = {name: json.dumps(value).encode() for name, value in files.items()}

    def content(self, name):
        return self.files.get(name)

    def read_object(self, name):
        return json.loads(self.files[name]) if name in self.files else None


def files(*types, pooling=None, **more):
    paths = ["", "pool", "2_Normalize", "3"]
    modules = [{"idx": n, "path": path, "type": each} for n, (path, each) in enumerate(zip(paths, types, strict=False))]
    declared = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True} if pooling is None else pooling
    return Files(**{"modules.json": modules, "pool/config.json": declared, **more})


def test_pooling_length_and_scaling_are_read():
    lengths = {"sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False}}
    found = sentence_vectors(files(TRANSFORMER, POOLING, NORMALIZE, **lengths))
    assert (found.pooling, found.length, found.unit_length, found.notes) == ("mean", 256, True, ())
    found = sentence_vectors(files(TRANSFORMER, POOLING, pooling={"pooling_mode_cls_token": True}))
    assert (found.pooling, found.length, found.unit_length) == ("first", 0, False)
    assert "has no Normalize module; lm.predict --pooling=first" in found.notes[0]
    assert sentence_vectors(files(TRANSFORMER, POOLING, pooling={"pooling_mode": "lasttoken"})).pooling == "last"


@pytest.mark.parametrize("name", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_length_in_files_with_other_names(name):
    lengths = {f"sentence_{name}_config.json": {"max_seq_length": 128}}
    assert sentence_vectors(files(TRANSFORMER, POOLING, **lengths)).length == 128
    lengths["sentence_bert_config.json"] = {"max_seq_length": 256}  # comes first
    assert sentence_vectors(files(TRANSFORMER, POOLING, **lengths)).length == 256
    lengths = {f"sentence_{name}_config.json": {"do_lower_case": True}}
    with pytest.raises(UserError, match=f"FOLDER: sentence_{name}_config.json: do_lower_case=True"):
        sentence_vectors(files(TRANSFORMER, POOLING, **lengths))


def test_folders_without_a_list_of_modules():
    assert sentence_vectors(Files()).pooling == ""
    assert sentence_vectors(Files(**{"1_Pooling/config.json": {"pooling_mode_cls_token": True}})).pooling == "first"


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (files(TRANSFORMER, POOLING, "sentence_transformers.models.Dense"), "modules.json: the module Dense is not su"),
        (files(TRANSFORMER, NORMALIZE, POOLING), "modules.json: the order Transformer, Normalize, Pooling is not supp"),
        (Files(**{"modules.json": {"a": 1}}), "modules.json is not a list of modules"),
        (files(TRANSFORMER, POOLING, pooling={"pooling_mode_max_tokens": True}), "pooling_mode_max_tokens is not supp"),
        (
            files(TRANSFORMER, POOLING, pooling={"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}),
            "pool/config.json: pooling_mode_max_tokens, pooling_mode_mean_tokens is not supported",
        ),
        (
            files(TRANSFORMER, POOLING, **{"sentence_bert_config.json": {"do_lower_case": True}}),
            "sentence_bert_config.json: do_lower_case=True is not supported",
        ),
        (
            files(TRANSFORMER, POOLING, **{"config_sentence_transformers.json": {"default_prompt_name": "query"}}),
            "default_prompt_name='query' is not supported",
        ),
    ],
)
def test_what_we_cannot_do_is_refused_by_name(folder, message):
    with pytest.raises(UserError, match=message) as caught:
        sentence_vectors(folder)
    assert str(caught.value).startswith("FOLDER: ")
