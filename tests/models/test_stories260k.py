"""The published stories260K weights reproduce their known story, word for word, and their loss.

Needs the data in ../shared/data (or $LM_SHARED_DATA), which is not part of the repository.
"""

import dataclasses

import pytest

from benchmarks.published.llama2c import write_run
from benchmarks.stories260k import Pieces, data_directory, greedy_story, load_model, losses, read_stories
from lm.data.tokenizing import load_tokenizer
from lm.huggingface.exporting import choose_class
from lm.models import build_model
from lm.models.parameters import count_parameters, unstack_layers
from lm.runs.directory import RunDirectory

WEIGHTS = data_directory() / "stories260k" / "stories260K.bin"
PIECES = data_directory() / "stories260k" / "tok512.bin"
SAMPLE = data_directory() / "tinystories_sample" / "cs336_sample.txt"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to "
    "play with your ball, but I can't find it.\"\n"
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" "
    "Her mom said, \"Don't worry, Lily. We can help you."
)
STORY_LOSSES = (1.3160, 1.2386, 0.9522, 1.4934, 1.1879)

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.exists() and PIECES.exists()), reason="stories260k is missing (set LM_SHARED_DATA)"
)


@pytest.fixture(scope="module")
def loaded():
    config, params = load_model(WEIGHTS)
    return build_model(config), params, Pieces(PIECES, config.vocab_size)


def test_every_weight_is_used(loaded):
    _, params, pieces = loaded
    assert count_parameters(params) == 260_032
    assert pieces.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert pieces.decode([403, 407, 261, 378]) == "Once upon a time"


def test_greedy_decoding_gives_the_known_story(loaded):
    model, params, pieces = loaded
    story = greedy_story(model, params, 256)
    assert len(story) == 256 and len(STORY) == 565
    assert pieces.decode(story) == STORY


def test_loss_matches_the_known_one(loaded):
    if not SAMPLE.exists():
        pytest.skip("tinystories_sample is missing")
    model, params, pieces = loaded
    found = losses(model, params, [pieces.encode(story) for story in read_stories(SAMPLE)])
    assert [nll / tokens for nll, tokens in found] == pytest.approx(STORY_LOSSES, abs=1e-3)
    total, tokens = (sum(column) for column in zip(*found, strict=True))
    assert tokens == 1804
    assert total / tokens == pytest.approx(1.26644, abs=1e-4)


def test_unrolled_layers_give_the_same_story(loaded):
    model, params, pieces = loaded
    unrolled = build_model(dataclasses.replace(model.config, scan_layers=False))
    assert STORY.startswith(pieces.decode(greedy_story(unrolled, unstack_layers(params), 32)))


def test_run_directory_has_the_tokens_and_the_story_and_can_be_exported_as_llama(loaded, tmp_path):
    write_run(WEIGHTS, PIECES, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    config, tokenizer = directory.load_config(), load_tokenizer(directory.tokenizer_dir)
    assert [tokenizer.bos_id, *tokenizer.encode(STORY)] == loaded[2].encode(STORY)
    with directory.open_checkpoints(config) as checkpoints:
        params, _ = checkpoints.restore_params()
    story = tokenizer.decode(greedy_story(build_model(config.model), params, 64)).strip()
    assert STORY.startswith(story) and len(story) > 100
    assert choose_class(config, None)[1] == "LlamaForCausalLM"
