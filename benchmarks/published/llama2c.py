"""Makes a run directory of a llama2.c checkpoint, such as stories260K, and of its vocabulary.

    python -m benchmarks.published.llama2c --checkpoint=stories260K.bin --vocabulary=tok512.bin --workdir=runs/stories

The two files are flat arrays of numbers (see benchmarks/stories260k.py); nothing in them is executed. The vocabulary is
one of SentencePiece's, whose merges follow from its scores, and becomes a tokenizer.json. llama2.c rotates adjacent
pairs of each query and key, and published models rotate their halves, so the pairs are moved to these places. `lm.hf
export` then writes such a run as a folder of a Llama model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from benchmarks.stories260k import BEGIN, END, FIRST_BYTE, Pieces, load_model
from lm.config import Config
from lm.data.tokenizing import published_tokenizer
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.files import new_directory, writing_flag
from lm.huggingface.gguf_tokenizer import CONTROL, PREFIX, UNKNOWN, tokenizer_files
from lm.runs.directory import RunDirectory
from lm.runs.fingerprint import recorded_settings

NORMAL, BYTE = 1, 6  # further types of tokens in GGUF
SPACE = "\u2581"  # in tokenizer.json


def read_vocabulary(path: Path, size: int) -> Tokenizer:
    """Returns the tokenizer. Its ids are those of llama2.c."""
    pieces = Pieces(path, size)
    tokens = [piece.decode().strip("\n").replace(" ", SPACE) for piece in pieces.pieces[:FIRST_BYTE]]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [piece.decode().replace(" ", SPACE) for piece in pieces.pieces[len(tokens) :]]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": pieces.scores,
        "token_type": types + [NORMAL] * (size - len(types)),
        "unknown_token_id": 0,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
    }
    files = tokenizer_files({f"{PREFIX}{name}": value for name, value in metadata.items()}, str(path))
    return published_tokenizer(files.get, str(path), size)


def write_run(checkpoint: Path, vocabulary: Path, workdir: Path) -> None:
    """Writes the run directory. Raises UserError if it exists."""
    if workdir.exists():
        raise UserError(f"--workdir={workdir} already exists; choose a new name.")
    model, params = load_model(checkpoint)
    model = dataclasses.replace(model, rotary_interleaved=False, attention_bias="none")
    for name in ("query", "key"):
        kernel = params["layers"]["attention"][name]["kernel"]  # layers x width x heads x head size
        params["layers"]["attention"][name]["kernel"] = np.concatenate([kernel[..., ::2], kernel[..., 1::2]], axis=-1)
    tokenizer = read_vocabulary(vocabulary, model.vocab_size)
    path = workdir.absolute() / "tokenizer" / tokenizer.file_name
    data = {"sequence_length": model.max_length, "tokenizer": {"kind": tokenizer.kind, "path": str(path)}}
    config = Config.from_dict({"data": data, "model": dataclasses.asdict(model), "eval": {"prompts": ()}})
    with writing_flag("workdir", workdir), new_directory(workdir) as temporary:
        tokenizer.save(temporary / "tokenizer")
        run = RunDirectory(temporary)
        with run.open_checkpoints(config, read_only=False) as checkpoints:
            metadata = {"config": recorded_settings(config), "data": {"tokenizer": tokenizer.fingerprint}}
            checkpoints.save(0, {"params": params}, metadata, {})
        run.write_config(config)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights in the format of llama2.c, version 0")
    parser.add_argument("--vocabulary", type=Path, required=True, help="its tokenizer.bin")
    parser.add_argument("--workdir", type=Path, required=True, help="run directory to create")
    arguments = parser.parse_args()
    write_run(arguments.checkpoint, arguments.vocabulary, arguments.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
