"""Decoding with a cache, greedily and by beam search, equals `generate` of `transformers` for every family that writes.

Both read the start, BOS and stop tokens from the same generation_config.json. Two published conventions are set alike:

- Ours never chooses BOS or the padding token; theirs are kept from it by `bad_words_ids`.
- The score of a hypothesis is its log-probability / length^length_penalty in both. With early_stopping=False, their
  search ends when the best live hypothesis, if it ended now, could not displace a finished one, as does ours with
  exact=False; the length includes the stop token and a forced first token, but not the start token.

Published files may also have forced_eos_token_id (BART), which replaces the last token of an output that reaches
max_new_tokens. We have no such rule, so it is not set here.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.inputs import model_batch, pad_rows
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, choosable, row_keys, vocabulary_of
from lm.huggingface.importing import read_tokenizer
from tests.huggingface.models import MODELS, each_model
from tests.huggingface.peers import build, folder_of, tokenizer_json
from tests.huggingface.rows import MemoryFolder, batch_of, imported, reads_pairs

NEW = 64
SOURCES = [[0, *range(4, 14), 2], [0, 7, 30, 5, 2], [0, 2], [0, 9, 9, 31, 12, 38, 39, 2]]
PROMPTS = [[5, 6, 7, 40], [30, 31], [0, 12, 9, 33, 5, 60, 61], [44]]
# The fields of generation_config.json, as in the published files of each family: how many tokens end an output, where
# the decoder starts, and which token (BOS, or that of a language) comes first.
ENDS = {"eos_token_id": [2, 14, 23], "bos_token_id": 0, "pad_token_id": 1}
PAIRS = {
    "t5": {"decoder_start_token_id": 1},
    "t5_1_1": {"decoder_start_token_id": 1},
    "mt5": {"decoder_start_token_id": 1},
    "bart": {"decoder_start_token_id": 2, "forced_bos_token_id": 0},
    "mbart": {"decoder_start_token_id": 2, "forced_bos_token_id": 9},
    "m2m_100": {"decoder_start_token_id": 2, "forced_bos_token_id": 9},
    "pegasus": {"decoder_start_token_id": 1},
    "marian": {"decoder_start_token_id": 1},
}
DECODERS = [name for name, (kind, _) in MODELS.items() if kind.endswith(("ForCausalLM", "LMHeadModel"))]


@functools.cache
def writer(name):
    """Returns (their model, our model, our parameters, our vocabulary), all of which have a generation_config.json."""
    kind, settings = MODELS[name]
    if "num_decoder_layers" in settings:  # their cache has num_layers layers, also if there are more of the decoder
        settings = {**settings, "num_decoder_layers": settings["num_layers"]}
    model = build(kind, settings)
    with torch.no_grad():  # or the output layer, if it is the embedding, mostly repeats the last token
        model.get_input_embeddings().weight.mul_(0.3)
    generation = {**ENDS, **PAIRS.get(name, {})}
    model.generation_config = transformers.GenerationConfig(**generation)
    folder = folder_of(model)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    contents = {"tokenizer_config.json": special, "generation_config.json": generation}
    files = {name: json.dumps(content).encode() for name, content in contents.items()}
    files["tokenizer.json"] = tokenizer_json().encode()
    folder = MemoryFolder(folder.config, {name: folder.read(name) for name in folder.tensors}, files=files)
    published, params = imported(folder)
    vocabulary = vocabulary_of(read_tokenizer(folder, published.config.model.vocab_size))
    assert set(vocabulary.stops) == set(ENDS["eos_token_id"])
    return model, published, params, vocabulary


def generated(model, vocabulary, inputs, **settings):
    """Returns (rows, scores) of transformers; rows end with their first stop token."""
    decoder = not model.config.is_encoder_decoder
    longest = max(map(len, inputs))
    tokens, mask = (np.array(x) for x in pad_rows(inputs, (len(inputs), longest), vocabulary.pad_id))
    if decoder:  # theirs continue the last position of each row
        for row, each in enumerate(inputs):
            tokens[row], mask[row] = np.roll(tokens[row], longest - len(each)), np.roll(mask[row], longest - len(each))
    never = np.flatnonzero(~np.asarray(choosable(vocabulary, model.config.vocab_size)))
    with torch.inference_mode():
        found = model.generate(
            torch.tensor(tokens, dtype=torch.int64),
            attention_mask=torch.tensor(mask, dtype=torch.int64),
            bad_words_ids=never[:, None].tolist(),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    rows = []
    for row in found.sequences[:, longest if decoder else 1 :].tolist():
        ends = [index for index, token in enumerate(row) if token in vocabulary.stops]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows, found.get("sequences_scores")


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@each_model([*DECODERS, *PAIRS])
def test_greedy_outputs_equal_transformers(name):
    model, published, params, vocabulary = writer(name)
    start, inputs = [], PROMPTS
    if name in PAIRS:
        start, inputs = vocabulary.output_start, SOURCES
    sampler = Sampler(published.model, params, Sampling(temperature=0), vocabulary, NEW - len(start[1:]))
    prompts, keys = [start or each for each in inputs], row_keys(0, np.arange(len(inputs)), np.zeros(len(inputs)))
    ours = sampler.generate(prompts, keys, sources=inputs if start else None)
    theirs, _ = generated(model, vocabulary, inputs, num_beams=1)
    assert [[*start[1:], *each] for each in ours] == theirs
    assert len({token for row in theirs for token in row}) > 1


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@each_model(PAIRS)
def test_beams_and_scores_equal_transformers(name, penalty):
    model, published, params, vocabulary = writer(name)
    settings = BeamSettings(num_beams=4, length_penalty=penalty, max_new_tokens=NEW, exact=False)
    ours = [each for (each,) in beam_search(published.model, params, SOURCES, settings, vocabulary)]
    theirs, scores = generated(model, vocabulary, SOURCES, num_beams=4, length_penalty=penalty, early_stopping=False)
    assert [each.tokens for each in ours] == theirs
    np.testing.assert_allclose([each.score for each in ours], scores.numpy(), rtol=0, atol=1e-4)


@each_model([*DECODERS, *PAIRS])
def test_logits_with_a_cache_equal_those_without(name):
    """Rows of different lengths are read token by token; before the first one, the cache only holds the source."""
    _, published, params, _ = writer(name)
    model, pairs = published.model, reads_pairs(published)
    batch = jax.tree.map(jnp.asarray, batch_of(published))
    rows, length = batch.tokens.shape

    @jax.jit
    def step(cache, tokens, positions, segments):
        found = model.apply({"params": params}, model_batch(tokens, positions, segments), cache=cache)
        return found.cache, found.logits[:, 0]

    cache = model.empty_cache(rows, length, length if pairs else 0)
    if pairs:
        nothing = jnp.zeros((rows, 1), jnp.int32)
        batch_of_sources = model_batch(nothing, nothing, nothing, batch.source)
        cache = jax.jit(lambda cache: model.apply({"params": params}, batch_of_sources, cache=cache).cache)(cache)
    whole = np.asarray(jax.jit(model.apply)({"params": params}, batch).logits)
    for n in range(int(batch.segments.sum(axis=1).max())):
        cache, logits = step(cache, *(x[:, n : n + 1] for x in (batch.tokens, batch.positions, batch.segments)))
        real = np.asarray(batch.segments[:, n]) > 0
        np.testing.assert_allclose(np.asarray(logits)[real], whole[real, n], rtol=0, atol=1e-4, err_msg=f"token {n}")
