"""Conventions of data sets (tag schemes, rules for answers) follow from all of the data and are reported."""

import jax
import numpy as np
import pytest

from lm.config import MeshConfig
from lm.config.experiment import replace_settings
from lm.data.reading.readers import Question, Tagged
from lm.data.storing.example_store import ExampleStore
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationSetup
from lm.parallel.mesh import make_mesh
from lm.tasks import task_of
from tests.evaluation.table_model import BYTES, TableModel, answer_table, config_of, rows_of

LABELS = ("B-PER", "I-PER", "O")
WORDS = {"O": "o", "I-PER": "i", "B-PER": "b"}
IOB1 = ["O I-PER I-PER O", "I-PER B-PER I-PER O I-PER", "O O", "I-PER O"]
IOB2 = ["O B-PER I-PER O", "B-PER B-PER I-PER O B-PER", "O O", "B-PER O"]


def evaluator_of(config, sources, max_rows=0):
    """Returns the task's own evaluator of a split with the given raw examples by data source."""
    config = replace_settings(config, {"eval.max_rows": max_rows})
    rows = {name: rows_of(config, raw) for name, raw in sources.items()}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    setup = EvaluationSetup(config, TableModel(0), mesh, None, rows, {}, in_training=True)
    (found,) = task_of(config).evaluators(setup)
    return found


# --- tags -----------------------------------------------------------------------------------------------------


def tagged(sentences):
    """Returns sentences whose words show their tags."""
    return [Tagged(tuple(WORDS[tag] for tag in each.split()), tuple(each.split())) for each in sentences]


def scored(sources, **settings):
    """Returns the metrics and the signature of a model that predicts every tag right."""
    table = np.zeros((BYTES.vocab_size, len(LABELS)), np.float32)
    for tag, word in WORDS.items():
        table[BYTES.encode(word)[0], LABELS.index(tag)] = 1.0
    each = evaluator_of(config_of("tagging", labels=LABELS, **settings), sources)
    return each.evaluate({"table": table}, 0), each.signatures["tag scheme"]


@pytest.mark.parametrize(("sentences", "scheme"), [(IOB1, "IOB1"), (IOB2, "IOB2")])
def test_right_predictions_have_every_entity_by_the_inferred_scheme(sentences, scheme):
    found, signature = scored({"s": tagged(sentences)})
    assert found["valid/entity_f1"] == found["valid/token_accuracy"] == 1 and signature == scheme
    found, signature = scored({"s": tagged(sentences)}, tag_scheme=scheme)
    assert found["valid/entity_f1"] == 1 and signature == scheme
    found, signature = scored({"s": tagged(sentences)}, tag_scheme="none")
    assert "valid/entity_f1" not in found and signature == "none, so no entities are counted"


def test_scheme_that_is_not_that_of_the_data_is_reported():
    _, signature = scored({"s": tagged(IOB1)}, tag_scheme="IOB2")
    assert signature == (
        "IOB2; 4 of 13 tags violate the scheme, so entities may be lost; IOB1 fits better (0 violate it); if it "
        "is the right scheme, set eval.tag_scheme to it"
    )


def test_all_data_sources_of_a_split_determine_the_scheme():
    few = tagged(["O", "B-PER O"])
    found, signature = scored({"a": few, "b": tagged(IOB1 * 3)})
    assert signature.startswith("IOB1; 1 of 42 tags violate the scheme") and found["valid/b/entity_f1"] == 1
    assert found["valid/a/entity_recall"] == 0, "its tag spells no entity by the scheme of most of the data"


def test_all_splits_determine_the_scheme_of_a_run():
    config = config_of("tagging", labels=LABELS)

    def resolved(config, **splits):
        stores = {name: {"s": ExampleStore("s", tagged(each), None, "", {}, {}, [])} for name, each in splits.items()}
        return task_of(config).resolve_splits(config, stores).eval.tag_scheme

    assert resolved(config, train=IOB1, valid=["O"]) == "IOB1"
    assert resolved(config, train=["B-PER O I-PER"], valid=["O"]) == "IOB2", "as many tags violate IOB1"
    assert resolved(config, train=["B-PER O I-PER"], valid=IOB1) == "IOB1"
    named = {name: replace_settings(config, {"eval.tag_scheme": name}) for name in ("IOB2", "BIO", "BIOES", "IOE2")}
    assert resolved(named["IOB2"], train=IOB1) == resolved(named["BIO"], train=IOB1) == "IOB2"
    assert resolved(named["BIOES"], train=IOB1) == "IOBES"
    with pytest.raises(UserError, match=r"eval\.tag_scheme: IOE2 has no tag 'B-PER', .*use 'auto', 'IOB2' or 'none'"):
        resolved(named["IOE2"], train=IOB1)


# --- answers --------------------------------------------------------------------------------------------------


def question(number, text="who?", context="x [1 é] y", answers=(("[1 é]", 2),)):
    return Question(f"q{number}", "", text, context, answers)


def rules_of(raw, max_rows=0, **settings):
    each = evaluator_of(config_of("span_qa", length=40, **settings), {"s": raw}, max_rows)
    found = each.evaluate({"table": answer_table()}, 0)
    return found, each.signatures["answers"]


@pytest.mark.parametrize("position", [0, 5, 11])
def test_one_foreign_question_changes_no_rules(position):
    raw = [question(number) for number in range(12)]
    raw[position] = question(position, "谁 is that?")
    found, signature = rules_of(raw)
    assert signature == "rules:squad|ignored:case, ASCII punctuation, a, an, the|f1:words"
    assert found["valid/exact_match"] == 100


def test_rules_do_not_depend_on_the_number_of_rows():
    """The only Chinese context and the only question without an answer are not among the scored ones."""
    raw = [question(number) for number in range(24)]
    raw[-1] = question(23, context="x y", answers=())
    (_, whole), (found, part) = rules_of(raw), rules_of(raw, max_rows=2)
    assert 0 < found["valid/examples"] < 24 and part == whole
    assert whole.endswith("|some questions without an answer (SQuAD 2.0)")
    mixed = [question(number, context="甲乙丙丁戊己庚辛[1 é]" * 2, answers=(("[1 é]", 8),)) for number in range(24)]
    mixed[0] = question(0)
    assert (
        rules_of(mixed)[1]
        == rules_of(mixed, max_rows=2)[1]
        == ("rules:cmrc|ignored:case, punctuation|f1:longest run of characters")
    )


def test_setting_names_the_rules():
    raw = [question(number) for number in range(3)]
    for rules in ("squad", "cmrc", "characters"):
        assert rules_of(raw, answer_rules=rules)[1].startswith(f"rules:{rules}|")


def test_rules_of_each_data_source_are_reported():
    japanese = question(0, context="これは[とう]です", answers=(("[とう]", 3),))
    each = evaluator_of(config_of("span_qa", length=40), {"a": [question(1)] * 2, "b": [japanese]})
    found = each.evaluate({"table": answer_table()}, 0)
    first, second = each.signatures["answers"].split("; ")
    assert first.startswith("rules:squad|") and first.endswith("(2 questions)")
    assert second.startswith("rules:characters|") and second.endswith("(1 questions)")
    assert found["valid/b/exact_match"] == 100
