"""Runs a published model in this code: llama2.c's stories260K.

    python -m benchmarks.stories260k [--data=DIRECTORY]

Reads the weights and the vocabulary of 512 pieces, both in the formats of llama2.c. Prints the story that greedy
decoding generates from the BOS token, and the loss on five TinyStories. The directory must contain `stories260k` and
`tinystories_sample`; the default is $LM_SHARED_DATA or, if that is not set, ../shared/data.
"""

from __future__ import annotations

import argparse
import itertools
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.batch import Batch
from lm.config import ModelConfig, ObjectiveConfig
from lm.data.examples.example import Example
from lm.data.packing.rows import RowLayout
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, row_keys
from lm.models import build_model
from lm.models.protocol import Model
from lm.objectives.losses import LossSums, loss_sums

BEGIN, END, FIRST_BYTE = 1, 2, 3  # ids; piece FIRST_BYTE + b is the byte b
ROOT = Path(__file__).resolve().parents[1]


def data_directory() -> Path:
    return Path(os.environ.get("LM_SHARED_DATA") or ROOT.parent / "shared" / "data")


def load_model(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Returns the config and parameters in a llama2.c checkpoint of version 0.

    The file has seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len), then row-major
    float32 arrays: token embedding; attention norm, wq, wk, wv, wo, MLP norm, w1 (gate), w2 (down) and w3 (up), each
    for all layers; final norm; tables of rotary angles, which we recompute. A matrix is (out, in) in the file and (in,
    out) in our models, with a separate heads dimension. The output matrix is tied to the embedding; a negative
    vocab_size, which announces a separate output matrix, is not supported.
    """
    content = path.read_bytes()
    D, F, N, H, G, V, max_length = struct.unpack("<7i", content[:28])
    assert V > 0, "a separate output matrix is not supported"
    K = D // H
    arrays = np.frombuffer(content, "<f4", offset=28)
    read = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal read
        size = int(np.prod(shape))
        read += size
        return arrays[read - size : read].reshape(shape)

    def matrices(outputs: int, inputs: int, *shape: int) -> np.ndarray:
        return take(N, outputs, inputs).swapaxes(1, 2).reshape(N, *shape)

    embedding = take(V, D)
    attention_norm = take(N, D)
    attention = {
        "query": {"kernel": matrices(D, D, D, H, K)},
        "key": {"kernel": matrices(G * K, D, D, G, K)},
        "value": {"kernel": matrices(G * K, D, D, G, K)},
        "out": {"kernel": matrices(D, D, H, K, D)},
    }
    mlp_norm = take(N, D)
    mlp = {
        "gate": {"kernel": matrices(F, D, D, F)},
        "down": {"kernel": matrices(D, F, F, D)},
        "up": {"kernel": matrices(F, D, D, F)},
    }
    final_norm = take(D)
    assert arrays.size - read == max_length * K, "the two tables of angles remain"
    config = ModelConfig(
        vocab_size=V,
        num_layers=N,
        d_model=D,
        num_heads=H,
        num_kv_heads=G,
        head_dim=K,
        d_ff=F,
        max_length=max_length,
        positions="rotary",
        rotary_interleaved=True,
        norm="rmsnorm",
        norm_epsilon=1e-5,
        activation="swiglu",
        use_bias=False,
        tie_embeddings=True,
    )
    layers = {
        "attention_norm": {"scale": attention_norm},
        "attention": attention,
        "mlp_norm": {"scale": mlp_norm},
        "mlp": mlp,
    }
    params = {"token_embedding": {"embedding": embedding}, "layers": layers, "final_norm": {"scale": final_norm}}
    return config, params


class Pieces:
    """The vocabulary in `tok512.bin`: int32 maximum length, then for each piece float32 score, int32 length, bytes."""

    def __init__(self, path: Path, size: int) -> None:
        content, offset = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        for _ in range(size):
            score, length = struct.unpack_from("<fi", content, offset)
            offset += 8 + length
            self.pieces.append(content[offset - length : offset])
            self.scores.append(score)
        self.ids = {piece: token for token, piece in reversed(list(enumerate(self.pieces)))}

    def encode(self, text: str) -> list[int]:
        """Returns ids for BEGIN, a space and the text; adjacent pieces are merged by best score, then from the left."""
        tokens: list[int] = []
        for character in " " + text if text else "":
            piece = character.encode()
            tokens += [self.ids[piece]] if piece in self.ids else [byte + FIRST_BYTE for byte in piece]
        while True:
            joined = [self.pieces[a] + self.pieces[b] for a, b in itertools.pairwise(tokens)]
            known = [index for index, piece in enumerate(joined) if piece in self.ids]
            if not known:
                return [BEGIN, *tokens]
            best = max(known, key=lambda index: self.scores[self.ids[joined[index]]])
            tokens[best : best + 2] = [self.ids[joined[best]]]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of the ids after BEGIN, without its leading space."""
        text = b"".join(
            bytes([token - FIRST_BYTE]) if FIRST_BYTE <= token < FIRST_BYTE + 256 else self.pieces[token]
            for token in tokens
        )
        return text.removeprefix(b" ").decode()


def greedy_story(model: Model, params: Any, steps: int) -> list[int]:
    """Returns the `steps` tokens that greedy decoding generates after the BOS token."""
    vocabulary = Vocabulary(size=model.vocab_size, bos_id=BEGIN, eos_id=END)
    keys = row_keys(0, np.zeros(1), np.zeros(1))
    return Sampler(model, params, Sampling(temperature=0), vocabulary, steps).generate([[BEGIN]], keys)[0]


def losses(model: Model, params: Any, documents: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
    """Returns (summed negative log-likelihood in nats, number of predicted tokens) for each document."""

    @jax.jit
    def sums_of(params: Any, batch: Batch) -> LossSums:
        return loss_sums(model.apply({"params": params}, batch).logits, batch, ObjectiveConfig())

    found = []
    for document in documents:
        inputs_T, targets_T = np.array(document[:-1], np.int32), np.array(document[1:], np.int32)
        example = Example(inputs_T, targets_T, np.ones(len(targets_T), np.float32))
        batch = RowLayout(model.max_length).lay_out(
            [[example]]
        )  # padded to a single length, so that `sums_of` compiles once
        sums = sums_of(params, batch)
        found.append((float(sums.nll), int(sums.weight)))
    return found


def read_stories(path: Path) -> list[str]:
    stories = path.read_text(encoding="utf-8").split("<|endoftext|>")
    return [story.strip() for story in stories if story.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data_directory())
    data = parser.parse_args().data
    config, params = load_model(data / "stories260k" / "stories260K.bin")
    pieces = Pieces(data / "stories260k" / "tok512.bin", config.vocab_size)
    model = build_model(config)
    print(pieces.decode(greedy_story(model, params, 256)))
    stories = read_stories(data / "tinystories_sample" / "cs336_sample.txt")
    found = losses(model, params, [pieces.encode(story) for story in stories])
    for number, (nll, tokens) in enumerate(found, start=1):
        print(f"story {number}: {nll / tokens:.4f} nats per token over {tokens} tokens")
    nll, tokens = (sum(column) for column in zip(*found, strict=True))
    print(f"all: {nll / tokens:.5f} nats per token over {tokens} tokens")


if __name__ == "__main__":
    main()
