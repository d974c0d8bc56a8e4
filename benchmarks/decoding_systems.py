"""The systems that benchmarks/decode.py compares: ours, and CTranslate2 if it is installed.

Each function returns a function without arguments that decodes all inputs and returns the new tokens of each input.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.huggingface_peer import SAMPLED, frameworks, peer_logits
from lm.config import ModelConfig
from lm.decoding import beam_model
from lm.decoding.beam import BeamSettings
from lm.decoding.inputs import longest_first, model_batch, pad_sources
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, row_keys
from lm.decoding.text import batches_by_length
from lm.models import build_model
from lm.models.presets import preset
from lm.models.protocol import Model

Ids = list[int]
Decode = Callable[[], list[Ids]]  # decodes all inputs: returns the new tokens of each input
OURS_SAMPLED = Sampling(temperature=SAMPLED["temperature"], top_k=SAMPLED["top_k"])


def searching(
    model: Model, params: Any, sources: Sequence[Ids], settings: BeamSettings, vocabulary: Vocabulary, rows: int
) -> Decode:
    def decode() -> list[Ids]:
        found = beam_model.beam_search(model, params, sources, settings, vocabulary, max_rows=rows)
        return [hypotheses[0].tokens for hypotheses in found]

    return decode


def sampling(
    model: Model, params: Any, sources: Sequence[Ids], vocabulary: Vocabulary, max_new_tokens: int, rows: int
) -> Decode:
    sampler = Sampler(model, params, OURS_SAMPLED, vocabulary, max_new_tokens)
    order = longest_first(sources)
    keys_B, starts = row_keys(0, np.array(order), np.zeros(len(order))), [vocabulary.output_start] * len(order)

    def decode() -> list[Ids]:
        drawn = sampler.generate(starts, keys_B, rows, [sources[number] for number in order])
        return [tokens for _, tokens in sorted(zip(order, drawn, strict=True))]

    return decode


def continuing(
    model: Model, params: Any, prompts: Sequence[Ids], vocabulary: Vocabulary, new_tokens: int, rows: int
) -> Decode:
    sampler = Sampler(model, params, OURS_SAMPLED, vocabulary, new_tokens)
    keys_B = row_keys(0, np.arange(len(prompts)), np.zeros(len(prompts)))
    return lambda: sampler.generate(prompts, keys_B, rows)


def batch_by_batch(sources: Sequence[Ids], rows: int, decode_batch: Callable[[list[Ids]], list[Ids]]) -> Decode:
    """Decodes batches of sources of similar length, each of which runs until its last output ends."""

    def decode() -> list[Ids]:
        outputs: list[Ids] = [[] for _ in sources]
        for numbers in batches_by_length(sources, rows):
            for number, tokens in zip(numbers, decode_batch([sources[number] for number in numbers]), strict=True):
                outputs[number] = tokens
        return outputs

    return decode


def row_steps(decode: Decode) -> int:
    """Returns the number of decoder steps that our beam search runs, times the rows of their batches."""
    found, search = [], beam_model.search_model

    def counted(model: Model, params: Any, beams: Any, *others: Any) -> Any:
        before_B = np.array(beams.lengths_B)  # a copy, because the buffers are donated
        beams = search(model, params, beams, *others)
        found.append(int((np.asarray(beams.lengths_B) - before_B).max()) * len(before_B))
        return beams

    beam_model.search_model = counted  # type: ignore[assignment]
    try:
        decode()
    finally:
        beam_model.search_model = search
    return sum(found)


def random_decoder(new_tokens: int, vocab_size: int = 6000, width: int = 384) -> tuple[Any, Any, Vocabulary]:
    """Returns a GPT-2 of nanoGPT's size for tinyshakespeare with random weights, and a vocabulary without EOS."""
    sizes = {"num_layers": 6, "num_heads": 6, "num_kv_heads": 6, "head_dim": width // 6}
    sizes |= {"d_model": width, "d_ff": 4 * width}
    changes = {"vocab_size": vocab_size, "max_length": 32 + new_tokens, "dropout": 0.0, "dtype": "float32"}
    model = build_model(ModelConfig(**{**preset("gpt2_124m"), **sizes, **changes, "scan_layers": False}))
    params = nn.unbox(model.initial_params(jax.random.key(0)))
    return model, params, Vocabulary(size=vocab_size, bos_id=1, eos_id=-1, pad_id=0, pad_is_special=True)


def logits_difference(model: Model, params: Any, peer: Any, sources: Sequence[Ids], vocabulary: Vocabulary) -> float:
    """Returns the largest difference between the logits of ours and of `transformers` on random targets."""
    targets_BL = np.random.default_rng(0).integers(0, vocabulary.size, (len(sources), 16), dtype=np.int32)
    targets_BL[:, 0] = vocabulary.bos_id
    positions_BL = np.broadcast_to(np.arange(16, dtype=np.int32), targets_BL.shape)
    source = pad_sources(sources, len(sources), model.max_source_length, vocabulary.pad_id)
    batch = model_batch(targets_BL, positions_BL, np.ones_like(targets_BL), source)
    ours = jax.jit(lambda params, batch: model.apply({"params": params}, batch).logits)(params, batch)
    return float(np.max(np.abs(np.asarray(ours) - peer_logits(peer, sources, targets_BL.tolist(), vocabulary))))


def ctranslate2(peer: Any, vocabulary: Vocabulary) -> CTranslate2 | None:
    """Returns CTranslate2 with the weights of a peer, or None if the package is not installed."""
    with contextlib.suppress(ImportError):
        import ctranslate2 as module

        return CTranslate2(module, peer, vocabulary)
    return None


class CTranslate2:
    """A peer converted to CTranslate2, in float32 with as many threads as there are cores. Token i has the name "i"."""

    def __init__(self, module: Any, peer: Any, vocabulary: Vocabulary) -> None:
        from ctranslate2.converters import transformers as converters

        torch, _ = frameworks()
        self._two_sided = peer.config.is_encoder_decoder
        with torch.no_grad():
            if self._two_sided:
                # The loader of BART also fits Marian and Pegasus, but reads these two settings.
                peer.config.normalize_before = type(peer).__name__.startswith("Pegasus")
                peer.config.normalize_embedding = False
                spec = converters.BartLoader().get_model_spec(peer)
            else:
                spec = converters.GPT2Loader().get_model_spec(peer)
            names = [str(token) for token in range(peer.config.vocab_size)]
            spec.config.bos_token, spec.config.unk_token = str(vocabulary.bos_id), str(vocabulary.pad_id)
            spec.config.eos_token = str(max(vocabulary.eos_id, 0))
            if self._two_sided:
                spec.config.decoder_start_token = str(vocabulary.bos_id)
                spec.register_source_vocabulary(names)
                spec.register_target_vocabulary(names)
            else:
                spec.register_vocabulary(names)
            spec.validate()
            spec.optimize()
            with tempfile.TemporaryDirectory() as directory:
                spec.save(directory)
                kind = module.Translator if self._two_sided else module.Generator
                self._model = kind(directory, device="cpu", compute_type="float32", intra_threads=os.cpu_count())

    def search(self, sources: Sequence[Ids], settings: BeamSettings, rows: int) -> Decode:
        options = {"beam_size": settings.num_beams, "length_penalty": settings.length_penalty}
        return self._translate(sources, settings.max_new_tokens, rows, options)

    def sample(self, sources: Sequence[Ids], max_new_tokens: int, rows: int) -> Decode:
        return self._translate(sources, max_new_tokens, rows, {"beam_size": 1, **_sampled()})

    def _translate(self, sources: Sequence[Ids], max_new_tokens: int, rows: int, options: dict[str, Any]) -> Decode:
        named = [[str(token) for token in source] for source in sources]

        def decode() -> list[Ids]:
            found = self._model.translate_batch(
                named,
                max_batch_size=rows,
                max_decoding_length=max_new_tokens,
                max_input_length=0,
                return_end_token=True,
                **options,
            )
            return [[int(token) for token in each.hypotheses[0]] for each in found]

        return decode

    def continue_prompts(self, prompts: Sequence[Ids], new_tokens: int, rows: int) -> Decode:
        named = [[str(token) for token in prompt] for prompt in prompts]

        def decode() -> list[Ids]:
            found = self._model.generate_batch(
                named,
                max_batch_size=rows,
                max_length=new_tokens,
                min_length=new_tokens,
                include_prompt_in_result=False,
                **_sampled(),
            )
            return [list(each.sequences_ids[0]) for each in found]

        return decode


def _sampled() -> dict[str, Any]:
    return {"sampling_topk": SAMPLED["top_k"], "sampling_temperature": SAMPLED["temperature"]}
