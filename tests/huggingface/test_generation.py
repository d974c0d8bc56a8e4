"""Greedy decoding and beam search equal transformers' `generate` with the special tokens of generation_config.json."""

import dataclasses
import functools

import numpy as np
import pytest

from benchmarks.huggingface_peer import pad
from benchmarks.parity import CASES, drawn_weights
from lm.decoding.beam import BeamSettings, beam_search
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, choosable, row_keys
from lm.models import build_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SOURCES = [[0, *range(4, 14), 2], [0, 7, 30, 5, 2], [0, 2], [0, 9, 9, 31, 12, 38, 39, 2]]
NEW = 24
# As in BART: the decoder starts from EOS, and <s> comes first. Two more tokens end an output.
BART = Vocabulary(
    size=40,
    bos_id=0,
    eos_id=2,
    pad_id=1,
    pad_is_special=True,
    other_stops=(14, 23),
    decoder_start_id=2,
    forced_first_id=0,
)
# As in T5: the decoder starts from the padding token, and there is no BOS.
T5 = Vocabulary(size=40, bos_id=None, eos_id=1, pad_id=0, pad_is_special=True, other_stops=(9, 17), decoder_start_id=0)


@functools.cache
def peer(kind):
    from benchmarks.published_models import build_published

    # With tied embeddings and random weights, models repeat the last token; T5's class always ties them.
    untied = {} if kind == "t5" else {"tie_embeddings": False}
    case = dataclasses.replace(CASES[kind], changes={**CASES[kind].changes, **untied})
    params = drawn_weights(case)
    config = dataclasses.replace(case.config, max_length=case.config.max_length or 80)  # T5 has no longest text
    return build_model(config, case.head), params, build_published(case.kind, config, params)


def generated(model, vocabulary, inputs, **settings):
    """Returns (rows, scores) of transformers; rows end with their first stop token."""
    tokens_BL, mask_BL = pad(inputs, vocabulary.pad_id)
    config = transformers.GenerationConfig(
        bos_token_id=vocabulary.bos_id,
        eos_token_id=list(vocabulary.stops),
        pad_token_id=vocabulary.pad_id,
        decoder_start_token_id=vocabulary.decoder_start_id,
        forced_bos_token_id=vocabulary.forced_first_id,
        bad_words_ids=np.flatnonzero(~np.asarray(choosable(vocabulary, 40)))[:, None].tolist() or None,
        max_new_tokens=NEW,
        do_sample=False,
        **settings,
    )
    model.generation_config = transformers.GenerationConfig()
    with torch.inference_mode():
        found = model.generate(
            tokens_BL,
            attention_mask=mask_BL,
            generation_config=config,
            return_dict_in_generate=True,
            output_scores=True,
        )
    begin = tokens_BL.shape[1] if vocabulary.decoder_start_id is None else 1
    rows = []
    for row in found.sequences[:, begin:].tolist():
        ends = [index for index, token in enumerate(row) if token in vocabulary.stops]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows, found.get("sequences_scores")


@pytest.mark.parametrize(("kind", "vocabulary"), [("bart", BART), ("t5", T5)])
def test_outputs_of_encoder_decoders_equal_transformers(kind, vocabulary):
    model, params, published = peer(kind)
    settings = BeamSettings(num_beams=1, max_new_tokens=NEW)
    ours = [each.tokens for (each,) in beam_search(model, params, SOURCES, settings, vocabulary)]
    theirs, _ = generated(published, vocabulary, SOURCES, num_beams=1)
    assert ours == theirs and len({len(each) for each in ours}) > 1
    sampler = Sampler(model, params, Sampling(temperature=0), vocabulary, NEW - len(vocabulary.output_start) + 1)
    starts, keys = (
        [vocabulary.output_start] * len(SOURCES),
        row_keys(0, np.arange(len(SOURCES)), np.zeros(len(SOURCES))),
    )
    drawn = sampler.generate(starts, keys, sources=SOURCES)
    assert [[*vocabulary.output_start[1:], *each] for each in drawn] == theirs


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize(("kind", "vocabulary"), [("bart", BART), ("t5", T5)])
def test_beams_and_scores_of_encoder_decoders_equal_transformers(kind, vocabulary, penalty):
    model, params, published = peer(kind)
    settings = BeamSettings(num_beams=4, length_penalty=penalty, max_new_tokens=NEW, exact=False)
    ours = [each for (each,) in beam_search(model, params, SOURCES, settings, vocabulary)]
    theirs, scores = generated(published, vocabulary, SOURCES, num_beams=4, length_penalty=penalty)
    assert [each.tokens for each in ours] == theirs
    np.testing.assert_allclose([each.score for each in ours], scores.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_continuations_without_bos_equal_transformers(kind):
    model, params, published = peer(kind)
    free = Vocabulary(size=40, bos_id=None, eos_id=-1)
    prompts, keys = [[5, 6, 7], [30, 31, 32]], row_keys(0, np.arange(2), np.zeros(2))
    whole = Sampler(model, params, Sampling(temperature=0), free, NEW).generate(prompts, keys)
    stops = whole[0][7], whole[1][3], whole[1][11]
    vocabulary = dataclasses.replace(free, eos_id=stops[0], other_stops=stops[1:], pad_id=stops[0])
    ours = Sampler(model, params, Sampling(temperature=0), vocabulary, NEW).generate(prompts, keys)
    theirs, _ = generated(published, vocabulary, prompts)
    assert ours == theirs and len(ours[1]) <= 4
