"""The tasks on which a model can be trained, one file per task. `lm/tasks/task.py` defines the interface of tasks."""

from __future__ import annotations

from lm.config import Config
from lm.tasks.autoencoding import Autoencoding
from lm.tasks.causal import Causal
from lm.tasks.cbow import Cbow
from lm.tasks.chat import Chat
from lm.tasks.classification import Classification
from lm.tasks.contrastive import Contrastive
from lm.tasks.denoising import InfillingTask, PrefixLmTask, SpanCorruptionTask, Ul2Task
from lm.tasks.glove import Glove
from lm.tasks.masked import Masked
from lm.tasks.multiple_choice import MultipleChoice
from lm.tasks.regression import Regression
from lm.tasks.seq2seq import Seq2Seq
from lm.tasks.skipgram import SkipGram
from lm.tasks.span_qa import SpanQa
from lm.tasks.tagging import Tagging
from lm.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Causal(),
        Seq2Seq(),
        SpanCorruptionTask(),
        Ul2Task(),
        InfillingTask(),
        PrefixLmTask(),
        Autoencoding(),
        Masked(),
        Classification(),
        Regression(),
        Tagging(),
        SpanQa(),
        MultipleChoice(),
        Contrastive(),
        Chat(),
        SkipGram(),
        Cbow(),
        Glove(),
    )
}


def task_of(config: Config) -> Task:
    """Returns the task named by objective.name."""
    return TASKS[config.objective.name]
