"""Continues prompts with a trained model.

python -m lm.generate --workdir=runs/quickstart --prompt="Once upon a time" --temperature=0.8 --top_p=0.95

One prompt with one sample appears as it is made. The order in which the sampling flags work is told
in lm/decoding/sampling.py. Equal flags give the same text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from absl import flags

from lm.checkpoint import Checkpoints
from lm.command import DONE, run
from lm.data.tokenizers import load_tokenizer
from lm.decoding.loop import check_room
from lm.decoding.sampling import Sampling
from lm.decoding.text import encode_prompts, sample_many, stream_text
from lm.errors import UserError
from lm.models.transformer import build_model
from lm.run_directory import RunDirectory

LONGEST_DEFAULT = 256

FLAGS = flags.FLAGS
DEFAULTS = Sampling()


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of the model.")
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times. Empty: from the beginning.")
    flags.DEFINE_string("prompts_file", None, "UTF-8 file with a prompt on every line; empty lines are skipped.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the best if not given.")
    flags.DEFINE_integer("num_samples", 1, "Continuations of every prompt.", lower_bound=1)
    flags.DEFINE_integer(
        "seed", 0, "Of the draws; each prompt and sample draws its own.", lower_bound=0, upper_bound=2**31 - 1
    )
    flags.DEFINE_integer(
        "max_new_tokens", None, f"Tokens to make at the most; if not given as many as fit, up to {LONGEST_DEFAULT}."
    )
    flags.DEFINE_float("temperature", DEFAULTS.temperature, "Divides the logits; 0 takes the most probable token.")
    flags.DEFINE_integer("top_k", DEFAULTS.top_k, "Draw from the k most probable tokens only; 0 for all.")
    flags.DEFINE_float("top_p", DEFAULTS.top_p, "Draw from the most probable that together reach p; 1 for all.")
    flags.DEFINE_float("min_p", DEFAULTS.min_p, "Draw from those with p times the largest probability or more; 0: all.")
    flags.DEFINE_float(
        "repetition_penalty", DEFAULTS.repetition_penalty, "Above 1: tokens that were there before get less probable."
    )
    flags.DEFINE_integer(
        "batch_size", 16, "Continuations made at a time; changes memory and speed, not the texts.", lower_bound=1
    )


def read_prompts() -> list[str]:
    """The prompts of --prompt and --prompts_file, in this order."""
    prompts = list(FLAGS.prompt)
    if FLAGS.prompts_file is not None:
        try:
            text = Path(FLAGS.prompts_file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--prompts_file={FLAGS.prompts_file}: cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts_file={FLAGS.prompts_file}: is not UTF-8 (byte {error.start}).") from None
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            raise UserError(f"--prompts_file={FLAGS.prompts_file}: holds no prompt; write one on every line.")
        prompts += lines
    if not prompts:
        raise UserError('there is no prompt; give --prompt="..." (it may be empty) or --prompts_file=FILE.')
    return prompts


def main() -> int:
    sampling = Sampling(
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        min_p=FLAGS.min_p,
        repetition_penalty=FLAGS.repetition_penalty,
    )
    sampling.check()
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name the run directory of the model, e.g. --workdir=runs/quickstart.")
    texts = read_prompts()
    run_directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = run_directory.load_config()
    tokenizer = load_tokenizer(run_directory.tokenizer_dir)
    prompts = encode_prompts(tokenizer, texts)
    longest, max_new_tokens = max(len(prompt) for prompt in prompts), FLAGS.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = max(1, min(LONGEST_DEFAULT, config.model.max_length - longest))
    check_room(prompts, max_new_tokens, config.model.max_length)

    # Cached decoding always uses xla, so a model trained with another chip's kernel runs here too.
    model = build_model(dataclasses.replace(config.model, attention="xla"))
    with Checkpoints(run_directory.checkpoints_dir, config.checkpoint, read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(
            step="best" if FLAGS.step is None else FLAGS.step, ema=config.optimizer.ema_decay > 0
        )
    params = jax.device_put(params)

    if len(prompts) == 1 and FLAGS.num_samples == 1:
        print(texts[0], end="", flush=True)
        for text in stream_text(model, params, tokenizer, prompts[0], sampling, max_new_tokens, FLAGS.seed):
            print(text, end="", flush=True)
        print()
        return DONE
    samples = sample_many(
        model, params, tokenizer, prompts, sampling, max_new_tokens, FLAGS.seed, FLAGS.num_samples, FLAGS.batch_size
    )
    for prompt, sample, text in samples:
        print(f"--- prompt {prompt + 1}, sample {sample + 1} ---\n{texts[prompt]}{text}", flush=True)
    return DONE


if __name__ == "__main__":
    define_flags()
    run(main)
