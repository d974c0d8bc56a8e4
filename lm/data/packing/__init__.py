"""From examples to rows and batches by number."""

from typing import TypeAlias

from lm.data.packing.packed import PackedEvalRows, PackedTrainRows, RowLayout
from lm.data.packing.windows import WindowEvalRows, WindowTrainRows

__all__ = [
    "EvalRows",
    "PackedEvalRows",
    "PackedTrainRows",
    "RowLayout",
    "TrainRows",
    "WindowEvalRows",
    "WindowTrainRows",
]

TrainRows: TypeAlias = WindowTrainRows | PackedTrainRows
EvalRows: TypeAlias = WindowEvalRows | PackedEvalRows
