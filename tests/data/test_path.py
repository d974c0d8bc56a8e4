"""A text passes through few files on its way from disk to the device, and docs/architecture.md lists them."""

import json
import re
import sys
from pathlib import Path

import pytest

from lm.batch import Batch
from lm.config import Config, TokenizerConfig, defaults, source
from lm.data.examples.example import Example
from lm.data.packing.prefetch import GlobalBatches
from lm.data.reading.readers import Labelled
from lm.data.tokenizing import build_tokenizer
from lm.parallel.mesh import make_mesh
from lm.runs.prepare import prepare
from lm.tasks import task_of

ROOT = Path(__file__).resolve().parents[2]
MARK = "qzqzqz"  # occurs in every text
TEXTS = [f"{MARK} is text number {i}" for i in range(200)]


def make_config(folder, task):
    values = defaults()
    values.data.sequence_length, values.train.batch_size = 32, 8
    values.data.cache_dir = str(folder / "cache")
    values.objective.name = task
    if task == "classification":
        records = [{"text": text, "label": "xy"[i % 2]} for i, text in enumerate(TEXTS)]
        (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, records)))
        values.data.train.a = source(kind="jsonl", path=str(folder / "texts.jsonl"), label_field="label")
    else:
        (folder / "texts.txt").write_text("\n".join(TEXTS))
        values.data.train.a = source(path=str(folder / "texts.txt"), document="line")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_size=300), TEXTS)
    tokenizer.save(folder / "tokenizer")
    values.data.tokenizer.path = str(folder / "tokenizer" / tokenizer.file_name)
    return Config.from_dict(values.to_dict())


def holds_text(value, depth=2):
    """Returns whether a value is a marked text, an example, a batch, or a list or dict that contains one."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return depth > 0 and any(holds_text(each, depth - 1) for each in value[:20])
    return MARK in value if isinstance(value, str) else isinstance(value, (Labelled, Example, Batch))


def files_passed(config, workdir):
    """Returns the files of lm/ with a function that had text, an example or a batch in a variable or as a result."""
    found = set()

    def watch(frame, event, result):
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(f"{ROOT}/lm/") or file in found:
            return
        if holds_text([*frame.f_locals.values(), result], depth=3):
            found.add(file)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        prepared = prepare(config, workdir)
        rows = task_of(prepared.config).train_rows(prepared.config, prepared.tokenizer, prepared.stores["train"])
        batches = GlobalBatches(make_mesh(config.mesh), config.train.batch_size)
        batches.place(rows.rows(0, batches.row_ids.tolist()))
    finally:
        sys.setprofile(before)
    return {str(Path(file).relative_to(ROOT)) for file in found}


@pytest.mark.parametrize(("task", "number", "most"), [("causal", 0, 8), ("classification", 1, 11)])
def test_text_passes_the_few_files_that_the_documentation_lists(tmp_path, task, number, most):
    _, _, section = (ROOT / "docs/architecture.md").read_text().partition("\n## The path of a document\n")
    lists = re.findall(r"(?:^\d+\. .*\n(?:   .*\n)*)+", section.partition("\n## ")[0], re.MULTILINE)
    listed = re.findall(r"^\d+\. `([\w/.]+)`", lists[number], re.MULTILINE)
    assert len(listed) <= most
    found = files_passed(make_config(tmp_path, task), tmp_path / "run")
    assert found == {f"lm/data/{each}" for each in listed}
