"""Imports and exports published models in Hugging Face format.

python -m lm.hf import --model=DIR --workdir=runs/bert          a folder, or organisation/name@revision on the Hub
python -m lm.hf export --workdir=runs/bert --out=exported       a run directory that was imported or trained here
python -m lm.hf export --workdir=runs/chat --out=o --adapters   only the LoRA adapters, in peft format
python -m lm.hf inspect --model=DIR                             describes the model and what an import would reject
python -m lm.hf check --model=DIR                               compares our model with the one in `transformers`
python -m lm.hf check --model=DIR --workdir=runs/bert           compares a run with the model in `transformers`

An import creates a run directory, which eval.py, lm.generate, lm.predict, lm.data.show and config.init_from can use
like any other. Fields and tensors that our models cannot represent are rejected, and the error names them. Exporting an
imported model reproduces the original tensors bit for bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from absl import flags

from lm.config.command import DONE, define_path, run
from lm.errors import USER_ERROR, UserError
from lm.files import expanded
from lm.huggingface.checking import Ours, lines_of_comparison
from lm.huggingface.export_directory import export_directory, restore
from lm.huggingface.exporting import DTYPES
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import describe, import_folder
from lm.huggingface.inspecting import lines_about
from lm.huggingface.recognising import recognise
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers

FLAGS = flags.FLAGS
arguments: list[str] = []  # the command, taken from the command line
NEEDED = {
    "import": ("model", "workdir"),
    "export": ("workdir", "out"),
    "inspect": ("model",),
    "check": ("model",),
}
COMMANDS = tuple(NEEDED)


def define_flags() -> None:
    define_path("model", "Folder or GGUF file of the published model, or its name on the Hugging Face Hub.")
    define_path("workdir", "Run directory to create (import), to export, or to compare (check).")
    define_path("out", "export: folder to create.")
    flags.DEFINE_string("family", "", "import: model family, if config.json does not specify it.")
    flags.DEFINE_integer("max_length", 0, "import: number of positions; 0 means all that the model has.", lower_bound=0)
    flags.DEFINE_enum(
        "dtype",
        None,
        list(DTYPES),
        "import: data type for computation (default: float32). export: data type of the tensors (default: that of the "
        "imported file, or float32).",
    )
    flags.DEFINE_string("checkpoint", "best", "export and check: best, last or a step number.")
    flags.DEFINE_integer(
        "average",
        1,
        "export and check: average this many checkpoints, ending with --checkpoint. With --checkpoint=best, the "
        "default, the newest ones are averaged.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "adapters",
        False,
        "export: write only the LoRA adapters, in peft format. By default, they are merged into the model.",
    )
    flags.DEFINE_float("max_shard_gb", 5.0, "export: maximum size of each weight file, in GB.", lower_bound=0.001)


def main() -> int:
    if not arguments:
        raise UserError(f"name a command: python -m lm.hf {'|'.join(COMMANDS)} --model=... (see --help).")
    (command,) = arguments
    for name in NEEDED[command]:
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; `lm.hf {command}` needs --{' and --'.join(NEEDED[command])}.")
    return {"import": import_model, "export": export_run, "inspect": inspect, "check": check}[command]()


def inspect() -> int:
    for line in lines_about(open_folder(FLAGS.model), FLAGS.family):
        print(line)
    return DONE


def check() -> int:
    agree = True
    run = None
    if FLAGS.workdir is not None:
        directory = RunDirectory.existing(Path(FLAGS.workdir))
        config = directory.load_config()
        params = restore(directory, config, chosen_step(), FLAGS.average)
        run = Ours.of_run(config, params, load_tokenizers(config, directory.root))
    for line, same in lines_of_comparison(open_folder(FLAGS.model), FLAGS.family, run):
        print(line if same else f"{line}   DIFFERENT")
        agree &= same
    return DONE if agree else USER_ERROR


def import_model() -> int:
    if FLAGS.dtype == "float16":
        raise UserError("--dtype=float16: our models compute in float32 or bfloat16; choose one of them.")
    folder = open_folder(FLAGS.model)
    published = recognise(folder, FLAGS.family, FLAGS.max_length, FLAGS.dtype or "float32")
    import_folder(folder, published, expanded(FLAGS.workdir))
    print(f"written: {FLAGS.workdir}, {describe(published)}")
    return DONE


def export_run() -> int:
    if FLAGS.adapters and FLAGS["max_shard_gb"].present:
        raise UserError("--max_shard_gb has no effect with --adapters, which writes a single weight file; omit it.")
    architecture, notes = export_directory(
        Path(FLAGS.workdir),
        expanded(FLAGS.out),
        step=chosen_step(),
        average=FLAGS.average,
        adapters=FLAGS.adapters,
        dtype=FLAGS.dtype or "",
        max_shard_bytes=int(FLAGS.max_shard_gb * 1e9),
    )
    print(f"written: {FLAGS.out}, {'adapters for ' if FLAGS.adapters else ''}{architecture}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return DONE


def chosen_step() -> int | Literal["best"] | None:
    """Returns the checkpoint given by --checkpoint: a step number, "best", or None for the last one."""
    if FLAGS.checkpoint == "best":
        return "best"
    if FLAGS.checkpoint == "last":
        return None
    if not FLAGS.checkpoint.isdecimal():
        raise UserError(f"--checkpoint={FLAGS.checkpoint}: choose best, last or a step number.")
    return int(FLAGS.checkpoint)


if __name__ == "__main__":
    define_flags()
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        arguments.append(sys.argv.pop(1))
    run(main)
