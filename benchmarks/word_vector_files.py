"""Writes the files of word vectors in tests/golden with gensim, with which tests/word_vectors compares our reader.

python -m benchmarks.word_vector_files     needs gensim (requirements-vectors.txt)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
WORDS = ("the", "Zoë", "北京", "@-@", "1,000", "can't")


def vectors() -> np.ndarray:
    """Returns the vectors of WORDS, float32 (6, 5): sines of 0, 1, 2, ..."""
    return np.sin(np.arange(30, dtype=np.float64)).reshape(6, 5).astype(np.float32)


def main() -> None:
    from gensim.models import KeyedVectors

    table = KeyedVectors(5)
    table.add_vectors(list(WORDS), vectors())
    for binary, ending in ((False, "txt"), (True, "bin")):
        table.save_word2vec_format(str(GOLDEN / f"gensim_vectors.{ending}"), binary=binary)


if __name__ == "__main__":
    main()
