"""Token stores of a few texts, shared by the tests in this folder."""

from lm.config import CleaningConfig
from lm.data.storing import token_store
from lm.data.storing.splits import Cleaner


def make_store(cache, texts, tokenizer):
    cleaner = Cleaner(CleaningConfig(min_chars=0))
    return token_store.open_or_build(cache, {"texts": texts}, "test", tokenizer, iter(texts), cleaner)
