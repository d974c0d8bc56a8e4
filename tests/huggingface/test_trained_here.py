"""A model that was trained here and exported has the loss in `transformers` that eval.py reports."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from lm.config import Config
from lm.huggingface.export_directory import export_directory
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import import_folder
from lm.huggingface.recognising import recognise
from lm.models.presets import preset
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, evaluate_run
from lm.tasks import task_of
from lm.training.loop import train
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, save

NOUNS, VERBS = ("w14", "cat", "bird", "w23", "w9"), ("sees", "w30", "w31", "finds")
RECORDS = [
    {"text": f"w5 {a} {verb} the {b}, w{n % 40}.", "target": f"the {b} and w7 {a}", "label": ("yes", "no")[n % 3 % 2]}
    for n, (a, verb, b) in enumerate((a, verb, b) for a in NOUNS for verb in VERBS for b in NOUNS if a != b)
]
TRAIN, VALID = RECORDS[:60], RECORDS[60:66]  # all of VALID fits into one row, so that no document is divided
SIZES = {"d_model": 32, "num_heads": 4, "num_layers": 2, "d_ff": 48, "max_length": 256}
LLAMA = {"family": "decoder", "positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "use_bias": False}
T5 = {
    "family": "encoder_decoder",
    "positions": "relative",
    "norm": "rmsnorm",
    "use_bias": False,
    "attention_scale": 1.0,
}
T5 |= {"activation": "relu", "share_embeddings": True, "scale_logits": True, "norm_epsilon": 1e-6}
BERT = {"family": "encoder", "positions": "learned", "norm": "layernorm", "norm_position": "post", "token_types": 2}
BERT |= {"norm_embeddings": True, "pooler": True, "pooling": "first", "norm_epsilon": 1e-12}


def trained(path, objective, model, tokenizer, **more):
    """Trains for a few steps and returns (run directory, validation records)."""
    (path / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in TRAIN))
    (path / "valid.jsonl").write_text("".join(json.dumps(each) + "\n" for each in VALID))
    fields = {"field": "text"} | ({"target_field": "target"} if objective == "seq2seq" else {})
    fields |= {"label_field": "label"} if objective == "classification" else {}
    sides = {
        split: {"mine": {"kind": "jsonl", "path": str(path / f"{split}.jsonl"), **fields}}
        for split in ("train", "valid")
    }
    values = {
        "data": {**sides, "sequence_length": 256 if not more else 96, "tokenizer": tokenizer},
        "model": {**SIZES, **model},
        "objective": {"name": objective},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
        "train": {"num_steps": 4, "batch_size": 8},
        "eval": {"every_steps": 4, "prompts": ()},
        "checkpoint": {"every_steps": 4},
        **more,
    }
    train(Config.from_dict(values, reset_unread=True), path / "run")
    return path / "run"


def loaded(folder):
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def their_loss(model, tokenizer):
    """Returns the mean loss per target of the validation records, as a user of `transformers` computes it."""
    total, count = 0.0, 0
    for record in VALID:
        inputs = tokenizer(record["text"], return_tensors="pt")
        kind = type(model).__name__
        if kind.endswith("ForSequenceClassification"):
            labels = torch.tensor([model.config.label2id[record["label"]]])
        elif model.config.is_encoder_decoder:
            labels = tokenizer(record["target"], return_tensors="pt").input_ids
        else:
            eos = torch.tensor([[tokenizer.eos_token_id]])
            start = [] if inputs.input_ids[0, 0] == tokenizer.bos_token_id else [eos]  # as between documents
            labels = torch.cat([*start, inputs.input_ids, eos], dim=1)
            inputs = {"input_ids": labels}
        with torch.no_grad():
            loss = model(**inputs, labels=labels).loss
        targets = labels.numel() - (kind.endswith("ForCausalLM") or kind.endswith("LMHeadModel"))
        total, count = total + float(loss) * targets, count + targets
    return total / count


def check(run, path, architecture):
    """Compares the losses of the run and of its export, and returns the loss."""
    assert export_directory(run, path / "out") == (architecture, [])
    name = task_of(RunDirectory(run).load_config()).loss_name
    ours = evaluate_run(run, Options()).result.metrics[name]
    np.testing.assert_allclose(their_loss(*loaded(path / "out")), ours, rtol=1e-5)
    return ours


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("objective", "model", "tokenizer", "architecture"),
    [
        ("causal", LLAMA, {"kind": "sentencepiece", "vocab_size": 300, "algorithm": "bpe"}, "LlamaForCausalLM"),
        ("seq2seq", T5, {"kind": "sentencepiece", "vocab_size": 300}, "T5ForConditionalGeneration"),
        ("classification", BERT, {"kind": "words", "vocab_size": 300}, "BertForSequenceClassification"),
    ],
)
def test_loss_of_a_model_trained_from_scratch(objective, model, tokenizer, architecture, tmp_path):
    check(trained(tmp_path, objective, model, tokenizer), tmp_path, architecture)


@pytest.mark.parametrize(
    "adapters", [pytest.param({}, marks=pytest.mark.exhaustive), {"lora_rank": 2, "lora_targets": ("query", "up")}]
)
def test_loss_of_an_imported_model_after_training(adapters, tmp_path):
    folder = open_folder(save(build(*MODELS["gpt2"]), tmp_path / "in"))
    import_folder(folder, recognise(folder), tmp_path / "imported")
    settings = {**preset(str(tmp_path / "imported")), **adapters}
    run = trained(tmp_path, "causal", settings, {"kind": "huggingface"}, init_from=str(tmp_path / "imported"))
    ours = check(run, tmp_path, "GPT2LMHeadModel")
    if adapters:
        assert export_directory(run, tmp_path / "adapters", adapters=True) == ("GPT2LMHeadModel", [])
        model, tokenizer = loaded(tmp_path / "in")
        adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapters").eval()
        np.testing.assert_allclose(their_loss(adapted.base_model.model, tokenizer), ours, rtol=1e-5)
