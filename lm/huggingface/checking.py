"""Compares an imported model or a run with a model folder loaded by `transformers`, which must be installed.

The comparison covers the token ids of a few texts, the last-layer vectors, the logits, greedily generated text
and, for a run, the parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lm.batch import Batch, Source
from lm.config import Config
from lm.config.experiment import replace_settings
from lm.data.tokenizing.base import Tokenizers
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, choosable, row_keys, vocabulary_of
from lm.errors import UserError
from lm.huggingface.base import Folder
from lm.huggingface.families.family import convention
from lm.huggingface.importing import load_params, read_tokenizer
from lm.huggingface.recognising import Published, recognise
from lm.models import build_model
from lm.models.heads import MaskedTokens
from lm.models.protocol import Model
from lm.tasks import task_of

TOLERANCE = 1e-3  # largest allowed difference, in float32 and without fused attention
TEXTS = ("The quick brown fox jumps over the lazy dog.", "Grüße, 世界! 12,345 and\na new line", "a")
TOKENIZER = "tokenizer.json"
LONGEST = 64  # tokens per text
NEW_TOKENS = 20  # generated greedily per text
Line = tuple[str, bool]  # a line of the report, and whether the two models agree


@dataclass(frozen=True)
class Ours:
    """Our side of the comparison: a model and everything needed to apply it."""

    config: Config
    model: Model
    params: Any
    tokenizers: Tokenizers

    @classmethod
    def of_run(cls, config: Config, params: Any, tokenizers: Tokenizers) -> Ours:
        """Returns a run's model, which computes in float32 regardless of the dtype that the config specifies."""
        config = replace_settings(config, {"model.dtype": "float32", "model.attention": "xla"})
        return cls(config, build_model(config.model, task_of(config).head(config), platform="cpu"), params, tokenizers)

    @classmethod
    def of_folder(cls, folder: Folder, published: Published) -> Ours:
        target = read_tokenizer(folder, published.config.model.vocab_size)
        params = load_params(folder, published)
        return cls(published.config, published.model, params, Tokenizers(target, target.for_sources))

    @property
    def is_pair(self) -> bool:
        return self.config.model.family == "encoder_decoder"


def lines_of_comparison(folder: Folder, family: str = "", run: Ours | None = None) -> Iterator[Line]:
    """Yields the lines of a report, each with a flag that says whether the two models agree.

    Args:
        run: the run to compare with the folder; if None, the folder itself is imported and compared.

    Raises UserError if `transformers` or PyTorch is not installed, or if the folder cannot be imported.
    """
    torch, transformers = _frameworks()
    published = recognise(folder, family)
    path = Path(folder.source)
    if not path.is_dir():
        raise UserError(f"--model={folder.source}: a comparison needs a folder; download the model first.")
    with jax.default_matmul_precision("highest"):
        ours = run or Ours.of_folder(folder, published)
        tokenizer = ours.tokenizers.target
        theirs_tokenizer = (
            transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / TOKENIZER))
            if (path / TOKENIZER).is_file()
            else transformers.AutoTokenizer.from_pretrained(path)  # older files
        )
        ids = [tokenizer.encode(text)[:LONGEST] for text in TEXTS]
        expected = [theirs_tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST] for text in TEXTS]
        same = sum(a == b for a, b in zip(ids, expected, strict=True))
        yield f"token ids: equal for {same} of {len(TEXTS)} texts", same == len(TEXTS)
        peer = getattr(transformers, published.architecture)
        model, found = peer.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
        )
        problems = {name: sorted(map(str, each))[:3] for name, each in found.items() if each}
        yield f"loading in transformers: {problems or 'all tensors found'}", not problems
        if run is not None:
            yield _line_of_parameters(run.params, load_params(folder, published))
        for name, mine, theirs in _values(ours, model.eval(), torch, ids):
            yield _line_of_difference(name, mine, theirs)
        if task_of(ours.config).writes_text and hasattr(model, "generate"):
            yield _line_of_texts(ours, model, torch, transformers, ids)


def _frameworks() -> tuple[Any, Any]:
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"`lm.hf check` needs PyTorch and transformers, but {error.name} is not installed; run `pip install torch "
            "transformers`, preferably in a separate environment."
        ) from None


def _line_of_parameters(ours: Any, theirs: Any) -> Line:
    """Compares the parameters of a run with those imported from the folder. They differ if the run has been trained."""
    mine, others = flatten_dict(ours), flatten_dict(theirs)
    lacking = sorted("/".join(path) for path in mine.keys() ^ others.keys())
    differences = [
        float(np.abs(np.asarray(mine[path], np.float32) - np.asarray(other, np.float32)).max())
        if mine[path].shape == other.shape
        else np.inf
        for path, other in others.items()
        if path in mine
    ]
    equal = sum(each == 0 for each in differences)
    line = f"parameters: {equal} of {len(others)} arrays are equal"
    if equal < len(differences):
        line += (
            f" (largest difference {max(differences):.1e}); the run has been trained, or it was not imported from this "
            "model"
        )
    if lacking:
        line += f"; only one of the two models has {lacking[0]}" + (
            f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        )
    return line, equal == len(others) == len(mine)


