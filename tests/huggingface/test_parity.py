"""The same logits and hidden states as `transformers`, for every family, and the same tensors on the way back."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import ml_dtypes

from lm.huggingface.exporting import Original, export
from lm.huggingface.families import FAMILIES
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import write_provenance
from lm.huggingface.recognising import recognise
from tests.huggingface.models import MODELS, OLDER, each_model
from tests.huggingface.peers import build, folder_of, pads_left, peer, save, their_outputs
from tests.huggingface.rows import LENGTHS, imported, our_outputs

TOLERANCE = 1e-4
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def check_same(theirs, ours):
    (outputs, hidden), (our_values, our_hidden) = theirs, ours
    assert outputs.keys() >= our_values.keys()
    for name, values in our_values.items():
        np.testing.assert_allclose(values, outputs[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert len(hidden) == len(our_hidden)
    for layer, (expected, found) in enumerate(zip(hidden, our_hidden, strict=True)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=f"layer {layer}")


def test_models_have_every_family_and_rows_exceed_windows_and_original_lengths():
    tested, longest = set(), min(max(lengths) for lengths in LENGTHS.values())
    for name, (kind, settings) in MODELS.items():
        published = recognise(folder_of(build(kind, settings)))
        tested.add(published.family.name)
        model = published.config.model
        assert 2 * model.window - 1 < longest, name
        assert model.rope_scaling in ("none", "linear") or 4 * model.rope_original_length < longest, name
        if model.rope_scaling == "linear":
            assert 4 * settings["max_position_embeddings"] / model.rope_factor < longest, name
    assert tested == set(FAMILIES)


@each_model(MODELS)
def test_values_match(name):
    """The values of rows padded on the right or left, and of packed rows, are those of each text alone there."""
    model, published, params = peer(name)
    expected = dict.fromkeys(("right", "packed"), their_outputs(model))
    if pads_left(type(model).__name__):
        expected["left"] = their_outputs(model, left=True)
    for layout, found in zip(expected, our_outputs(published, params, expected), strict=True):
        check_same(expected[layout], found)


@pytest.mark.parametrize("dtype", DTYPES)
@each_model(MODELS)
def test_round_trip_is_exact(name, dtype, tmp_path):
    """The folder that comes out has the same tensors and config.json, and `transformers` loads it without complaint."""
    kind, settings = MODELS[name]
    model = build(kind, settings, dtype=getattr(torch, dtype))
    folder = open_folder(save(model, tmp_path / "in"))
    published, params = imported(folder)
    write_provenance(folder, published, tmp_path / "huggingface")
    original = Original.read(tmp_path / "huggingface")
    assert export(params, published.config, tmp_path / "out", original) == published.architecture
    out = open_folder(tmp_path / "out")
    assert out.tensors.keys() == folder.tensors.keys() - set(published.match.ignored)
    for tensor in out.tensors:
        assert out.tensors[tensor].dtype == DTYPES[dtype] or folder.tensors[tensor].dtype != DTYPES[dtype]
        assert out.read(tensor).dtype == folder.read(tensor).dtype
        assert out.read(tensor).tobytes() == folder.read(tensor).tobytes(), tensor
    changed = {key for key in {*folder.config, *out.config} if folder.config.get(key) != out.config.get(key)}
    assert changed <= (OLDER - folder.config.keys()) | ({"tie_word_embeddings"} if name == "t5_1_1" else set())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "in" / "tokenizer.json").read_bytes()
    loaded, info = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@each_model(MODELS)
def test_a_model_trained_here_is_exported_with_a_new_config(name, tmp_path):
    if name in ("bert_body", "electra_discriminator"):
        pytest.skip("the bare body has a pooler of random values there")
    model = build(*MODELS[name])
    published, params = imported(folder_of(model))
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    architecture = export(params, published.config, tmp_path / "out", special_ids=ids)
    loaded, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    expected, _ = their_outputs(model)
    for key, values in their_outputs(loaded)[0].items():
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=TOLERANCE)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [architecture] and config["torch_dtype"] == config["dtype"] == "float32"
