"""Imports an ARPA file as a run directory, and exports the n-gram model of a run to an ARPA file."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from lm.config import Config, defaults
from lm.config.experiment import replace_settings
from lm.data.reading.encodings import open_binary, read_errors
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.vocabularies import WordTokenizer
from lm.errors import UserError
from lm.files import new_directory, remove_leftovers, replacing, writing_flag
from lm.models import MODELS, build_model
from lm.models.ngram.arpa import BEGIN, END, UNKNOWN, Arpa, Vocabulary, arpa_lines, params_of, read_arpa, shown
from lm.models.ngram.settings import NGRAM
from lm.models.ngram.sums import wrong_sum
from lm.reporting.progress import counting
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, choose_mesh, read_params
from lm.runs.fingerprint import recorded_settings
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of
from lm.training.fitting import STEP

SPECIAL = re.compile(rf"\\*({'|'.join(map(re.escape, (BEGIN, END, UNKNOWN)))})")


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """Returns the spelling that each token has in ARPA files.

    The spelling is that of `Tokenizer.piece`, with whitespace escaped. An ordinary token that is spelled like a special
    token of ARPA files is prefixed with a backslash, as in `\\<unk>`. If several tokens share a spelling, `#` and the
    id are appended.
    """
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    pieces = [re.sub(r"[\s\0]", lambda found: f"\\u{ord(found[0]):04x}", each) or "\\empty" for each in pieces]
    ordinary = tokenizer.text_ids.tolist()
    counts = Counter(pieces[token] for token in ordinary)
    names = [""] * vocab_size
    for token in ordinary:
        piece = pieces[token] if counts[pieces[token]] == 1 else f"{pieces[token]}#{token}"
        names[token] = f"\\{piece}" if SPECIAL.fullmatch(piece) else piece
    for token in range(tokenizer.vocab_size):  # special tokens occur in texts only if a chat template writes them
        names[token] = names[token] or f"{pieces[token]}#{token}"
    names[tokenizer.start_id] = BEGIN
    names[tokenizer.eos_id] = END
    if tokenizer.unk_id is not None:
        names[tokenizer.unk_id] = UNKNOWN
    return Vocabulary(tuple(names), tokenizer.start_id, tokenizer.eos_id, tokenizer.unk_id)


# --- export -------------------------------------------------------------------------------------------------------


def export_arpa(root: Path, path: Path) -> str:
    """Exports the n-gram model of a run to an ARPA file, and returns a description of the model.

    If the name of the file ends in .gz, the file is compressed. Identical models yield identical files. Raises
    UserError if the model cannot be exported.
    """
    directory = RunDirectory.existing(root)
    config = directory.load_config()
    if MODELS[config.model.architecture] is not NGRAM:
        problem = f"model.architecture={config.model.architecture} is not an n-gram model"
        raise UserError(f"{root}: {problem}; name the run of an n-gram model.")
    model = build_model(config.model, task_of(config).head(config))
    params, *_ = read_params(directory, config, model, choose_mesh(config), Options())
    if "uniform" in params:
        problem = "shares probability equally among unseen words, which back-off weights cannot express"
        raise UserError(f"{root}: smoothing={config.model.ngram.smoothing!r} {problem}; train with another method.")
    vocabulary = vocabulary_of(load_tokenizers(config, root).target, config.model.vocab_size)
    order, done = config.model.ngram.order, 0
    total = sum(len(each["log_probs"]) for each in params.values())
    with writing_flag("out", path), replacing(path) as temporary, counting(total, "n-grams") as report:
        with _writing(temporary, path.name.endswith(".gz")) as file:
            for part in arpa_lines(params, order, vocabulary):
                file.write(part.encode())
                done += part.count("\n")
                if report is not None:
                    report(min(done, total), total)
    return f"{total:,} n-grams of orders 1 to {order}"


@contextmanager
def _writing(path: Path, compressed: bool) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        # The header contains neither a file name nor a time, so identical models yield identical files.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            yield packed


# --- import -------------------------------------------------------------------------------------------------------


def import_arpa(path: Path, workdir: Path, like: Path | None) -> str:
    """Imports the model in an ARPA file (plain or .gz) as a run directory, and returns a description of the model.

    The tokenizer splits text at whitespace, and its vocabulary consists of the words in the file. If `like` names a
    run, that run's tokenizer, data and evaluation settings are used instead. Raises UserError before anything is
    written if the file is invalid.
    """
    if os.path.lexists(workdir):
        raise UserError(f"--workdir={workdir} already exists; choose a new name.")
    values, tokenizer = _values_like(like) if like is not None else (defaults().to_dict(), None)
    with _errors_in(path):
        with _text_of(path) as lines:
            arpa = read_arpa(lines)
        if tokenizer is None:
            tokenizer = _words_of(arpa)
        vocab_size = tokenizer.vocab_size
        ids = _ids(arpa, tokenizer, like)
        params = params_of(arpa, ids, vocab_size, tokenizer.start_id)
        _check_sums(arpa, params, ids, tokenizer.start_id)
    sizes = tuple(len(table[0]) for table in arpa.tables[1:])
    ngram = values["model"]["ngram"] | {"smoothing": "arpa", "order": arpa.order}
    values["model"] |= {"architecture": "ngram", "ngram": ngram}
    values["eval"]["stride"] = 0  # derived from the order
    config = Config.from_dict(values, reset_unread=True)  # resets settings that n-gram models do not use
    # Some kinds of tokenizer, such as `words`, are never loaded from a file named in the config.
    where = str(workdir.absolute() / "tokenizer" / tokenizer.file_name) if tokenizer.file_type else ""
    config = replace_settings(
        config,
        {
            "model.vocab_size": vocab_size,
            "model.ngram.sizes": sizes,
            "data.tokenizer.path": where,
            "data.tokenizer.kind": tokenizer.kind,
        },
    )
    with writing_flag("workdir", workdir):
        remove_leftovers(workdir.parent, workdir.name)
    with writing_flag("workdir", workdir), new_directory(workdir) as temporary:
        tokenizer.save(temporary / "tokenizer")
        run = RunDirectory(temporary)
        with run.open_checkpoints(config, read_only=False) as checkpoints:
            metadata = {"config": recorded_settings(config), "data": {"tokenizer": tokenizer.fingerprint}}
            checkpoints.save(STEP, {"params": params}, metadata, {})
        run.write_config(config)
    return f"{', '.join(f'{len(table[0]):,} {k}-grams' for k, table in enumerate(arpa.tables, start=1))}"


def _values_like(like: Path) -> tuple[dict[str, Any], Tokenizer]:
    """Returns the settings for an import with the tokenizer and the data of a run, and the tokenizer itself."""
    directory = RunDirectory.existing(like)
    own = directory.load_config()
    if own.data.separate_vocabularies or not task_of(own).windowed:
        raise UserError(f"--like={like}: this run is not a language model of plain text; name another run.")
    values, of_run = defaults().to_dict(), own.to_dict()
    return values | {name: of_run[name] for name in ("data", "eval")}, load_tokenizers(own, like).target


def _words_of(arpa: Arpa) -> WordTokenizer:
    """Returns a tokenizer for the words in a file, without the backslashes that `vocabulary_of` adds."""
    ordinary = [word for word in arpa.words if word not in (BEGIN, END, UNKNOWN)]
    return WordTokenizer([word[1:] if SPECIAL.fullmatch(word) else word for word in ordinary])


def _ids(arpa: Arpa, tokenizer: Tokenizer, like: Path | None) -> np.ndarray:
    """Returns the token id of each word in the file, int32."""
    known = vocabulary_of(tokenizer, tokenizer.vocab_size).ids()
    if unknown := [word for word in arpa.words if word not in known]:
        problem = f"{len(unknown):,} words, such as {shown(unknown[0])}, are not in the vocabulary"
        raise UserError(f"{problem} of {like}; omit --like, or name the run from which this file was exported.")
    return np.array([known[word] for word in arpa.words], np.int32)


def _check_sums(arpa: Arpa, params: dict[str, Any], ids: np.ndarray, start_id: int) -> None:
    """Raises UserError if probabilities do not sum to 1, since evaluations would normalise them silently."""
    if (wrong := wrong_sum(params)) is not None:
        context, total = wrong
        words = dict(zip(ids.tolist(), arpa.words, strict=True)) | {start_id: BEGIN}
        where = f"after {shown(' '.join(words[token] for token in context))}" if context else "of the 1-grams"
        raise UserError(f"the probabilities {where} sum to {total:.4g}, not to 1; normalise the model.")


@contextmanager
def _text_of(path: Path) -> Iterator[Iterator[str]]:
    with read_errors(path), open_binary(path) as binary:
        yield iter(io.TextIOWrapper(binary, encoding="utf-8", newline="\n"))


@contextmanager
def _errors_in(path: Path) -> Iterator[None]:
    """Adds the name of the file to error messages about its contents."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"--arpa={path}: the text is not UTF-8 ({error.reason}); convert the file.") from None
    except UserError as error:
        known = str(error).startswith(str(path))
        raise UserError(str(error) if known else f"--arpa={path}: {error}") from None
