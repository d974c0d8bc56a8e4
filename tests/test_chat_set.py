"""The chat set of benchmarks/published/chat_set.py: true commands, and test questions that are worded in other ways."""

import importlib.util
import re
from pathlib import Path

from benchmarks.published.chat_set import FACTS, held_out_set, train_set

ROOT = Path(__file__).resolve().parents[1]


def asked(conversations):
    return {message["content"] for messages in conversations for message in messages if message["role"] == "user"}


def test_commands_exist():
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in (fact.command.split() for fact in FACTS):
        if words[0] == "make":
            assert any(words[1] in target.split() for target in targets), words
        elif words[1] == "-m":
            assert importlib.util.find_spec(words[2]), words
        else:
            assert (ROOT / words[1]).is_file(), words
    assert len({fact.command for fact in FACTS}) == len(FACTS) == 32


def test_no_question_of_the_test_set_is_learnt():
    learnt, tested = asked(train_set()), asked(held_out_set())
    assert len(learnt) == 225 and len(tested) == 2 * 32 + 2 and not learnt & tested
    of_training, held_out = (
        {task for fact in FACTS for task in fact.tasks[start:end]} for start, end in ((0, 2), (2, 3))
    )
    assert len(of_training) == 64 and len(held_out) == 32 and not of_training & held_out
    for command in (fact.command for fact in FACTS):
        assert sum(command in str(messages) for messages in train_set()) >= 11
