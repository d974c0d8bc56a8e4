"""Draws the attention of an encoder-decoder's outputs to its sources, for a few sentences.

    python -m benchmarks.attention_picture --workdir=runs/multi30k_lstm --input=sentences.txt --output=attention.png

`--input` holds one sentence per line; without it, the first three sources of the validation split are used. Each
sentence is translated by beam search, and one panel shows, for each output token (row), the weight of each source token
(column), as in Bahdanau 2015, figure 3. A recurrent model has one attention; of a Transformer, the mean over all heads
of the last layer is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict

from lm.batch import Batch
from lm.config import Config, command
from lm.config.experiment import replace_settings
from lm.data.examples.example import from_pair
from lm.data.packing.rows import RowLayout
from lm.data.reading.format import read_lines
from lm.data.tokenizing.base import Tokenizers
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.lines import prefix_of, source_text
from lm.decoding.sampling import vocabulary_of
from lm.decoding.text import encode_sources, encode_texts
from lm.errors import UserError
from lm.files import replacing
from lm.models import build_model
from lm.models.network import RECORD, SOURCE_WEIGHTS
from lm.models.parameters import unstack_layers
from lm.models.protocol import Model
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of

FLAGS = flags.FLAGS
SENTENCES = 3  # number of sentences if no input is given


@dataclasses.dataclass(frozen=True)
class Panel:
    """The attention of one output: `weights_TS[t, s]` is the weight of source token s for output token t."""

    source: list[str]
    output: list[str]
    weights_TS: np.ndarray


def define_flags() -> None:
    command.define_path("workdir", "The run directory of an encoder-decoder.")
    command.define_path("input", "File with one source sentence per line.")
    command.define_path("output", "PNG file to write.")
    flags.DEFINE_integer("num_beams", 5, "Beam size.", lower_bound=1)


def load(run: RunDirectory) -> tuple[Config, Model, Any]:
    """Returns the config, model and parameters (of the best step) of a run, with one parameter tree per layer."""
    config = replace_settings(run.load_config(), {"model.scan_layers": False, "model.attention": "xla"})
    model = build_model(config.model, task_of(config).head(config))
    if not model.reads_source:
        raise UserError(f"--workdir: {run.root} has no source to attend to; choose the run of an encoder-decoder.")
    with run.open_checkpoints(config) as checkpoints:
        params, _ = checkpoints.restore_params(None, "best", ema=config.optimizer.ema_decay > 0)
    return config, model, unstack_layers(params)


def source_weights(model: Model, params: Any, batch: Batch) -> np.ndarray:
    """Returns the weights (B, L, S) of the last layer that attends to the source. Raises UserError if none does."""
    _, recorded = jax.jit(lambda *args: model.apply(*args, mutable=[RECORD]))({"params": params}, batch)  # type: ignore[call-arg]
    found = {path: each for path, each in flatten_dict(recorded[RECORD]).items() if path[-1] == SOURCE_WEIGHTS}
    if not found:
        raise UserError("--workdir: the decoder of this run has no attention (model.source_attention='none').")
    (weights_BLS,) = found[max(found, key=lambda path: [(len(name), name) for name in path])]
    return np.asarray(weights_BLS)


def panels(
    config: Config, model: Model, params: Any, tokenizers: Tokenizers, texts: Sequence[str], num_beams: int
) -> list[Panel]:
    """Translates each text, and returns the attention of the translation's tokens and its EOS token."""
    task, generation = task_of(config), config.eval.generation
    cleaned = [source_text(prefix_of(config), task.clean_source(config, text)) or "" for text in texts]
    sources = encode_sources(tokenizers.source, cleaned, config.data.source_length)
    settings = BeamSettings(
        num_beams=num_beams, max_new_tokens=generation.max_new_tokens - 1, length_penalty=generation.length_penalty
    )
    target = tokenizers.target
    found = beam_search(model, params, sources, settings, vocabulary_of(target))
    outputs = [target.decode(best.tokens) for best, *_ in found]
    pairs = zip(encode_texts(tokenizers.source, cleaned), encode_texts(target, outputs), strict=True)
    examples = [from_pair(*map(np.array, pair), target.special_tokens) for pair in pairs]
    lengths = (max(map(len, (each.tokens_T for each in examples))), max(map(len, sources)))
    batch = RowLayout(*lengths).lay_out([[each] for each in examples])
    assert batch.source is not None
    weights_BLS = source_weights(model, params, batch)
    result = []
    for row, (source, example) in enumerate(zip(sources, examples, strict=True)):
        spelled = [tokenizers.source.piece(token) for token in source]
        written = [target.piece(int(token)) for token in example.targets_T]
        result.append(Panel(spelled, written, weights_BLS[row, : len(written), : len(spelled)]))
    return result


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Writes a PNG file with one panel per sentence, side by side."""
    from matplotlib.figure import Figure

    sizes = [(0.27 * len(each.source) + 1.6, 0.27 * len(each.output) + 1.2) for each in panels]
    figure = Figure(
        figsize=(sum(width for width, _ in sizes), max(height for _, height in sizes)), layout="constrained"
    )
    columns = figure.subplots(1, len(panels), squeeze=False, width_ratios=[width for width, _ in sizes])[0]
    for axes, each in zip(columns, panels, strict=True):
        image = axes.imshow(each.weights_TS, cmap="Greys", vmin=0, vmax=1)
        axes.set_xticks(range(len(each.source)), each.source, rotation=90, fontsize=9, parse_math=False)
        axes.set_yticks(range(len(each.output)), each.output, fontsize=9, parse_math=False)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
    figure.colorbar(image, ax=columns, label="weight of the source token", shrink=0.6)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> int:
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError("--workdir and --output are needed (see --help).")
    run = RunDirectory.existing(Path(FLAGS.workdir))
    config, model, params = load(run)
    if FLAGS.input:
        texts = [line for line in read_lines(Path(FLAGS.input)) if line.strip()]
    else:
        references = task_of(config).references(config, "valid").values()
        texts = [pair.source for pair in islice((pair for pairs in references for pair in pairs), SENTENCES)]
    if not texts:
        raise UserError("there are no sentences; name a file with --input.")
    found = panels(config, model, params, load_tokenizers(config, run.root), texts, FLAGS.num_beams)
    draw(found, Path(FLAGS.output))
    for text, each in zip(texts, found, strict=True):
        print(f"{text}\n  {' '.join(each.output)}")
    print(f"Written: {FLAGS.output}")
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
