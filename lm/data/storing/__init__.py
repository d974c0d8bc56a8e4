"""The stores, on disk or in memory, that hold the tokenised examples of a split."""

from typing import TypeAlias

from lm.data.storing.example_store import ExampleStore
from lm.data.storing.pair_counts import PairCounts
from lm.data.storing.token_store import PairStore, TokenStore

# A store holds the tokenised examples of one data source in a split. Every store has these attributes and methods:
# - `fingerprint`: a hash of everything that determines the tokens and labels.
# - `counts`: the numbers of documents, tokens, bytes and so on; for pairs, the counts of the target side.
# - `describe` summarises the amount of data in a few words, using the given function to shorten large numbers.
# - `record` returns JSON values that identify the data in results.
# - `hashes_of_examples` returns the hashes of the inputs and of the whole examples (`overlap.py`), uint64 (E,) each.
# - `sides` maps names to the sides of the store; if there is only one side, its name is "". Each side has
#   `num_tokens_of_text`, which excludes the special tokens around a document, and `notes`, such as the number of
#   dropped examples by reason.
Store: TypeAlias = TokenStore | PairStore | PairCounts | ExampleStore
