"""GPT-2 (Radford 2019): openai-community/gpt2* and other models that use its class."""

from __future__ import annotations

from lm.huggingface.families import llama
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, choice, number, only, position_rows
from lm.huggingface.names import Names, Spelling, place

# gelu_new and gelu_pytorch_tanh are the same function.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 50257),
    position_rows("n_positions", 1024),
    number("n_embd", "d_model", 768),
    number("n_layer", "num_layers", 12),
    number("n_head", "num_heads", 12),
    number("n_inner", "d_ff", None, null=0),
    choice("activation_function", "activation", ACTIVATIONS, "gelu_new"),
    number("layer_norm_epsilon", "norm_epsilon", 1e-5),
    only("scale_attn_weights", True),
    only("scale_attn_by_inverse_layer_idx", False),
)
NAMES: Names = {
    "transformer.wte": "token_embedding",
    "transformer.wpe": place("position_embedding", partial=True),
    "transformer.h.{n}.ln_1": "layer_{n}/attention_norm",
    "transformer.h.{n}.attn.c_attn": place(
        *(f"layer_{{n}}/attention/{name}" for name in ("query", "key", "value")), inputs_first=True
    ),
    "transformer.h.{n}.attn.c_proj": place("layer_{n}/attention/out", inputs_first=True),
    "transformer.h.{n}.ln_2": "layer_{n}/mlp_norm",
    "transformer.h.{n}.mlp.c_fc": place("layer_{n}/mlp/up", inputs_first=True),
    "transformer.h.{n}.mlp.c_proj": place("layer_{n}/mlp/down", inputs_first=True),
    "transformer.ln_f": "final_norm",
}

FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    settings={"family": "decoder", "positions": "learned", "norm": "layernorm", "norm_position": "pre"},
    fields=FIELDS,
    neutral=frozenset(
        """
        n_ctx reorder_and_upcast_attn summary_type summary_use_proj summary_activation summary_proj_to_labels
        summary_first_dropout
        """.split()
    ),
    names=NAMES,
    heads={
        "GPT2LMHeadModel": Head("causal", {"lm_head": "output"}),
        "GPT2ForSequenceClassification": llama.TEXTS,
        "GPT2ForTokenClassification": Head("tagging", {"classifier": "classifier"}, {"classifier_bias": True}),
        "GPT2ForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        "GPT2Model": Head("contrastive"),
    },
    spelling=Spelling("transformer."),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    tie_default=True,
    marks=(r"(^|\.)h\.0\.attn\.c_attn\.weight$", r"(^|\.)wpe\.weight$"),
)
