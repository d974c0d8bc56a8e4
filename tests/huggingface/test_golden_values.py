"""Values of `transformers` for every model of `models.py`, stored in tests/golden/published.json: none is needed here.

The tensors of a folder are drawn by their names, so a wrong name or a wrong place changes the values. To store the
values anew, install requirements-benchmarks.txt and run

    UPDATE_GOLDEN=1 python -m pytest -n0 -m "" tests/huggingface/test_golden_values.py
"""

import json
import os
import zlib
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from lm.huggingface.families import FAMILIES
from lm.huggingface.fields import read_settings
from lm.huggingface.names import entries_of
from lm.huggingface.recognising import config_for, names_for
from lm.models import build_model
from lm.models.parameters import abstract_params
from lm.tasks import task_of
from tests.huggingface.models import HEADLESS, MODELS, each_model
from tests.huggingface.rows import MemoryFolder, batch_of, imported, read_values, whole_model

GOLDEN = Path(__file__).parents[1] / "golden" / "published.json"
SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
# Tensors that the settings do not imply, and rows that no model reads.
SHAPES = {
    "marian": {"final_logits_bias": (1, 64)},
    "roberta_classes": {"roberta.embeddings.token_type_embeddings.weight": (2, 32)},
}
TOLERANCE = 1e-4


def drawn(name, shape):
    """Returns a tensor that is the same on every machine and in every version of NumPy."""
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        base = 1.0 if ("norm" in name.lower() or "ln_" in name) and name.endswith("weight") else 0.0
        return (base + 0.3 * normal).astype(np.float32)
    return (normal * 1.2 / np.sqrt(shape[-1])).astype(np.float32)


def drawn_folder(name):
    """Returns a folder whose config.json has only the settings that differ from the class defaults."""
    kind, settings = MODELS[name]
    family = next(each for each in FAMILIES.values() if kind in {**each.heads, **each.same_class})
    head = family.heads[family.same_class.get(kind, kind)]
    config = {"model_type": family.model_types[0], "architectures": [kind], **SPECIAL, **settings}
    ours = {**family.settings, **head.settings, **read_settings(family.fields, family.neutral, config, name)}
    ours["tie_embeddings"] = (
        config.get("tie_word_embeddings", family.tie_default) or "output" not in head.names.values()
    )
    whole, _ = config_for(MemoryFolder(config, {}), head, ours, 0, "float32")
    model = build_model(whole.model, task_of(whole).head(whole), "cpu")
    entries = entries_of(names_for(family, whole.model, head), nn.unbox(abstract_params(model)), family.unstored)
    shapes = {each.name: each.shape for each in entries} | SHAPES.get(name, {})
    return MemoryFolder(config, {each: drawn(each, shape) for each, shape in shapes.items()})


def chosen(values):
    """Returns 24 of the values: of six tokens (all texts, if there are fewer), spread over the others."""
    values = np.asarray(values)
    values = values.reshape(len(values), -1)
    rows = np.unique(np.linspace(0, len(values) - 1, 6).astype(int))
    columns = np.unique(np.linspace(0, values.shape[1] - 1, 4).astype(int))
    return values[np.ix_(rows, columns)].reshape(-1)


def our_values(folder):
    published, params = imported(folder)
    model, batch = whole_model(published), jax.tree.map(jax.numpy.asarray, batch_of(published))
    if published.config.objective.name == "contrastive":
        vectors = model.token_vectors({"params": params}, batch, model.text_layers)
        return {"hidden": chosen(np.asarray(vectors)[np.asarray(batch.segments) > 0])}
    found = jax.jit(model.apply)({"params": params}, batch)
    return {key: chosen(each) for key, each in read_values(published, found, batch.segments).items()}


def their_values(name, folder):
    """Returns the values of `transformers`, which gets the drawn tensors by their names."""
    from tests.huggingface.peers import build, stored, their_outputs, torch

    model = build(*MODELS[name], spread=False)
    tensors = {key: torch.tensor(folder.read(key)) for key in folder.tensors}
    if name == "bert_body":
        tensors = {key.removeprefix("bert."): each for key, each in tensors.items()}
    implied = ("embed_positions.weight", "final_logits_bias", "pooler.dense.weight", "pooler.dense.bias")
    missing = stored(model).keys() - tensors.keys()
    assert tensors.keys() <= stored(model).keys()
    assert all(each.endswith(implied) or each.startswith("discriminator_predictions.") for each in missing)
    model.load_state_dict(tensors, strict=False)
    outputs, hidden = their_outputs(model)
    return {key: chosen(each) for key, each in ({"hidden": hidden[-1]} if name in HEADLESS else outputs).items()}


@each_model(MODELS)
def test_values_are_the_stored_ones_of_transformers(name):
    folder = drawn_folder(name)
    if os.environ.get("UPDATE_GOLDEN"):
        stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        stored[name] = {key: np.round(each, 4).tolist() for key, each in their_values(name, folder).items()}
        lines = [f"{json.dumps(key)}: {json.dumps(stored[key])}" for key in MODELS if key in stored]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    with jax.default_matmul_precision("highest"):
        found = our_values(folder)
    expected = json.loads(GOLDEN.read_text())[name]
    assert expected.keys() == found.keys()
    for key, each in found.items():
        assert np.std(expected[key]) > 0.1
        np.testing.assert_allclose(each, expected[key], rtol=0, atol=TOLERANCE, err_msg=key)


def test_every_model_has_stored_values():
    assert list(json.loads(GOLDEN.read_text())) == list(MODELS)
