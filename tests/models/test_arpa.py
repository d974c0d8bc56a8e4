"""ARPA files: what is written is read again, and each kind of damage leads to one clear line."""

import json

import numpy as np
import pytest

from benchmarks.ngram_parity import GOLDEN
from lm.config.ngram import NgramSettings
from lm.errors import UserError
from lm.models.ngram.arpa import Vocabulary, arpa_lines, params_of, read_arpa
from lm.models.ngram.counting import count_ngrams
from lm.models.ngram.sums import wrong_sum
from lm.models.ngram.table import fitted
from tests.models.test_ngram import BOS, EOS, POSSIBLE, UNK, V, documents, levels_of, store_of

GOOD = r"""
\data\
ngram 1=5
ngram 2=3
ngram 3=1

\1-grams:
-99	<s>	-0.5
-1	</s>
-2	<unk>
-0.5	a	-0.25
-0.75	b

\2-grams:
-0.25	<s> a	-0.125
-0.5	a b
-0.125	a </s>

\3-grams:
-0.0625	<s> a b

\end\
"""


def test_a_written_file_is_read_as_the_same_tables(tmp_path):
    settings = NgramSettings(order=3, fallback_discounts=(0.5, 1.0, 1.5))
    params, _ = fitted(levels_of(documents(), 3, tmp_path), settings, POSSIBLE)
    names = ("", "", "", "<unk>", *(f"w{n}" for n in range(4, V)))
    text = "".join(arpa_lines(params, 3, Vocabulary(names, BOS, EOS, UNK)))
    arpa = read_arpa(text.splitlines(keepends=True))
    ids = {name: n for n, name in enumerate(names)} | {"<s>": BOS, "</s>": EOS}
    found = params_of(arpa, np.array([ids[word] for word in arpa.words]), V, BOS)
    assert found.keys() == params.keys()
    for order, tables in params.items():
        assert found[order].keys() == tables.keys()
        for name, table in tables.items():
            np.testing.assert_allclose(found[order][name], table, rtol=1e-6, atol=1e-6, err_msg=f"{order}/{name}")


def test_a_tokenizer_without_bos_writes_its_eos_as_both_marks(tmp_path):
    texts = [[EOS, *each[1:]] for each in documents()]
    settings = NgramSettings(order=2, smoothing="absolute_discounting", discount=0.5)
    params, _ = fitted(count_ngrams([store_of(texts)], 2, V, EOS, tmp_path), settings, POSSIBLE)
    names = ("", "", "", "<unk>", *(f"w{n}" for n in range(4, V)))
    arpa = read_arpa("".join(arpa_lines(params, 2, Vocabulary(names, EOS, EOS, UNK))).splitlines())
    ids = {name: n for n, name in enumerate(names)} | {"<s>": EOS, "</s>": EOS}
    found = params_of(arpa, np.array([ids[word] for word in arpa.words]), V, EOS)
    for name, table in params["order_1"].items():
        np.testing.assert_allclose(found["order_1"][name], table, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["order_2"]["words"], params["order_2"]["words"])


def read(text):
    arpa = read_arpa(text.splitlines(keepends=True))
    return params_of(arpa, np.arange(len(arpa.words)), len(arpa.words), 0)


def test_the_small_file_has_the_values_that_it_lists():
    params = read(GOOD)
    np.testing.assert_allclose(params["order_1"]["log_probs"], np.log(10) * np.array([-99, -1, -2, -0.5, -0.75]))
    np.testing.assert_allclose(params["order_1"]["back_offs"], np.log(10) * np.array([-0.5, 0, 0, -0.25, 0]))
    assert params["order_1"]["begins"].tolist() == [0, 1, 1, 1, 3, 3]
    assert params["order_2"]["words"].tolist() == [3, 1, 4]  # sorted by prefix and word
    assert params["order_2"]["begins"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ngram 2=3", "ngram 2=4", r"line 19: there are 3 2-grams, but the header says 4\."),
        ("ngram 2=3", "ngram 4=3", r"line 4: expected the number of 2-grams, not 'ngram 4=3'\."),
        ("ngram 3=1", "\n".join(f"ngram {n}=1" for n in range(3, 9)), "the order 8 is not supported; the highest is 7"),
        ("\\2-grams:", "", "line 15: expected a logarithm, 1 words and at most one more number, not '-0.25"),
        ("\\2-grams:", "\\3-grams:", r"line 14: expected the section \\2-grams:, not '\\\\3-grams:'"),
        ("\\data\\", "", r"line 3: expected \\data\\, the first line of an ARPA file, not 'ngram 1=5'"),
        ("\\end\\\n", "", r"the file ends within the 3-grams, before \\end\\, so it is incomplete"),
        ("\\end\\", "\\end\\\nmore", "line 23: there is text after .*'more'"),
        ("-0.5	a b", "nan	a b", "line 16: 'nan' and '0' must be finite; write -99"),
        ("-0.5	a b", "x	a b", "line 16: 'x' and '0' must be numbers"),
        ("-0.5	a b", "0.5	a b", "line 16: the logarithm 0.5 is positive"),
        ("-0.5	a b", "-0.5	a c", "line 16: the word 'c' is not among the 1-grams"),
        ("-0.5	a b", "-0.5	a a", None),
        ("-0.125	a </s>", "-0.125	a b", "the 2-gram 'a b' is listed twice"),
        ("-0.75	b", "-0.75	a", "line 12: the 1-gram 'a' is listed twice"),
        ("<s> a b\n", "b a b\n", "the 3-gram 'b a b' is listed, but its prefix of 2 words is not"),
        ("<s> a b\n", "<s> a b\t-1\n", "line 20: 3-grams are the longest and have no back-off weights; remove -1"),
        ("-1	</s>", "-1	c", "the 1-grams lack </s>"),
    ],
)
def test_damage_leads_to_one_clear_line(old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if message is None:
        read(text)
        return
    if "</s>" in message:
        text = text.replace("a </s>", "a c")
    with pytest.raises(UserError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 200


def test_contexts_whose_probabilities_do_not_sum_to_one_are_found():
    arpa = read_arpa(json.loads(GOLDEN.read_text())["arpa"].splitlines())
    begin = arpa.words.index("<s>")
    params = params_of(arpa, np.arange(len(arpa.words)), len(arpa.words), begin)
    assert wrong_sum(params) is None  # KenLM's probabilities do

    def changed(order, name, index, factor):
        tables = params[f"order_{order}"]
        values = tables[name].copy()
        values[index] += np.log(factor)
        return params | {f"order_{order}": tables | {name: values}}

    word = int(np.argmax(params["order_1"]["log_probs"]))
    context, total = wrong_sum(changed(1, "log_probs", word, 0.9))
    assert context == [] and total == pytest.approx(1 - 0.1 * np.exp(params["order_1"]["log_probs"][word]), abs=1e-4)
    # The words that do not follow a context share what its back-off weight leaves to them.
    first = int(np.nonzero(np.diff(params["order_1"]["begins"]))[0][0])
    follow = slice(*params["order_1"]["begins"][first : first + 2])
    left = 1 - np.exp(params["order_2"]["log_probs"][follow]).sum()
    context, total = wrong_sum(changed(1, "back_offs", first, 2))
    assert context == [first] and total == pytest.approx(1 + left, abs=1e-4)
    node = int(np.nonzero(np.diff(params["order_2"]["begins"]))[0][0])
    last = params["order_2"]["words"][node]
    context, total = wrong_sum(changed(2, "back_offs", node, 3))
    assert len(context) == 2 and context[1] == last and total > 1.01
