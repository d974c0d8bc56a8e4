"""T5 1.0 and 1.1, Flan-T5 and mT5 (Raffel 2020, Chung 2022, Xue 2021)."""

from __future__ import annotations

import dataclasses
from typing import Any

from lm.config import ModelConfig
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, Settings, Values, gathered, number, only
from lm.huggingface.names import place

# feed_forward_proj is an activation, optionally prefixed with "gated-".
MLPS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gated-gelu": "geglu_tanh",
    "gated-gelu_new": "geglu_tanh",
}
MLPS |= {"gated-silu": "swiglu"}


def _read_layers(values: Values) -> Settings:
    layers = {name: values[name] for name in ("num_layers", "num_decoder_layers")}
    layers["num_decoder_layers"] = layers["num_decoder_layers"] or layers["num_layers"]
    for name, value in layers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not a valid number of layers")
    return {"num_encoder_layers": layers["num_layers"], "num_layers": layers["num_decoder_layers"]}


def _write_layers(model: ModelConfig) -> Values:
    return {"num_layers": model.num_encoder_layers, "num_decoder_layers": model.num_layers}


def _read_mlp(values: Values) -> Settings:
    kind = values["feed_forward_proj"]
    if kind not in MLPS:
        raise ValueError(f"feed_forward_proj={kind!r} is not supported; supported: {', '.join(MLPS)}")
    gated, _, function = kind.rpartition("-")
    function = "gelu_new" if kind == "gated-gelu" else function
    # Files also have these two fields, which follow from feed_forward_proj.
    for name, expected in (("dense_act_fn", function), ("is_gated_act", bool(gated))):
        if values[name] not in (None, expected):
            raise ValueError(f"{name}={values[name]!r} contradicts feed_forward_proj={kind!r}")
    return {"activation": MLPS[kind]}


def _write_mlp(model: ModelConfig) -> Values:
    kind = next((kind for kind, activation in MLPS.items() if activation == model.activation), None)
    if kind is None:
        return {}
    gated, _, function = kind.rpartition("-")
    function = "gelu_new" if kind == "gated-gelu" else function
    return {"feed_forward_proj": kind, "dense_act_fn": function, "is_gated_act": bool(gated)}


def _read_scale(values: Values) -> Settings:
    """Determines whether logits are divided by sqrt(d_model) as in T5 1.0. In old files, tied embeddings imply this."""
    scaled, tied = values["scale_decoder_outputs"], values["tie_word_embeddings"]
    for name, value in values.items():
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")
    return {"scale_logits": scaled if scaled is not None else tied is not False}


def _write_scale(model: ModelConfig) -> Values:
    return {"scale_decoder_outputs": model.scale_logits, "tie_word_embeddings": model.tie_embeddings}


FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 32128),
    number("d_model", "d_model", 512),
    number("d_kv", "head_dim", 64),
    number("d_ff", "d_ff", 2048),
    Field(
        {"num_layers": 6, "num_decoder_layers": None}, ("num_encoder_layers", "num_layers"), _read_layers, _write_layers
    ),
    number("num_heads", "num_heads", 8),
    number("relative_attention_num_buckets", "relative_buckets", 32),
    number("relative_attention_max_distance", "relative_max_distance", 128),
    Field(
        {"feed_forward_proj": "relu", "dense_act_fn": None, "is_gated_act": None},
        ("activation",),
        _read_mlp,
        _write_mlp,
    ),
    number("layer_norm_epsilon", "norm_epsilon", 1e-6),
    Field(
        {"scale_decoder_outputs": None, "tie_word_embeddings": None},
        ("scale_logits", "tie_embeddings"),
        _read_scale,
        _write_scale,
    ),
    only("is_encoder_decoder", True),
)


