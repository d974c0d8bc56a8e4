"""benchmarks/decode.py: one clear line without PyTorch; with it, equal logits and outputs."""

import dataclasses
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks import decode, huggingface_peer
from benchmarks import decoding_systems as systems
from lm.config import ModelConfig
from lm.decoding.beam import BeamSettings
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, row_keys
from lm.errors import UserError
from lm.models import build_model
from lm.models.presets import preset

SIZES = {"num_layers": 2, "num_encoder_layers": 1, "d_model": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
CONFIG = ModelConfig(**{**preset("transformer_tiny"), **SIZES, "d_ff": 24, "vocab_size": 40, "max_length": 32})
VOCABULARY = Vocabulary(size=38, bos_id=1, eos_id=2, pad_id=0, pad_is_special=True)
SOURCES = [[5, 6, 7, 8, 2], [9, 2], [13, 2], [10, 11, 30, 31, 32, 33, 12, 2]]


def test_missing_pytorch_is_reported_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch is not installed.*pip install -r requirements-benchmarks\.txt"):
        huggingface_peer.frameworks()


def test_outputs_of_batches_are_in_the_order_of_the_sources():
    seen = []

    def copy(sources):
        seen.append(len(sources))
        return [source[:1] for source in sources]

    assert systems.batch_by_batch(SOURCES, 3, copy)() == [[5], [9], [13], [10]] and seen == [3, 1]


@pytest.mark.parametrize(("norm_position", "scan_layers"), [("pre", True), ("post", False)])
def test_peer_has_equal_logits_and_outputs(norm_position, scan_layers):
    pytest.importorskip("transformers")
    pytest.importorskip("torch").set_num_threads(1)
    config = dataclasses.replace(CONFIG, norm_position=norm_position, scan_layers=scan_layers)
    model = build_model(config)
    shapes = nn.unbox(jax.eval_shape(lambda: model.initial_params(jax.random.key(0))))
    # No bias or scale is 0 or 1, so that no confusion goes unnoticed.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0.2, 0.4, x.shape).astype(np.float32), shapes)
    peer = huggingface_peer.build_peer(config, params, VOCABULARY, longest_source=8)
    assert systems.logits_difference(model, params, peer, SOURCES, VOCABULARY) < 2e-5
    greedy = BeamSettings(max_new_tokens=8, length_penalty=0.6)
    rows = decode.translation_rows(model, params, peer, VOCABULARY, SOURCES, greedy, decode.Sizes(4, 3, 2))
    for name in ("greedy", "beams_exact", "all_beams_exact"):
        ways = rows[name]
        decode.measure(ways, repetitions=1)
        for way in ways:
            assert way.outputs == ways[0].outputs and any(way.outputs), (name, way.name)
            assert way.metrics(name, ways[0])["same_as_ours"] == len(SOURCES)
    counts = [systems.row_steps(way.decode) for way in rows["all_beams_exact"]]
    assert counts[0] <= counts[1]


def test_peer_of_a_decoder_has_equal_outputs():
    pytest.importorskip("transformers")
    model, params, vocabulary = systems.random_decoder(6, vocab_size=40, width=48)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + random.normal(0, 0.1, x.shape).astype(np.float32), params)
    peer = huggingface_peer.build_decoder_peer(model.config, params, vocabulary)
    prompts = [[5, 6, 7, 8], [9], [10, 11, 30]]
    greedy = Sampler(model, params, Sampling(temperature=0), vocabulary, 6)
    expected = greedy.generate(prompts, row_keys(0, np.arange(3), np.zeros(3)))
    assert huggingface_peer.peer_continuations(peer, prompts, vocabulary, 6, {"do_sample": False}) == expected


def test_config_that_the_peer_cannot_have_is_rejected(monkeypatch):
    monkeypatch.setattr(huggingface_peer, "frameworks", lambda: (None, None))
    config = dataclasses.replace(CONFIG, positions="relative", num_kv_heads=1)
    with pytest.raises(UserError, match="positions='relative', heads that do not split"):
        huggingface_peer.build_peer(config, {}, VOCABULARY, 8)
