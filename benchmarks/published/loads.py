"""Loads exported folders in `transformers`, version 4.57 or 5, and prints whatever it complains about.

    python -m benchmarks.published.loads --write --folders=/tmp/folders     # needs version 5 and our code
    python benchmarks/published/loads.py --folders=/tmp/folders             # under any version

The first command makes a tiny random model of each class that the tests compare, imports it and exports it again
(folder NAME). Then it exports the model once more as if it had been trained here from scratch, with a new config.json
and a tokenizer of ours (NAME-new). Each folder gets a file expected.npz with inputs and the logits of the original
model, and some texts and their ids. The second command prints a line for each folder: missing, unexpected and
mismatched keys, warnings, the largest difference of the logits, and ids that differ. The exit status is 1 if there are
any, or if a difference of logits exceeds 1e-4. Classes that the installed version lacks are only counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import string
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import transformers

TOLERANCE, FILE = 1e-4, "expected.npz"
TEXTS = ("Hello there", "the cat, the dog!", "  a b\n\tÄ", "w5 w6 w7")
# Replaces settings of the tests' models that version 4 lacks or reads otherwise, or that make a version warn. In
# version 4, OLMo 3 scales the positions of its global layers only. YaRN multiplies the original length of 12 by 4.
PLAIN, YARN = {"rope_theta": 10000.0, "rope_type": "default"}, {"factor": 4.0, "original_max_position_embeddings": 12}
OTHERWISE = {
    "mt5": {"tie_word_embeddings": False},
    "qwen2_yarn": {"max_position_embeddings": 48},
    "qwen3": {"max_position_embeddings": 48},
    "olmo3_yarn": {
        "max_position_embeddings": 48,
        "rope_parameters": {
            "sliding_attention": PLAIN,
            "full_attention": {**PLAIN, **YARN, "rope_type": "yarn"},
        },
    },
}
# Version 5 always wants to tie the matrices of T5, whatever config.json says, and prints that it does not.
ALWAYS = "You should update the config with `tie_word_embeddings=False`"


def outputs_of(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns all logits of a model, by name."""
    import torch

    with torch.no_grad():
        found = model.eval()(**{name: torch.tensor(array) for name, array in inputs.items()})
    return {name: value.numpy() for name, value in found.items() if name.endswith("logits")}


# --- writing --------------------------------------------------------------------------------------------------


def write(folders: Path) -> None:
    from lm.data.tokenizing.base import Tokenizers
    from lm.data.tokenizing.vocabularies import CharacterTokenizer
    from lm.huggingface.export_directory import special_ids
    from lm.huggingface.exporting import Original, export
    from lm.huggingface.folder import open_folder
    from lm.huggingface.importing import load_params, read_tokenizer, write_provenance
    from lm.huggingface.recognising import recognise
    from lm.huggingface.tokenizer_files import tokenizer_files
    from tests.huggingface.models import MODELS
    from tests.huggingface.peers import build, save
    from tests.huggingface.rows import padded

    letters = CharacterTokenizer(string.ascii_letters + " ,")
    letters_of = Tokenizers(letters, letters)
    for name, (kind, settings) in MODELS.items():
        model = build(kind, {**settings, **OTHERWISE.get(name, {})})
        with tempfile.TemporaryDirectory() as temporary:
            folder = open_folder(save(model, Path(temporary, "in")))
            published = recognise(folder)
            params, config = load_params(folder, published), published.config
            write_provenance(folder, published, Path(temporary, "huggingface"))
            export(params, config, folders / name, Original.read(Path(temporary, "huggingface")))
            tokenizer = read_tokenizer(folder, config.model.vocab_size)
        (tokens, mask, _), (targets, target_mask, _) = padded("source"), padded("target")
        real = mask
        inputs = {"input_ids": np.where(mask, tokens, 1).astype(np.int64), "attention_mask": mask.astype(np.int64)}
        if config.model.family == "encoder_decoder" and published.model.reads_source:
            inputs["decoder_input_ids"], real = targets.astype(np.int64), target_mask
        expected = outputs_of(model, inputs)
        special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        _save_expected(folders / name, inputs, expected, real, [tokenizer.encode(text) for text in TEXTS])
        if expected and kind != "ElectraForPreTraining":
            out, ids = folders / f"{name}-new", special_ids(config, letters) | special
            export(params, config, out, None, tokenizer_files(config, letters_of), ids)
            _save_expected(out, inputs, expected, real, [letters.encode(text) for text in TEXTS])


def _save_expected(folder: Path, inputs: Any, expected: Any, real: Any, ids: list[list[int]]) -> None:
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    arrays |= {f"output/{name}": array for name, array in expected.items()}
    np.savez(folder / FILE, **arrays, real=real, ids=json.dumps(ids))


# --- reading --------------------------------------------------------------------------------------------------


class Kept(logging.Handler):
    """Keeps the warnings of transformers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split())[:300])


def complaints(folder: Path) -> list[str]:
    """Returns what is wrong with a folder. Raises AttributeError if this version lacks the class."""
    saved = np.load(folder / FILE)
    config = json.loads((folder / "config.json").read_text())
    (architecture,) = config["architectures"]
    # Version 5 has rules of its own for Qwen2, whatever tokenizer.json says.
    fast = transformers.PreTrainedTokenizerFast if config["model_type"] == "qwen2" else transformers.AutoTokenizer
    cls, kept = getattr(transformers, architecture), Kept()
    logging.getLogger("transformers").addHandler(kept)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
            tokenizer = fast.from_pretrained(folder)
            found = outputs_of(model, {name[6:]: saved[name] for name in saved.files if name.startswith("input/")})
            ids = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    finally:
        logging.getLogger("transformers").removeHandler(kept)
    problems = [f"{name}: {sorted(map(str, each))[:3]}" for name, each in info.items() if each]
    lines = [line for line in kept.lines if not (ALWAYS in line and config["model_type"] in ("t5", "mt5"))]
    problems += [f"warning: {line}" for line in (*lines, *(str(each.message)[:300] for each in caught))]
    for name in saved.files:
        if name.startswith("output/"):
            apart = np.abs(saved[name] - found[name[7:]])
            # What a model computes for padding does not matter.
            difference = float((apart[saved["real"]] if apart.shape[:2] == saved["real"].shape else apart).max())
            problems += [f"{name[7:]} differ by {difference:.1e}"] if not difference <= TOLERANCE else []
    if ids != json.loads(str(saved["ids"])):
        problems.append(f"ids {ids[1][:8]} of {TEXTS[1]!r}, not {json.loads(str(saved['ids']))[1][:8]}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=Path, required=True, help="folder with exported folders")
    parser.add_argument("--write", action="store_true", help="write the folders instead of reading them")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.folders)
        return 0
    good, lacking, bad = 0, [], 0
    for folder in sorted(each.parent for each in arguments.folders.glob(f"*/{FILE}")):
        try:
            problems = complaints(folder)
        except AttributeError as error:
            if "has no attribute" not in str(error):
                raise
            lacking.append(folder.name)
            continue
        except Exception as error:  # of any kind, as each folder is reported
            problems = [f"{type(error).__name__}: {error}"[:300]]
        good, bad = good + (not problems), bad + bool(problems)
        for problem in problems:
            print(f"{folder.name}: {problem}")
    absent = f", {len(lacking)} of classes that it lacks ({', '.join(lacking)})" if lacking else ""
    print(f"transformers {transformers.__version__}: {good} folders without a complaint, {bad} with one{absent}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
