"""Special tokens are those of the published files, and never pieces that merely look like special tokens."""

import dataclasses
import hashlib
import json

import pytest

from lm.config import TokenizerConfig
from lm.data.tokenizing import TOKENIZERS, build_tokenizer, load_tokenizer
from lm.data.tokenizing.special_tokens import TEXT, SpecialTokens, Template
from lm.errors import UserError
from tests.data.tokenizing.published import FAMILIES, Family, template


def placed(filled, tokenizer):
    """Returns the ids and types of an input, with "a" and "b" in place of the ids of these texts."""
    names = {tokenizer.encode(text)[0]: text for text in "ab"}
    ids, types = filled
    return [names.get(token, token) for token in ids.tolist()], types.tolist()


# For each family: (bos, eos, stops, pad), then the templates of a text, a pair, a source and a target.
ONE, TWO = [2, "a", 3], ([2, "a", 3, "b", 3], [0, 0, 0, 1, 1])
FRAMED = {
    "bert": ((2, 3, (3,), 0), ONE, TWO, ONE, ONE),
    "old_bert": ((2, 3, (3,), 0), ONE, TWO, ONE, ONE),
    "roberta": ((0, 2, (2,), 1), [0, "a", 2], ([0, "a", 2, 2, "b", 2], [0] * 6), [0, "a", 2], [0, "a", 2]),
    "bart": ((0, 2, (2,), 1), [0, "a", 2], ([0, "a", 2, 2, "b", 2], [0] * 6), [0, "a", 2], [0, "a", 2]),
    "t5": ((None, 1, (1,), 0), ["a", 1], (["a", 1, "b", 1], [0] * 4), ["a", 1], ["a", 1]),
    "nllb": ((3, 2, (2,), 1), [3, "a", 2], ([3, "a", 2, "b", 2], [0, 0, 0, 1, 1]), [3, "a", 2], [4, "a", 2]),
    "gpt2": ((None, 0, (0,), 0), ["a"], (["a", 0, "b", 0], [0, 0, 1, 1]), ["a", 0], ["a", 0]),
    "qwen": ((None, 2, (2, 0), 0), ["a"], (["a", 2, "b", 2], [0, 0, 1, 1]), ["a", 2], ["a", 2]),
    "smollm2": ((None, 2, (2,), 2), ["a"], (["a", 2, "b", 2], [0, 0, 1, 1]), ["a", 2], ["a", 2]),
    "llama3": ((0, 3, (3, 1, 2), 0), [0, "a"], ([0, "a", 0, "b"], [0, 0, 1, 1]), [0, "a", 3], [0, "a", 3]),
    "gemma": ((2, 1, (1, 4), 0), [2, "a"], ([2, "a", 2, "b"], [0, 0, 1, 1]), [2, "a", 1], [2, "a", 1]),
}
STARTS = {"bart": (2, 0), "t5": (0, None), "nllb": (2, 4), "gpt2": (0, None), "llama3": (0, None), "bert": (2, None)}


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_templates_of_each_family(name, tmp_path):
    tokenizer = FAMILIES[name].load(tmp_path)
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    tokens, one, two, source, target = FRAMED[name]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids, tokenizer.pad_id) == tokens
    assert tokenizer.start_id == (tokens[1] if tokens[0] is None else tokens[0])
    assert placed(tokenizer.text_template.fill(a), tokenizer) == (one, [0] * len(one))
    assert placed(tokenizer.pair_template.fill(a, b), tokenizer) == two
    assert placed(tokenizer.source_template.fill(a), tokenizer)[0] == source
    assert placed(tokenizer.target_template.fill(a), tokenizer)[0] == target
    if name in STARTS:
        assert (tokenizer.decoder_start_id, tokenizer.forced_first_id) == STARTS[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_never_becomes_a_special_token_and_rendered_text_does(name, tmp_path):
    tokenizer, special = FAMILIES[name].load(tmp_path), FAMILIES[name].special
    text = "é".join(special)
    assert not set(tokenizer.encode(text)) & set(range(len(special)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, offsets = tokenizer.encode_rendered(text)
    assert [token for token in ids if token < len(special)] == list(range(len(special)))
    assert [
        text[begin:end] for token, (begin, end) in zip(ids, offsets, strict=True) if token < len(special)
    ] == special
    assert tokenizer.encode(text) == FAMILIES[name].load(tmp_path).encode(text), "encoding has no memory"
    assert tokenizer.decode([*ids, *tokenizer.stop_ids]).replace("é", "") in ("", "<extra_id_0><extra_id_1>")


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_tokenizers_keep_their_special_tokens(name, tmp_path):
    tokenizer = FAMILIES[name].load(tmp_path / "published")
    tokenizer.save(tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    assert loaded.special_tokens == tokenizer.special_tokens and loaded.fingerprint == tokenizer.fingerprint
    again = dataclasses.replace(FAMILIES[name]).load(tmp_path / "published")
    assert again.fingerprint == tokenizer.fingerprint
    # A run's own tokenizer.json can be given as the file of another run.
    config = {"kind": "huggingface", "path": str(tmp_path / "run" / "tokenizer.json")}
    assert build_tokenizer(TokenizerConfig(**config), []).fingerprint == tokenizer.fingerprint


def test_fingerprints_cover_the_special_tokens(tmp_path):
    family = FAMILIES["qwen"]
    prints = {family.load(tmp_path / "a").fingerprint}
    prints.add(dataclasses.replace(family, generation={"eos_token_id": 2}).load(tmp_path / "b").fingerprint)
    prints.add(
        dataclasses.replace(family, names={**family.names, "chat_template": "x"}).load(tmp_path / "c").fingerprint
    )
    assert len(prints) == 3


def test_old_run_directories_keep_their_ids_and_fingerprints(tmp_path):
    """They name BOS and EOS, and put them around every text, whatever the post-processor says."""
    content = (FAMILIES["llama3"].write(tmp_path) / "tokenizer.json").read_bytes()
    options = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    old = TOKENIZERS["huggingface"]._from_content(content, options)
    head = json.dumps(["huggingface", options], sort_keys=True).encode()
    assert old.fingerprint == hashlib.sha256(head + b"\0" + content).hexdigest()
    assert (old.bos_id, old.stop_ids, old.decoder_start_id) == (0, (1,), 0)
    assert old.text_template == Template.of_one(0, TEXT, 1) and old.source_template == Template.of_one(TEXT, 1)
    assert old.pair_template == Template((0, TEXT, 1, TEXT, 1), (0, 0, 0, 1, 1))
    assert old.decode([0, *old.encode("a"), 3, 1]) == "a<|eot_id|>", "as before, other special tokens are text"


def test_lone_files_are_guessed_from_special_added_tokens_only(tmp_path):
    specials = ["<|endoftext|>", "<pad>"]
    alone = Family(specials, ordinary=["<s>", "</s>", "<mask>"]).load(tmp_path / "a")
    assert (alone.bos_id, alone.eos_id, alone.pad_id) == (0, 0, 1)
    assert alone.text_template == Template.of_one(0, TEXT, 0) and alone.source_template == Template.of_one(TEXT, 0)
    assert alone.special_tokens.mask is None
    with pytest.raises(UserError, match=r"set data\.tokenizer\.bos_token and eos_token"):
        Family(["<x>"], ordinary=["<s>", "</s>"]).load(tmp_path / "b")
    with pytest.raises(UserError, match=r"set data\.tokenizer\.bos_token and eos_token"):
        Family(["<s>", "</s>"], names={}).load(tmp_path / "c")  # the files beside it say that there are none
    # The post-processor is no guess.
    framed = Family(["<s>", "</s>", "<x>"], template("<x>:0 $A:0", "<x>:0 $A:0 $B:1", **{"<x>": 2})).load(
        tmp_path / "d"
    )
    assert (framed.bos_id, framed.eos_id) == (2, 1)


def test_settings_replace_the_tokens_of_the_files(tmp_path):
    tokenizer = FAMILIES["qwen"].load(tmp_path, bos_token="<|im_start|>")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.text_template == Template.of_one(1, TEXT, 2) and tokenizer.source_template == Template.of_one(
        TEXT, 2
    )
    tokenizer = FAMILIES["qwen"].load(tmp_path, eos_token="<|endoftext|>")
    assert (tokenizer.bos_id, tokenizer.stop_ids) == (None, (0, 2))
    assert tokenizer.text_template == Template.of_one(TEXT, 0)


def test_flags_of_the_config_replace_the_post_processor(tmp_path):
    """As in transformers 5: `add_bos_token` and `add_eos_token` decide, if one of them is given."""
    family = FAMILIES["llama3"]
    both = dataclasses.replace(family, names={**family.names, "add_bos_token": True, "add_eos_token": True})
    tokenizer = both.load(tmp_path / "a")
    assert tokenizer.text_template == Template.of_one(0, TEXT, 3)
    assert tokenizer.pair_template == Template((0, TEXT, 3, 0, TEXT, 3), (0, 0, 0, 1, 1, 1))
    neither = dataclasses.replace(family, names={**family.names, "add_bos_token": False}).load(tmp_path / "b")
    assert neither.bos_id is None and neither.text_template == Template.of_one(TEXT)


def test_chat_template_comes_from_either_file(tmp_path):
    family = FAMILIES["qwen"]
    in_config = dataclasses.replace(family, names={**family.names, "chat_template": "{{ a }}"})
    assert in_config.load(tmp_path).chat_template == "{{ a }}"
    (tmp_path / "chat_template.jinja").write_text("{{ ä }}", encoding="utf-8")
    tokenizer = in_config.load(tmp_path)
    assert tokenizer.chat_template == "{{ ä }}" and tokenizer.special_tokens.names["eos_token"] == "<|im_end|>"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    listed = dataclasses.replace(family, names={**family.names, "chat_template": several})
    assert listed.load(tmp_path / "b").chat_template == "d"
    assert family.load(tmp_path / "c").chat_template is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": {"eos_token": "<nope>"}}, "no token '<nope>', which is given as the eos_token"),
        ({"generation": {"eos_token_id": ["2"]}}, "eos_token_id=.'2'., which is neither a token id"),
        ({"generation": {"decoder_start_token_id": -1}}, "neither a token id nor a list"),
        ({"generation": []}, "must hold one JSON object"),
    ],
)
def test_files_that_contradict_each_other_are_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(FAMILIES["qwen"], **change).load(tmp_path)


def test_unusable_files_beside_the_tokenizer_are_refused(tmp_path):
    FAMILIES["qwen"].write(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(UserError, match=r"special_tokens_map\.json cannot be read"):
        FAMILIES["qwen"].load(tmp_path)


def test_ids_without_a_row_in_the_model_occur_in_rendered_text_only(tmp_path):
    """Gemma 3 has an image token whose id is the size of the embedding."""
    specials = [*FAMILIES["qwen"].special, "<image>"]
    content = (dataclasses.replace(FAMILIES["qwen"], special=specials).write(tmp_path) / "tokenizer.json").read_bytes()
    parts = json.loads(content)
    last = len(parts["model"]["vocab"])
    vocabulary = {piece: last if piece == "<image>" else token for piece, token in parts["model"]["vocab"].items()}
    parts["model"]["vocab"] = vocabulary
    parts["added_tokens"][-1]["id"] = last
    tokenizer = TOKENIZERS["huggingface"].from_files(json.dumps(parts).encode(), {}, eos_token="<|im_end|>", rows=last)
    assert tokenizer.vocab_size == last and max(tokenizer.encode("<image>")) < last
    with pytest.raises(UserError, match="no embedding for the token '<image>'"):
        tokenizer.encode_rendered("a <image>")
    tokenizer.save(tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").vocab_size == last


def test_templates_count_and_place_special_tokens():
    two = Template((7, 8, TEXT, 9, 9, TEXT, 5), (0, 0, 0, 0, 0, 1, 1))
    assert two.num_special == 5 and (two.num_before(0), two.num_before(1)) == (2, 4)
    tokens, types = two.fill([1, 2], [3])
    assert tokens.tolist() == [7, 8, 1, 2, 9, 9, 3, 5] and types.tolist() == [0] * 6 + [1, 1]
    assert two.text_mask(2, 1).tolist() == [False, False, True, True, False, False, True, False]
    assert tokens[two.num_before(1) + 2] == 3


def test_an_empty_text_without_special_tokens_becomes_the_start_token():
    special = SpecialTokens(None, 2, one=Template.of_one(TEXT))
    assert special.frame([])[0].tolist() == [2] and special.frame([5])[0].tolist() == [5]
    assert special.frame([], [])[0].tolist() == [2, 2]


def test_sources_of_our_own_tokenizers_have_no_bos():
    special = SpecialTokens(1, 2)
    assert special.frame([5])[0].tolist() == [1, 5, 2] and special.as_source().frame([5])[0].tolist() == [5, 2]
    tokens, types = special.as_source().frame([5], [6])
    assert tokens.tolist() == [5, 2, 6, 2] and types.tolist() == [0, 0, 1, 1]
    assert SpecialTokens.from_json(json.loads(json.dumps(special.to_json()))) == special
