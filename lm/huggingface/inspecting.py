"""Describes a published model without loading it: architecture, parameter counts and obstacles to importing it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from lm.errors import UserError
from lm.huggingface.base import Folder
from lm.huggingface.recognising import Published, recognise
from lm.huggingface.weights import TensorInfo

SHOWN_FIELDS = ("model_type", "architectures")


def lines_about(folder: Folder, family: str = "") -> Iterator[str]:
    """Yields the lines of a report about a folder. If it cannot be imported, the last line gives the reason."""
    fields = ", ".join(f"{name}={folder.config[name]!r}" for name in SHOWN_FIELDS if name in folder.config)
    yield f"{folder.source}: {fields or 'config.json specifies neither model_type nor architectures'}"
    total = sum(math.prod(info.shape) for info in folder.tensors.values())
    size = sum(info.nbytes for info in folder.tensors.values())
    dtypes = sorted({str(info.dtype) for info in folder.tensors.values()})
    yield f"{len(folder.tensors)} tensors with {total:,} values, {size / 1e6:,.1f} MB, in {', '.join(dtypes)}"
    for part, count in parameters_by_part(folder.tensors).items():
        yield f"  {part:40} {count:>15,}"
    try:
        published = recognise(folder, family)
    except UserError as error:
        yield f"The model cannot be imported: {error}"
        return
    yield from _lines_about_model(published)


def _lines_about_model(published: Published) -> Iterator[str]:
    model, match = published.config.model, published.match
    sizes = f"{model.num_layers} layers of width {model.d_model}, {model.num_heads} heads"
    yield (
        f"The model can be imported as: family {published.family.name}, class {published.architecture}, "
        f"objective.name={published.config.objective.name}; {model.family}, {sizes}, vocabulary of "
        f"{model.vocab_size:,}, up to {model.max_length:,} tokens"
    )
    if labels := published.config.data.labels:
        yield f"labels: {', '.join(labels):.200}"
    if match.carried:
        yield f"not used, kept for the export: {', '.join(match.carried):.200}"
    for note in published.notes:
        yield f"note: {note}"
    if match.ignored:
        yield f"ignored buffers: {', '.join(match.ignored):.200}"


def parameters_by_part(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Returns the number of parameters in each part of the model, summed over the layers."""
    parts: dict[str, int] = {}
    for name, info in tensors.items():
        part = re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] or name
        levels = part.split(".")
        part = ".".join(levels[: levels.index("*") + 2] if "*" in levels else levels[:3])
        parts[part] = parts.get(part, 0) + math.prod(info.shape)
    return parts