def _line_of_difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Line:
    if ours.shape != theirs.shape:
        return f"{name}: {ours.shape[-1]} values in our model, {theirs.shape[-1]} in transformers", False
    difference = float(np.abs(ours - theirs).max())
    line = f"{name}: largest difference {difference:.1e} (standard deviation {theirs.std():.2f})"
    return line, difference <= TOLERANCE


def _values(ours: Ours, model: Any, torch: Any, ids: list[list[int]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, ours, theirs) for the last-layer vectors and, for some tasks, for the logits."""
    length = max(max(map(len, ids)), 2)
    tokens_BL, real_BL = np.zeros((len(ids), length), np.int32), np.zeros((len(ids), length), bool)
    for row, each in enumerate(ids):
        tokens_BL[row, : len(each)], real_BL[row, : len(each)] = each, True
    real_BL[:, 0] = True
    positions_BL = np.where(real_BL, np.arange(length), 0).astype(np.int32)
    text = (jnp.asarray(tokens_BL), jnp.asarray(positions_BL), jnp.asarray(real_BL, jnp.int32))
    pad = model.config.pad_token_id or 0
    inputs = {
        "input_ids": torch.tensor(np.where(real_BL, tokens_BL, pad), dtype=torch.int64),
        "attention_mask": torch.tensor(real_BL, dtype=torch.int64),
    }
    two_sided = ours.is_pair and ours.model.reads_source
    if two_sided:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    hidden = found.encoder_hidden_states if ours.is_pair else found.hidden_states
    weights = jnp.asarray(real_BL, jnp.float32)
    batch = Batch(text[0], text[0], weights, positions=text[1], segments=text[2])
    vectors = np.asarray(ours.model.token_vectors({"params": ours.params}, batch, ours.model.text_layers))
    yield "vectors of the last layer", vectors[real_BL], hidden[-1].numpy()[real_BL]
    if convention(ours.config.objective.name).logits and "logits" in found:
        batch = Batch(**{**vars(batch), "source": Source(*text) if two_sided else None})
        logits = np.asarray(_with_all_logits(ours.model).apply({"params": ours.params}, batch).logits)
        yield "logits", logits[real_BL], found.logits.numpy()[real_BL]


def _with_all_logits(model: Any) -> Any:
    """Returns a model that computes logits for all tokens, even if training computes them only for masked tokens."""
    return model.clone(head=model.head.clone(max_masked=0)) if isinstance(model.head, MaskedTokens) else model


def _line_of_texts(ours: Ours, model: Any, torch: Any, transformers: Any, ids: list[list[int]]) -> Line:
    """Compares greedy continuations, or the greedy outputs of an encoder-decoder.

    Both sides use the same special tokens.
    """
    vocabulary = vocabulary_of(ours.tokenizers.target)
    if ours.is_pair:
        inputs = [ours.tokenizers.source.source_template.fill(each)[0].tolist() for each in ids]
    else:
        begin = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
        inputs = [[*begin, *each] or [ours.tokenizers.target.start_id] for each in ids]
    longest = ours.model.max_length - (0 if ours.is_pair else max(map(len, inputs)))
    number = min(NEW_TOKENS, longest - 1)
    mine = _our_texts(ours, inputs, vocabulary, number)
    never_V = ~np.asarray(choosable(vocabulary, model.config.vocab_size))
    model.generation_config = transformers.GenerationConfig()
    settings = transformers.GenerationConfig(
        bos_token_id=vocabulary.bos_id,
        eos_token_id=list(vocabulary.stops),
        pad_token_id=vocabulary.pad_id,
        decoder_start_token_id=vocabulary.decoder_start_id,
        forced_bos_token_id=vocabulary.forced_first_id if ours.is_pair else None,
        suppress_tokens=np.flatnonzero(never_V).tolist() or None,
        max_new_tokens=number,
        do_sample=False,
    )
    same = 0
    for row, tokens in zip(inputs, mine, strict=True):
        text = torch.tensor([row])
        with torch.no_grad():
            (made,) = model.generate(text, attention_mask=torch.ones_like(text), generation_config=settings).tolist()
        same += made[1 if ours.is_pair else len(row) :] == tokens
    return f"greedy text: equal for {same} of {len(mine)} texts of up to {number} tokens", same == len(mine)


def _our_texts(ours: Ours, inputs: list[list[int]], vocabulary: Vocabulary, number: int) -> list[list[int]]:
    if ours.is_pair:
        settings = BeamSettings(max_new_tokens=number)
        found = beam_search(ours.model, ours.params, inputs, settings, vocabulary)
        return [best.tokens for (best,) in found]
    sampler = Sampler(ours.model, ours.params, Sampling(temperature=0), vocabulary, number)
    return sampler.generate(inputs, row_keys(0, np.arange(len(inputs)), np.zeros(len(inputs))))
