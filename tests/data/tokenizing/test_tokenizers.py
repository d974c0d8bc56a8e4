"""Every tokenizer restores the text that it encoded, and never encodes text as a special token."""

import dataclasses
import functools
import hashlib
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.config import TokenizerConfig
from lm.data.examples.denoising import corrupt
from lm.data.tokenizing import build_tokenizer, load_tokenizer
from lm.data.tokenizing.base import INFO_FILE, Tokenizer
from lm.data.tokenizing.samples import LONGEST_LINE, cut_after_words, even_sample, split_texts
from lm.errors import UserError

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.\n\n",
    "def f(x):\n    if x:\n        return  x\n\treturn None\n",
    "Ein paar Wörter mit Umlauten: äöüß. 中文字 one two three four five.\n",
    " ".join(f"word{i}" for i in range(200)) + "\n",
] * 5
STRANGE = "▁ a▁b  \n\n\t <s></s><unk><pad> \x00 \r\n \u2028\u2581\u2585 \ufffd 😀é <0x41> "


@functools.cache
def sentencepiece(algorithm: str = "unigram") -> Tokenizer:
    config = TokenizerConfig(kind="sentencepiece", vocab_size=340, algorithm=algorithm)
    return build_tokenizer(config, SENTENCES)


def make(kind: str, text: str = "") -> Tokenizer:
    if kind.startswith("sentencepiece"):
        return sentencepiece(kind.partition("-")[2] or "unigram")
    return build_tokenizer(TokenizerConfig(kind=kind), [text])


TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.text("▁ \n\tab<s>/", max_size=30)


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece-unigram", "sentencepiece-bpe"])
@settings(max_examples=60, deadline=None)
@given(text=TEXT, other=TEXT)
@example(text=STRANGE, other="")
def test_round_trip_of_any_text(kind, text, other):
    tokenizer = make(kind, text + other)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode_batch([text, other]) == [ids, tokenizer.encode(other)]
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id, 10**6]) == text


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece"])
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    tokenizer = make(kind, "".join(SENTENCES))
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])
    assert [loaded.bos_id, loaded.eos_id, loaded.pad_id] == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer"], "nothing temporary is left"


def test_changed_file_is_refused(tmp_path):
    make("characters", "abc").save(tmp_path)
    (tmp_path / "characters.json").write_text(json.dumps(["a", "b", "d"]))
    with pytest.raises(UserError, match="has changed since it was saved"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path / "missing")


def test_messages_about_a_file_end_with_one_period(tmp_path):
    make("sentencepiece").save(tmp_path)
    sentencepiece("bpe").save(tmp_path / "other")
    path = tmp_path / "sentencepiece.model"
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(UserError, match=r"^config\.data\.tokenizer\.path: .*has changed .* modified\)\.$"):
        build_tokenizer(TokenizerConfig(kind="sentencepiece", path=str(path)), [])
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    (tmp_path / INFO_FILE).unlink()
    with pytest.raises(UserError, match=r"not a usable tokenizer\.json: .*[^.]\.$"):
        build_tokenizer(TokenizerConfig(kind="huggingface", path=str(path)), [])


def test_words_by_frequency_and_others_unknown(tmp_path):
    config = TokenizerConfig(kind="words", vocab_size=300)
    tokenizer = build_tokenizer(config, ["jump twice", "walk  and\njump", "and jump"])
    assert tokenizer.vocabulary == ["jump", "and", "twice", "walk"]
    assert tokenizer.encode("walk and  run\njump") == [7, 5, tokenizer.unk_id, 4]
    assert tokenizer.decode([tokenizer.bos_id, 7, 5, 4, tokenizer.eos_id]) == "walk and jump"
    assert tokenizer.vocab_size == 8
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("jump twice") == [4, 6]
    bounded = build_tokenizer(TokenizerConfig(kind="words", vocab_size=300), (str(n) for n in range(1000)))
    assert bounded.vocab_size == 300


