"""Sizes that suit the small texts of tests."""

import pytest

from tests.data.storing.documents import SMALL


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes parts of few documents, writes all of them to files, and starts worker processes at once."""
    for each in SMALL:
        monkeypatch.setattr(*each)
