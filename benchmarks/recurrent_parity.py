"""Compares our recurrent layers with PyTorch's `nn.RNN`, `nn.LSTM` and `nn.GRU`: outputs and gradients.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.recurrent_parity [--write]

For each cell, two layers with random weights read two rows, in one direction and in both. The largest differences of
the outputs and of the gradients of all weights are printed; the exit status is 1 if one exceeds the tolerance. With
--write, PyTorch's values are stored in tests/golden/recurrent_*.json for tests/models/test_recurrent.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.models.recurrent.cells import CELLS
from lm.models.recurrent.layer import RecurrentStack

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
TOLERANCE = 1e-5
LAYERS, LENGTH, ROWS, INPUTS, UNITS = 2, 5, 2, 3, 4
CASES = list(itertools.product(CELLS, (False, True)))
Values = dict[str, np.ndarray]


def name_of(cell: str, bidirectional: bool) -> str:
    return f"recurrent_{cell}_{'both' if bidirectional else 'one'}"


def golden_path(cell: str, bidirectional: bool) -> Path:
    return GOLDEN / f"{name_of(cell, bidirectional)}.json"


def drawn(cell: str, bidirectional: bool) -> tuple[Values, np.ndarray, np.ndarray]:
    """Returns PyTorch's parameters by name, the inputs (B, L, E), and factors of the outputs (B, L, D) in the loss."""
    random, directions = np.random.default_rng(7), 1 + bidirectional
    width, rows = UNITS * directions, CELLS[cell].gates * UNITS
    weights = {}
    for layer, suffix in itertools.product(range(LAYERS), ("", "_reverse")[:directions]):
        shapes = {"weight_ih": (rows, width if layer else INPUTS), "weight_hh": (rows, UNITS)}
        for name, shape in (shapes | {"bias_ih": (rows,), "bias_hh": (rows,)}).items():
            weights[f"{name}_l{layer}{suffix}"] = random.normal(0, 0.5, shape).astype(np.float32)
    x_BLE = random.normal(size=(ROWS, LENGTH, INPUTS)).astype(np.float32)
    return weights, x_BLE, random.normal(size=(ROWS, LENGTH, width)).astype(np.float32)


def our_params(cell: str, weights: Values) -> dict[str, Any]:
    """Returns the parameters of our layers. Ours have one bias per gate, PyTorch's two, which are added."""
    params: dict[str, Any] = {}
    for name in (each for each in weights if each.startswith("weight_ih")):
        place = name.removeprefix("weight_ih")
        x, h = (weights[f"{kind}{place}"] for kind in ("weight_ih", "weight_hh"))
        b_x, b_h = (weights[f"{kind}{place}"] for kind in ("bias_ih", "bias_hh"))
        layer = {"input": {"kernel": x.T}, "recurrent": {"kernel": h.T}, "gates": {"bias": b_x + b_h}}
        if CELLS[cell].candidate_bias:
            layer["gates"] = {"bias": np.append((b_x + b_h)[:-UNITS], b_x[-UNITS:])}
            layer["candidate"] = {"bias": b_h[-UNITS:]}
        number, _, reverse = place.removeprefix("_l").partition("_")
        params.setdefault(f"layer_{number}", {})["backward" if reverse else "forward"] = layer
    return params


def our_values(cell: str, bidirectional: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the outputs (B, L, D) and the gradients of sum(outputs * factors) for our parameters."""
    weights, x_BLE, factors_BLD = drawn(cell, bidirectional)
    config = ModelConfig(architecture="recurrent", cell=cell, d_model=factors_BLD.shape[-1])
    stack, segments_BL = RecurrentStack(config, LAYERS, bidirectional), np.ones(x_BLE.shape[:2], np.int32)

    @jax.jit
    def loss(params: Any) -> Any:
        y_BLD, _ = stack.apply({"params": params}, x_BLE, segments_BL, False)
        return jnp.sum(y_BLD * factors_BLD), y_BLD

    (_, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(our_params(cell, weights))
    return np.asarray(outputs), jax.tree.map(np.asarray, gradients)


def torch_values(cell: str, bidirectional: bool) -> tuple[np.ndarray, Values]:
    """Returns the outputs and the gradients of PyTorch's parameters, by their names."""
    import torch

    weights, x_BLE, factors_BLD = drawn(cell, bidirectional)
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    peer = kind(INPUTS, UNITS, LAYERS, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for name, value in weights.items():
            getattr(peer, name).copy_(torch.tensor(value))
    y_BLD, _ = peer(torch.tensor(x_BLE))
    (y_BLD * torch.tensor(factors_BLD)).sum().backward()
    return y_BLD.detach().numpy(), {name: value.grad.numpy() for name, value in peer.named_parameters()}


def gradients_for_ours(cell: str, gradients: Values) -> dict[str, Any]:
    """Returns PyTorch's gradients in the tree of our parameters. Both biases of a gate have the same gradient."""
    halved = {name: value / 2 if name.startswith("bias") else value for name, value in gradients.items()}
    found = our_params(cell, halved)
    for name, value in gradients.items():
        if CELLS[cell].candidate_bias and name.startswith("bias"):
            number, _, reverse = name.partition("_l")[2].partition("_")
            layer = found[f"layer_{number}"]["backward" if reverse else "forward"]
            if name.startswith("bias_hh"):
                layer["candidate"]["bias"] = value[-UNITS:]
            else:
                layer["gates"]["bias"] = np.append(layer["gates"]["bias"][:-UNITS], value[-UNITS:])
    return found


def differences(cell: str, bidirectional: bool, outputs: np.ndarray, gradients: Values) -> tuple[float, float]:
    """Returns the largest difference of our outputs and of our gradients from the given ones."""
    ours, our_gradients = our_values(cell, bidirectional)
    pairs = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), our_gradients, gradients_for_ours(cell, gradients))
    return float(np.abs(ours - outputs).max()), max(jax.tree.leaves(pairs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="store PyTorch's values for the tests")
    write, worst = parser.parse_args().write, 0.0
    for case in CASES:
        outputs, gradients = torch_values(*case)
        found = differences(*case, outputs, gradients)
        print(f"{name_of(*case)}: outputs differ by {found[0]:.1e}, gradients by {found[1]:.1e}")
        worst = max(worst, *found)
        if write:
            values = {"outputs": outputs.tolist(), "gradients": {k: v.tolist() for k, v in gradients.items()}}
            golden_path(*case).write_text(json.dumps(values) + "\n")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
