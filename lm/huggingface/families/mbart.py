"""Relatives of BART: mBART (Liu 2020), Pegasus (Zhang 2020), Marian (Junczys-Dowmunt 2018), M2M-100, NLLB (Fan 2021).

They differ in the placement of norms and the encoding of positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.errors import UserError
from lm.huggingface.families import bart
from lm.huggingface.families.family import Head
from lm.huggingface.fields import Field, Settings, Values, choice, gathered, only, position_rows

# Options of early `transformers` versions. Each family requires certain values.
_FIRST = ("normalize_before", "normalize_embedding", "add_final_layer_norm", "static_position_embeddings")
_COMMON = tuple(each for each in bart.FIELDS if not {*_FIRST, "extra_pos_embeddings"} & each.defaults.keys())
_NEUTRAL = bart.FAMILY.neutral | {"extra_pos_embeddings"}
_PRE = {"norm_position": "pre"}
_SINUSOIDAL = {"positions": "sinusoidal", "norm_embeddings": False}
TOLERANCE = 0.01  # for sinusoids, because some files store them in bfloat16


def _first(*values: bool) -> tuple[Field, ...]:
    return tuple(only(name, value) for name, value in zip(_FIRST, values, strict=True))


def _sinusoids(rows: int, width: int) -> np.ndarray:
    """Returns the float32 position table of shape (rows, width), with all sines before all cosines."""
    half = width // 2
    angles = np.arange(rows)[:, None] * np.exp(-np.log(10_000.0) * np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _tables(model: ModelConfig) -> dict[str, np.ndarray]:
    table = _sinusoids(model.max_length, model.d_model)
    return {f"model.{tower}.embed_positions.weight": table for tower in ("encoder", "decoder")}


def _check_sinusoids(settings: Settings, folder: Any) -> Settings:
    """Raises UserError if a stored position table differs from the sinusoids that we compute."""
    for tower in ("encoder", "decoder"):
        name = f"model.{tower}.embed_positions.weight"
        if name in folder.tensors:
            table = np.asarray(folder.read(name), np.float32)
            if np.abs(table - _sinusoids(*table.shape)).max() > TOLERANCE:
                raise UserError(f"{folder.source}: the tensor {name!r} should contain sinusoids, but does not.")
    return {}


MBART = dataclasses.replace(
    bart.FAMILY,
    name="mbart",
    model_types=("mbart",),
    settings={**bart.SETTINGS, **_PRE},
    fields=(*_COMMON, *_first(True, True, True, False)),
    names=bart.names_of(final_norm=True),
    heads={"MBartForConditionalGeneration": Head("seq2seq", bart.GENERATION)},
    neutral=_NEUTRAL,
)
PEGASUS = dataclasses.replace(
    bart.FAMILY,
    name="pegasus",
    model_types=("pegasus",),
    settings={**bart.SETTINGS, **_PRE, **_SINUSOIDAL},
    fields=(*_COMMON, *_first(True, False, True, True)),
    names=bart.names_of(embeddings=False, norm_embeddings=False, final_norm=True),
    heads={"PegasusForConditionalGeneration": Head("seq2seq", bart.GENERATION)},
    kept={f"model.{tower}.embed_positions": "" for tower in ("encoder", "decoder")},
    computed=_tables,
    neutral=_NEUTRAL,
    adapt=(*bart.FAMILY.adapt, _check_sinusoids),
)


def _read_vocabulary(values: Values) -> Settings:
    size, other = values["vocab_size"], values["decoder_vocab_size"]
    if isinstance(size, bool) or not isinstance(size, int):
        raise ValueError(f"vocab_size={size!r} is not a number")
    if other not in (None, size):
        raise ValueError(f"decoder_vocab_size={other!r} must equal vocab_size={size!r}")
    return {"vocab_size": size}


MARIAN = dataclasses.replace(
    PEGASUS,
    name="marian",
    model_types=("marian",),
    settings={**bart.SETTINGS, **_SINUSOIDAL},
    fields=gathered(
        (*_COMMON, *_first(False, False, False, True)),
        Field(
            {"vocab_size": 58101, "decoder_vocab_size": None},
            ("vocab_size",),
            _read_vocabulary,
            lambda model: {"vocab_size": model.vocab_size, "decoder_vocab_size": model.vocab_size},
        ),
        only("share_encoder_decoder_embeddings", True),
    ),
    names=bart.names_of(embeddings=False, norm_embeddings=False),
    heads={"MarianMTModel": Head("seq2seq", bart.GENERATION)},
    computed=bart.FAMILY.computed,
)


def _read_positions(values: Values) -> Settings:
    if values["pad_token_id"] != 1:
        raise ValueError(f"pad_token_id={values['pad_token_id']!r} is not supported; supported: 1")
    return {"sinusoid_offset": 2}


M2M100 = dataclasses.replace(
    bart.FAMILY,
    name="m2m_100",
    model_types=("m2m_100",),
    settings={**bart.SETTINGS, **_PRE, **_SINUSOIDAL, "sinusoid_variant": "half_minus_one"},
    fields=gathered(
        (*_COMMON, *_first(True, False, True, True)),
        choice("scale_embedding", "embedding_scale", {False: 1.0, True: 0.0}, True),
        choice("activation_function", "activation", bart.ACTIVATIONS, "relu"),
        position_rows("max_position_embeddings", 1024),
        Field({"pad_token_id": 1}, ("sinusoid_offset",), _read_positions, lambda model: {"pad_token_id": 1}),
    ),
    names=bart.names_of(embeddings=False, norm_embeddings=False, final_norm=True),
    heads={"M2M100ForConditionalGeneration": Head("seq2seq", {"lm_head": "output"})},
    kept={},
    neutral=_NEUTRAL,
    ignored=(*bart.FAMILY.ignored, r"(model\.)?(encoder|decoder)\.embed_positions\.(weights|weight)"),
    adapt=(),
)
