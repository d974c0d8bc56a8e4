"""Exports a run directory: chooses the parameters, original folder and tokenizer files, and writes the new folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lm.config import Config, ModelConfig
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.errors import UserError
from lm.huggingface.adapters import export_adapters, merged
from lm.huggingface.exporting import Original, choose_class, export
from lm.huggingface.families.family import convention
from lm.huggingface.folder import KeptFiles
from lm.huggingface.generation import STATED, TOKENS
from lm.huggingface.importing import STEP
from lm.huggingface.provenance import FILES, provenance_of
from lm.huggingface.sentences import MODULES, sentence_files, sentence_vectors
from lm.huggingface.tokenizer_files import changed_files, tokenizer_files
from lm.huggingface.writing import MAX_SHARD_BYTES, check_out
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of


def export_directory(
    root: Path,
    out: Path,
    *,
    step: int | Literal["best"] | None = "best",
    average: int = 1,
    adapters: bool = False,
    dtype: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> tuple[str, list[str]]:
    """Exports a run to a model folder. Returns the name of the `transformers` class and notes for the user.

    Args:
        step: a step number, "best", or None for the newest checkpoint.
        average: the number of checkpoints to average, ending with `step`.
        adapters: whether to write only the LoRA adapters, in peft format; otherwise, they are merged into the model.
        dtype: a key of DTYPES; if empty, the dtypes of the original folder are used, or float32 if there is no such
            folder.

    Raises UserError if the run cannot be read, if no published model family can represent it, or if `out` exists or
    cannot be written.
    """
    check_out(out)
    directory = RunDirectory.existing(root)
    config = directory.load_config()
    params = restore(directory, config, step, average)
    found = provenance_of(directory.root, config, lambda path: RunDirectory(path).load_config())
    original = Original.read(found) if found else None
    if adapters:
        imported = _imported(RunDirectory(found.parent)) if found else None
        return export_adapters(params, config, out, original, imported, dtype), []
    params, config = merged(params, config)
    tokenizers = load_tokenizers(config, directory.root)
    files, notes = _tokenizer_files(config, tokenizers, original)
    ids = special_ids(config, tokenizers.target)
    if original is not None:
        original = _with_end_ids(original, config, tokenizers.target, _tokenizer_of_import(original))
    files = {**files, **_sentence_files(config, original)}
    return export(params, config, out, original, files, ids, dtype, max_shard_bytes), notes


def restore(directory: RunDirectory, config: Config, step: int | Literal["best"] | None, average: int = 1) -> Any:
    """Returns the parameters of a checkpoint, or the average of several. See `export_directory` for the arguments."""
    ema = config.optimizer.ema_decay > 0
    with directory.open_checkpoints(config) as checkpoints:
        if average > 1:
            return checkpoints.average_params(average, last=step if isinstance(step, int) else None, ema=ema)[0]
        return checkpoints.restore_params(None, step, ema=ema)[0]


def _imported(directory: RunDirectory) -> tuple[Any, ModelConfig]:
    """Returns the parameters and the model settings that the import wrote."""
    config = directory.load_config()
    with directory.open_checkpoints(config) as checkpoints:
        return checkpoints.restore_params(None, STEP)[0], config.model


def _tokenizer_files(
    config: Config, tokenizers: Tokenizers, original: Original | None
) -> tuple[Mapping[str, bytes], list[str]]:
    """Returns the tokenizer files that the original folder lacks or that have changed, and notes for the user."""
    if original is not None:
        return changed_files(config, tokenizers.target, original.tokenizer_config), []
    family, _ = choose_class(config, None)
    try:
        files = tokenizer_files(config, tokenizers)
    except UserError as error:
        return {}, [f"the exported folder has no tokenizer: {error}"]
    if not family.own_tokenizer:
        return files, []
    return files, [
        f"AutoTokenizer in transformers 5 ignores tokenizer.json for {family.name} models; load the tokenizer with "
        "PreTrainedTokenizerFast.from_pretrained."
    ]


def _sentence_files(config: Config, original: Original | None) -> dict[str, bytes]:
    """Returns the files for sentence-transformers, or none if the original folder has such files with the same pooling.

    If the task does not train text vectors, there are none either.
    """
    if not convention(config.objective.name).vectors:
        return {}
    if original is not None and (folder := KeptFiles(original.directory / FILES)).content(MODULES) is not None:
        try:
            if sentence_vectors(folder).pooling == config.model.pooling:
                return {}
        except UserError:  # the folder was imported for another task and has modules that we do not read
            pass
    return sentence_files(config.model.pooling, config.data.sequence_length, config.model.d_model)


def _tokenizer_of_import(original: Original) -> Tokenizer:
    directory = RunDirectory(original.directory.parent)
    return load_tokenizers(directory.load_config(), directory.root).target


def _with_end_ids(original: Original, config: Config, tokenizer: Tokenizer, imported: Tokenizer) -> Original:
    """Puts the run's end tokens into generation_config.json if they differ from those of the imported tokenizer."""
    ends = end_ids(config, tokenizer)
    if not task_of(config).writes_text or set(ends) == set(imported.stop_ids):
        return original
    values = original.generation_config
    if values is None:  # `transformers` reads these fields from config.json only if there is no generation_config.json
        stated = {name: original.config.get(name) for name in sorted(STATED | TOKENS)}
        values = {name: value for name, value in stated.items() if value is not None}
    return dataclasses.replace(original, generation_config={**values, "eos_token_id": list(ends)})


def end_ids(config: Config, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the tokens that end a generated text, starting with EOS.

    For a chat run, these include the end tokens of the chat template. For a model that does not generate text, EOS is
    the only one.
    """
    task = task_of(config)
    if not task.writes_text:
        return (tokenizer.eos_id,)
    found = tokenizer.stop_ids
    if "data.chat_template" in task.settings:
        found += tuple(sorted(ChatTemplate(tokenizer, config.data.chat_template).end_ids - set(found)))
    return found


def special_ids(config: Config, tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the config.json fields that hold the ids of special tokens."""
    ends = end_ids(config, tokenizer)
    ids: dict[str, int | list[int]] = {"eos_token_id": list(ends) if len(ends) > 1 else tokenizer.eos_id}
    if tokenizer.is_special(tokenizer.pad_id):
        ids["pad_token_id"] = tokenizer.pad_id
    if tokenizer.bos_id is not None:
        ids["bos_token_id"] = tokenizer.bos_id
    if config.model.family == "encoder":
        ids |= {"cls_token_id": tokenizer.start_id, "sep_token_id": tokenizer.eos_id}
    if config.model.family == "encoder_decoder":
        # With shift_decoder, the decoder starts with EOS, the last token of the text.
        ids["decoder_start_token_id"] = tokenizer.eos_id if config.model.shift_decoder else tokenizer.decoder_start_id
        if tokenizer.forced_first_id is not None:
            ids["forced_bos_token_id"] = tokenizer.forced_first_id
    return ids
