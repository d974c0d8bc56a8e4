"""Records the baselines of `eval.py --baselines` on the test splits of five data sets. No model is trained.

    python -m benchmarks.baselines --data=DIR

DIR contains the folders mr, wnut17, multi30k, scitldr_a and wikitext2. The configs of these sets define the splits, the
cleaning and the tokenizer, so the figures can be compared with those of runs of the same configs. Writes
results/baselines.json and a table of each set to results/baselines.md. The linear CRF needs requirements-baselines.txt.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from absl import flags

from benchmarks.record import RESULTS, surroundings, write_record
from lm.config import Config, command
from lm.errors import UserError
from lm.reporting.table import Result, markdown
from lm.runs.baselines import Baselines
from lm.runs.prepare import prepare, prepare_split
from lm.tasks import task_of

FOLDERS = {  # config -> folder with its data
    "classify_mr": "mr",
    "ner_wnut17": "wnut17",
    "multi30k_en_de": "multi30k/raw",
    "scitldr": "scitldr_a",
    "wikitext2": "wikitext2",
}

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("data", None, "Directory of the data sets.")


def baselines(name: str, folder: Path) -> list[Result]:
    """Returns the baselines of a config on its test split."""
    values = importlib.import_module(f"configs.{name}").get_config(str(folder))
    config = Config.from_dict(values.to_dict())
    with tempfile.TemporaryDirectory() as workdir:
        prepared = prepare(config, Path(workdir))
    config, found = prepared.config, prepared.tokenizers
    stores, references = prepare_split(config, found, "test"), task_of(config).references(config, "test")
    return Baselines().score(config, config, found, stores, references, "test", "test")


def main() -> int:
    if not FLAGS.data:
        raise UserError("--data is missing; name the directory of the data sets.")
    record, text = {}, "# Baselines on test splits (python -m benchmarks.baselines)\n"
    for name, folder in FOLDERS.items():
        print(f"--- {name} ---", flush=True)
        found = baselines(name, Path(FLAGS.data) / folder)
        record[name] = {each.run: {"metrics": each.metrics, "signatures": each.signatures} for each in found}
        text += f"\n## `{name}`\n\n{markdown(found)}"
    write_record(RESULTS / "baselines.json", {"name": "baselines", "sets": record, **surroundings()})
    (RESULTS / "baselines.md").write_text(text, encoding="utf-8")
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
