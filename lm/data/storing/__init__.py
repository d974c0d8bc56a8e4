"""Stores of tokenised examples: what a split takes from its data sources, on disk or in memory."""

from typing import TypeAlias

from lm.data.storing.example_store import ExampleStore
from lm.data.storing.token_store import PairStore, TokenStore

# The tokenised examples of one data source in a split. All have `fingerprint` (hash of everything that decides the
# tokens and labels), `counts` (for pairs those of the target), `describe` (the amount of data in a few words, given a
# function that shortens large numbers), `record` (JSON that identifies the data in results) and `sides` (by name; "" if
# there is one), which have `num_tokens_of_text` (without those around a document) and `notes` (what was dropped, why).
Store: TypeAlias = TokenStore | PairStore | ExampleStore
