"""Counts the FLOPs of matrix products in a traced training step, and the calls of the forward kernel of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jax.extend import core

from lm.models.transformer.remat import CUDNN


@dataclass(frozen=True)
class Work:
    """The work of a step on all devices together. What is inside a `shard_map`, however, is that of one device."""

    products: float = 0.0  # FLOPs of matrix products outside of kernels
    forward_kernels: int = 0  # calls of the forward kernel

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.forward_kernels + other.forward_kernels)

    def times(self, count: int) -> Work:
        return Work(self.products * count, self.forward_kernels * count)


def work_of(jaxpr: Any) -> Work:
    """Returns the work of a jaxpr. Of the branches of a condition, the first is counted."""
    total = Work()
    for equation in _needed(jaxpr):
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
            total += Work(products=2.0 * size)
        elif name == "pallas_call":
            total += Work(
                forward_kernels=int("fwd" in _kernel_name(parameters) or "forward" in _kernel_name(parameters))
            )
        elif name == CUDNN:
            total += Work(forward_kernels=1)
        elif name == "cond":
            total += work_of(parameters["branches"][0].jaxpr)
        else:
            inner = [each for value in parameters.values() for each in _jaxprs(value)]
            count = parameters["length"] if name == "scan" else 1
            for each in inner:
                total += work_of(each).times(count)
    return total


def _needed(jaxpr: Any) -> list[Any]:
    """Returns the equations on which the results depend. JAX leaves it to XLA to remove unused calls of kernels."""
    used = {each for each in jaxpr.outvars if isinstance(each, core.Var)}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or used.intersection(equation.outvars):
            needed.append(equation)
            used |= {each for each in equation.invars if isinstance(each, core.Var)}
    return needed


def _kernel_name(parameters: dict[str, Any]) -> str:
    return str(parameters.get("name") or parameters.get("name_and_src_info") or "")


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [each for element in value for each in _jaxprs(element)]
    return []
