"""Labels new text with a trained model, or writes vectors of texts.

python -m lm.predict --workdir=runs/imdb --input=reviews.txt --output=labels.jsonl      a text per line
python -m lm.predict --workdir=runs/nli --input=pairs.tsv --output=labels.jsonl         the columns of the training data
python -m lm.predict --workdir=runs/ner --input=news.conll --output=tags.jsonl          a word per line
python -m lm.predict --workdir=runs/imdb --text="A wonderful film."
python -m lm.predict --workdir=runs/squad --text='{"question": "Who?", "context": "Ann sang."}'
zcat reviews.gz | python -m lm.predict --workdir=runs/imdb --input=- | head
python -m lm.predict --workdir=runs/gpt --input=texts.txt --output=vectors.npy --pooling=mean

The output has one JSON object per input, in the same order: the input, its prediction and

    classification   score (the probability of the prediction) and the probabilities of all labels
    regression       nothing more: the prediction is a number
    tagging          nothing more: the prediction is a list with a tag for each word
    span_qa          score, start and end (character offsets in the context) and the score of having no answer
    multiple_choice  scores and probabilities of the candidates; the prediction is an index from 0
    contrastive      in place of a prediction, the vector of the text, of length 1

Inputs are read, cleaned and encoded as in evaluations, so predictions equal those of eval.py. Labels in the input are
ignored. The batch size affects memory and speed only. The ending of the file name determines the format, and fields
have the names that they have in the training data; --format, --field and --pair_field say otherwise. Standard input
("-") holds a text per line unless --format says otherwise.

With --pooling, any model turns texts into vectors: an encoder-decoder with its encoder. --layer chooses the layer
whose vectors are pooled over all tokens of the text, including BOS and EOS. An --output that ends in .npy is an array
of NumPy, float32 (texts, width).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from lm.config import Config, SourceConfig
from lm.config.command import DONE, define_path, define_step_flag, run
from lm.data.reading.inputs import FORMAT_NAMES
from lm.decoding.lines import whole_file
from lm.errors import UserError
from lm.files import expanded, replacing, writing_flag
from lm.reporting.progress import duration
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options
from lm.runs.prediction import predictions, read_input, read_texts, without_cache_of_run
from lm.runs.prepare import cache_directory
from lm.tasks import task_of
from lm.tasks.task import Labeller
from lm.tasks.vectors import POOLINGS, TextVectors

FLAGS = flags.FLAGS
STANDARD_OUTPUT = "-"
# Flags that describe the input, by the settings of a data source that they stand for.
INPUT = {"kind": "format", **{name: name for name in ("field", "pair_field", "columns", "document", "encoding")}}
VECTORS = ("layer", "normalize", "prefix")
DOCUMENTS = SourceConfig.__dataclass_fields__["document"].metadata["choices"]
# Control characters that JSON allows in a string but a terminal may obey, and marks that change the direction of text.
VISIBLE = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def define_flags() -> None:
    define_path("workdir", "Run directory of the model.")
    define_path("input", "File or glob with the inputs (.gz is unpacked); - for standard input.")
    flags.DEFINE_multi_string(
        "text",
        [],
        "Text to label, instead of --input; may be repeated. A JSON object if the model needs several fields.",
    )
    define_path("output", "File to write, created when it is complete; - for standard output.", STANDARD_OUTPUT)
    flags.DEFINE_enum("format", None, FORMAT_NAMES, "Format of the input; by default as its name ends.")
    flags.DEFINE_string("field", None, "Field or column that holds the text; by default as in the training data.")
    flags.DEFINE_string("pair_field", None, "Field of the second text or of the candidates; by default as in training.")
    flags.DEFINE_string("columns", None, "tsv, csv: comma-separated column names, if the file has no header row.")
    flags.DEFINE_enum("document", "line", DOCUMENTS, "text: the unit that is one input.")
    flags.DEFINE_string("encoding", "utf-8", "Text encoding of the input.")
    define_step_flag()
    flags.DEFINE_integer("average", 1, "Number of checkpoints to average, the latest up to --step.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 0, "Rows per batch; 0 for eval.batch_size of the run.", lower_bound=0)
    flags.DEFINE_bool("unanswerable", False, "span_qa: predict an empty text if a question seems to have no answer.")
    flags.DEFINE_enum("pooling", None, list(POOLINGS), "Write vectors of texts, pooled from those of their tokens.")
    flags.DEFINE_integer(
        "layer", None, "With --pooling: layer of the vectors, from 0 (embedding); by default the last."
    )
    flags.DEFINE_bool("normalize", False, "With --pooling: scale vectors to length 1.")
    flags.DEFINE_string("prefix", "", "With --pooling: text before every text, e.g. as in the training of a T5.")


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name the run directory of the model, e.g. --workdir=runs/imdb.")
    if bool(FLAGS.text) == (FLAGS.input is not None):
        raise UserError('give either --input=FILE (- for standard input) or --text="...".')
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    labeller = choose_labeller(config)
    output = None if FLAGS.output == STANDARD_OUTPUT else expanded(FLAGS.output)
    is_array = output is not None and output.suffix == ".npy"
    if is_array and not isinstance(labeller, TextVectors):
        raise UserError(f"--output={FLAGS.output}: holds vectors, but this model predicts labels; give --pooling too.")
    given = {setting: FLAGS[flag].value for setting, flag in INPUT.items() if FLAGS[flag].present}
    if FLAGS.text:
        raw = read_texts(config, labeller, FLAGS.text, given)
    else:
        raw = read_input(config, labeller, FLAGS.input, given, output)
    jax.config.update("jax_compilation_cache_dir", str(cache_directory(without_cache_of_run(config)) / "xla"))
    options = Options(step=FLAGS.step, average=FLAGS.average, batch_size=FLAGS.batch_size)
    parts = predictions(directory, config, labeller, raw, options, unanswerable=FLAGS.unanswerable)
    if output is None:
        print_lines(lines_of(parts))
        return DONE
    began = time.monotonic()
    with whole_file(FLAGS.output, "output") as write:
        if is_array:
            vectors_ED = np.concatenate([part.vectors_ED for part in parts])
            with writing_flag("output", output), replacing(output.resolve(), durable=True) as temporary:
                with temporary.open("wb") as file:
                    np.save(file, vectors_ED)
        else:
            write(lines_of(parts))
    print(f"written: {FLAGS.output}, {len(raw):,} predictions in {duration(time.monotonic() - began)}")
    return DONE


def choose_labeller(config: Config) -> Labeller:
    """Returns the labeller of the task, or one that makes vectors. Raises UserError for flags that it does not read."""
    task = task_of(config)
    if FLAGS.pooling is not None:
        unit_length = FLAGS.normalize
        labeller: Labeller | None = TextVectors.of(
            task, config, FLAGS.pooling, layer=FLAGS.layer, unit_length=unit_length, prefix=FLAGS.prefix
        )
    else:
        labeller = task.labeller(config)
        for name in VECTORS:
            if FLAGS[name].present:
                raise UserError(f"--{name}: is for vectors; give --pooling={'|'.join(POOLINGS)} too.")
    if labeller is None:
        text = f", or generate text with lm.generate --workdir={FLAGS.workdir}" if task.writes_text else ""
        raise UserError(
            f"--workdir={FLAGS.workdir}: a model with objective.name={config.objective.name} predicts no labels; "
            f"write vectors with --pooling=mean{text}."
        )
    if labeller.may_lack_answers and not FLAGS["unanswerable"].present:
        print("note: every question gets an answer; with --unanswerable, it may have none.", file=sys.stderr)
    if FLAGS.unanswerable and not labeller.may_lack_answers:
        raise UserError("--unanswerable: is for models that answer questions; omit it.")
    return labeller


def lines_of(parts: Iterator[Any]) -> Iterator[str]:
    """Yields a line of JSON, without a line ending, for each prediction."""
    for part in parts:
        for index in range(len(part.raw)):
            line = json.dumps(part.input_line(index), ensure_ascii=False, allow_nan=False)
            yield line.translate(VISIBLE)


def print_lines(lines: Iterator[str]) -> None:
    """Prints lines as UTF-8, whatever the terminal's encoding is."""
    for line in lines:
        sys.stdout.buffer.write(line.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    define_flags()
    run(main)
