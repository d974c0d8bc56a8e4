"""Imports a published model: converts its folder to a run directory, which can be used like any other run directory.

Tensors are read one at a time and placed directly on their devices. Data that the model does not use but an export
needs is kept in the run directory (see provenance.py).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from lm.config.experiment import replace_settings
from lm.data.tokenizing import published_tokenizer
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.huggingface import HuggingFaceTokenizer
from lm.errors import UserError
from lm.files import expanded, new_directory, remove_leftovers, writing_flag
from lm.huggingface import older_tokenizers, provenance
from lm.huggingface.folder import CONFIG, GENERATION_CONFIG, Folder
from lm.huggingface.gguf import GgufFolder
from lm.huggingface.names import Slot, slots_of
from lm.huggingface.provenance import Record
from lm.huggingface.recognising import Published
from lm.huggingface.writing import write_files
from lm.parallel.mesh import on_mesh
from lm.reporting.progress import counting
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import choose_mesh
from lm.runs.fingerprint import recorded_settings
from lm.training.state import abstract_state

STEP = 0  # the step of the only checkpoint


def import_folder(folder: Folder, published: Published, workdir: Path) -> None:
    """Writes a run directory for a recognised folder. Raises UserError if `workdir` exists or if a file is damaged."""
    if os.path.lexists(workdir):
        raise UserError(f"--workdir={workdir} already exists; choose a new name.")
    tokenizer = read_tokenizer(folder, published.config.model.vocab_size)
    path = str(workdir.absolute() / "tokenizer" / tokenizer.file_name)
    config = replace_settings(published.config, {"data.tokenizer.path": path, "data.tokenizer.kind": tokenizer.kind})
    params = load_params(folder, published)
    with writing_flag("workdir", workdir):
        remove_leftovers(workdir.parent, workdir.name)
    with writing_flag("workdir", workdir), new_directory(workdir) as temporary:
        tokenizer.save(temporary / "tokenizer")
        write_provenance(folder, published, temporary / provenance.DIRECTORY)
        run = RunDirectory(temporary)
        with run.open_checkpoints(config, read_only=False) as checkpoints:
            metadata = {"config": recorded_settings(config), "data": {"tokenizer": tokenizer.fingerprint}}
            checkpoints.save(STEP, {"params": params}, metadata, {})
        run.write_config(config)


def load_params(folder: Folder, published: Published) -> dict[str, Any]:
    """Returns the float32 parameters, placed on the devices of a suitable mesh."""
    mesh = choose_mesh(published.config)
    abstract = flatten_dict(abstract_state(published.config, published.model, optax.identity(), mesh).params)
    leaves: dict[tuple[str, ...], jax.Array] = {}
    total = sum(len(entry.slots) for entry in published.entries)
    done = 0
    with counting(total, "tensors") as report, on_mesh(mesh):
        for entry in published.entries:
            array = folder.read(published.match.names[entry.name][0])
            for slot, part in zip(entry.slots, entry.split(array), strict=True):
                _put(leaves, slot, part, abstract[slot.path])
                done += 1
                if report is not None:
                    report(done, total)
        for module in published.family.unstored:  # norms, which get a scale of 1
            for slot in slots_of(unflatten_dict(abstract)).get(module, {}).values():
                _put(leaves, slot, np.ones(slot.shape, np.float32), abstract[slot.path])
    return unflatten_dict(leaves)


def _put(leaves: dict[tuple[str, ...], jax.Array], slot: Slot, part: np.ndarray, abstract: Any) -> None:
    """Puts the values of a slot on the devices. A stacked parameter is filled layer by layer, in place."""
    sharding = abstract.sharding
    if slot.layer is not None:
        sharding = NamedSharding(
            sharding.mesh,
            PartitionSpec(*(tuple(sharding.spec) + (None,) * len(abstract.shape))[1 : len(abstract.shape)]),
        )
    value = jax.make_array_from_callback(
        slot.shape, sharding, lambda index: np.ascontiguousarray(part[index], abstract.dtype)
    )
    if slot.layer is None:
        leaves[slot.path] = value
        return
    if slot.path not in leaves:
        leaves[slot.path] = _zeros(abstract.shape, abstract.sharding)()
    leaves[slot.path] = _insert(leaves[slot.path], value, slot.layer)


@functools.cache
def _zeros(shape: tuple[int, ...], sharding: Any) -> Callable[[], jax.Array]:
    """Returns a compiled function that creates an array of zeros. It is cached because compiling it is slow."""
    return jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=sharding)


@functools.partial(jax.jit, donate_argnums=0)
def _insert(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)


def write_provenance(folder: Folder, published: Published, directory: Path) -> None:
    files = directory / provenance.FILES
    files.mkdir(parents=True)
    write_files(files, folder.other_files)
    for name, values in ((CONFIG, folder.config), (GENERATION_CONFIG, folder.generation_config)):
        if values is not None:
            (files / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    match = published.match
    carried = {name: folder.read(name) for name in match.carried}
    for entry in published.entries:
        name = match.names[entry.name][0]
        if entry.place.partial and (rows := entry.unused(folder.read(name))) is not None:
            carried[entry.name] = rows
    provenance.write_carried(directory, carried)
    names = {entry.name: match.names[entry.name] for entry in published.entries}
    every = [name for each in names.values() for name in each] + list(match.carried)
    dtypes = {name: folder.tensors[name].dtype for name in every}
    Record(_full_source(folder), published.family.name, published.architecture, names, dtypes).write(directory)


def _full_source(folder: Folder) -> str:
    """Returns the absolute path of the folder or GGUF file, or the name of the model on the hub."""
    path = folder.path if isinstance(folder, GgufFolder) else expanded(folder.source)
    return str(path.absolute()) if os.path.lexists(path) else folder.source


def read_tokenizer(folder: Folder, rows: int) -> Tokenizer:
    """Returns the tokenizer of a folder, including its special tokens.

    `rows` is the number of embedding rows; special tokens without a row cannot be used.

    Raises UserError if the folder has no readable tokenizer.
    """

    made = {CONFIG: json.dumps(folder.config).encode()}
    if (generation := folder.generation_config) is not None:
        made[GENERATION_CONFIG] = json.dumps(generation).encode()
    if folder.content(HuggingFaceTokenizer.file_name) is None:
        made |= older_tokenizers.converted(folder.content, folder.config, folder.source)

    def content_of(name: str) -> bytes | None:
        return made[name] if name in made else folder.content(name)

    return published_tokenizer(content_of, folder.source, rows)


def describe(published: Published) -> str:
    """Returns a one-line summary of an import for the user."""
    match = published.match
    more = f" and {len(match.ignored) - 1} more" if len(match.ignored) > 1 else ""
    notes = [f"ignored buffers: {match.ignored[0]}{more}"] if match.ignored else []
    notes += [f"{len(match.carried)} tensors of other heads are kept for the export"] if match.carried else []
    return "; ".join([f"{published.family.name} ({published.architecture})", *notes, *published.notes])
