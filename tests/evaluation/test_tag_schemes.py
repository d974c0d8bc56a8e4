"""The scheme of tags is inferred from their sequences: each scheme against a generator of entities."""

import random

import pytest

from lm.config import EvalConfig
from lm.evaluation.tagging import (
    ALIASES,
    NO_SCHEME,
    SCHEMES,
    count_broken,
    entity_counts,
    infer_schemes,
    scheme_signature,
)

TYPES = ("LOC", "PER", "")


def prefixes(scheme, size, before, after):
    """Returns the prefixes of an entity of `size` words, as the definitions of the schemes say it.

    `before` and `after` are whether an entity of the same type ends right before it or begins right after it.
    """
    match scheme:
        case "IOB2":
            return "B" + "I" * (size - 1)
        case "IOB1":
            return ("B" if before else "I") + "I" * (size - 1)
        case "IOE2":
            return "I" * (size - 1) + "E"
        case "IOE1":
            return "I" * (size - 1) + ("E" if after else "I")
    begin, inside, end, single = {"IOBES": "BIES", "BMES": "BMES", "BILOU": "BILU"}[scheme]
    return single if size == 1 else begin + inside * (size - 2) + end


def spell(scheme, spans, size):
    """Returns the tags of a sentence with the given entities (start, end, type), which do not overlap."""
    tags = ["O"] * size
    for start, end, kind in spans:
        before = any(other[1:] == (start, kind) for other in spans)
        after = any(other[::2] == (end, kind) for other in spans)
        for word, prefix in zip(range(start, end), prefixes(scheme, end - start, before, after), strict=True):
            tags[word] = f"{prefix}-{kind}" if kind else prefix
    return tags


def sentences(seed, count, kinds):
    """Yields random entities, often adjacent and of the same type, with the number of words."""
    draw = random.Random(seed)
    for _ in range(count):
        spans, word = [], draw.randrange(3)
        for _ in range(draw.randrange(5)):
            end = word + draw.randint(1, 4)
            spans.append((word, end, draw.choice(kinds)))
            word = end + draw.choice((0, 0, 0, 1, 2))
        yield spans, word + draw.randrange(2)


def spelled(scheme, seed=0, count=200, kinds=TYPES[:2]):
    found = list(sentences(seed, count, kinds))
    return [spans for spans, _ in found], [spell(scheme, *each) for each in found]


def labels_of(tagged):
    return {tag for tags in tagged for tag in tags}


def test_every_scheme_can_be_named_in_the_config():
    choices = EvalConfig.__dataclass_fields__["tag_scheme"].metadata["choices"]
    assert choices[:2] == ("auto", NO_SCHEME) and set(choices[2:]) == SCHEMES.keys() | ALIASES.keys()
    assert set(ALIASES.values()) <= SCHEMES.keys()


@pytest.mark.parametrize("kinds", [TYPES[:2], TYPES[2:]], ids=["typed", "untyped"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gold_tags_spell_every_entity_of_the_inferred_scheme(scheme, kinds):
    for seed in range(5):
        spans, tagged = spelled(scheme, seed, kinds=kinds)
        assert infer_schemes(tagged, labels_of(tagged)) == (scheme,)
        assert count_broken(tagged, [scheme])[scheme] == 0
        for wanted, tags in zip(spans, tagged, strict=True):
            found = {(start, end, kind.replace("_", "")) for start, end, kind in SCHEMES[scheme].entities(tags)}
            assert found == set(wanted), tags
        total = sum(map(len, spans))
        assert entity_counts(tagged, tagged, scheme).sum(axis=0).tolist() == [total] * 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_few_wrong_tags_do_not_change_the_scheme(scheme):
    _, tagged = spelled(scheme)
    draw, labels = random.Random(1), sorted(labels_of(tagged))
    for tags in tagged:
        tags[:] = [draw.choice(labels) if draw.random() < 0.03 else tag for tag in tags]
    assert infer_schemes(tagged, labels) == (scheme,)
    broken = count_broken(tagged, [scheme])[scheme]
    assert broken > 0 and f"{broken} of " in scheme_signature(tagged, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tags_read_by_their_own_scheme_have_no_remark_and_by_another_one_they_do(scheme):
    _, tagged = spelled(scheme)
    assert scheme_signature(tagged, scheme) == scheme
    others = [name for name, each in SCHEMES.items() if name != scheme and each.prefixes == SCHEMES[scheme].prefixes]
    for other in others:
        remark = scheme_signature(tagged, other)
        assert "violate the scheme, so entities may be lost" in remark and f"{scheme} fits better (0 " in remark


@pytest.mark.parametrize(
    ("tagged", "schemes"),
    [
        (["B-x O B-y"], ("IOB2",)),
        (["I-x I-y O"], ("IOB1",)),  # IOE1 reads them alike
        (["I-x B-x I-x", "O I-x"], ("IOB1",)),
        (["I-x E-x I-x", "O I-x"], ("IOE1",)),
        (["E-x E-y O"], ("IOE2",)),
        (["S-x O"], ("IOBES",)),  # BMES reads them alike
        (["B-x E-x S-x"], ("IOBES",)),
        (["B M E S", "S B E"], ("BMES",)),
        (["U-x O B-x L-x"], ("BILOU",)),
        (["O O"], ("IOB2",)),
        (["B-x O I-x"], ("IOB2", "IOB1")),  # one tag is wrong by either
        (["B-a M-a L-a"], (NO_SCHEME,)),
        (["NOUN VERB O"], (NO_SCHEME,)),
        (["MISC O"], (NO_SCHEME,)),
        (["Bx O"], (NO_SCHEME,)),
    ],
)
def test_small_and_ambiguous_data(tagged, schemes):
    tagged = [each.split() for each in tagged]
    assert infer_schemes(tagged, labels_of(tagged)) == schemes


def test_doubts_are_said():
    ambiguous = ["B-x O I-x".split()]
    assert scheme_signature(ambiguous, "IOB2") == (
        "IOB2; 1 of 3 tags violate the scheme, so entities may be lost; IOB2 and IOB1 fit equally well; "
        "choose one with eval.tag_scheme"
    )
    assert scheme_signature([["I-x", "O"]], "IOB1").endswith("adjacent entities of the same type count as one")
    assert scheme_signature([["NOUN"]], NO_SCHEME).endswith("some tags are not O and have no prefix such as B-")
    assert scheme_signature([["B-x"]], NO_SCHEME) == "none, so no entities are counted"
