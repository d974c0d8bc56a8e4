"""Baselines for tagging: the most frequent tag of each word, and a linear conditional random field (Lafferty 2001)."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from lm.data.reading.readers import Tagged
from lm.evaluation.baselines.baseline import BaselineSetup, LabelBaseline, NotComputed, limited

MOST_WORDS = 250_000  # of training text, for the random field; bounds the cost
# L-BFGS with an elastic-net penalty; the settings are from the tutorial of sklearn-crfsuite.
SETTINGS = {"c1": 0.1, "c2": 0.1, "max_iterations": 100, "feature.possible_transitions": True}


class MostFrequentTag(LabelBaseline):
    """Gives each known word its most frequent tag in training, and each unknown word the most frequent tag overall.

    Ties go to the first tag in data.labels. Words are compared case-sensitively.
    """

    name = "most frequent tag"

    def outputs(
        self, setup: BaselineSetup, train: Sequence[Tagged], raw: Sequence[Tagged]
    ) -> tuple[list[list[str]], str]:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for example in train:
            for word, tag in zip(example.words, example.tags, strict=True):
                counts[word][tag] += 1
        labels = setup.config.data.labels

        def most_frequent(tags: Counter[str]) -> str:
            return max(labels, key=tags.__getitem__)  # ties go to the first tag

        usual = most_frequent(sum(counts.values(), Counter()))
        tag_of = {word: most_frequent(tags) for word, tags in counts.items()}
        tagged = [[tag_of.get(word, usual) for word in example.words] for example in raw]
        words = [word for example in raw for word in example.words]
        unknown = sum(word not in tag_of for word in words) / max(1, len(words))
        return tagged, f"unknown words ({unknown:.1%}) are tagged {usual!r}"


class ConditionalRandomField(LabelBaseline):
    """A linear-chain CRF from python-crfsuite. Its features come from a window of three words (see `features`)."""

    name = "linear CRF"

    def outputs(
        self, setup: BaselineSetup, train: Sequence[Tagged], raw: Sequence[Tagged]
    ) -> tuple[list[list[str]], str]:
        try:
            import pycrfsuite
        except ImportError:
            raise NotComputed(
                "python-crfsuite is not installed; run `pip install -r requirements-baselines.txt`"
            ) from None

        class Trainer(pycrfsuite.Trainer):  # type: ignore[misc, name-defined]
            def on_iteration(self, log: str, info: dict[str, Any]) -> None:
                if setup.report is not None:
                    setup.report(int(info["num"]), SETTINGS["max_iterations"], "iterations")

        train, note = limited(train, lambda example: len(example.words), MOST_WORDS)
        trainer = Trainer(algorithm="lbfgs", params=SETTINGS, verbose=False)
        for example in train:
            trainer.append(features(example.words), list(example.tags))
        tagger = pycrfsuite.Tagger()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model")
            trainer.train(path)
            with tagger.open(path):
                tagged = [tagger.tag(features(example.words)) for example in raw]
        settings = ", ".join(f"{name}={value}" for name, value in SETTINGS.items() if name != "max_iterations")
        return tagged, "; ".join(filter(None, [f"L-BFGS, {settings}", note]))


def features(words: Sequence[str]) -> list[list[str]]:
    """Returns the features of each word of a sentence, similar to those in the tutorial of sklearn-crfsuite.

    The features are the lower-case word, its last two and three letters and its shape, as well as the lower-case form
    and shape of each of its two neighbours.
    """
    found = []
    for index, word in enumerate(words):
        names = ["bias", *_word("", word), f"[-3:]={word[-3:]}", f"[-2:]={word[-2:]}"]
        names += _word("-1:", words[index - 1]) if index else ["first"]
        names += _word("+1:", words[index + 1]) if index + 1 < len(words) else ["last"]
        found.append(names)
    return found


def _word(place: str, word: str) -> list[str]:
    shape = f"{word.isupper():d}{word.istitle():d}{word.isdigit():d}"
    return [f"{place}lower={word.lower()}", f"{place}shape={shape}"]
