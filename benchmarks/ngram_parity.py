"""Compares our Kneser-Ney estimates with those of KenLM's lmplz, n-gram by n-gram.

    python -m benchmarks.ngram_parity --kenlm=kenlm/build/bin [--text=FILE --order=5] [--write]

The directory holds the programs lmplz and query, built from https://github.com/kpu/kenlm. Each line of the text is a
sentence of words separated by spaces; without --text, a small text is drawn. The largest differences of the base-10
logarithms of probabilities and back-off weights are printed; the exit status is 1 if one exceeds the tolerance. With
--write, KenLM's values for the small text are stored in tests/golden/ngram_kenlm.json for tests/models/test_ngram.py.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lm.config.ngram import NgramSettings
from lm.models.ngram.arpa import UNKNOWN, Vocabulary, arpa_lines
from lm.models.ngram.counting import count_ngrams
from lm.models.ngram.table import fitted

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "ngram_kenlm.json"
TOLERANCE = 1e-4
SMALL_ORDER = 3
QUERIES = ("w1 w2 w3", "w3 w1 w1 w2 zzz w1 w2", "zzz", "w20 w15 w2 w1")
BEGIN, END, UNK, FIRST = 1, 2, 3, 4  # ids


def drawn() -> list[str]:
    """Returns the sentences of the small text."""
    random = np.random.default_rng(3)
    return [" ".join(f"w{each % 997}" for each in random.zipf(1.7, random.integers(2, 9))) for _ in range(120)]


def our_arpa(lines: list[str], order: int) -> str:
    """Returns the ARPA file of our model of the sentences."""
    words = sorted({word for line in lines for word in line.split()})
    ids = {word: number for number, word in enumerate(words, start=FIRST)}
    documents = [[BEGIN, *(ids[word] for word in line.split()), END] for line in lines]
    starts = np.cumsum([0, *map(len, documents)])
    store = SimpleNamespace(tokens=np.concatenate(documents), starts=starts[:-1], num_tokens=int(starts[-1]))
    possible = np.ones(len(words) + FIRST, bool)
    possible[:END] = False  # padding and BEGIN
    with tempfile.TemporaryDirectory() as folder:
        levels = count_ngrams([store], order, len(possible), BEGIN, Path(folder))
    params, _ = fitted(levels, NgramSettings(order=order), possible)
    return "".join(arpa_lines(params, order, Vocabulary(("", "", "", UNKNOWN, *words), BEGIN, END, UNK)))


def entries(arpa: str) -> dict[str, tuple[float, float]]:
    """Returns (probability, back-off weight) of each n-gram of an ARPA file, as base-10 logarithms."""
    found = {}
    for fields in (line.split("\t") for line in arpa.splitlines()):
        if len(fields) > 1:
            found[fields[1]] = float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """Returns the largest differences of probabilities and of back-off weights. `<s>` is never predicted."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:10]
    both = [(ours[name], theirs[name], name) for name in ours]
    return max(abs(a[0] - b[0]) for a, b, name in both if name != "<s>"), max(abs(a[1] - b[1]) for a, b, _ in both)


def kenlm(folder: Path, lines: list[str], order: int) -> tuple[str, dict[str, list[float]]]:
    """Returns the ARPA file of lmplz, and the base-10 logarithms of all words of QUERIES and of the end after them."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.arpa"
        text = "".join(f"{line}\n" for line in lines).encode()
        command = [folder / "lmplz", "-o", str(order), "-S", "1G", "-T", scratch]
        path.write_bytes(subprocess.run(command, input=text, capture_output=True, check=True).stdout)
        asked = "".join(f"{each}\n" for each in QUERIES).encode()
        answer = subprocess.run([folder / "query", "-v", "word", path], input=asked, capture_output=True, check=True)
        numbers = iter(re.findall(r"=\d+ \d+ (\S+)", answer.stdout.decode()))
        scores = {query: [float(next(numbers)) for _ in range(len(query.split()) + 1)] for query in QUERIES}
        return path.read_text(encoding="utf-8"), scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kenlm", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--order", type=int, default=SMALL_ORDER)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = options.text.read_text(encoding="utf-8").splitlines() if options.text else drawn()
    arpa, scores = kenlm(options.kenlm, lines, options.order)
    theirs = entries(arpa)
    probability, back_off = differences(entries(our_arpa(lines, options.order)), theirs)
    print(
        f"{len(theirs):,} n-grams: log10 probabilities differ by {probability:.1e}, back-off weights by {back_off:.1e}"
    )
    if options.write:
        assert not options.text and options.order == SMALL_ORDER, "only the small text is stored"
        GOLDEN.write_text(json.dumps({"arpa": arpa, "scores": scores}, indent=1) + "\n", encoding="utf-8")
    return int(max(probability, back_off) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
