"""Uses a run's model to label new inputs or to turn texts into vectors."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.data.reading.format import Files
from lm.data.reading.inputs import format_of, given_text, input_source, open_inputs
from lm.data.reading.readers import Labelled
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationSetup
from lm.evaluation.prediction_evaluator import PredictionEvaluator
from lm.models import build_model
from lm.reporting.progress import counting
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, choose_mesh, evaluation_config, read_params
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of
from lm.tasks.vectors import Labeller

STANDARD_INPUT = "-"


def read_texts(config: Config, labeller: Labeller, texts: Sequence[str], given: Mapping[str, Any]) -> list[Any]:
    """Returns the raw examples for texts given on the command line. `given` holds settings of the data source."""
    source = input_source(config.data.train, labeller.input_reader, "jsonl", "--text", given)
    return [given_text(source, labeller.input_reader, text) for text in texts]


def read_input(
    config: Config, labeller: Labeller, path: str, given: Mapping[str, Any], output: Path | None
) -> list[Any]:
    """Returns the raw examples in a file, the files that match a glob, a pipe or standard input ("-"), in order.

    `given` holds settings of the data source. Raises UserError if an example is invalid or `output` is an input file.
    """
    with as_file(path) as file:
        for each in Files(file).found:
            if output is not None and output.exists() and output.samefile(each):
                raise UserError(f"--output={output}: this file is also the input; choose another file.")
        inferred_from = "" if "kind" in given or path == STANDARD_INPUT else path
        kind = format_of(path) if inferred_from else given.get("kind", "text")
        rest = {name: value for name, value in given.items() if name != "kind"}
        source = input_source(config.data.train, labeller.input_reader, kind, file, rest)
        try:
            return list(open_inputs(source, labeller.input_reader, inferred_from).iterate())
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith("--") else f"--input: {text}") from None


@contextlib.contextmanager
def as_file(path: str) -> Iterator[str]:
    """Yields `path` itself or, for a pipe or standard input (readable only once), the path of a temporary copy."""
    is_pipe = Path(path).is_fifo()
    if path != STANDARD_INPUT and not is_pipe:
        yield path
        return
    name = path if is_pipe else "standard input"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "input"
        with copy.open("wb") as file, Path(path).open("rb") if is_pipe else contextlib.nullcontext() as pipe:
            shutil.copyfileobj(pipe or sys.stdin.buffer, file)
        try:
            yield str(copy)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), name)) from None


def predictions(
    directory: RunDirectory, own: Config, labeller: Labeller, raw: Sequence[Any], options: Options, unanswerable: bool
) -> Iterator[Any]:
    """Yields the predictions for the raw examples, in order, one batch at a time. Progress and notes go to stderr.

    Raises UserError, before the first prediction, if the inputs or the options are not valid for the model.
    """
    config = evaluation_config(directory.root, own, options)
    task, tokenizers = task_of(config), load_tokenizers(config, directory.root)
    rows = labeller.input_rows(config, tokenizers, raw, unanswerable)
    model = build_model(config.model, task.head(config))
    applied, mesh = labeller.applied(model), choose_mesh(config)
    params, *_ = read_params(directory, config, model, mesh, options)
    cleaned = rows.examples.store.raw
    blank = sum(isinstance(each, Labelled) and not any(map(str.strip, each.texts)) for each in cleaned)
    for note in [*rows.examples.notes, *([f"{blank:,} of {len(raw):,} texts are empty"] if blank else [])]:
        print(f"note: {note}", file=sys.stderr)
    setup = EvaluationSetup(config, applied, mesh, tokenizers, {"inputs": rows}, {}, name="inputs")
    evaluator, done = PredictionEvaluator(labeller, setup), 0
    with counting(len(raw), task.noun) as report:
        for part in evaluator.stream(params):
            yield part
            done += len(part.raw)
            if report is not None:
                report(done, len(raw))
