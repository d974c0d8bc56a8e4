"""Token stores of a few texts, shared by the tests in this folder."""

from lm.config import CleaningConfig
from tests.data.storing.documents import build


def make_store(cache, texts, tokenizer):
    return build(cache, texts, tokenizer, identity=texts, cleaning=CleaningConfig(min_chars=0))
