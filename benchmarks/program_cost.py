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
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,]*)\]")
# The contracted axes of a dot, or of a product that a library for GPUs computes.
CONTRACTED = re.compile(r"lhs_contracting_(?:dims=\{|dimensions\":\[)([\d,\"]*)")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
# Operations that pass on their operand, or elements of it, in another shape.
MOVES = {"bitcast", "copy", "reshape", "transpose", "convert", "get-tuple-element"}
MOVES |= {"copy-start", "copy-done", "all-reduce-done"}


@dataclass(frozen=True)
class Instruction:
    name: str
    operation: str
    type: str  # such as f32[8,4]{1,0}, or a tuple in parentheses
    operands: tuple[str, ...]
    attributes: str  # the rest of the line

    def called(self) -> list[str]:
        """Returns the names of the computations that this instruction runs, apart from those applied to scalars."""
        if self.operation in ("reduce", "scatter", "sort", "map", "reduce-window", "select-and-scatter", *COLLECTIVES):
            return []
        names = re.findall(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)", self.attributes)
        for several in re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes):
            names += [each.strip().lstrip("%") for each in several.split(",")]
        return names

    @property
    def repetitions(self) -> int:
        """How often the body of a loop runs, as far as the compiler knows; else 1."""
        found = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', self.attributes)
        return int(found.group(1)) if self.operation == "while" and found else 1


@dataclass
class Program:
    """The computations of a program by name, each with its instructions by name, in order."""

    entry: str = ""
    computations: dict[str, dict[str, Instruction]] = field(default_factory=lambda: defaultdict(dict))

    def instructions(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        """Yields each instruction that runs, with the computation that contains it and how often it runs."""

        def walk(name: str, times: int) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
            for each in self.computations[name].values():
                yield each, self.computations[name], times
                for called in each.called():
                    yield from walk(called, times * each.repetitions)

        return walk(self.entry, 1)

    def only_sliced(self, name: str, computation: dict[str, Instruction]) -> bool:
        """Returns whether every use of a value takes a slice of it whose position depends on the device."""
        users = [each for each in computation.values() if name in each.operands]
        return bool(users) and all(self._slices(user, name, computation) for user in users)

    def _slices(self, user: Instruction, name: str, computation: dict[str, Instruction]) -> bool:
        if user.operation == "dynamic-slice":
            return user.operands[0] == name
        if user.operation in MOVES:
            return self.only_sliced(user.name, computation)
        if user.operation in ("fusion", "call") and len(user.called()) == 1:
            inner = self.computations[user.called()[0]]
            parameters = {each.attributes: each.name for each in inner.values() if each.operation == "parameter"}
            found = [parameters[str(i)] for i, operand in enumerate(user.operands) if operand == name]
            return all(self.only_sliced(each, inner) for each in found)
        return False


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
    program, flops = parse(text), 0
    sent = dict.fromkeys(COLLECTIVES, 0.0)
    for each, computation, times in program.instructions():
        if each.operation == "dot" or (each.operation == "custom-call" and CONTRACTED.search(each.attributes)):
            flops += times * _product_flops(each, computation)
        kind = each.operation.removesuffix("-start")
        if kind in COLLECTIVES:
            for name, size in _bytes_sent(program, each, computation, kind):
                sent[name] += times * size
    return ProgramCost(flops, sent)


def parse(text: str) -> Program:
    program, current = Program(), ""
    for line in text.splitlines():
        if header := re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = header.group(2)
            program.entry = current if header.group(1) else program.entry
        elif current and (start := INSTRUCTION.match(line)):
            rest = re.sub(r"/\*.*?\*/", "", line[start.end() :])
            end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
            opening = rest.index("(", end)
            closing = _closing(rest, opening)
            inside = rest[opening + 1 : closing]
            operation = rest[end:opening].strip()
            names = tuple(re.findall(r"%([\w.\-]+)", inside))
            attributes = inside if operation == "parameter" else rest[closing + 1 :]
            name = start.group(2)
            program.computations[current][name] = Instruction(name, operation, rest[:end], names, attributes)
    return program


def _closing(text: str, opening: int) -> int:
    """Returns the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def _shape(array: str) -> list[int]:
    """Returns the shape of an array, or of the first array of a tuple."""
    found = ARRAY.search(array)
    return [int(size) for size in found.group(2).split(",") if size] if found else []


def _bytes(array: str) -> int:
    """Returns the size of an array or of a tuple of arrays."""
    total = 0.0
    for dtype, sizes in ARRAY.findall(array):
        bits = {"pred": 8, "token": 0, "opaque": 0}.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits / 8
    return round(total)


def _product_flops(product: Instruction, computation: dict[str, Instruction]) -> int:
    found = CONTRACTED.search(product.attributes)
    left = _shape(computation[product.operands[0]].type)
    contracted = math.prod(left[int(axis)] for axis in re.findall(r"\d+", found.group(1))) if found else 1
    return 2 * contracted * math.prod(_shape(product.type))


def _bytes_sent(
    program: Program, each: Instruction, computation: dict[str, Instruction], kind: str
) -> Iterator[tuple[str, float]]:
    """Yields the kind, after the replacement of all-reduces, and the bytes that each device sends for each operand."""
    n = _group_size(each.attributes)
    if kind == "collective-permute":
        n = 2
    if n < 2:
        return
    for index, operand in enumerate(each.operands):
        size = _bytes(computation[operand].type)
        if kind == "all-reduce":
            results = [each.name]
            if len(each.operands) > 1:
                results = [
                    user.name
                    for user in computation.values()
                    if user.operands == (each.name,) and f"index={index}" in re.findall(r"index=\d+", user.attributes)
                ]
            scattered = all(program.only_sliced(name, computation) for name in results)
            yield ("reduce-scatter" if scattered else kind), size * (n - 1) / n * (1 if scattered else 2)
        elif kind == "all-gather":
            yield kind, size * (n - 1)
        else:
            yield kind, size * (1 if kind == "collective-permute" else (n - 1) / n)


def _group_size(attributes: str) -> int:
    """Returns the number of devices in a group of a collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", found.group(2)))
    return 1
