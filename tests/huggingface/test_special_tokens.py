"""Inputs with special tokens equal those of transformers for all published forms of tokenizers."""

import pytest

from tests.data.tokenizing.published import FAMILIES

transformers = pytest.importorskip("transformers")

TEXTS = ["", "a", "Hello world!", "x <s> y </s>", "<|im_end|>[SEP]<extra_id_0>", "naïve 中文 😀\n\n\t "]


def peer(folder):
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_types_equal_transformers(name, tmp_path):
    ours = FAMILIES[name].load(tmp_path)
    theirs = peer(tmp_path)
    for text in TEXTS:
        wanted = theirs(text, split_special_tokens=True).input_ids
        assert ours.text_template.fill(ours.encode(text))[0].tolist() == wanted
        for other in (
            TEXTS[1:] if ours.special_tokens.for_pair is ours.special_tokens.two else ()
        ):  # "" is no second text
            found = theirs(text, other, split_special_tokens=True, return_token_type_ids=True)
            ids, types = ours.pair_template.fill(ours.encode(text), ours.encode(other))
            assert (ids.tolist(), types.tolist()) == (found.input_ids, found.token_type_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_rendered_text_and_decoded_text_equal_transformers(name, tmp_path):
    ours = FAMILIES[name].load(tmp_path)
    theirs = peer(tmp_path)
    for text in (*TEXTS, "é".join(FAMILIES[name].special), "".join(FAMILIES[name].special)):
        found = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ours.encode_rendered(text) == (found.input_ids, found.offset_mapping)
        special = [*range(len(FAMILIES[name].special)), *ours.encode(text)]
        assert ours.decode(special) == theirs.decode(special, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["roberta", "bart", "t5", "llama3", "gemma", "qwen"])
def test_named_tokens_equal_transformers(name, tmp_path):
    ours = FAMILIES[name].load(tmp_path)
    theirs = peer(tmp_path)
    assert (ours.eos_id, ours.special_tokens.pad) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.special_tokens.mask == theirs.mask_token_id
    generation = FAMILIES[name].generation or {"eos_token_id": ours.eos_id}
    config = transformers.GenerationConfig(**generation)
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    assert sorted(ours.stop_ids) == sorted(stops)
