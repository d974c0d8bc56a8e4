"""DistilBERT (Sanh 2019): BERT without token types or a pooler, and with a ReLU before the classifier."""

from __future__ import annotations

from lm.huggingface.families.bert import ACTIVATIONS, MASKED_SETTINGS, NO_POOLER, SETTINGS
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, choice, number, position_rows
from lm.huggingface.names import Names, Spelling, place

_LAYER = "distilbert.transformer.layer.{n}"
FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 30522),
    position_rows("max_position_embeddings", 512),
    number("n_layers", "num_layers", 6),
    number("n_heads", "num_heads", 12),
    number("dim", "d_model", 768),
    number("hidden_dim", "d_ff", 3072),
    choice("activation", "activation", ACTIVATIONS, "gelu"),
)
NAMES: Names = {
    "distilbert.embeddings.word_embeddings": "token_embedding",
    "distilbert.embeddings.position_embeddings": place("position_embedding", partial=True),
    "distilbert.embeddings.LayerNorm": "embedding_norm",
    f"{_LAYER}.attention.q_lin": "layer_{n}/attention/query",
    f"{_LAYER}.attention.k_lin": "layer_{n}/attention/key",
    f"{_LAYER}.attention.v_lin": "layer_{n}/attention/value",
    f"{_LAYER}.attention.out_lin": "layer_{n}/attention/out",
    f"{_LAYER}.sa_layer_norm": "layer_{n}/attention_norm",
    f"{_LAYER}.ffn.lin1": "layer_{n}/mlp/up",
    f"{_LAYER}.ffn.lin2": "layer_{n}/mlp/down",
    f"{_LAYER}.output_layer_norm": "layer_{n}/mlp_norm",
}
MASKED: Names = {
    "vocab_transform": "head_product",
    "vocab_layer_norm": "head_norm",
    # The output matrix is tied to the embedding, but the bias is stored under the name of the output layer.
    "vocab_projector": "output",
    "vocab_projector.bias": place("output_bias", whole=True, flat=True),
}

FAMILY = Family(
    name="distilbert",
    model_types=("distilbert",),
    settings={**SETTINGS, "norm_epsilon": 1e-12},
    fields=FIELDS,
    # The position table is stored whether or not it was initialised with sinusoids.
    neutral=frozenset({"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout"}),
    names=NAMES,
    heads={
        "DistilBertForMaskedLM": Head("masked", MASKED, MASKED_SETTINGS),
        "DistilBertForSequenceClassification": Head(
            "classification",
            {"pre_classifier": "pooler", "classifier": "classifier"},
            {"pooler": True, "pooler_activation": "relu", "pooling": "first"},
        ),
        "DistilBertForTokenClassification": Head("tagging", {"classifier": "classifier"}, NO_POOLER),
        "DistilBertForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        "DistilBertModel": Head("contrastive"),
    },
    spelling=Spelling("distilbert."),
    ignored=(r"(distilbert\.)?embeddings\.position_ids",),
    tie_default=True,
)
