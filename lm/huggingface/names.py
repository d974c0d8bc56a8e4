"""Converts between our parameters and the named tensors of published models.

A family maps the module names in its files to our modules. Each parameter of a module is stored as one tensor. In the
files, `kernel` (transposed, as in nn.Linear), `scale` and `embedding` are called "weight", and `bias` is called "bias".
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from lm.errors import UserError
from lm.huggingface.folder import Folder
from lm.models.parameters import LAYER_PREFIX, STACK_NAME

LAYER = "{n}"  # stands for a layer's index in names
SUFFIXES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
OLD_SUFFIXES = ((".weight", ".gamma"), (".bias", ".beta"))  # used for norms before 2019
CHUNK_ROWS = 1024  # the number of rows compared at a time


@dataclass(frozen=True)
class Place:
    """Describes how the tensors of one module in a file correspond to our modules.

    Attributes:
        modules: our modules. If there are several, the tensor concatenates their outputs.
        also: other modules whose tensors, if a file contains them, must be equal to those of this module.
        skip: the number of leading table rows that no model reads.
        partial: whether a table may have more rows than ours. The extra rows are kept for the export.
        inputs_first: whether kernels are stored as (inputs, outputs), like ours, rather than transposed.
        whole: whether the module name is already the full tensor name, so that no suffix is added.
        flat: whether a tensor with a `whole` name has one dimension; otherwise, its shape is (1, size).
    """

    modules: tuple[str, ...]
    also: tuple[str, ...] = ()
    skip: int = 0
    partial: bool = False
    inputs_first: bool = False
    whole: bool = False
    flat: bool = False


def place(*modules: str, **options: Any) -> Place:
    return Place(modules, **options)


Names = Mapping[str, "str | Place"]  # module in the file -> our module


@dataclass(frozen=True)
class Slot:
    """One of our parameters, or one layer of a parameter that stacks all layers."""

    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]  # without the layer axis

    @property
    def outputs(self) -> int:
        """The size of the output dimension of a kernel or bias in the file."""
        return math.prod(self.shape[self.inputs :])

    @property
    def inputs(self) -> int:
        """The number of leading input dimensions. Only `out` has two: the heads and their size."""
        return 0 if self.path[-1] != "kernel" else 2 if self.path[-2] == "out" and len(self.shape) == 3 else 1


@dataclass(frozen=True)
class Entry:
    """One tensor of a file and the parameters that it contains."""

    name: str
    slots: tuple[Slot, ...]
    place: Place

    @property
    def also(self) -> tuple[str, ...]:
        suffix = self.name.rpartition(".")[2]
        return tuple(f"{module}.{suffix}" for module in self.place.also)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file, not counting the extra rows of a `partial` table."""
        (first, *_), outputs = self.slots, sum(slot.outputs for slot in self.slots)
        if first.path[-1] == "kernel":
            inputs = math.prod(first.shape[: first.inputs])
            return (inputs, outputs) if self.place.inputs_first else (outputs, inputs)
        if first.path[-1] == "embedding":
            return (first.shape[0] + self.place.skip, *first.shape[1:])
        return (1, outputs) if self.place.whole and not self.place.flat else (outputs,)

    def check_shape(self, found: Sequence[int], where: str, name: str) -> None:
        expected = self.shape
        more_rows = self.place.partial and tuple(found[1:]) == expected[1:] and found[0] >= expected[0]
        if tuple(found) != expected and not more_rows:
            raise UserError(
                f"{where}: tensor {name!r} has shape {list(found)}, but config.json implies {list(expected)}; the "
                "weights and config.json belong to different models."
            )

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns the values of each slot, in the dtype of the file."""
        if self.slots[0].path[-1] == "embedding":
            rows = self.slots[0].shape[0]
            return [array[self.place.skip : self.place.skip + rows]]
        if self.slots[0].path[-1] != "kernel":
            array, axis = array.reshape(-1), 0
        else:
            array, axis = array if self.place.inputs_first else array.T, 1
        ends = list(itertools.accumulate(slot.outputs for slot in self.slots))
        parts = np.split(array, ends[:-1], axis=axis)
        return [part.reshape(slot.shape) for part, slot in zip(parts, self.slots, strict=True)]

    def unused(self, array: np.ndarray) -> np.ndarray | None:
        """Returns the table rows that `split` omits, in order, or None if there are none."""
        if self.slots[0].path[-1] != "embedding" or len(array) == self.slots[0].shape[0]:
            return None
        end = self.place.skip + self.slots[0].shape[0]
        return np.concatenate([array[: self.place.skip], array[end:]])

    def join(self, parts: Sequence[np.ndarray], unused: np.ndarray | None = None) -> np.ndarray:
        """Returns the tensor as stored in the file; this is the inverse of `split`."""
        if self.slots[0].path[-1] == "embedding":
            if unused is None:
                unused = np.zeros((self.place.skip, *parts[0].shape[1:]), parts[0].dtype)
            return np.concatenate([unused[: self.place.skip], parts[0], unused[self.place.skip :]])
        if self.slots[0].path[-1] != "kernel":
            return np.concatenate([part.reshape(-1) for part in parts]).reshape(self.shape)
        flat = [part.reshape(-1, slot.outputs) for part, slot in zip(parts, self.slots, strict=True)]
        joined = np.concatenate(flat, axis=1)
        return joined if self.place.inputs_first else joined.T


def slots_of(params: Any) -> dict[str, dict[str, Slot]]:
    """Returns the slots of a parameter tree, keyed by unrolled module name, such as layer_0/attention/query."""
    slots: dict[str, dict[str, Slot]] = {}
    for path, leaf in flatten_dict(params).items():
        if STACK_NAME in path:
            at = path.index(STACK_NAME)
            for n in range(leaf.shape[0]):
                module = "/".join((*path[:at], f"{LAYER_PREFIX}{n}", *path[at + 1 : -1]))
                slots.setdefault(module, {})[path[-1]] = Slot(path, n, tuple(leaf.shape[1:]))
        else:
            slots.setdefault("/".join(path[:-1]), {})[path[-1]] = Slot(path, None, tuple(leaf.shape))
    return slots


def entries_of(names: Names, params: Any, unstored: Sequence[str] = ()) -> list[Entry]:
    """Returns the file entries for a real or abstract parameter tree, omitting modules that the tree lacks.

    Files have no tensors for the modules in `unstored`.

    Raises AssertionError if `names` has no name for a parameter; a family's settings must rule this out.
    """
    slots, found = slots_of(params), []
    slots = {module: leaves for module, leaves in slots.items() if module not in unstored}
    depth = 1 + max((int(n) for module in slots for n in re.findall(rf"{LAYER_PREFIX}(\d+)", module)), default=-1)
    # The tensors of a layer are kept together, as in the published files.
    groups = itertools.groupby(names.items(), lambda item: LAYER in item[0])
    for repeated, group in ((key, list(each)) for key, each in groups):
        for n, (module, target) in itertools.product(range(depth) if repeated else (0,), group):
            goal = target if isinstance(target, Place) else Place((target,))
            modules = [each.replace(LAYER, str(n)) for each in goal.modules]
            if not all(each in slots for each in modules):
                continue
            for leaf in slots[modules[0]]:
                parts = tuple(slots[each][leaf] for each in modules)
                name = module.replace(LAYER, str(n))
                also = tuple(each.replace(LAYER, str(n)) for each in goal.also)
                full = name if goal.whole else f"{name}.{SUFFIXES[leaf]}"
                found.append(Entry(full, parts, Place(**{**vars(goal), "also": also})))
    used = [(slot.path, slot.layer) for entry in found for slot in entry.slots]
    every = [(slot.path, slot.layer) for leaves in slots.values() for slot in leaves.values()]
    assert sorted(map(str, used)) == sorted(map(str, every)), set(map(str, used)) ^ set(map(str, every))
    return found


# --- names in a particular file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelling:
    """The possible spellings of tensor names. Names in the body have a prefix, except in files without a head.

    Attributes:
        prefix: the prefix that the family itself uses.
        others: prefixes that files may use instead.
    """

    prefix: str = ""
    others: tuple[str, ...] = ("",)

    def variants(self, name: str) -> Iterator[str]:
        """Yields the possible spellings of a name, starting with the family's own."""
        whole = [name]
        if self.prefix and name.startswith(self.prefix):
            whole += [other + name.removeprefix(self.prefix) for other in self.others]
        for each in whole:
            yield each
            for new, old in OLD_SUFFIXES:
                if each.endswith(new):
                    yield each.removesuffix(new) + old


