"""BART (Lewis 2020): norms after the residual additions, and learned positions that start at row 2 of their table."""

from __future__ import annotations

from typing import Any

from lm.config import ModelConfig
from lm.huggingface.families import bert
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, Settings, Values, choice, number, only, position_rows
from lm.huggingface.names import Names, Spelling, place

ACTIVATIONS = {**bert.ACTIVATIONS, "silu": "silu", "swish": "silu", "quick_gelu": "quick_gelu"}
UNUSED_ROWS = 2  # rows that a position table has in addition to max_position_embeddings


def equal_sides(what: str, ours: str, default: int) -> Field:
    """Returns the fields encoder_{what} and decoder_{what}, whose values must be equal."""
    names = f"encoder_{what}", f"decoder_{what}"

    def read(values: Values) -> Settings:
        first, second = (values[name] for name in names)
        if isinstance(first, bool) or not isinstance(first, int) or first != second:
            raise ValueError(f"{names[0]}={first!r} and {names[1]}={second!r} must be the same number")
        return {ours: first}

    return Field(dict.fromkeys(names, default), (ours,), read, lambda model: dict.fromkeys(names, getattr(model, ours)))


def _read_layers(values: Values) -> Settings:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not a valid number of layers")
    if values["num_hidden_layers"] not in (values["encoder_layers"], values["decoder_layers"]):
        raise ValueError(f"num_hidden_layers={values['num_hidden_layers']!r} contradicts encoder_layers")
    return {"num_encoder_layers": values["encoder_layers"], "num_layers": values["decoder_layers"]}


def layers(default: int) -> Field:
    def read(values: Values) -> Settings:
        if values["num_hidden_layers"] is None:
            values = values | {"num_hidden_layers": values["encoder_layers"]}
        return _read_layers(values)

    def write(model: ModelConfig) -> Values:
        sides = {"encoder_layers": model.num_encoder_layers, "decoder_layers": model.num_layers}
        return sides | {"num_hidden_layers": model.num_encoder_layers}

    defaults = {"encoder_layers": default, "decoder_layers": default, "num_hidden_layers": None}
    return Field(defaults, ("num_encoder_layers", "num_layers"), read, write)


def names_of(embeddings: bool = True, norm_embeddings: bool = True, final_norm: bool = False) -> dict[str, Any]:
    """Returns the module names that BART and its relatives share."""
    names: dict[str, Any] = {
        "model.shared": place("token_embedding", also=("model.encoder.embed_tokens", "model.decoder.embed_tokens"))
    }
    for tower in ("encoder", "decoder"):
        theirs, ours = f"model.{tower}.layers.{{n}}", f"{tower}/layer_{{n}}"
        if embeddings:
            table = place(f"{tower}/position_embedding", skip=UNUSED_ROWS, partial=True)
            names[f"model.{tower}.embed_positions"] = table
        if norm_embeddings:
            names[f"model.{tower}.layernorm_embedding"] = f"{tower}/embedding_norm"
        attentions = {"self_attn": "attention"} | ({"encoder_attn": "cross_attention"} if tower == "decoder" else {})
        for their, our in attentions.items():
            for part, name in {"k_proj": "key", "v_proj": "value", "q_proj": "query", "out_proj": "out"}.items():
                names[f"{theirs}.{their}.{part}"] = f"{ours}/{our}/{name}"
            names[f"{theirs}.{their}_layer_norm"] = f"{ours}/{our}_norm"
        names |= {f"{theirs}.fc1": f"{ours}/mlp/up", f"{theirs}.fc2": f"{ours}/mlp/down"}
        names[f"{theirs}.final_layer_norm"] = f"{ours}/mlp_norm"
        if final_norm:
            names[f"model.{tower}.layer_norm"] = f"{tower}/final_norm"
    return names


FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 50265),
    number("d_model", "d_model", 1024),
    layers(12),
    equal_sides("attention_heads", "num_heads", 16),
    equal_sides("ffn_dim", "d_ff", 4096),
    choice("activation_function", "activation", ACTIVATIONS, "gelu"),
    position_rows("max_position_embeddings", 1024),
    choice("scale_embedding", "embedding_scale", {False: 1.0, True: 0.0}, False),
    only("is_encoder_decoder", True),
    # Options of early `transformers` versions; only these values are supported.
    only("normalize_before", False),
    only("normalize_embedding", True),
    only("add_final_layer_norm", False),
    only("add_bias_logits", False),
    only("static_position_embeddings", False),
    only("extra_pos_embeddings", 2),
)
SETTINGS = {
    "family": "encoder_decoder",
    "positions": "learned",
    "norm": "layernorm",
    "norm_position": "post",
    "norm_epsilon": 1e-5,
    "norm_embeddings": True,
    "share_embeddings": True,
}
GENERATION: Names = {"lm_head": "output", "final_logits_bias": place("output_bias", whole=True)}


def has_logits_bias(settings: Settings, folder: Any) -> Settings:
    """Detects the logits bias, a buffer that old files lack and that is zero in all models except Marian."""
    return {"output_bias": settings["family"] == "encoder_decoder" and "final_logits_bias" in folder.tensors}


FAMILY = Family(
    name="bart",
    model_types=("bart",),
    settings=SETTINGS,
    fields=FIELDS,
    neutral=frozenset({"output_past", "classif_dropout", "save_step", "force_bos_token_to_be_generated"}),
    names=names_of(),
    heads={
        "BartForConditionalGeneration": Head("seq2seq", GENERATION),
        # The decoder reads the text shifted right; its vector for the last token, </s>, is classified.
        "BartForSequenceClassification": Head(
            "classification",
            {"classification_head.dense": "pooler", "classification_head.out_proj": "classifier"},
            {"pooler": True, "pooling": "last", "shift_decoder": True},
        ),
        "BartForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}, {"shift_decoder": True}),
    },
    same_class={"BartModel": "BartForConditionalGeneration"},
    adapt=(has_logits_bias,),
    free=frozenset({"output_bias"}),
    spelling=Spelling("model."),  # BartModel files, such as bart-base, lack this prefix
    ignored=(r"(model\.)?(encoder|decoder)\.version",),
    tie_default=True,
)
