"""lm.hf as a user runs it: an imported model is a run directory like any other, and goes out again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from lm.config.experiment import replace_settings
from lm.huggingface.checking import Ours, lines_of_comparison
from lm.huggingface.folder import open_folder
from lm.huggingface.recognising import recognise
from tests.huggingface.models import MODELS
from tests.huggingface.peers import build, save

ROOT = Path(__file__).resolve().parents[2]
TUNE = """
from lm.config import defaults, source
from lm.models.presets import preset


def get_config():
    config = defaults()
    config.init_from = "{root}/body"
    config.model.update(preset(config.init_from))
    config.model.pooler, config.model.pooling = True, "first"
    config.objective.name = "classification"
    config.data.tokenizer.kind = "huggingface"
    config.data.sequence_length = 24
    config.data.train.mine = source(kind="jsonl", path="{root}/train.jsonl", label_field="label")
    config.train.num_steps, config.train.batch_size, config.optimizer.warmup_steps = 2, 4, 1
    return config
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments, fails=False):
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(cache), "LM_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560
        )
        assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stderr if fails else done.stdout

    return run


def test_import_use_and_export(command, tmp_path):
    save(build(*MODELS["gpt2"]), tmp_path / "in")
    model, run = f"--model={tmp_path}/in", f"--workdir={tmp_path}/run"
    assert "objective.name=causal; decoder, 2 layers of width 32" in command("-m", "lm.hf", "inspect", model)
    assert "gpt2 (GPT2LMHeadModel)" in command("-m", "lm.hf", "import", model, run)
    assert command("-m", "lm.generate", run, "--prompt=w5 w6", "--max_new_tokens=4").startswith("w5 w6")
    (tmp_path / "text.txt").write_text("w5 w6 w7 w8\n")
    assert "perplexity" in command("eval.py", run, f"--text={tmp_path}/text.txt")
    command("-m", "lm.hf", "export", run, f"--out={tmp_path}/out")
    before, after = open_folder(tmp_path / "in"), open_folder(tmp_path / "out")
    config = {**before.config, "torch_dtype": before.config["dtype"]}  # as version 4 of transformers names it
    assert config == after.config and before.tensors.keys() == after.tensors.keys()
    assert all(np.array_equal(before.read(name), after.read(name)) for name in before.tensors)

    for arguments, message in (
        (("import", model, run), "already exists; choose a new name"),
        (("export", run, f"--out={tmp_path}/out"), "already exists; choose a new name"),
        (("export", run), "--out is missing"),
        (("import", f"--model={tmp_path}/run", f"--workdir={tmp_path}/other"), "is a run directory of this project"),
        (
            ("export", run, f"--out={tmp_path}/other", "--adapters", "--max_shard_gb=1"),
            "--max_shard_gb has no effect with --adapters",
        ),
        ((), "name a command"),
    ):
        error = command("-m", "lm.hf", *arguments, fails=True)
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "other").exists()


def test_tuned_model_is_exported_with_its_new_head(command, tmp_path):
    save(build(*MODELS["bert_body"]), tmp_path / "in")
    command("-m", "lm.hf", "import", f"--model={tmp_path}/in", f"--workdir={tmp_path}/body")
    vector = json.loads(command("-m", "lm.predict", f"--workdir={tmp_path}/body", "--text=w5 w6 w7"))["vector"]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    examples = [{"text": f"w{4 + n} w{5 + n} w{6 + n}", "label": ("good", "bad")[n % 2]} for n in range(50)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in examples))
    (tmp_path / "tune.py").write_text(TUNE.format(root=tmp_path))
    command("train.py", f"--config={tmp_path}/tune.py", f"--workdir={tmp_path}/tuned")
    command("-m", "lm.hf", "export", f"--workdir={tmp_path}/tuned", f"--out={tmp_path}/out")
    config = open_folder(tmp_path / "out").config
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {"bad": 0, "good": 1}
    run = f"--workdir={tmp_path}/tuned"
    found = command("-m", "lm.hf", "check", f"--model={tmp_path}/out", run)
    assert "token ids: equal for 3 of 3 texts" in found and "all tensors found" in found and "DIFFERENT" not in found
    assert "parameters: 25 of 25 arrays are equal\n" in found


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_run_gives_the_texts_of_the_folder(name, tmp_path):
    """Ids, parameters, logits and greedy text of an imported run; a changed parameter is noticed."""
    model = build(*MODELS[name])
    folder = open_folder(save(model, tmp_path / "in"))
    ours = Ours.of_folder(folder, recognise(folder))
    lines = dict(lines_of_comparison(folder, run=ours))
    assert all(lines.values()) and any(line.startswith("logits") for line in lines), lines
    assert "greedy text: equal for 3 of 3 texts of up to 20 tokens" in lines
    ours.params["token_embedding"]["embedding"] = ours.params["token_embedding"]["embedding"].at[:8].mul(-3.0)
    lines = dict(lines_of_comparison(folder, run=ours))
    assert "the run has been trained, or it was not imported from this model" in " ".join(lines)
    assert [line.partition(":")[0] for line, same in lines.items() if not same] == [
        *("parameters", "vectors of the last layer", "logits", "greedy text")
    ]


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("llama", "chat"),
        ("bart", "ul2"),
        ("bert", "masked"),
        *(
            pytest.param("bart", objective, marks=pytest.mark.exhaustive)
            for objective in ("chat", "span_corruption", "infilling", "prefix_lm")
        ),
    ],
)
def test_logits_of_a_run_of_another_task_are_compared(name, objective, tmp_path):
    folder = open_folder(save(build(*MODELS[name]), tmp_path / "in"))
    ours = Ours.of_folder(folder, recognise(folder))
    config = replace_settings(ours.config, {"objective.name": objective})
    run = Ours.of_run(config, ours.params, ours.tokenizers)
    lines = dict(lines_of_comparison(folder, run=run))
    assert all(lines.values()) and any(line.startswith("logits: largest") for line in lines), lines
