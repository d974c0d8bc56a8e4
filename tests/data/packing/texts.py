"""Small texts whose rows are windows, shared by the tests in this folder."""

from pathlib import Path

import jax
import numpy as np

from lm.config import Config, defaults, source

LENGTH, BATCH = 16, 8


def make_config(folder, **sizes):
    """Returns a config with a data source for each `name=(words, weight)`, whose text is written to `folder`."""
    values = defaults()
    for name, (size, weight) in sizes.items():
        text = "".join(f"<{name}{i}>" for i in range(size))
        (Path(folder) / f"{name}.txt").write_text(text)
        values.data.train[name] = source(path=str(Path(folder) / f"{name}.txt"), weight=weight)
    values.data.tokenizer.kind = "bytes"
    values.data.holdout = "tail"
    values.data.sequence_length = LENGTH
    values.data.cache_dir = str(Path(folder) / "cache")
    values.train.batch_size = BATCH
    return Config.from_dict(values.to_dict())


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
