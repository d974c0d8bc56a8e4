"""Compares the training speed of the LSTM language model of Zaremba 2014 with PyTorch's on the same processor.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.recurrent_speed [--output=results/recurrent_speed.json]

The model has two layers with 650 units, 10,000 words and no dropout; a step reads 20 rows of 35 tokens, computes the
gradients, clips their norm and updates all parameters by SGD, in float32. Both systems start with the same weights and
read the same tokens; the losses of the first steps must agree. They take turns, and the medians are reported.

Nothing else should run at the same time. OMP_NUM_THREADS sets the number of PyTorch threads, which is recorded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks.record import surroundings, write_record
from lm.batch import Batch
from lm.config import ModelConfig, ObjectiveConfig
from lm.models import build_model
from lm.objectives.losses import loss_sums

UNITS, WORDS, LAYERS, ROWS, LENGTH, RATE, CLIP = 650, 10_000, 2, 20, 35, 1.0, 5.0
TOLERANCE = 1e-4  # of the losses
Step = Callable[[np.ndarray], float]  # takes tokens (B, L + 1) and returns the loss before the update


def our_step() -> tuple[Step, Any]:
    """Returns our training step and the initial parameters."""
    config = ModelConfig(
        architecture="recurrent",
        vocab_size=WORDS,
        max_length=LENGTH,
        d_model=UNITS,
        num_layers=LAYERS,
        tie_embeddings=False,
        init_std=0.04,
    )
    model, optimizer = build_model(config), optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(RATE))
    params = jax.jit(lambda key: nn.unbox(model.initial_params(key)))(jax.random.key(0))
    state = params, optimizer.init(params)
    positions_BL = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    ones_BL = np.ones((ROWS, LENGTH), np.int32)

    @jax.jit
    def update(params: Any, opt_state: Any, tokens: Any) -> Any:
        weights_BL = ones_BL.astype(np.float32)
        batch = Batch(tokens[:, :-1], tokens[:, 1:], weights_BL, positions=positions_BL, segments=ones_BL)

        def loss(params: Any) -> Any:
            sums = loss_sums(model.apply({"params": params}, batch).logits, batch, ObjectiveConfig())
            return sums.loss / sums.weight

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return value, optax.apply_updates(params, updates), opt_state

    def step(tokens: np.ndarray) -> float:
        nonlocal state
        value, *state = update(*state, tokens)
        jax.block_until_ready(state)
        return float(value)

    return step, params


def torch_step(params: Any) -> Step:
    """Returns the training step of PyTorch, with our initial parameters."""
    import torch

    class LanguageModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(WORDS, UNITS)
            self.lstm = torch.nn.LSTM(UNITS, UNITS, LAYERS, batch_first=True)
            self.output = torch.nn.Linear(UNITS, WORDS, bias=False)

        def forward(self, tokens: Any) -> Any:
            return self.output(self.lstm(self.embedding(tokens))[0])

    model = LanguageModel()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor(np.array(params["token_embedding"]["embedding"])))
        model.output.weight.copy_(torch.tensor(np.array(params["output"]["kernel"].T)))
        for layer in range(LAYERS):
            ours = params[f"layer_{layer}"]["forward"]
            values = {"weight_ih": ours["input"]["kernel"].T, "weight_hh": ours["recurrent"]["kernel"].T}
            values |= {"bias_ih": ours["gates"]["bias"], "bias_hh": np.zeros(4 * UNITS, np.float32)}
            for name, value in values.items():
                getattr(model.lstm, f"{name}_l{layer}").copy_(torch.tensor(np.array(value)))
            getattr(model.lstm, f"bias_hh_l{layer}").requires_grad_(False)  # ours has a single bias per gate
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], RATE)

    def step(tokens: np.ndarray) -> float:
        tokens = torch.tensor(tokens, dtype=torch.int64)
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, WORDS), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file in which to write the record")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each system")
    parser.add_argument("--steps", type=int, default=10, help="number of steps per turn")
    flags, random = parser.parse_args(), np.random.default_rng(0)
    ours, params = our_step()
    steps = {"ours": ours, "pytorch": torch_step(params)}
    times: dict[str, list[float]] = {name: [] for name in steps}

    def tokens() -> np.ndarray:
        return random.integers(0, WORDS, (ROWS, LENGTH + 1)).astype(np.int32)

    for each in [tokens() for _ in range(3)]:  # also compiles
        losses = [step(each) for step in steps.values()]
        if abs(losses[0] - losses[1]) > TOLERANCE:
            sys.exit(f"the losses differ: {losses}")
    for turn in range(flags.rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            batches = [tokens() for _ in range(flags.steps)]
            began = time.perf_counter()
            for each in batches:
                steps[name](each)
            times[name].append((time.perf_counter() - began) / flags.steps)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    ratio = seconds["pytorch"] / seconds["ours"]
    words = ROWS * LENGTH
    for name, value in seconds.items():
        print(f"{name}: {value * 1e3:.1f} ms per step, {words / value:,.0f} words per second")
    print(f"speed relative to PyTorch: {ratio:.2f}")
    if flags.output:
        record = {"seconds_per_step": seconds, "speed_relative_to_pytorch": ratio, "times": times}
        write_record(Path(flags.output), {**record, **surroundings()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
