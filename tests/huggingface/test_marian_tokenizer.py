"""Marian's tokenizer gives the ids of transformers on both sides."""

import pytest

from tests.data.tokenizing.test_marian import ENGLISH, GERMAN, TEXTS, load, write

transformers = pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore:Recommended")
def test_ids_and_texts_equal_transformers(tmp_path):
    target = load(write(tmp_path))
    source, peer = target.for_sources, transformers.MarianTokenizer.from_pretrained(tmp_path)
    # The published class takes any code for a token, and knows the names of special tokens in a text.
    for text in [*ENGLISH, *GERMAN, *TEXTS[:6]]:
        assert source.source_template.fill(source.encode(text))[0].tolist() == peer(text).input_ids
        ids = target.target_template.fill(target.encode(text.removeprefix(">>deu<<")))[0].tolist()
        assert ids == peer(text_target=text.removeprefix(">>deu<<")).input_ids
        assert target.decode(ids) == peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
