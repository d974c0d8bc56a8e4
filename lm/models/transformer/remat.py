"""Rematerialisation policies: which activations of a block are kept for the backward pass.

The input of every block is kept. The other activations differ in the memory that they take and in the cost of
recomputing them. The attention output and its statistics take about as much memory as the input of a block. If they are
not saved, the backward pass must rerun the attention kernel, at a cost that is quadratic in the sequence length. The
queries, the keys, the values and the result of the projection "out" each take at most about that much memory, and
recomputing each of them takes one matrix multiplication. The hidden layer of the MLP takes about four times as much.
`results/aot.md` lists the memory and the FLOPs of each policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from lm.models.products import PRODUCT

ATTENTION_OUTPUT = "attention_output"  # the name of the outputs and statistics of attention
ATTENTION_PROJECTIONS = "attention_projections"  # the name of the results of "query", "key", "value" and "out"
CUDNN = "dot_product_attention_fwd_wrapper"  # the primitive with which JAX calls cuDNN in the forward pass

policies = jax.checkpoint_policies


@dataclass(frozen=True)
class RematPolicy:
    """The activations that a policy keeps in each block, in addition to the input of the block."""

    keeps: Callable[..., Any]
    attention_output: bool = False
    attention_projections: bool = False
    mlp: bool = False  # the results of the MLP's first projections


def _attention_output(primitive: Any, *args: Any, **params: Any) -> Any:
    """Keeps the outputs of cuDNN, to which no name can be attached, and arrays with the name ATTENTION_OUTPUT."""
    return primitive.name == CUDNN or policies.save_only_these_names(ATTENTION_OUTPUT)(primitive, *args, **params)


def _either(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    return policies.save_from_both_policies(first, second)


REMAT_POLICIES = {
    "full": RematPolicy(policies.nothing_saveable),
    "attention_output": RematPolicy(_attention_output, attention_output=True),
    "attention": RematPolicy(
        _either(_attention_output, policies.save_only_these_names(ATTENTION_PROJECTIONS)),
        attention_output=True,
        attention_projections=True,
    ),
    "dots": RematPolicy(policies.save_only_these_names(PRODUCT), attention_projections=True, mlp=True),
    "dots_and_attention": RematPolicy(
        _either(policies.save_only_these_names(PRODUCT), _attention_output),
        attention_output=True,
        attention_projections=True,
        mlp=True,
    ),
}
