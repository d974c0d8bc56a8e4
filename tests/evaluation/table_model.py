"""A model that is a table, and evaluators of packed rows of examples: its predictions are known without any row.

The output at a position depends on one token near it (or on the token itself).
"""

import json
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Output
from lm.config import Config, MeshConfig
from lm.config.experiment import replace_settings
from lm.data.packing.rows import EvalRows
from lm.data.reading.readers import Labelled, Question, Tagged
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.evaluation.evaluator import EvaluationSetup
from lm.evaluation.prediction_evaluator import PredictionEvaluator
from lm.parallel.mesh import make_mesh
from lm.tasks import task_of

BYTES = ByteTokenizer()
LABELS = ("bad", "fair", "good")
TAGS = ("B-PER", "B-LOC", "O")


@dataclass(frozen=True)
class TableModel:
    """Logits are rows of params["table"] (V, C): those of the token `ahead` positions further on."""

    ahead: int

    def apply(self, variables, batch, train):
        assert not train
        return Output(variables["params"]["table"][jnp.roll(batch.tokens, -self.ahead, axis=1)])


def config_of(objective, length=16, pooling="first", best="valid/loss", labels=(), **evaluation):
    texts = objective in ("classification", "regression")
    field = {"label_field": "label"} if objective != "span_qa" else {}
    labels = labels or {"classification": LABELS, "tagging": TAGS}.get(objective, ())
    return Config.from_dict(
        {
            "data": {
                "train": {"s": {"kind": "jsonl", "path": "x", **field}},
                "sequence_length": length,
                "labels": labels,
                **({"context_overlap": 12} if objective == "span_qa" else {}),
            },
            "objective": {"name": objective, **({"label_smoothing": 0.1} if labels else {})},
            "model": {"family": "encoder", **({"pooling": pooling} if texts else {})},
            "eval": {"batch_size": 3, **evaluation},
            "checkpoint": {"best_metric": best},
        }
    )


def metrics_of(objective):
    config = config_of(objective, length=32)
    return task_of(config).metrics(config)


def rows_of(config, raw):
    task = task_of(config)
    store = ExampleStore(
        "s", list(raw), task.tokens.encode(raw, BYTES), "", {"examples": len(raw), "unknown": 0}, {}, []
    )
    return EvalRows(task.example_type(store, config, BYTES, False), task.layout(config))


def evaluation(config, sources, ahead=0, devices=1, max_rows=0, **options):
    sources = sources if isinstance(sources, dict) else {"s": sources}
    rows = {name: rows_of(config, raw) for name, raw in sources.items()}
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    config = replace_settings(config, {"eval.max_rows": max_rows})
    setup = EvaluationSetup(config, TableModel(ahead), mesh, None, rows, {}, in_training=True, **options)
    return PredictionEvaluator(task_of(config), setup)


def random_table(labels, seed=0):
    return np.random.default_rng(seed).normal(0.0, 2.0, (BYTES.vocab_size, labels)).astype(np.float32)


def softmax(scores):
    powers = [math.exp(float(score)) for score in scores]
    return [power / sum(powers) for power in powers]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(number, pair=False, seed=1):
    draw = np.random.default_rng(seed)

    def text():
        return "".join(draw.choice(list("abcdefgh"), draw.integers(1, 12)))

    return [Labelled(text(), text() if pair else None, str(draw.choice(LABELS))) for _ in range(number)]


def sentences(number, longest=12, seed=2):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        words = tuple("".join(draw.choice(list("stuvwxyz"), draw.integers(0, 6))) for _ in range(longest))
        words = ("s", *words[: draw.integers(0, longest)])
        found.append(Tagged(words, tuple(map(str, draw.choice(TAGS, len(words))))))
    return found


def questions():
    """In each context, [ and ] stand around what the table below takes for the answer; in two nothing stands."""
    draw = np.random.default_rng(4)
    found = []
    for number in range(12):
        before, after = ("".join(draw.choice(list("ab é中"), draw.integers(0, 40))) for _ in range(2))
        context = before + f"[{number} é]" + after if number % 6 else before + after
        answer = context[len(before) : len(before) + 5]
        right = (("nothing", 0),) if number % 4 == 3 else ((answer, len(before)),) if number % 6 else ()
        found.append(Question(f"q{number}", f"t{number}", "who?", context, right))
    return found


def answer_table():
    """Starts at [ and ends at ], wherever it stands; no answer (at bos) scores more than any other span."""
    table = np.full((BYTES.vocab_size, 2), -3.0, np.float32)
    table[BYTES.encode("[")[0], 0] = table[BYTES.encode("]")[0], 1] = 9.0
    table[BYTES.bos_id] = 1.0
    return table
