"""LoRA adapters exported in the format of peft, and merged into the model, give the logits of the run."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from safetensors.numpy import load_file, save_file

from lm.errors import UserError
from lm.huggingface.adapters import base_model, export_adapters, merged, short_names
from lm.huggingface.exporting import Original, export
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import load_params, write_provenance
from lm.huggingface.recognising import recognise
from lm.models import build_model
from lm.models.parameters import unstack_layers
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, save, their_outputs
from tests.huggingface.rows import our_outputs

TOLERANCE = 1e-4
ALL = ("query", "key", "value", "out", "up", "gate", "down")
GATED = {"llama", "phi3", "t5_1_1", "modernbert", "gemma3"}


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


class Run:
    """A run that was imported from a tiny model and then got adapters with random values."""

    def __init__(self, name, path, targets, rank=3, respelled=None, **changes):
        self.kind = MODELS[name][0]
        self.peer = build(*MODELS[name])
        save(self.peer, path / "in")
        if respelled:
            file = path / "in" / "model.safetensors"
            save_file({respelled(tensor): array for tensor, array in load_file(file).items()}, file, {"format": "pt"})
        folder = open_folder(path / "in")
        published = recognise(folder)
        write_provenance(folder, published, path / "huggingface")
        self.original, self.before = Original.read(path / "huggingface"), load_params(folder, published)
        self.settings = published.config.model
        adapters = {"lora_rank": rank, "lora_alpha": 5.0, "lora_targets": targets}
        model = dataclasses.replace(self.settings, **adapters, **changes)
        self.config = dataclasses.replace(published.config, model=model)
        self.model = build_model(model, published.model.head, "cpu")
        shapes = flatten_dict(jax.eval_shape(lambda: nn.unbox(self.model.initial_params(jax.random.key(0)))))
        draw, kept = np.random.default_rng(0), flatten_dict(self.before)
        self.params = unflatten_dict(
            {
                path: 0.1 * draw.normal(size=leaf.shape).astype(np.float32)
                if path[-1].startswith("lora_")
                else np.asarray(kept[path])
                for path, leaf in shapes.items()
            }
        )

    def export(self, out, **changes):
        given = {"params": self.params, "config": self.config, "original": self.original}
        return export_adapters(out=out, imported=(self.before, self.settings), **{**given, **changes})


def check_equal(peer, expected):
    outputs, _ = their_outputs(peer)
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=TOLERANCE, err_msg=name)


def check_in_peft(run, folder, expected):
    """Compares the outputs of the run with those of the adapters on the original model."""
    model = getattr(transformers, run.kind).from_pretrained(folder / "in", attn_implementation="eager").eval()
    plain, _ = their_outputs(model)
    loaded = peft.PeftModel.from_pretrained(model, folder / "out").eval()
    check_equal(loaded.base_model.model, expected)
    assert all(np.abs(plain[name] - values).max() > 0.03 for name, values in expected.items())  # the adapters matter
    names = {name.replace(".default", "") for name, _ in loaded.named_parameters() if ".lora_" in name}
    assert names == load_file(folder / "out" / "adapter_model.safetensors").keys()


def each_target(name):
    return [(target,) for target in ALL if target != "gate" or name in GATED]


CASES = [
    *((name, targets) for name in ("gpt2", "llama", "phi3", "bert", "t5", "bart") for targets in each_target(name)),
    *((name, ("query", "value")) for name in ("phi3", "gpt2", "t5", "bart")),
    *((name, tuple(t for t in ALL if t != "gate" or name in GATED)) for name in ("phi3", "llama", "t5_1_1", "bert")),
    *((name, tuple(t for t in ALL if t != "gate" or name in GATED)) for name in ("modernbert", "albert", "gpt2")),
    *((name, ("query", "down")) for name in ("distilbert", "roberta", "mbart", "gemma3", "bert_classes", "bert_tags")),
]
FAST = {("gpt2", ("query", "value")), ("phi3", ALL), ("bert", ("down",))}


@pytest.mark.parametrize(
    ("name", "targets"), [pytest.param(*each, marks=[] if each in FAST else [pytest.mark.exhaustive]) for each in CASES]
)
def test_adapters_give_equal_logits_in_peft(name, targets, tmp_path):
    run = Run(name, tmp_path, targets)
    assert run.export(tmp_path / "out") == run.kind
    ((expected, _),) = our_outputs(run, run.params, ["right"])
    check_in_peft(run, tmp_path, expected)


def test_prefixes_that_differ_from_those_of_the_class(tmp_path):
    """A folder may add the prefix of the body or omit it; peft needs the names of the class."""
    run = Run("bert_body", tmp_path / "added", ("query", "value", "out"), respelled=lambda name: f"bert.{name}")
    run.export(tmp_path / "added" / "out")
    config = json.loads((tmp_path / "added" / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["attention.output.dense", "query", "value"]
    ((_, expected),) = our_outputs(run, run.params, ["right"])
    model = transformers.BertModel.from_pretrained(tmp_path / "added" / "in", attn_implementation="eager").eval()
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "added" / "out").eval()
    _, vectors = their_outputs(loaded.base_model.model)
    for ours, theirs in zip(expected, vectors, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)
    assert np.abs(their_outputs(run.peer)[1][-1] - expected[-1]).max() > 0.03
    run = Run("bert", tmp_path / "omitted", ("query", "down"), respelled=lambda name: name.removeprefix("bert."))
    run.export(tmp_path / "omitted" / "out")
    config = json.loads((tmp_path / "omitted" / "out" / "adapter_config.json").read_text())
    downs = [f"bert.encoder.layer.{n}.output.dense" for n in range(2)]
    assert config["target_modules"] == [*downs, "query"]
    ((expected, _),) = our_outputs(run, run.params, ["right"])
    check_in_peft(run, tmp_path / "omitted", expected)


def test_config_of_joined_layers(tmp_path):
    """Phi-3 joins the query, key and value, and the gate and up; each gets the sum of the ranks of their adapters."""
    run = Run("phi3", tmp_path, ("query", "value", "out", "up"))
    run.export(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5.0)
    assert config["target_modules"] == ["gate_up_proj", "o_proj", "qkv_proj"]
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"qkv_proj": 6}, {"qkv_proj": 10.0})
    assert config["task_type"] == "CAUSAL_LM" and not config["fan_in_fan_out"] and not config["use_rslora"]
    assert config["base_model_name_or_path"] == str(tmp_path / "in")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    second = tensors["base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight"]
    assert second.shape == (32 + 16 + 16, 6)
    assert not second[:32, 3:].any() and not second[32:48].any() and not second[48:, :3].any()
    query = run.params["layers"]["attention"]["query"]["lora_b"][1]
    np.testing.assert_array_equal(second[:32, :3].T, query.reshape(3, -1))


def test_merged_model_gives_equal_logits(tmp_path):
    """Without --adapters, a run with adapters is exported as a model without any, and nothing else changes."""
    run = Run("gpt2", tmp_path, ("query", "out", "down"))
    params, config = merged(run.params, run.config)
    export(params, config, tmp_path / "out", run.original)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    ((expected, _),) = our_outputs(run, run.params, ["right"])
    check_equal(model, expected)
    before, after = open_folder(tmp_path / "in"), open_folder(tmp_path / "out")
    assert after.config == {**before.config, "torch_dtype": "float32"} and after.tensors == before.tensors
    same = {name for name in before.tensors if np.array_equal(before.read(name), after.read(name))}
    assert {name for name in before.tensors if name not in same} == {
        f"transformer.h.{n}.{module}.weight"
        for n in range(2)
        for module in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    }


def test_refusals(tmp_path):
    """Adapters are only exported alone if the original model and they give the results of the run."""
    run = Run("bert", tmp_path, ("query",))
    out = tmp_path / "out"

    def refused(message, **changes):
        with pytest.raises(UserError, match=message) as caught:
            run.export(out, **changes)
        assert len(str(caught.value)) < 500 and "\n" not in str(caught.value) and not out.exists()

    refused("was not initialised from an imported model; export the merged model", original=None)
    refused("has no adapters", config=dataclasses.replace(run.config, model=run.settings))
    head = {**run.params, "head_norm": {**run.params["head_norm"], "bias": run.params["head_norm"]["bias"] + 1}}
    refused(r"differs from the imported model in head_norm/bias.*config.optimizer.freeze=\('head_norm',\)", params=head)
    changed = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, norm_epsilon=1e-3))
    refused("config.model.norm_epsilon=0.001, but the imported model has 1e-12", config=changed)
    others = {name: value for name, value in run.params.items() if not name.startswith("head")}
    tags = {"name": "tagging"}
    config = dataclasses.replace(run.config, objective=dataclasses.replace(run.config.objective, **tags))
    model = dataclasses.replace(config.model, head_transform=False, output_bias=False)
    config = dataclasses.replace(config, model=model)
    refused("is now a BertForTokenClassification, but .* is a BertForMaskedLM", config=config, params=others)
    # The layers may be separate; an other order of storage is no difference.
    unrolled = unstack_layers(run.params)
    unrolled_model = dataclasses.replace(run.config.model, scan_layers=False)
    run.export(out, params=unrolled, config=dataclasses.replace(run.config, model=unrolled_model))


def test_base_model_does_not_depend_on_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("gpt2", Path("model"), ("query",))
    monkeypatch.chdir("/")
    assert base_model(run.original.record.source) == (str(tmp_path / "model" / "in"), None)


def test_base_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_model("acme/tiny") == ("acme/tiny", None)
    assert base_model("acme/tiny@refs/pr/3") == ("acme/tiny", "refs/pr/3")
    for source in ("tiny", "../acme/tiny", "runs/acme/tiny"):
        with pytest.raises(UserError, match=f"the base model '{source}' is neither a local folder nor a name"):
            base_model(source)


def test_gguf_file_is_no_base_model(tmp_path, monkeypatch):
    gguf_files = pytest.importorskip("tests.huggingface.gguf_files")
    file = tmp_path / "in" / "tiny.gguf"
    file.parent.mkdir()
    gguf_files.write(file, gguf_files.tensors_of())
    monkeypatch.chdir(tmp_path)
    folder = open_folder("in")  # the folder that holds the file
    write_provenance(folder, recognise(folder), tmp_path / "huggingface")
    source = Original.read(tmp_path / "huggingface").record.source
    assert source == str(file)
    with pytest.raises(UserError, match=r"peft cannot load the base model from the GGUF file .*; export the merged"):
        base_model(source)


def test_short_names():
    every = [f"bert.layer.{n}.{name}" for n in range(2) for name in ("attention.output.dense", "output.dense", "query")]
    assert short_names(every[2::3], every) == ["query"]
    assert short_names(every[0::3], every) == ["attention.output.dense"]
    assert short_names(every[1::3], every) == ["bert.layer.0.output.dense", "bert.layer.1.output.dense"]
    assert short_names([*every[0::3], *every[1::3]], every) == ["dense"]
