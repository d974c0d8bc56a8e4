"""`python -m lm.merge_lora`: the merged run evaluates and generates like the original one."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors import safe_open

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.models import build_model
from lm.models.parameters import adapters
from lm.runs.directory import RunDirectory
from lm.tasks import task_of


def config_of(text, **changes) -> Config:
    return Config.from_dict(
        {
            "data": {"train": {"text": {"path": str(text), "document": "line"}}, "sequence_length": 32},
            "model": {
                "vocab_size": ByteTokenizer().vocab_size,
                "num_layers": 2,
                "d_model": 16,
                "num_heads": 2,
                "lora_rank": 2,
                "lora_targets": ("query", "out", "up"),
                **changes,
            },
            "optimizer": {"ema_decay": 0.9, "warmup_steps": 0},
            "eval": {"prompts": ()},
        }
    )


def make_run(root, config):
    """Saves steps 1 (the best) and 2, whose averages differ from their parameters."""
    shapes = nn.unbox(
        jax.eval_shape(
            lambda: build_model(config.model, task_of(config).head(config)).initial_params(jax.random.key(0))
        )
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.2, x.shape).astype(np.float32), shapes)
    with RunDirectory.open(root, config) as directory:
        ByteTokenizer().save(directory.tokenizer_dir)
        with Checkpoints(directory.checkpoints_dir, config.checkpoint) as checkpoints:
            for step in (1, 2):
                state = {"params": params, "ema": jax.tree.map(lambda x, factor=step + 1: factor * x, params)}
                state = jax.tree.map(jax.numpy.asarray, state)
                checkpoints.save(step, state, {"data": {"a": "b"}}, {"valid/loss": float(step)})
    return params


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("lora") / "run"
    return root, make_run(root, config_of(tiny.text))


@pytest.mark.exhaustive
def test_merged_run_evaluates_and_generates_as_before(run, call, tmp_path):
    root, _ = run
    merged = tmp_path / "new" / "merged"
    outcome = call("lm.merge_lora", f"--workdir={root}", f"--output={merged}")
    assert outcome.status == 0 and outcome.stdout == f"written: {merged}, step 1 with its adapters merged\n"
    config = RunDirectory.existing(merged).load_config()
    assert config.model.lora_rank == 0 and config.optimizer.ema_decay == 0.9
    with Checkpoints(merged / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
        record = checkpoints.record(1)
        assert record["metadata"]["data"] == {"a": "b"} and record["metrics"] == {"valid/loss": 1.0}
        params, _ = checkpoints.restore_params()
    assert not adapters(params)
    assert sorted(each.name for each in merged.parent.iterdir()) == ["merged"]

    assert call("eval.py", f"--workdir={root},{merged}").status == 0
    losses = [json.loads((each / "eval/1/results.json").read_text())["metrics"]["loss"] for each in (root, merged)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    texts = [
        call("lm.generate", f"--workdir={each}", "--prompt=a b", "--max_new_tokens=8").stdout for each in (root, merged)
    ]
    assert texts[0] == texts[1] and texts[0].startswith("a b")


def test_adapters_alone_are_written_with_their_config_and_step(run, call, tmp_path):
    root, params = run
    file = tmp_path / "a.safetensors"
    assert call("lm.merge_lora", f"--workdir={root}", f"--adapters={file}", "--step=2").status == 0
    with safe_open(file, "numpy") as opened:
        found, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    expected = adapters(params)
    assert set(found) == set(expected) and len(found) == 6
    for name, value in found.items():
        np.testing.assert_array_equal(value, 3 * expected[name])
    assert Config.from_dict(json.loads(metadata["config"])).model.lora_rank == 2 and metadata["step"] == "2"


def test_bad_input_is_refused_and_nothing_is_written(run, call, tiny, tmp_path):
    root, _ = run
    plain = tmp_path / "plain"
    RunDirectory.open(plain, config_of(tiny.text, lora_rank=0)).close()
    there = tmp_path / "there"
    there.touch()
    blocked = there / "below"
    for arguments, message in (
        ((), "--workdir is missing"),
        ((f"--workdir={root}",), "specify the run directory to create (--output) or the file to write (--adapters)."),
        ((f"--workdir={plain}", "--output=x"), "this run has no adapters"),
        ((f"--workdir={root}", f"--output={plain}"), f"--output={plain} already exists"),
        ((f"--workdir={root}", f"--adapters={there}"), f"--adapters={there} already exists"),
        ((f"--workdir={root}", f"--output={blocked}"), f"--output={blocked} cannot be written"),
        ((f"--workdir={root}", f"--output={tmp_path}/x", "--step=9"), "there is no checkpoint for step 9"),
        ((f"--workdir={tmp_path}/no", "--output=x"), "no such run directory"),
    ):
        outcome = call("lm.merge_lora", *arguments)
        assert outcome.status == 1 and message in outcome.stderr and outcome.stderr.count("\n") == 1, outcome
    assert sorted(each.name for each in tmp_path.iterdir()) == ["plain", "there"]
