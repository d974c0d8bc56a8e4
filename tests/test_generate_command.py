"""`python -m lm.generate`, on a run directory that a test has made."""

import dataclasses
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags

from lm import generate
from lm.checkpoint import Checkpoints
from lm.config import Config
from lm.data.tokenizers import ByteTokenizer
from lm.decoding.sampling import Sampling
from lm.decoding.text import encode_prompts, sample_many
from lm.errors import UserError
from lm.models.transformer import build_model, initial_params
from lm.run_directory import RunDirectory

TOKENIZER = ByteTokenizer()
CONFIG = Config.from_dict(
    {
        "data": {"train": {"docs": {"kind": "embedded"}}, "sequence_length": 128},
        "model": {
            "vocab_size": TOKENIZER.vocab_size,
            "num_layers": 1,
            "d_model": 16,
            "num_heads": 2,
            "attention": "splash",
        },
        "optimizer": {"ema_decay": 0.9, "warmup_steps": 0},
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory with steps 1 (the best) and 2, whose averages differ from their parameters."""
    root = tmp_path_factory.mktemp("runs") / "small"
    with RunDirectory.open(root, CONFIG) as directory:
        TOKENIZER.save(directory.tokenizer_dir)
        model = build_model(CONFIG.model, "tpu")
        params = jax.tree.map(np.asarray, nn.unbox(jax.jit(lambda key: initial_params(model, key))(jax.random.key(0))))
        with Checkpoints(directory.checkpoints_dir, CONFIG.checkpoint) as checkpoints:
            for step in (1, 2):
                state = {"params": params, "ema": jax.tree.map(lambda x, step=step: (1 + 3 * step) * x, params)}
                checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), {}, {"valid/loss": float(step)})
    return root, params


@pytest.fixture
def command(trained, capsys):
    """Runs the command in this process and gives what it printed."""
    before = set(flags.FLAGS)
    generate.define_flags()

    def call(*arguments):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["generate", f"--workdir={trained[0]}", *arguments])
        assert generate.main() == 0
        return capsys.readouterr().out

    yield call
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)


def expected(trained, prompts, sampling, new, seed, samples, factor=4):
    model = build_model(dataclasses.replace(CONFIG.model, attention="xla"))
    params = jax.tree.map(lambda x: factor * x, trained[1])
    return list(sample_many(model, params, TOKENIZER, encode_prompts(TOKENIZER, prompts), sampling, new, seed, samples))


def test_several_prompts_and_samples(trained, command, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\né two\n", encoding="utf-8")
    sampling = Sampling(temperature=1.1, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    found = command(
        *("--prompt=", "--prompt=zero", f"--prompts_file={file}", "--num_samples=2", "--seed=5", "--max_new_tokens=7"),
        *("--temperature=1.1", "--top_k=40", "--top_p=0.9", "--min_p=0.01", "--repetition_penalty=1.1"),
    )
    prompts = ["", "zero", "one", "é two"]
    rows = expected(trained, prompts, sampling, 7, 5, 2)
    assert found == "".join(f"--- prompt {p + 1}, sample {s + 1} ---\n{prompts[p]}{text}\n" for p, s, text in rows)


def test_one_prompt_streams_the_same_text_from_the_best_or_the_named_step(trained, command):
    for arguments, factor in (((), 4), (("--step=2",), 7)):
        ((_, _, text),) = expected(trained, ["ab"], Sampling(), 125, 0, 1, factor)  # all that fits: 3 + 125 = 128
        assert command("--prompt=ab", *arguments) == f"ab{text}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no prompt; give --prompt"),
        (("--prompt=a", "--top_p=1.5"), "top_p=1.5: must be"),
        (("--prompt=a", "--temperature=-1"), "temperature=-1.0: must be"),
        (("--prompt=a", "--max_new_tokens=0"), "max_new_tokens=0: must be"),
        (("--prompt=a", "--max_new_tokens=127"), "2 tokens .* with 127 new .* 128 positions .* at most 126"),
        (("--prompt=" + "a" * 140,), "141 tokens .* shorten it"),
        (("--prompts_file=/nowhere/prompts",), "/nowhere/prompts: cannot be read: No such file"),
        (("--prompt=a", "--step=9"), "no checkpoint of step 9"),
        (("--prompt=a", "--workdir=/nowhere"), "/nowhere: no such run directory"),
    ],
)
def test_bad_input_is_told_in_a_line(command, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)


def test_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "lm.generate", "--prompt=a", "--num_samples=0"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "num_samples" in line