def test_rare_words_are_unknown():
    texts = ["b a b", "c b a"]
    tokenizer = build_tokenizer(TokenizerConfig(kind="words", vocab_size=300, min_count=2), texts)
    assert tokenizer.vocabulary == ["b", "a"] and tokenizer.encode("a b c") == [5, 4, tokenizer.unk_id]
    with pytest.raises(UserError, match=r"min_count: no word in .* occurs 4 or more times; use at most 3"):
        build_tokenizer(TokenizerConfig(kind="words", vocab_size=300, min_count=4), texts)


def test_characters_are_sorted_and_others_unknown():
    tokenizer = make("characters", "cab")
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode("abc") == [4, 5, 6]
    assert tokenizer.encode("a😀z") == [4, tokenizer.unk_id, tokenizer.unk_id]
    assert tokenizer.decode(tokenizer.encode("a😀")) == "a\ufffd"


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character():
    tokenizer = make("bytes")
    assert tokenizer.decode(tokenizer.encode("é")[:1] + tokenizer.encode("a")) == "\ufffda"


def test_sentencepiece_training_is_deterministic_and_compresses():
    config = TokenizerConfig(kind="sentencepiece", vocab_size=340)
    assert build_tokenizer(config, SENTENCES).fingerprint == sentencepiece().fingerprint
    text = "".join(SENTENCES)
    assert len(sentencepiece().encode(text)) < 0.6 * len(text.encode())


def test_sentencepiece_vocabulary_is_as_large_as_possible_and_never_too_small(capsys):
    largest = build_tokenizer(TokenizerConfig(vocab_size=20000), SENTENCES)
    note = f"vocab_size=20000 is more than this training text allows; the vocabulary has {largest.vocab_size} pieces."
    assert note in capsys.readouterr().err and 300 < largest.vocab_size < 20000
    exact = build_tokenizer(TokenizerConfig(vocab_size=largest.vocab_size), SENTENCES)
    assert exact.fingerprint == largest.fingerprint and capsys.readouterr().err == ""
    with pytest.raises(UserError, match="is too small for the characters"):
        build_tokenizer(TokenizerConfig(vocab_size=300), ["".join(map(chr, range(0x4E00, 0x4F00)))])
    with pytest.raises(UserError, match="no training text"):
        build_tokenizer(TokenizerConfig(), [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 6000))
def test_even_sample_is_bounded_ordered_and_the_smallest_keys(sizes, max_bytes):
    lines = [f"{i:03d}" + "x" * size for i, size in enumerate(sizes)]
    sample = even_sample(iter(lines), max_bytes)
    assert sample == [line for line in lines if line in set(sample)]
    assert sum(map(len, sample)) <= max_bytes or len(sample) == 1
    if sum(map(len, lines)) <= max_bytes:
        assert sample == lines


