"""Labels new text with a trained model, or turns text into vectors.

python -m lm.predict --workdir=runs/imdb --input=reviews.txt --output=labels.jsonl      reads one text per line
python -m lm.predict --workdir=runs/nli --input=pairs.tsv --output=labels.jsonl         reads columns as in training
python -m lm.predict --workdir=runs/ner --input=news.conll --output=tags.jsonl          reads one word per line
python -m lm.predict --workdir=runs/imdb --text="A wonderful film."
python -m lm.predict --workdir=runs/squad --text='{"question": "Who?", "context": "Ann sang."}'
zcat reviews.gz | python -m lm.predict --workdir=runs/imdb --input=- | head
python -m lm.predict --workdir=runs/gpt --input=texts.txt --output=vectors.npy --pooling=mean

The output has one JSON object per input, in the same order. Each object holds the input, the prediction and other
values that depend on the task:

    classification   score (the probability of the prediction) and the probabilities of all labels
    regression       nothing else; the prediction is a number
    tagging          nothing else; the prediction is a list with one tag per word
    span_qa          score, start and end (character offsets in the context) and the no-answer score
    multiple_choice  scores and probabilities of the candidates; the prediction is an index from 0
    contrastive      the unit vector of the text, in place of a prediction
    autoencoding     the (mean) latent vectors of the text, concatenated, in place of a prediction

Inputs are read, cleaned and encoded as in evaluations, so lm.predict and eval.py make the same predictions. Labels in
the input are ignored. The batch size affects only memory and speed. By default, the format is inferred from the file
extension, and the fields have the same names as in the training data. --format, --field and --pair_field override these
defaults. Standard input ("-") is read as one text per line unless --format is given.

With --pooling, any model can turn texts into vectors. An encoder-decoder uses its encoder. --layer selects the layer
whose vectors are pooled over all tokens of the text, including BOS and EOS. If --output ends in .npy, the output is a
float32 NumPy array of shape (texts, width).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lm.config import Config, SourceConfig
from lm.config.command import DONE, define_path, define_step_flag, run
from lm.data.reading.inputs import FORMAT_NAMES
from lm.decoding.lines import whole_file
from lm.errors import UserError
from lm.files import expanded, replacing, writing_flag
from lm.reporting.progress import duration
from lm.runs.compile_cache import use_compile_cache
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options
from lm.runs.prediction import predictions, read_input, read_texts
from lm.tasks import task_of
from lm.tasks.vectors import POOLINGS, Labeller, TextVectors

FLAGS = flags.FLAGS
STANDARD_OUTPUT = "-"
# Maps data-source settings to the flags that override them; all of these flags describe the input.
INPUT = {"kind": "format", **{name: name for name in ("field", "pair_field", "columns", "document", "encoding")}}
VECTORS = ("layer", "normalize", "prefix")
DOCUMENTS = SourceConfig.__dataclass_fields__["document"].metadata["choices"]
# Escapes for control characters that JSON allows but a terminal may interpret, such as changes of writing direction.
VISIBLE = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def define_flags() -> None:
    define_path("workdir", "Run directory of the model.")
    define_path("input", "File or glob pattern of the inputs (.gz is unpacked), or - for standard input.")
    flags.DEFINE_multi_string("text", [], "Text to label (repeatable). For several fields, give a JSON object.")
    define_path("output", "File to write (once all lines are complete), or - for standard output.", STANDARD_OUTPUT)
    flags.DEFINE_enum("format", None, FORMAT_NAMES, "Format of the input. The default depends on the file extension.")
    flags.DEFINE_string("field", None, "Field or column that holds the text. The default is the name used in training.")
    flags.DEFINE_string("pair_field", None, "Like --field, but for the second text or the list of candidates.")
    flags.DEFINE_string("columns", None, "For tsv and csv: comma-separated column names, if there is no header row.")
    flags.DEFINE_enum("document", "line", DOCUMENTS, "With --format=text: the unit of text that counts as one input.")
    flags.DEFINE_string("encoding", "utf-8", "Text encoding of the input.")
    define_step_flag()
    flags.DEFINE_integer("average", 1, "Average this many checkpoints, ending with --step.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 0, "Number of rows per batch. 0 means the run's eval.batch_size.", lower_bound=0)
    flags.DEFINE_bool("unanswerable", False, "For span_qa: leave the answer empty if the context seems to have none.")
    flags.DEFINE_enum("pooling", None, list(POOLINGS), "Write one vector per text, pooled from its token vectors.")
    flags.DEFINE_integer("layer", None, "With --pooling: layer index. 0 is the embedding; the default is the last one.")
    flags.DEFINE_bool("normalize", False, "With --pooling: scale vectors to length 1.")
    flags.DEFINE_string("prefix", "", "With --pooling: prefix of every text, e.g. the prefix used to train a T5 model.")


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; specify the run directory of the model, e.g. --workdir=runs/imdb.")
    if bool(FLAGS.text) == (FLAGS.input is not None):
        raise UserError('give either --input=FILE (- for standard input) or --text="...".')
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    labeller = choose_labeller(config)
    output = None if FLAGS.output == STANDARD_OUTPUT else expanded(FLAGS.output)
    is_array = output is not None and output.suffix == ".npy"
    if is_array and not isinstance(labeller, TextVectors):
        problem = ".npy files hold vectors, but this model predicts labels"
        raise UserError(f"--output={FLAGS.output}: {problem}; give --pooling too.")
    given = {setting: FLAGS[flag].value for setting, flag in INPUT.items() if FLAGS[flag].present}
    if FLAGS.text:
        raw = read_texts(config, labeller, FLAGS.text, given)
    else:
        raw = read_input(config, labeller, FLAGS.input, given, output)
    use_compile_cache(config)
    options = Options(step=FLAGS.step, average=FLAGS.average, batch_size=FLAGS.batch_size)
    parts = predictions(directory, config, labeller, raw, options, FLAGS.unanswerable)
    if output is None:
        for line in lines_of(parts):  # as UTF-8, whatever the encoding of the terminal
            sys.stdout.buffer.write(line.encode() + b"\n")
            sys.stdout.buffer.flush()
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
    """Returns the object that labels examples for the task or, with --pooling, one that computes vectors.

    Raises UserError if the model predicts no labels or if a flag has no effect.
    """
    task = task_of(config)
    if FLAGS.pooling is not None:
        chosen: dict[str, Any] = {"layer": FLAGS.layer, "unit_length": FLAGS.normalize, "prefix": FLAGS.prefix}
        labeller: Labeller | None = TextVectors.of(task, config, FLAGS.pooling, **chosen)
    else:
        labeller = task.labeller(config)
        for name in VECTORS:
            if FLAGS[name].present:
                raise UserError(f"--{name} applies only to vectors; give --pooling={'|'.join(POOLINGS)} too.")
    if labeller is None:
        problem = f"a model with objective.name={config.objective.name} predicts no labels"
        text = f", or generate text with lm.generate --workdir={FLAGS.workdir}" if task.writes_text else ""
        raise UserError(f"--workdir={FLAGS.workdir}: {problem}; write vectors with --pooling=mean{text}.")
    if labeller.may_lack_answers and not FLAGS["unanswerable"].present:
        print("note: every question gets an answer; pass --unanswerable to allow empty answers.", file=sys.stderr)
    if FLAGS.unanswerable and not labeller.may_lack_answers:
        raise UserError("--unanswerable applies only to models that answer questions; omit it.")
    return labeller


def lines_of(parts: Iterator[Any]) -> Iterator[str]:
    """Yields a line of JSON, without a line ending, for each prediction."""
    for part in parts:
        for index in range(len(part.raw)):
            yield json.dumps(part.input_line(index), ensure_ascii=False, allow_nan=False).translate(VISIBLE)


if __name__ == "__main__":
    define_flags()
    run(main)