def names_of(model: ModelConfig) -> dict[str, Any]:
    """Returns the module names. In the published files, wi_0 feeds the activation, and wi_1 is the linear branch."""
    towers = {"encoder": ""} if model.family == "encoder" else {"encoder": "encoder/", "decoder": "decoder/"}
    names: dict[str, Any] = {"shared": place("token_embedding", also=tuple(f"{each}.embed_tokens" for each in towers))}
    for tower, prefix in towers.items():
        first = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias"
        names[first] = f"{prefix}relative_bias"
        parts = {"SelfAttention": "attention", "EncDecAttention": "cross_attention"}
        if tower == "encoder":
            del parts["EncDecAttention"]
        theirs, ours = f"{tower}.block.{{n}}.layer", f"{prefix}layer_{{n}}"
        for number_, (part, module) in enumerate(parts.items()):
            names[f"{theirs}.{number_}.layer_norm"] = f"{ours}/{module}_norm"
            for letter, name in {"q": "query", "k": "key", "v": "value", "o": "out"}.items():
                names[f"{theirs}.{number_}.{part}.{letter}"] = f"{ours}/{module}/{name}"
        mlp = f"{theirs}.{len(parts)}"
        names[f"{mlp}.layer_norm"] = f"{ours}/mlp_norm"
        gated = model.activation in ("swiglu", "geglu", "geglu_tanh")
        pairs = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
        names |= {f"{mlp}.DenseReluDense.{their}": f"{ours}/mlp/{our}" for their, our in pairs.items()}
        names[f"{tower}.final_layer_norm"] = f"{prefix}final_norm"
    return names


FAMILY = Family(
    name="t5",
    model_types=("t5",),
    settings={
        "family": "encoder_decoder",
        "positions": "relative",
        "norm": "rmsnorm",
        "norm_position": "pre",
        "use_bias": False,
        "attention_scale": 1.0,
        "share_embeddings": True,
    },
    fields=FIELDS,
    neutral=frozenset({"n_positions", "output_past"}),
    names=names_of,
    heads={"T5ForConditionalGeneration": Head("seq2seq", {"lm_head": "output"})},
    same_class={"T5WithLMHeadModel": "T5ForConditionalGeneration"},  # the class name in the oldest files
    # A table that no code reads; only the first release of the files contains it.
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    tie_default=True,
    marks=(r"^decoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight$",),
)

# mT5 never scales its logits, and its class has different defaults.
MT5 = dataclasses.replace(
    FAMILY,
    name="mt5",
    model_types=("mt5",),
    settings={**FAMILY.settings, "scale_logits": False},
    fields=gathered(
        (each for each in FIELDS if "scale_decoder_outputs" not in each.defaults),
        number("vocab_size", "vocab_size", 250112),
        number("d_ff", "d_ff", 1024),
        Field(
            {"num_layers": 8, "num_decoder_layers": None},
            ("num_encoder_layers", "num_layers"),
            _read_layers,
            _write_layers,
        ),
        number("num_heads", "num_heads", 6),
        Field(
            {"feed_forward_proj": "gated-gelu", "dense_act_fn": None, "is_gated_act": None},
            ("activation",),
            _read_mlp,
            _write_mlp,
        ),
    ),
    neutral=FAMILY.neutral,
    heads={"MT5ForConditionalGeneration": Head("seq2seq", {"lm_head": "output"})},
    same_class={},
    marks=(),
)


def encoder_of(family: Family, kind: str) -> Family:
    """Returns the encoder-only variant of a family, whose models serve as sentence encoders (Ni 2021)."""
    replaced = {"num_layers", "scale_decoder_outputs", "is_encoder_decoder"}
    classes = next(each.defaults for each in family.fields if "num_layers" in each.defaults)
    return dataclasses.replace(
        family,
        name=f"{family.name}-encoder",
        settings={
            **{
                name: value
                for name, value in family.settings.items()
                if name not in ("share_embeddings", "scale_logits")
            },
            "family": "encoder",
        },
        fields=(
            *(each for each in family.fields if not replaced & each.defaults.keys()),
            number("num_layers", "num_layers", classes["num_layers"], least=1),
            only("is_encoder_decoder", False, True),
        ),
        neutral=family.neutral | {"num_decoder_layers", "scale_decoder_outputs"},
        heads={f"{kind}EncoderModel": Head("contrastive")},
        same_class={},
        ignored=(),
        marks=(),
    )


ENCODER, MT5_ENCODER = encoder_of(FAMILY, "T5"), encoder_of(MT5, "MT5")
