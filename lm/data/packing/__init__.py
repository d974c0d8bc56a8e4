"""From examples to rows and batches by number."""

from typing import TypeAlias

from lm.data.packing.packed import PackedEvalRows, PackedTrainRows
from lm.data.packing.windows import WindowEvalRows, WindowTrainRows

TrainRows: TypeAlias = WindowTrainRows | PackedTrainRows
EvalRows: TypeAlias = WindowEvalRows | PackedEvalRows