@dataclass(frozen=True)
class Match:
    """The tensors of a folder, grouped by their use."""

    names: dict[str, tuple[str, ...]]  # Entry name -> the names of its tensors, whose values are all equal
    carried: tuple[str, ...]  # tensors of other heads, unused by the model
    ignored: tuple[str, ...]  # buffers that can be recomputed


def find(folder: Folder, spelling: Spelling, *names: str) -> str | None:
    """Returns the first spelling of any of the names that exists in the folder, or None."""
    every = (variant for name in names for variant in spelling.variants(name))
    return next((name for name in every if name in folder.tensors), None)


def match(
    entries: Iterable[Entry], folder: Folder, spelling: Spelling, others: Iterable[str], ignored: Iterable[str]
) -> Match:
    """Determines the use of every tensor in a folder.

    Raises UserError if a tensor is missing or unexpected, or has the wrong shape.

    Args:
        others: name patterns of tensors that belong to other heads of the family.
        ignored: name patterns of buffers.
    """
    names: dict[str, tuple[str, ...]] = {}
    others, ignored = tuple(others), tuple(ignored)
    for entry in entries:
        every = [variant for name in (entry.name, *entry.also) for variant in spelling.variants(name)]
        found = tuple(dict.fromkeys(name for name in every if name in folder.tensors))
        if not found:
            raise UserError(f"{folder.source} lacks the tensor {entry.name!r}, which config.json requires.")
        for name in found:
            entry.check_shape(folder.tensors[name].shape, folder.source, name)
        for other in found[1:]:
            if not same_values(folder, found[0], other):
                raise UserError(
                    f"{folder.source}: the tensors {found[0]!r} and {other!r} differ, but should be identical."
                )
        names[entry.name] = found
    rest = folder.tensors.keys() - {name for found in names.values() for name in found}
    buffers = {name for name in rest if any(re.fullmatch(pattern, name) for pattern in ignored)}
    heads = {name for name in rest - buffers if any(re.fullmatch(pattern, name) for pattern in others)}
    if unknown := sorted(rest - buffers - heads):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{folder.source} holds the tensor {unknown[0]!r}{more}, which does not belong to the model described by "
            "config.json."
        )
    return Match(names, tuple(sorted(heads)), tuple(sorted(buffers)))


def same_values(folder: Folder, first: str, second: str) -> bool:
    """Returns whether two tensors of a folder are equal. Compares CHUNK_ROWS rows at a time."""
    a, b = folder.read(first), folder.read(second)
    if a.shape != b.shape:
        return False
    return all(np.array_equal(a[i : i + CHUNK_ROWS], b[i : i + CHUNK_ROWS]) for i in range(0, len(a), CHUNK_ROWS))


def pattern_of(module: str, target: str | Place, spelling: Spelling) -> Iterator[str]:
    """Yields regular expressions for the names of a module's tensors."""
    suffix = "" if isinstance(target, Place) and target.whole else r"\.(weight|bias|gamma|beta)"
    also = target.also if isinstance(target, Place) else ()
    for name in (module, *also):
        for variant in spelling.variants(name):
            yield re.escape(variant).replace(re.escape(LAYER), r"\d+") + suffix
