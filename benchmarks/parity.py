"""Compares the logits of our models with those of the published models in Hugging Face's `transformers`.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.parity [--write]

For each architecture, a tiny model (a preset with smaller sizes) gets random weights, including those of norms and
biases, and reads rows of different lengths. The largest difference between the logits, computed in float32 on the CPU,
is printed; the exit status is 1 if the difference exceeds the tolerance. T5's distance buckets must be equal.

With --write, the logits of the published code at some positions of each row are stored in tests/golden/parity_*.json
for tests/models/test_published_parity.py, which needs neither PyTorch nor `transformers`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lm.batch import Batch, Source
from lm.config import ModelConfig
from lm.models import build_model
from lm.models.heads import Head, MaskedTokens, NextToken
from lm.models.presets import preset
from lm.models.transformer.positions import distance_buckets

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
TOLERANCE = 1e-4  # largest allowed difference; most logits are between -5 and 5
SEED = 3
SIZES = {"vocab_size": 40, "num_layers": 2, "d_model": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "d_ff": 48}
BOTH = {**SIZES, "num_encoder_layers": 2}
NARROW = {**BOTH, "d_model": 24}  # in T5, the sizes of the heads need not add up to the width
ENCODER = {**SIZES, "max_length": 100}
LENGTHS = {"source": (5, 23, 41, 70), "target": (40, 3, 26, 11), "text": (100, 7, 33, 66)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A published architecture and our preset for it."""

    kind: str  # a kind in benchmarks.published_models
    preset: str
    changes: dict[str, Any]  # settings to change, mostly to smaller sizes
    head: Head = NextToken()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(**{**preset(self.preset), **self.changes}, attention="xla", scan_layers=False)

    @property
    def next_sentence(self) -> bool:
        return isinstance(self.head, MaskedTokens) and self.head.next_sentence


CASES = {
    "t5": Case("t5", "t5_small", NARROW),
    "t5_1_1": Case("t5", "t5_1_1_small", NARROW),
    "bart": Case("bart", "bart_base", {**BOTH, "max_length": 80}),
    "marian": Case("marian", "transformer_base", {**BOTH, "max_length": 80}),
    "gpt2": Case("gpt2", "gpt2_124m", {**SIZES, "max_length": 100}),
    "llama": Case("llama", "llama3_8b", {**SIZES, "num_kv_heads": 2, "max_length": 100}),
    "bert": Case("bert", "bert_base", ENCODER, MaskedTokens()),
    "bert_pairs": Case("bert", "bert_base", ENCODER, MaskedTokens(next_sentence=True)),
    "roberta": Case("roberta", "roberta_base", ENCODER, MaskedTokens()),
    # Layers 0 and 3 attend to all tokens; layers 1 and 2 attend to eight tokens on either side.
    "modernbert": Case("modernbert", "modernbert_base", {**ENCODER, "num_layers": 4, "window": 9}, MaskedTokens()),
}
# (bidirectional, num_buckets, max_distance): T5's two settings and others, some with integer bucket boundaries.
BUCKETS = [
    (both, *sizes)
    for both in (False, True)
    for sizes in ((32, 128), (16, 64), (64, 256), (8, 20), (48, 100), (30, 127), (32, 1024))
]
DISTANCES = np.arange(-300, 301)  # key position minus query position


