"""ALBERT (Lan 2020): BERT with narrow embeddings and a single layer that is applied repeatedly."""

from __future__ import annotations

from lm.huggingface.families import bert
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, choice, gathered, number, only
from lm.huggingface.names import Names, Spelling, place

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
FIELDS: tuple[Field, ...] = gathered(
    bert.FIELDS,
    number("vocab_size", "vocab_size", 30000),
    number("embedding_size", "embedding_width", 128),
    number("hidden_size", "d_model", 4096),
    number("num_attention_heads", "num_heads", 64),
    number("intermediate_size", "d_ff", 16384),
    choice("hidden_act", "activation", bert.ACTIVATIONS, "gelu_new"),
    only("num_hidden_groups", 1),
    only("inner_group_num", 1),
)
NAMES: Names = {
    "albert.embeddings.word_embeddings": "token_embedding",
    "albert.embeddings.position_embeddings": place("position_embedding", partial=True),
    "albert.embeddings.token_type_embeddings": "type_embedding",
    "albert.embeddings.LayerNorm": "embedding_norm",
    "albert.encoder.embedding_hidden_mapping_in": "embedding_projection",
    f"{_LAYER}.full_layer_layer_norm": "shared_layer/mlp_norm",
    f"{_LAYER}.attention.query": "shared_layer/attention/query",
    f"{_LAYER}.attention.key": "shared_layer/attention/key",
    f"{_LAYER}.attention.value": "shared_layer/attention/value",
    f"{_LAYER}.attention.dense": "shared_layer/attention/out",
    f"{_LAYER}.attention.LayerNorm": "shared_layer/attention_norm",
    f"{_LAYER}.ffn": "shared_layer/mlp/up",
    f"{_LAYER}.ffn_output": "shared_layer/mlp/down",
}
POOLER: Names = {"albert.pooler": "pooler"}
MASKED: Names = {
    "predictions.LayerNorm": "head_norm",
    "predictions.dense": "head_product",
    "predictions": place("output_bias", also=("predictions.decoder",)),
    "predictions.decoder": "output",
}

FAMILY = Family(
    name="albert",
    model_types=("albert",),
    settings={**bert.SETTINGS, "share_layers": True},
    fields=FIELDS,
    neutral=bert.FAMILY.neutral | {"down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"},
    names=NAMES,
    heads={
        "AlbertForMaskedLM": Head("masked", MASKED, bert.MASKED_SETTINGS),
        "AlbertForSequenceClassification": Head(
            "classification", {**POOLER, "classifier": "classifier"}, {"pooler": True, "pooling": "first"}
        ),
        "AlbertForTokenClassification": Head("tagging", {"classifier": "classifier"}, bert.NO_POOLER),
        "AlbertForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        "AlbertModel": Head("contrastive"),
    },
    # The sentence-order head is kept for the export.
    same_class={"AlbertForPreTraining": "AlbertForMaskedLM"},
    kept={"sop_classifier.classifier": "next_sentence"},
    spelling=Spelling("albert."),
    ignored=(r"(albert\.)?embeddings\.position_ids",),
    tie_default=True,
    marks=(r"albert_layer_groups\.0\.albert_layers\.0\.ffn\.weight$",),
)
