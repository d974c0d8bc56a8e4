"""The shares of the exhaustive tests that `.ci/run` selects from."""

import itertools

import pytest

from tests.conftest import is_in_share, parse_share


def test_each_test_is_in_exactly_one_share():
    names = [f"tests/test_x.py::test_y[{number}]" for number in range(1000)]
    shares = [[name for name in names if is_in_share(name, *parse_share(f"{k}/8"))] for k in range(1, 9)]
    assert sorted(itertools.chain(*shares)) == sorted(names)
    assert min(map(len, shares)) > 90
    assert all(is_in_share(name, *parse_share("1/1")) for name in names)


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/0", ""])
def test_wrong_shares_are_refused(text):
    with pytest.raises(ValueError):
        parse_share(text)
