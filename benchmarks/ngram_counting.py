"""Measures the time and the memory that counting and smoothing the n-grams of a large text take.

    python -m benchmarks.ngram_counting --text=wikitext2/train.txt.gz --tokens=10000000 [--name=ngram_counting]

The text is repeated until it has this many words. In each repetition after the first, a share of the words (--noise) is
drawn anew with the frequencies of the text, so that the number of distinct n-grams grows as in real text. Times are
given as elapsed and as processor time, because the computation uses one core. With --name, a record is written to
results/NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, surroundings, write_record
from lm.config.ngram import NgramSettings
from lm.models.ngram.counting import count_ngrams
from lm.models.ngram.table import fitted

BEGIN, END, FIRST = 1, 2, 4  # ids


def numbered_words(path: Path) -> tuple[np.ndarray, int]:
    """Returns the tokens of all lines, each between BEGIN and END, and the size of the vocabulary."""
    ids: dict[str, int] = {}
    tokens: list[int] = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for words in filter(None, map(str.split, file)):
            tokens += [BEGIN, *(ids.setdefault(word, len(ids) + FIRST) for word in words), END]
    return np.array(tokens, np.uint32), len(ids) + FIRST


def repeated(tokens: np.ndarray, total: int, noise: float, path: Path) -> Any:
    """Writes the repeated text to a file, and returns it as a token store."""
    random, size = np.random.default_rng(0), 0
    words = tokens[tokens >= FIRST]
    with path.open("wb") as file:
        while size < total:
            copy = tokens[: total - size].copy()
            if size:
                changed = (random.random(len(copy)) < noise) & (copy >= FIRST)
                copy[changed] = random.choice(words, int(changed.sum()))
            file.write(copy.tobytes())
            size += len(copy)
    mapped = np.memmap(path, np.uint32, "r")
    return SimpleNamespace(tokens=mapped, starts=np.nonzero(mapped == BEGIN)[0], num_tokens=len(mapped))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    tokens, vocab_size = numbered_words(options.text)
    measured: dict[str, Any] = {"tokens": options.tokens, "order": options.order, "noise": options.noise}
    with tempfile.TemporaryDirectory() as folder:
        store = repeated(tokens, options.tokens, options.noise, Path(folder) / "tokens.bin")
        possible = np.arange(vocab_size) >= END
        began, cpu = time.monotonic(), time.process_time()
        levels = count_ngrams([store], options.order, vocab_size, BEGIN, Path(folder))
        measured |= {"counting_seconds": time.monotonic() - began, "counting_cpu_seconds": time.process_time() - cpu}
        measured["ngrams"] = [len(level.words) for level in levels]
        began, cpu = time.monotonic(), time.process_time()
        # The counts of a repeated text do not yield discounts.
        fitted(levels, NgramSettings(order=options.order, fallback_discounts=(0.5, 1.0, 1.5)), possible)
        measured |= {"smoothing_seconds": time.monotonic() - began, "smoothing_cpu_seconds": time.process_time() - cpu}
    measured["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, value in measured.items():
        print(f"{name}: {value:,.2f}" if isinstance(value, float) else f"{name}: {value}")
    if options.name:
        write_record(RESULTS / f"{options.name}.json", {"name": options.name, **measured, **surroundings()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