def test_even_sample_covers_the_whole_corpus():
    kept = [int(line) for line in even_sample((f"{i:06d}" for i in range(20_000)), 12_000)]
    assert len(kept) == 2000
    thirds = [sum(1 for k in kept if k * 3 // 20_000 == part) for part in range(3)]
    assert min(thirds) > 550  # 667 expected, standard deviation about 20


def test_long_lines_are_cut_and_nothing_is_lost():
    text = "a" * 5000 + "\n" + "bc " * 3000
    parts = list(split_texts([text]))
    assert "".join(parts) == text.replace("\n", "")
    assert max(map(len, parts)) <= LONGEST_LINE
    assert parts[3].startswith("bc") and parts[4].startswith(" bc")


def hugging_face_file(path, specials):
    import tokenizers as hf

    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(path))
    return TokenizerConfig(kind="huggingface", path=str(path))


def test_huggingface_file(tmp_path):
    config = hugging_face_file(tmp_path / "tokenizer.json", ["<|endoftext|>"])
    tokenizer = build_tokenizer(config, [])
    assert tokenizer.bos_id == tokenizer.eos_id == 0 and tokenizer.pad_id == 0
    text = "a <|endoftext|> b\n" + STRANGE
    ids = tokenizer.encode(text)
    assert 0 not in ids and tokenizer.decode([0, *ids, 0]) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode(text) == ids


def test_huggingface_tokens_around_documents(tmp_path):
    path = tmp_path / "tokenizer.json"
    config = hugging_face_file(path, ["<pad>", "<s>", "</s>"])
    tokenizer = build_tokenizer(config, [])
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    config = hugging_face_file(path, ["<begin>"])
    with pytest.raises(UserError, match=r"set data\.tokenizer\.bos_token"):
        build_tokenizer(config, [])
    with pytest.raises(UserError, match="no token '<nope>'"):
        build_tokenizer(TokenizerConfig(kind="huggingface", path=str(path), bos_token="<nope>"), [])


def test_files_that_are_no_tokenizers_are_refused(tmp_path):
    bad = tmp_path / "bad"
    bad.write_text("nonsense")
    for kind in ("sentencepiece", "huggingface"):
        with pytest.raises(UserError, match="not a usable"):
            build_tokenizer(TokenizerConfig(kind=kind, path=str(bad)), [])
        with pytest.raises(UserError, match="there is no file"):
            build_tokenizer(TokenizerConfig(kind=kind, path=str(bad) + "x"), [])
    with pytest.raises(UserError, match="cannot be loaded from a file"):
        build_tokenizer(TokenizerConfig(kind="bytes", path=str(bad)), [])


def test_foreign_sentencepiece_model_without_padding(tmp_path):
    import io

    import sentencepiece as library

    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=out,
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "other.model").write_bytes(out.getvalue())
    tokenizer = build_tokenizer(TokenizerConfig(path=str(tmp_path / "other.model")), [])
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 0, 1, 2)
    assert tokenizer.decode(tokenizer.encode("the quick fox")) == "the quick fox"


def test_pieces_are_visible():
    for kind in ("bytes", "characters", "sentencepiece"):
        tokenizer = make(kind, "ab \n\t")
        assert tokenizer.piece(tokenizer.pad_id) == "<pad>" and tokenizer.piece(tokenizer.eos_id) == "<eos>"
        assert "".join(map(tokenizer.piece, tokenizer.encode("ab"))) == "ab"
        assert tokenizer.piece(tokenizer.encode("\n")[0]) == "⏎"
        assert all(tokenizer.piece(i).isprintable() for i in range(-1, tokenizer.vocab_size + 1))


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece"])
def test_extra_ids_lie_behind_the_vocabulary_as_in_t5(kind, tmp_path):
    plain = make(kind, "".join(SENTENCES) + "a <extra_id_0> b")
    tokenizer = plain.with_extra_ids(100)
    assert tokenizer.vocab_size == plain.vocab_size + 100 and plain.extra_ids == 0
    assert [tokenizer.extra_id(n) for n in (0, 1, 99)] == [tokenizer.vocab_size - 1 - n for n in (0, 1, 99)]
    assert tokenizer.extra_id(99) == plain.vocab_size, "nothing lies between"
    assert tokenizer.piece(tokenizer.extra_id(7)) == "<extra_id_7>"
    assert tokenizer.piece(tokenizer.vocab_size) == f"<{tokenizer.vocab_size}>"
    ids = tokenizer.encode("a <extra_id_0> b")
    assert ids == plain.encode("a <extra_id_0> b"), "text never turns into one"
    assert tokenizer.decode([tokenizer.extra_id(0), *ids, tokenizer.extra_id(1)]) == "a <extra_id_0> b"
    with pytest.raises(UserError, match="<extra_id_100> is needed, but the tokenizer has 100 extra ids"):
        tokenizer.extra_id(100)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert (loaded.fingerprint, loaded.vocab_size, loaded.extra_id(3)) == (
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.extra_id(3),
    )
    assert len({plain.fingerprint, tokenizer.fingerprint, plain.with_extra_ids(99).fingerprint}) == 3


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece"])
def test_extra_ids_are_spelled_for_generation(kind):
    """T5's example (Raffel 2020, figure 2): the source and target that training makes from a text."""
    kept, hidden = ["Thank you", " me to", " week."], [" for inviting", " your party last"]
    tokenizer = make(kind, "".join(kept + hidden)).with_extra_ids(12)
    parts = [tokenizer.encode(part) for part in (kept[0], hidden[0], kept[1], hidden[1], kept[2])]
    mask = np.concatenate([np.full(len(part), number % 2 == 1) for number, part in enumerate(parts)])
    sentinels = np.array([tokenizer.extra_id(number) for number in range(12)])
    source, target = corrupt(np.concatenate(parts), mask, sentinels, tokenizer.eos_id)
    for text in ("Thank you <extra_id_0> me to <extra_id_1> week.", "Thank you<extra_id_0> me to \n<extra_id_1> week."):
        assert [*tokenizer.encode_spelled(text), tokenizer.eos_id] == source.tolist()
    written = "<extra_id_0> for inviting<extra_id_1> your party last<extra_id_2>"
    assert tokenizer.decode_spelled(target) == written
    assert [*tokenizer.encode_spelled(written), tokenizer.eos_id] == target.tolist()
    assert tokenizer.encode_spelled("<extra_id_11>") == [tokenizer.extra_id(11)]
    with pytest.raises(UserError, match="<extra_id_12> is needed, but the tokenizer has 12"):
        tokenizer.encode_spelled("a <extra_id_12>")


