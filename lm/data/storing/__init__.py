"""Stores of the tokenised examples that a split takes from its data sources, on disk or in memory."""

from typing import TypeAlias

from lm.data.storing.example_store import ExampleStore
from lm.data.storing.token_store import PairStore, TokenStore

# The tokenised examples of one data source in a split. Every store has
# - `fingerprint`: a hash of everything that determines the tokens and labels,
# - `counts`: for pairs, those of the target,
# - `describe`: summarises the amount of data in a few words, given a function that shortens large numbers,
# - `record`: returns JSON that identifies the data in results,
# - `hashes_of_examples`: returns hashes of the inputs and of the whole examples (`overlap.py`), uint64 (E,) each,
# - `sides`: returns the sides by name (just "" if there is only one); each has `num_tokens_of_text`, which excludes the
#   special tokens around a document, and `notes` on the dropped examples and the reasons.
Store: TypeAlias = TokenStore | PairStore | ExampleStore