def drawn_weights(case: Case) -> dict[str, Any]:
    """Returns random parameters for the unrolled model; they are the same on every machine and NumPy version.

    Each array has its own random stream: NumPy's legacy RandomState, whose normal variates never change, seeded with
    the sum of SEED and the CRC-32 of the path (such as `decoder/layer_0/mlp/up/kernel`). Standard deviations: 1.5 /
    sqrt(inputs) for linear layers, so that attention is neither uniform nor on a single key (less for queries if scores
    are not scaled); 1 for embeddings, or 0.3 if they are scaled or tied to the output layer; 0.3 for biases and for
    scales of norms, whose mean is 1.
    """
    config, model = case.config, build_model(case.config, case.head)
    shapes = jax.eval_shape(lambda: nn.unbox(model.initial_params(jax.random.key(0))))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [part.key for part in path]
        stream = np.random.RandomState((SEED + zlib.crc32("/".join(names).encode())) % 2**32)
        normal = stream.standard_normal(leaf.shape)
        if names[-1] == "scale":
            normal = 1 + 0.3 * normal
        elif names[-1] == "bias":
            normal = 0.3 * normal
        elif names[-1] == "kernel":
            inputs = np.prod(leaf.shape[:2] if names[-2] == "out" else leaf.shape[:1])
            normal *= 1.5 / np.sqrt(inputs)
            if names[-2] == "query" and config.attention_scale == 1.0:
                normal /= np.sqrt(config.head_dim)
        elif names[-2] == "token_embedding" and config.tie_embeddings and not config.scale_logits:
            normal *= 0.3
        return normal.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def drawn_rows(lengths: tuple[int, ...], seed: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random tokens and their segments, both int32 (rows, longest) and 0 after the end of each row."""
    tokens_BL = np.random.RandomState(seed).randint(4, vocab_size, (len(lengths), max(lengths)))
    segments_BL = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    return (tokens_BL * segments_BL).astype(np.int32), segments_BL.astype(np.int32)


def drawn_batch(config: ModelConfig) -> Batch:
    """Returns one row per length in LENGTHS, on both sides of an encoder-decoder; a third of each row has type 0."""

    def positions(segments_BL: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(segments_BL.shape[1], dtype=np.int32), segments_BL.shape) * segments_BL

    source = None
    pairs = config.family == "encoder_decoder"
    tokens_BL, segments_BL = drawn_rows(LENGTHS["target" if pairs else "text"], SEED, config.vocab_size)
    if pairs:
        source_BS, source_segments_BS = drawn_rows(LENGTHS["source"], SEED + 1, config.vocab_size)
        source = Source(tokens=source_BS, positions=positions(source_segments_BS), segments=source_segments_BS)
    types_BL = None
    if config.token_types:
        types_BL = (3 * positions(segments_BL) >= segments_BL.sum(axis=1, keepdims=True)) * segments_BL
    return Batch(
        tokens=tokens_BL,
        targets=tokens_BL,
        weights=segments_BL.astype(np.float32),
        positions=positions(segments_BL),
        segments=segments_BL,
        source=source,
        types=types_BL,
    )


def our_logits(case: Case) -> np.ndarray:
    """Returns logits for the random batch and weights: float32 (B, L, V), or (B, 1, 2) for next sentences."""
    model = build_model(case.config, case.head, platform="cpu")
    output = jax.jit(lambda params, batch: model.apply({"params": params}, batch))(
        drawn_weights(case), drawn_batch(case.config)
    )
    return np.asarray(output.next_sentence_logits[:, :1] if case.next_sentence else output.logits)


def our_buckets(distances: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the buckets that `lm.models.transformer.positions.RelativeBias` looks up."""
    one_sided = num_buckets // 2 if bidirectional else num_buckets
    behind = np.abs(distances) if bidirectional else np.maximum(-distances, 0)
    buckets = distance_buckets(one_sided, max_distance)[np.minimum(behind, max_distance)]
    return buckets + one_sided * (distances > 0) * bidirectional


def golden_places(case: Case) -> list[list[int]]:
    """Returns [row, position] of each row's first, middle and last token, or only its first for next sentences."""
    ends = [int(length) for length in drawn_batch(case.config).segments.sum(axis=1)]
    count = 1 if case.next_sentence else 3
    return [[row, index] for row, end in enumerate(ends) for index in (0, end // 2, end - 1)[:count]]


def golden_path(name: str) -> Path:
    return GOLDEN / f"parity_{name}.json"


def compare(name: str, write: bool) -> float:
    """Returns the largest difference between the logits of a case; writes its golden file if `write` is set."""
    from benchmarks.huggingface_peer import frameworks
    from benchmarks.published_models import build_published, published_logits

    case = CASES[name]
    batch = drawn_batch(case.config)
    peer = build_published(case.kind, case.config, drawn_weights(case))
    theirs_BLV = published_logits(peer, batch)
    real_BL = batch.segments[:, : theirs_BLV.shape[1]] > 0
    theirs, ours = theirs_BLV[real_BL], our_logits(case)[real_BL]
    difference = float(np.abs(theirs - ours).max())
    deviation, largest = theirs.std(), np.abs(theirs).max()
    print(f"{name:10} differs by at most {difference:.1e}; logits: std {deviation:.2f}, largest {largest:.1f}")
    if write:
        torch, transformers = frameworks()
        places = golden_places(case)
        logits = [[round(float(logit), 6) for logit in theirs_BLV[row, index]] for row, index in places]
        made_by = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
        store(name, {"made_by": made_by, "model": type(peer).__name__, "places": places, "logits": logits})
    return difference


def compare_buckets(write: bool) -> bool:
    """Returns whether all buckets are equal; writes the golden file of buckets if `write` is set."""
    from benchmarks.published_models import published_buckets

    found = {setting: published_buckets(DISTANCES, *setting) for setting in BUCKETS}
    same = [np.array_equal(buckets, our_buckets(DISTANCES, *setting)) for setting, buckets in found.items()]
    print(f"buckets    equal in {sum(same)} of {len(same)} settings, distances {DISTANCES[0]} to {DISTANCES[-1]}")
    if write:
        # Each bucket is stored as [first distance, bucket].
        runs = {
            setting: [
                [int(DISTANCES[i]), int(buckets[i])]
                for i in range(len(buckets))
                if i == 0 or buckets[i] != buckets[i - 1]
            ]
            for setting, buckets in found.items()
        }
        store("buckets", {"buckets": [{"setting": setting, "begins": begins} for setting, begins in runs.items()]})
    return all(same)


def store(name: str, content: dict[str, Any]) -> None:
    """Writes a golden file with one line per list element, so that diffs are readable."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    golden_path(name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the logits of the published code in tests/golden")
    write = parser.parse_args().write
    jax.config.update("jax_default_matmul_precision", "highest")
    differences = [compare(name, write) for name in CASES]
    return int(not compare_buckets(write) or max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
