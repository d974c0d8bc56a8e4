"""Examines the text of a program before and after XLA compiles it: matrix products, kernels, collectives and more."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\d\-]*)\((.*)$")
CALLED = re.compile(
    r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch|called)_computations=\{([^}]*)\}"
)
TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')
PRODUCT = re.compile(
    r"stablehlo\.dot_general [^\n]*?(?:batching_dims = \[([\d, ]*)\][^\n]*?)?contracting_dims = \[([\d, ]*)\][^\n]*"
    r": \(tensor<(\w*)>, tensor<(\w*)>\)"
)
KERNEL = re.compile(r'custom_call_target="(?:__cudnn\$(\w+)|tpu_custom_call|__gpu\$xla\.gpu\.triton)"')


@dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program and how many times a step executes it."""

    name: str
    type: str  # type of the result
    operation: str
    rest: str  # operands and attributes
    executions: int = 0

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the operands."""
        return tuple(re.findall(r"%([\w.\-]+)", self.rest.partition("), ")[0]))

    @property
    def called(self) -> list[str]:
        """The names of the computations that this instruction runs."""
        found = CALLED.findall(self.rest)
        return [name for one, several in found for name in ([one] if one else several.replace("%", "").split(", "))]

    @property
    def arrays(self) -> list[int]:
        """The sizes of all arrays in the result, in bytes."""
        return [math.prod(dimensions) * _item_bits(dtype) // 8 for dtype, dimensions in shapes(self.type)]


def shapes(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the type and the dimensions of each array that is mentioned in a text."""
    for dtype, dimensions in ARRAY.findall(text):
        yield dtype, tuple(int(size) for size in dimensions.split(",") if size)


def _item_bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8  # pred


def computations(program: str) -> dict[str, dict[str, Instruction]]:
    """Returns the instructions of a compiled program, keyed by computation name, then by instruction name.

    The instructions of a computation are in program order. Their `executions` include every iteration of a loop.
    """
    found: dict[str, dict[str, Instruction]] = {}
    entry = name = ""
    for line in program.splitlines():
        if header := COMPUTATION.match(line):
            name = header[1]
            found[name] = {}
            entry = name if line.startswith("ENTRY") else entry
        elif (parts := INSTRUCTION.match(line)) and name:
            found[name][parts[1]] = Instruction(parts[1], parts[2], parts[3], parts[4])
    executions: Counter[str] = Counter({entry: 1})
    # A computation precedes its callers in the text. In reverse order, it therefore comes after all of them.
    for name in reversed(found):
        for key, each in found[name].items():
            found[name][key] = replace(each, executions=executions[name])
            trips = _trips(each.rest, found) if each.operation == "while" else 1
            for called in each.called:
                executions[called] += executions[name] * trips
    return found


def instructions(program: str) -> list[Instruction]:
    """Returns the instructions of all computations of a compiled program."""
    return [each for body in computations(program).values() for each in body.values()]


def _trips(loop: str, program: dict[str, dict[str, Instruction]]) -> int:
    """Returns the number of iterations of a loop, or 1 if unknown. In TPU programs, it is only in the condition."""
    if found := TRIPS.search(loop):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    body = program.get(condition[1], {}) if condition else {}
    limits = [
        int(each.rest.split(")")[0])
        for each in body.values()
        if each.operation == "constant" and each.type.startswith("s32[]")
    ]
    return limits[0] if len(limits) == 1 else 1


def float32_products(lowered: str) -> list[str]:
    """Returns the operand types of each product of two float32 matrices in a StableHLO program.

    Products with a vector, in which every axis of an operand is contracted or batched, are not included.
    """
    found = []
    for batched, contracted, first, second in PRODUCT.findall(lowered):
        axes = sum(len(each.split(",")) for each in (batched, contracted) if each)
        ranks = [type_.count("x") for type_ in (first, second)]
        if first.endswith("f32") and second.endswith("f32") and axes < min(ranks):
            found.append(f"{first}, {second}")
    return found


def kernel_calls(program: list[Instruction]) -> dict[str, int]:
    """Returns how often a step calls each cuDNN or Pallas kernel."""
    calls: Counter[str] = Counter()
    for each in program:
        if each.operation == "custom-call" and (kernel := KERNEL.search(each.rest)):
            calls[kernel[1] or re.sub(r"(\.\d+)+$", "", each.name)] += each.executions
    return dict(calls)


def collective_bytes(program: list[Instruction]) -> dict[str, int]:
    """Returns how many bytes each kind of collective handles per step and device: the larger of input and output."""
    total = dict.fromkeys(COLLECTIVES, 0)
    for each in program:
        name = each.operation.removesuffix("-start")
        if name not in total:
            continue
        size = sum(each.arrays)
        started = each.operation != name  # asynchronous; except for all-reduce, the type then includes the inputs
        if started and name in ("all-gather", "reduce-scatter"):
            size -= size // (1 + group_size(each.rest))
        elif started and name != "all-reduce":
            size //= 2
        elif name == "reduce-scatter":
            size *= group_size(each.rest)
        total[name] += size * each.executions
    return total


def group_size(attributes: str) -> int:
    """Returns the size of each group of devices that take part in a collective. Raises ValueError for unknown formats.

    In the newest of XLA's three formats, a group extends along axes of a mesh, or along parts of axes: 'fsdp':(1)2 is
    the first part, of size 2, of the axis 'fsdp'. The text may also list the devices of the mesh.
    """
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        axes = dict(re.findall(r"'?(\w+)'?=(\d+)", found[1]))
        parts = re.findall(r"'?(\w+)'?(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or axes[name]) for name, part in parts)
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    raise ValueError(f"the device groups of a collective are in an unknown format: {attributes}")


def arrays_like_scores(program: list[Instruction], rows: int, heads: int, lengths: tuple[int, int]) -> set[str]:
    """Returns the types of arrays with an axis of L queries, an axis of S keys, and at least B H L S elements."""
    queries, keys = lengths
    found = set()
    for each in program:
        for dtype, dimensions in shapes(each.type):
            rest = list(dimensions)
            if queries in rest:
                rest.remove(queries)
                if keys in rest and math.prod(dimensions) >= rows * heads * queries * keys:
                    found.add(f"{dtype}{list(dimensions)}")
    return found
