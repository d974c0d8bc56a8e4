"""Llama 1 and 2 (Touvron 2023), Llama 3 (Grattafiori 2024) and other models of the Llama class, such as SmolLM2."""

from __future__ import annotations

from lm.config import ModelConfig
from lm.huggingface.families.family import Family, Head
from lm.huggingface.families.rotary import rope
from lm.huggingface.fields import Field, Settings, Values, choice, number
from lm.huggingface.names import Spelling

GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}


def biases(attention: bool = False, mlp: bool | None = False) -> Field:
    """Returns the fields for biases.

    The arguments are the class defaults; if `mlp` is None, there is no mlp_bias field.
    """

    def read(values: Values) -> Settings:
        for name, value in values.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r} must be true or false")
        of_mlp = values.get("mlp_bias", False)
        return {"use_bias": of_mlp, "attention_bias": "all" if values["attention_bias"] else "none"}

    def write(model: ModelConfig) -> Values:
        of_attention = model.use_bias if model.attention_bias == "default" else model.attention_bias != "none"
        return {"attention_bias": of_attention, **({} if mlp is None else {"mlp_bias": model.use_bias})}

    defaults = {"attention_bias": attention, **({} if mlp is None else {"mlp_bias": mlp})}
    return Field(defaults, ("use_bias", "attention_bias"), read, write)


FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 32000),
    number("hidden_size", "d_model", 4096),
    number("intermediate_size", "d_ff", 11008),
    number("num_hidden_layers", "num_layers", 32),
    number("num_attention_heads", "num_heads", 32),
    number("num_key_value_heads", "num_kv_heads", None, null=0),
    number("head_dim", "head_dim", None, null=0),
    choice("hidden_act", "activation", GATED, "silu"),
    number("max_position_embeddings", "max_length", 2048),
    number("rms_norm_eps", "norm_epsilon", 1e-6),
    rope(10_000.0, 2048),
    biases(),
)
FIELDS_WITHOUT_BIAS = tuple(each for each in FIELDS if "attention_bias" not in each.defaults)
NAMES = {
    "model.embed_tokens": "token_embedding",
    "model.layers.{n}.input_layernorm": "layer_{n}/attention_norm",
    "model.layers.{n}.self_attn.q_proj": "layer_{n}/attention/query",
    "model.layers.{n}.self_attn.k_proj": "layer_{n}/attention/key",
    "model.layers.{n}.self_attn.v_proj": "layer_{n}/attention/value",
    "model.layers.{n}.self_attn.o_proj": "layer_{n}/attention/out",
    "model.layers.{n}.post_attention_layernorm": "layer_{n}/mlp_norm",
    "model.layers.{n}.mlp.gate_proj": "layer_{n}/mlp/gate",
    "model.layers.{n}.mlp.up_proj": "layer_{n}/mlp/up",
    "model.layers.{n}.mlp.down_proj": "layer_{n}/mlp/down",
    "model.norm": "final_norm",
}
SETTINGS = {
    "family": "decoder",
    "positions": "rotary",
    "norm": "rmsnorm",
    "norm_position": "pre",
}


TEXTS = Head("classification", {"score": "classifier"}, {"pooling": "last", "classifier_bias": False})
TOKENS = Head("tagging", {"score": "classifier"}, {"classifier_bias": True})


def heads_of(kind: str, text: str = "", tokens: bool = True) -> dict[str, Head]:
    """Returns the heads of a family whose class names begin with `kind`, such as "Llama".

    Args:
        text: inserted after `kind` in all class names except the one that ends in ForCausalLM.
        tokens: whether there is a class for token classification.
    """
    return {
        f"{kind}ForCausalLM": Head("causal", {"lm_head": "output"}),
        f"{kind}{text}ForSequenceClassification": TEXTS,
        **({f"{kind}{text}ForTokenClassification": TOKENS} if tokens else {}),
        f"{kind}{text}Model": Head("contrastive"),
    }


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    settings=SETTINGS,
    fields=FIELDS,
    neutral=frozenset({"pretraining_tp"}),
    names=NAMES,
    heads=heads_of("Llama"),
    spelling=Spelling("model."),
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
