"""Decoding with a draft model or with 8-bit matrices, from run directories: equal texts, and what is refused."""

import dataclasses

import flax.linen as nn
import jax
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, TokenizerConfig
from lm.data.tokenizing import build_tokenizer
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.decoding.sampling import Sampling, vocabulary_of
from lm.errors import UserError
from lm.models import build_model
from lm.models.int8 import Int8Matrix
from lm.runs import generation
from lm.runs.directory import RunDirectory
from lm.runs.generation import Generator, continue_prompts
from lm.tasks import task_of

BYTES = ByteTokenizer()
CONFIG = {
    "data": {"train": {"docs": {"kind": "embedded"}}, "sequence_length": 64},
    "model": {"vocab_size": BYTES.vocab_size, "num_layers": 2, "d_model": 16, "num_heads": 2, "scan_layers": False},
}
CHAT = {  # an encoder-decoder
    "data": {"train": {"docs": {"kind": "jsonl", "path": "unread"}}, "sequence_length": 64},
    "objective": {"name": "chat"},
    "model": {**CONFIG["model"], "family": "encoder_decoder"},
}
LSTM = {**CONFIG, "model": {"architecture": "recurrent", "vocab_size": BYTES.vocab_size, "num_layers": 1, "d_model": 8}}
PROMPTS = ["", "ab", "a longer prompt"]


def with_model(**changes):
    return {**CONFIG, "model": {**CONFIG["model"], **changes}}


def saved(root, values, seed=0, tokenizer=BYTES):
    """Writes the run directory of an untrained model, and returns its `Generator`."""
    config = Config.from_dict(values)
    with RunDirectory.open(root, config) as directory:
        tokenizer.save(directory.tokenizer_dir)
        model = build_model(config.model, task_of(config).head(config))
        params = nn.unbox(jax.jit(lambda key: model.initial_params(key))(jax.random.key(seed)))
        with Checkpoints(directory.checkpoints_dir, config.checkpoint) as checkpoints:
            checkpoints.save(1, {"params": params}, {}, {"valid/loss": 1.0})
    return Generator(RunDirectory.existing(root), config, None, 1, 8, 1, 0, None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return root, saved(root / "large", CONFIG)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_text_with_a_draft_model_is_that_without_one(runs):
    root, large = runs
    saved(root / "small", with_model(num_layers=1, d_model=8), seed=1)
    drafted = dataclasses.replace(large, draft=str(root / "small"), draft_tokens=3)
    greedy = Sampling(temperature=0)
    for prompts in (PROMPTS, PROMPTS[2:]):  # one text is streamed
        assert "".join(continue_prompts(drafted, prompts, greedy)) == "".join(continue_prompts(large, prompts, greedy))


@pytest.mark.parametrize(
    ("name", "values", "tokenizer", "message"),
    [
        ("lstm", LSTM, BYTES, "does not support model.architecture=recurrent"),
        (
            "short",
            {**CONFIG, "data": {**CONFIG["data"], "sequence_length": 32}},
            BYTES,
            "32 positions, fewer than the 64",
        ),
        ("two_sided", CHAT, BYTES, "two_sided does not continue texts; both models must be decoders"),
        ("letters", with_model(vocab_size=40), "letters", "its tokenizer differs from .*data.tokenizer.path"),
    ],
)
def test_draft_model_that_does_not_match_is_refused(runs, monkeypatch, name, values, tokenizer, message):
    monkeypatch.setattr(generation, "read_params", None)  # refused before any parameters are read
    root, large = runs
    if tokenizer == "letters":
        tokenizer = build_tokenizer(TokenizerConfig(kind="characters"), ["abcdefgh"])
        values = with_model(vocab_size=tokenizer.vocab_size)
    saved(root / name, values, tokenizer=tokenizer)
    run = dataclasses.replace(large, draft=str(root / name))
    with pytest.raises(UserError, match=message) as caught:
        run.sampler(1, Sampling(), vocabulary_of(BYTES), 4)
    assert "\n" not in str(caught.value) and f"--draft={root / name}" in str(caught.value)


def test_matrices_are_rounded_to_8_bits_if_the_architecture_allows_it(runs, tmp_path, monkeypatch):
    _, large = runs
    _, params, _ = dataclasses.replace(large, int8=True).load(1)
    assert isinstance(params["token_embedding"]["embedding"], Int8Matrix)
    assert len(list(continue_prompts(dataclasses.replace(large, int8=True), PROMPTS, Sampling()))) == len(PROMPTS)
    other = saved(tmp_path / "lstm", LSTM)
    monkeypatch.setattr(generation, "read_params", None)  # refused before any parameters are read
    with pytest.raises(UserError, match=r"--int8 does not support model\.architecture=recurrent"):
        dataclasses.replace(other, int8=True).load(1)
