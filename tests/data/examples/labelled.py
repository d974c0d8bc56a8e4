"""Stores, configs and checks of labelled examples, shared by the tests in this folder."""

import pickle

import numpy as np

from lm.config import Config
from lm.data.examples.answers import AnswerTokens
from lm.data.examples.labelled import TextTokens, WordTokens
from lm.data.reading.readers import Labelled, Question, Tagged
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.bytes import ByteTokenizer

BYTES = ByteTokenizer()
BOS, EOS = BYTES.bos_id, BYTES.eos_id


def make_store(raw, tokenizer=BYTES, counts=None):
    """Returns a store of raw examples; `counts` are the label counts."""
    kinds = {Labelled: TextTokens, Tagged: WordTokens, Question: AnswerTokens}
    tokens = kinds[type(raw[0])].encode(raw, tokenizer)
    return ExampleStore("s", list(raw), tokens, "", {"documents": len(raw), "unknown": 0}, counts or {}, [])


def make_config(objective, length=16, labels=("a", "b"), pooling="first", overlap=3, **settings_of_objective):
    texts = objective in ("classification", "regression")
    field = {"label_field": "label"} if objective != "span_qa" else {}
    return Config.from_dict(
        {
            "data": {
                "train": {"s": {"kind": "jsonl", "path": "x", **field}},
                "sequence_length": length,
                "labels": labels,
                "context_overlap": overlap if objective == "span_qa" else 64,
            },
            "objective": {"name": objective, **settings_of_objective},
            "model": {"family": "encoder", "pooling": pooling if texts else ""},
        }
    )


def check(examples, length):
    """Checks that sizes are right, that no example exceeds a row, and that a pickled copy makes the same examples."""
    copied, (sizes,) = pickle.loads(pickle.dumps(examples)), examples.sizes(0)
    assert copied.store.raw == [] and len(copied) == len(examples) == len(sizes) == len(examples.example_of)
    for index in range(len(examples)):
        made, again = examples.make(0, index), copied.make(1, index)
        assert len(made.tokens_T) == sizes[index] <= length
        for name in ("tokens_T", "targets_T", "weights_T", "types_T"):
            np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
        assert made.tokens_T[0] == BOS and made.tokens_T[-1] == EOS
        types = (made.tokens_T == EOS).cumsum() - (made.tokens_T == EOS)
        np.testing.assert_array_equal(made.types_T, types)


def weighted(example):
    indices = np.flatnonzero(example.weights_T)
    return [(int(i), example.targets_T[i].item(), example.weights_T[i].item()) for i in indices]
