"""Imports and exports n-gram models in ARPA format, which KenLM, SRILM and other toolkits read and write.

python -m lm.ngram export --workdir=runs/ngram --out=model.arpa               a run that was trained or imported here
python -m lm.ngram import --arpa=model.arpa --workdir=runs/imported           text is split at whitespace
python -m lm.ngram import --arpa=m.arpa.gz --workdir=runs/i --like=runs/ngram   uses a run's tokenizer and data

An import creates a run directory, which eval.py and lm.generate can use like any other. The model has the probabilities
in the file, whatever smoothing method produced them. Files whose probabilities do not sum to 1 are rejected.
"""

from __future__ import annotations

import sys

from absl import flags

from lm.config.command import DONE, define_path, run
from lm.errors import UserError
from lm.files import expanded
from lm.runs.arpa import export_arpa, import_arpa

FLAGS = flags.FLAGS
arguments: list[str] = []  # the command, taken from the command line
NEEDED = {"import": ("arpa", "workdir"), "export": ("workdir", "out")}


def define_flags() -> None:
    define_path("workdir", "Run directory to create (import) or to export.")
    define_path("arpa", "import: the ARPA file, or a .gz file that holds one.")
    define_path("like", "import: run whose tokenizer, data and evaluation settings are used.")
    define_path("out", "export: ARPA file to write; compressed if its name ends in .gz.")


def main() -> int:
    if not arguments:
        raise UserError(f"name a command: python -m lm.ngram {'|'.join(NEEDED)} --workdir=... (see --help).")
    (command,) = arguments
    for name in NEEDED[command]:
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; `lm.ngram {command}` needs --{' and --'.join(NEEDED[command])}.")
    if command == "export":
        print(f"written: {FLAGS.out}, {export_arpa(expanded(FLAGS.workdir), expanded(FLAGS.out))}")
    else:
        like = None if FLAGS.like is None else expanded(FLAGS.like)
        print(f"written: {FLAGS.workdir}, {import_arpa(expanded(FLAGS.arpa), expanded(FLAGS.workdir), like)}")
    return DONE


if __name__ == "__main__":
    define_flags()
    if len(sys.argv) > 1 and sys.argv[1] in NEEDED:
        arguments.append(sys.argv.pop(1))
    run(main)
