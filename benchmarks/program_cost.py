"""Counts the FLOPs of matrix products and the bytes of collectives in the text of a compiled program.

`Compiled.cost_analysis` counts the body of a loop once; here it counts as often as it runs. The bytes of a collective
are those that each device sends, with the algorithms that send the fewest (Thakur 2005): in a group of n devices, an
all-gather sends (n-1)/n of its result, a reduce-scatter or an all-to-all (n-1)/n of its operand, and an all-reduce
twice that. An all-reduce of which each device reads only its own slice counts as a reduce-scatter, because the
compilers for GPUs and TPUs turn it into one, although the compiler for CPUs does not. Fused attention is not counted.
Programs for TPUs are not supported: they write products as convolutions, split collectives into several that overlap
with other work, and do not say how often a loop runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm.training.program import COLLECTIVES, Instruction, computations, group_size, shapes

# The contracted axes of a dot, or of a product that a library for GPUs computes.
CONTRACTED = re.compile(r"lhs_contracting_(?:dims=\{|dimensions\":\[)([\d,\"]*)")
# Operations that pass on their operand, or elements of it, in another shape.
MOVES = {"bitcast", "copy", "reshape", "transpose", "convert", "get-tuple-element"}
MOVES |= {"copy-start", "copy-done", "all-reduce-done"}

Computation = dict[str, Instruction]


@dataclass(frozen=True)
class ProgramCost:
    """The cost of a run of a program for each device."""

    product_flops: int
    sent: dict[str, float]  # bytes by kind of collective

    @property
    def total_sent(self) -> float:
        return sum(self.sent.values())


def program_cost(text: str) -> ProgramCost:
    """Returns the cost of a program, given as the text of its optimised HLO, `Compiled.as_text()`."""
    program, flops = computations(text), 0
    sent = dict.fromkeys(COLLECTIVES, 0.0)
    for computation in program.values():
        for each in computation.values():
            if each.operation == "dot" or (each.operation == "custom-call" and CONTRACTED.search(each.rest)):
                flops += each.executions * _product_flops(each, computation)
            kind = each.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                for name, size in _bytes_sent(program, each, computation, kind):
                    sent[name] += each.executions * size
    return ProgramCost(flops, sent)


def _first_shape(array: str) -> tuple[int, ...]:
    """Returns the shape of an array, or of the first array of a tuple."""
    return next((dimensions for _, dimensions in shapes(array)), ())


def _product_flops(product: Instruction, computation: Computation) -> int:
    found = CONTRACTED.search(product.rest)
    left = _first_shape(computation[product.operands[0]].type)
    contracted = math.prod(left[int(axis)] for axis in re.findall(r"\d+", found.group(1))) if found else 1
    return 2 * contracted * math.prod(_first_shape(product.type))


def _bytes_sent(
    program: dict[str, Computation], each: Instruction, computation: Computation, kind: str
) -> Iterator[tuple[str, float]]:
    """Yields the kind, after the replacement of all-reduces, and the bytes that each device sends for each operand."""
    n = 2 if kind == "collective-permute" else group_size(each.rest)
    if n < 2:
        return
    for index, operand in enumerate(each.operands):
        size = sum(computation[operand].arrays)
        if kind == "all-reduce":
            results = [each.name]
            if len(each.operands) > 1:
                results = [
                    user.name
                    for user in computation.values()
                    if user.operands == (each.name,) and f"index={index}" in re.findall(r"index=\d+", user.rest)
                ]
            scattered = all(_only_sliced(program, name, computation) for name in results)
            yield ("reduce-scatter" if scattered else kind), size * (n - 1) / n * (1 if scattered else 2)
        elif kind == "all-gather":
            yield kind, size * (n - 1)
        else:
            yield kind, size * (1 if kind == "collective-permute" else (n - 1) / n)


def _only_sliced(program: dict[str, Computation], name: str, computation: Computation) -> bool:
    """Returns whether every use of a value takes a slice of it whose position depends on the device."""
    users = [each for each in computation.values() if name in each.operands]
    return bool(users) and all(_slices(program, user, name, computation) for user in users)


def _slices(program: dict[str, Computation], user: Instruction, name: str, computation: Computation) -> bool:
    if user.operation == "dynamic-slice":
        return user.operands[0] == name
    if user.operation in MOVES:
        return _only_sliced(program, user.name, computation)
    if user.operation in ("fusion", "call") and len(user.called) == 1:
        inner = program[user.called[0]]
        parameters = {each.rest.split(")")[0]: each.name for each in inner.values() if each.operation == "parameter"}
        found = [parameters[str(i)] for i, operand in enumerate(user.operands) if operand == name]
        return all(_only_sliced(program, each, inner) for each in found)
    return False
