"""Evaluates models that carry their state from window to window (data.stateful)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lm.evaluation.evaluator import choose
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.parallel.mesh import cache_shardings, on_mesh


class StatefulEvaluator(TokenEvaluator):
    """Scores the stretches of a text in parallel, each from its first window to its last.

    The number of stretches, and hence the result, does not depend on the mesh. During training, only the first windows
    of each stretch are scored if eval.max_rows is set.
    """

    def _choose(self, sizes: Mapping[str, int], limit: int) -> dict[str, np.ndarray]:
        stretches = self._config.eval.batch_size
        counts = {source: len(ids) for source, ids in choose(sizes, limit).items()}
        return {source: np.arange(-(-count // stretches) * stretches) for source, count in counts.items()}

    def _rows_per_batch(self) -> int:
        return self._config.eval.batch_size

    def _first_cache(self) -> Any:
        def empty() -> Any:
            return self._model.empty_cache(self.batch_size, self._config.data.sequence_length)

        shardings = cache_shardings(jax.eval_shape(empty), self._mesh)
        with on_mesh(self._mesh):
            return jax.jit(empty, out_shardings=shardings)()
