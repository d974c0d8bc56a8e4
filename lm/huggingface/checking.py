"""Compares an imported model with the same model in `transformers`, where that is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch, Source
from lm.errors import UserError
from lm.huggingface.base import Folder
from lm.huggingface.families.family import convention
from lm.huggingface.importing import load_params, read_tokenizer
from lm.huggingface.recognising import Published, recognise

TOLERANCE = 1e-3  # largest difference of logits, in float32 with attention as a plain product
TEXTS = ("The quick brown fox jumps over the lazy dog.", "Grüße, 世界! 12,345 and\na new line", "a")
LONGEST = 64  # tokens per text


def lines_of_comparison(folder: Folder, family: str = "") -> Iterator[tuple[str, bool]]:
    """Yields lines of a report, each with whether the two models agree.

    Raises UserError if `transformers` or PyTorch is not installed, or if the import is refused.
    """
    torch, transformers = _frameworks()
    published = recognise(folder, family)
    path = Path(folder.source)
    if not path.is_dir():
        raise UserError(f"--model={folder.source}: a comparison needs a folder; download the model first.")
    tokenizer = read_tokenizer(folder, published.config.model.vocab_size)
    with jax.default_matmul_precision("highest"):
        theirs_tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        ids = [tokenizer.encode(text)[:LONGEST] for text in TEXTS]
        expected = [theirs_tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST] for text in TEXTS]
        same = sum(a == b for a, b in zip(ids, expected, strict=True))
        yield f"ids: {same} of {len(TEXTS)} texts equal", same == len(TEXTS)
        peer = getattr(transformers, published.architecture)
        model, found = peer.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
        )
        problems = {name: sorted(map(str, each))[:3] for name, each in found.items() if each}
        yield f"loading in transformers: {problems or 'all tensors found'}", not problems
        params = load_params(folder, published)
        for name, ours, theirs in _values(published, params, model.eval(), torch, ids):
            difference = float(np.abs(ours - theirs).max())
            yield (
                f"{name}: largest difference {difference:.1e} (standard deviation {theirs.std():.2f})",
                (difference <= TOLERANCE),
            )
            if published.config.model.family == "decoder" and name == "logits":
                agree = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
                yield f"greedy next tokens: {agree:.1%} equal", agree == 1.0


def _frameworks() -> tuple[Any, Any]:
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"`lm.hf check` needs PyTorch and transformers, but {error.name} is not installed: pip install torch "
            "transformers (preferably in a separate environment)."
        ) from None


def _values(
    published: Published, params: Any, model: Any, torch: Any, ids: list[list[int]]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, ours, theirs) for the vectors of the last layer, and for logits of tokens."""
    config = published.config
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
    two_sided = config.model.family == "encoder_decoder" and published.model.reads_source
    if config.model.family == "encoder_decoder" and two_sided:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    hidden = found.encoder_hidden_states if config.model.family == "encoder_decoder" else found.hidden_states
    weights = jnp.asarray(real_BL, jnp.float32)
    batch = Batch(text[0], text[0], weights, positions=text[1], segments=text[2])
    layers = published.model.text_layers
    vectors = np.asarray(published.model.token_vectors({"params": params}, batch, layers))
    yield "vectors of the last layer", vectors[real_BL], hidden[-1].numpy()[real_BL]
    if convention(config.objective.name).logits:
        batch = Batch(**{**vars(batch), "source": Source(*text) if two_sided else None})
        ours = np.asarray(published.model.apply({"params": params}, batch).logits)
        yield "logits", ours[real_BL], found.logits.numpy()[real_BL]
