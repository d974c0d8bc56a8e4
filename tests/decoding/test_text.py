"""Continuations of prompts, at once and streamed."""

import flax.linen as nn
import jax
import pytest

from lm.config import TokenizerConfig
from lm.data.tokenizing import build_tokenizer
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.decoding import text
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, vocabulary_of
from lm.errors import UserError
from lm.models import build_model
from tests.small_model import small_config

BYTES = ByteTokenizer()
CONFIG = small_config(BYTES.vocab_size, 32, d_ff=16)


@pytest.fixture(scope="module")
def small():
    model = build_model(CONFIG)
    return model, nn.unbox(jax.jit(lambda key: model.initial_params(key))(jax.random.key(0)))


@pytest.fixture(scope="module")
def pieces():
    lines = [f"a story of {n} words, told {n * 7} times: été über Füße\n" for n in range(200)]
    return build_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=330), lines)


def sampler_of(model, params, sampling, new):
    return Sampler(model, params, sampling, vocabulary_of(BYTES), new)


def sample_text(model, params, prompts, *settings, seed=0):
    """Returns one continuation of each prompt, all sampled in one batch."""
    ids = text.encode_prompts(BYTES, prompts)
    samples = text.sample_many(sampler_of(model, params, *settings), BYTES, ids, seed, max_rows=len(ids))
    return [continuation for _, _, continuation in samples]


def streamed(monkeypatch, tokenizer, prompt, new):
    """Returns the parts that `stream_text` yields if the model generates the tokens `new`."""
    monkeypatch.setattr(Sampler, "stream", lambda *args: iter(new))
    return list(text.stream_text(sampler_of(None, None, Sampling(), len(new)), tokenizer, prompt, 0))


def test_characters_are_streamed_whole(monkeypatch):
    assert streamed(monkeypatch, BYTES, [1], BYTES.encode("aé漢🙂b")) == ["a", "é", "漢", "🙂", "b"]
    # A byte that starts no character appears as U+FFFD when that is certain; an unfinished character, at the end.
    ids = [*BYTES.encode("a"), 3 + 0xFF, *BYTES.encode("b"), 3 + 0xE6, 3 + 0xBC]
    parts = streamed(monkeypatch, BYTES, [1], ids)
    assert parts == ["a", "\ufffdb", "\ufffd"]
    assert "".join(parts) == BYTES.decode(ids)
    assert streamed(monkeypatch, BYTES, [1], [BYTES.eos_id]) == []


def test_streamed_parts_add_up_to_the_continuation(monkeypatch, pieces):
    whole = "  a story of été,\n told in 漢字 and 🙂  "
    ids = pieces.encode(whole)
    for cut in range(len(ids)):
        prompt, new = [pieces.bos_id, *ids[:cut]], ids[cut:]
        parts = streamed(monkeypatch, pieces, prompt, new)
        assert "".join(parts) == text.continuation(pieces, prompt, new)
        if "\ufffd" not in pieces.decode(prompt):
            assert pieces.decode(prompt) + "".join(parts) == whole


def test_samples_do_not_depend_on_the_batch_size(small):
    model, params = small
    prompts = text.encode_prompts(BYTES, ["", "ab", "é"])
    assert prompts == [[1], [1, 100, 101], [1, 198, 172]]
    sampler = sampler_of(model, params, Sampling(), 6)
    one, many = (list(text.sample_many(sampler, BYTES, prompts, 3, num_samples=2, max_rows=rows)) for rows in (1, 4))
    assert one == many
    assert [(prompt, sample) for prompt, sample, _ in one] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len({new for _, _, new in one}) == 6  # each has its own random numbers
    alone = text.stream_text(sampler, BYTES, prompts[0], seed=3)
    assert "".join(alone) == one[0][2]
    texts = sample_text(model, params, ["", "ab", "é", ""], Sampling(), 6, seed=3)
    assert texts[:3] == [one[0][2], one[2][2], one[4][2]]
    assert texts[3] != texts[0]


def test_samples_end_at_the_last_position_and_a_prompt_that_fills_them_is_rejected(small):
    model, params = small
    (new,) = sample_text(model, params, ["x" * 29], Sampling(temperature=0), 6)
    assert len(BYTES.encode(new)) <= 6
    with pytest.raises(UserError, match="prompt 2 has 32 tokens"):
        sample_text(model, params, ["", "x" * 31], Sampling(), 6)


def test_prompt_that_is_not_utf8_is_rejected():
    with pytest.raises(UserError, match="prompt 2 is not valid UTF-8"):
        text.encode_prompts(BYTES, ["a", "\udcff"])