def test_without_extra_ids_files_and_fingerprints_are_what_they_were(tmp_path):
    tokenizer = build_tokenizer(TokenizerConfig(kind="bytes"), [])
    tokenizer.save(tmp_path / "tokenizer")
    info = json.loads((tmp_path / "tokenizer" / "tokenizer_info.json").read_text())
    assert info["options"] == {}
    head = b'["bytes", {}]\0'
    assert tokenizer.fingerprint == hashlib.sha256(head + tokenizer._content()).hexdigest()
    built = build_tokenizer(TokenizerConfig(kind="bytes", extra_ids=3), [])
    assert built.vocab_size == 262 and built.extra_id(2) == 259


def test_a_huggingface_file_keeps_its_own_extra_ids(tmp_path):
    path = tmp_path / "tokenizer.json"
    config = dataclasses.replace(hugging_face_file(path, ["<pad>", "<s>", "</s>"]), extra_ids=5)
    appended = build_tokenizer(config, [])
    assert appended.extra_id(0) == appended.vocab_size - 1 and len(appended.extra_tokens) == 5
    assert appended.piece(appended.extra_id(4)) == "<extra_id_4>"
    appended.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == appended.fingerprint

    names = [f"<extra_id_{n}>" for n in (2, 0, 1)]
    config = dataclasses.replace(hugging_face_file(path, ["<pad>", "<s>", "</s>", *names]), extra_ids=5)
    own = build_tokenizer(config, [])
    assert own.vocab_size == own.base_size and len(own.extra_tokens) == 3
    assert [own.extra_id(n) for n in range(3)] == [4, 5, 3]
    assert [own.piece(token) for token in (3, 4, 5)] == names
    text = "a <extra_id_0> b"
    assert own.decode([own.extra_id(0), *own.encode(text), own.extra_id(1)]) == text
    with pytest.raises(UserError, match="<extra_id_3> is needed, but the tokenizer has 3"):
        own.extra_id(3)
    assert own.fingerprint == build_tokenizer(dataclasses.replace(config, extra_ids=0), []).fingerprint


def test_lines_are_cut_after_every_second_occurrence_of_a_word():
    lines = ["  a b a c b", "b  b", ""]
    assert list(cut_after_words(lines)) == ["  a b a c b", "b  b"], "words differ in their spaces"
    assert list(cut_after_words([" a b a c b", " c d"])) == [" a b a", " c b", " c", " d"]
    assert "".join(cut_after_words(SENTENCES)) == "".join(SENTENCES)


def test_unigram_keeps_frequent_words_whole():
    """Without the cuts, SentencePiece 0.2.3 splits nearly all of these words, since a space follows each of them."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = sorted({"".join(rng.choice(letters, size)) for size in rng.integers(3, 7, 300)})
    texts = [" ".join(rng.choice(words, 20)) + " ." for _ in range(500)]
    tokenizer = build_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=700), texts)
    whole = [len(tokenizer.encode(f" {word}")) == 1 for word in words]
    assert np.mean(whole) > 0.95
