"""ModernBERT (Warner 2024): rotary positions, and sliding windows in two out of every three layers.

The first layer has no attention norm.
"""

from __future__ import annotations

from lm.huggingface.families.family import Family, Head
from lm.huggingface.families.rotary import layered_rope, windows
from lm.huggingface.fields import Field, choice, number, only
from lm.huggingface.names import Names, Spelling, place

_LAYER = "model.layers.{n}"
LONGEST = 8192
FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 50368),
    number("hidden_size", "d_model", 768),
    number("intermediate_size", "d_ff", 1152),
    number("num_hidden_layers", "num_layers", 22),
    number("num_attention_heads", "num_heads", 12),
    choice("hidden_activation", "activation", {"gelu": "geglu"}, "gelu"),
    number("max_position_embeddings", "max_length", LONGEST),
    number("norm_eps", "norm_epsilon", 1e-5),
    only("norm_bias", False),
    only("attention_bias", False),
    only("mlp_bias", False),
    only("decoder_bias", True),
    only("classifier_bias", False),
    only("classifier_activation", "gelu"),
    choice("classifier_pooling", "pooling", {"cls": "first", "mean": "mean"}, "cls"),
    # In `transformers`, the window spans both sides of the token; ours counts one side and the token itself.
    windows(
        (3, 0),
        128,
        22,
        name="local_attention",
        period="global_attn_every_n_layers",
        to_ours=lambda window: window // 2 + 1,
        to_theirs=lambda window: 2 * (window - 1),
    ),
    layered_rope(160_000.0, 10_000.0, LONGEST, ("global_rope_theta", "local_rope_theta"), scales_local=True),
)
NAMES: Names = {
    "model.embeddings.tok_embeddings": "token_embedding",
    "model.embeddings.norm": "embedding_norm",
    f"{_LAYER}.attn_norm": "layer_{n}/attention_norm",
    f"{_LAYER}.attn.Wqkv": place(*(f"layer_{{n}}/attention/{name}" for name in ("query", "key", "value"))),
    f"{_LAYER}.attn.Wo": "layer_{n}/attention/out",
    f"{_LAYER}.mlp_norm": "layer_{n}/mlp_norm",
    f"{_LAYER}.mlp.Wi": place("layer_{n}/mlp/gate", "layer_{n}/mlp/up"),
    f"{_LAYER}.mlp.Wo": "layer_{n}/mlp/down",
    "model.final_norm": "final_norm",
}
MASKED: Names = {
    "head.dense": "head_product",
    "head.norm": "head_norm",
    "decoder": "output",
    "decoder.bias": place("output_bias", whole=True, flat=True),
}
POOLER: Names = {"head.dense": "pooler", "head.norm": "pooler_norm", "classifier": "classifier"}
ANSWERS: Names = {"head.dense": "pooler", "head.norm": "pooler_norm", "classifier": "span"}
POOLER_FORM = {"pooler_activation": "gelu", "pooler_bias": False, "pooler_norm": True}
POOLER_SETTINGS = {"pooler": True, **POOLER_FORM}

FAMILY = Family(
    name="modernbert",
    model_types=("modernbert",),
    settings={
        "family": "encoder",
        "positions": "rotary",
        "norm": "layernorm",
        "norm_position": "pre",
        "norm_embeddings": True,
        "first_norm": False,
        "use_bias": False,
    },
    fields=FIELDS,
    neutral=frozenset(
        """
        position_embedding_type layer_norm_eps initializer_cutoff_factor deterministic_flash_attn reference_compile
        repad_logits_with_grad sparse_prediction sparse_pred_ignore_index
        """.split()
    ),
    names=NAMES,
    heads={
        "ModernBertForMaskedLM": Head("masked", MASKED, {"head_transform": True, "output_bias": True}),
        "ModernBertForSequenceClassification": Head("classification", POOLER, POOLER_SETTINGS),
        "ModernBertForTokenClassification": Head("tagging", POOLER, POOLER_SETTINGS),
        "ModernBertForQuestionAnswering": Head("span_qa", ANSWERS, {"answer_pooler": True, **POOLER_FORM}),
        "ModernBertModel": Head("contrastive"),
    },
    unstored=("layer_0/attention_norm",),
    spelling=Spelling("model."),
    tie_default=True,
)
