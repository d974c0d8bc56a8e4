"""ELECTRA (Clark 2020): BERT, with narrow embeddings in the small model. The discriminator's own head is not used."""

from __future__ import annotations

from lm.config import ModelConfig
from lm.huggingface.families import bert
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, Settings, Values, gathered, number
from lm.huggingface.names import Names, Spelling, place


def _read_width(values: Values) -> Settings:
    width, size = values["embedding_size"], values["hidden_size"]
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"embedding_size={width!r} is not a valid number of features")
    return {"embedding_width": 0 if width == size else width}


def _write_width(model: ModelConfig) -> Values:
    return {"embedding_size": model.embedding_width or model.d_model}


FIELDS: tuple[Field, ...] = gathered(
    bert.FIELDS,
    Field({"embedding_size": 128}, ("embedding_width",), _read_width, _write_width, reads={"hidden_size": 256}),
    number("hidden_size", "d_model", 256),
    number("num_attention_heads", "num_heads", 4),
    number("intermediate_size", "d_ff", 1024),
)
NAMES: Names = {
    "electra.embeddings.word_embeddings": "token_embedding",
    "electra.embeddings.position_embeddings": place("position_embedding", partial=True),
    "electra.embeddings.token_type_embeddings": "type_embedding",
    "electra.embeddings.LayerNorm": "embedding_norm",
    "electra.embeddings_project": "embedding_projection",
    **bert.layers_of("electra"),
}
MASKED: Names = {
    "generator_predictions.LayerNorm": "head_norm",
    "generator_predictions.dense": "head_product",
    "generator_lm_head": "output",
    "generator_lm_head.bias": place("output_bias", whole=True, flat=True),
}


FAMILY = Family(
    name="electra",
    model_types=("electra",),
    settings=bert.SETTINGS,
    fields=FIELDS,
    neutral=bert.FAMILY.neutral
    | {"summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout", "summary_proj_to_labels"},
    names=NAMES,
    heads={
        "ElectraForMaskedLM": Head("masked", MASKED, bert.MASKED_SETTINGS),
        "ElectraForSequenceClassification": Head(
            "classification",
            {"classifier.dense": "pooler", "classifier.out_proj": "classifier"},
            {"pooler": True, "pooler_activation": "gelu", "pooling": "first"},
        ),
        "ElectraForTokenClassification": Head("tagging", {"classifier": "classifier"}, bert.NO_POOLER),
        "ElectraForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        "ElectraModel": Head("contrastive"),
    },
    # Published discriminators are imported without their heads, which are kept for the export.
    same_class={"ElectraForPreTraining": "ElectraModel"},
    kept={"discriminator_predictions.dense": "", "discriminator_predictions.dense_prediction": ""},
    spelling=Spelling("electra."),
    ignored=(r"(electra\.)?embeddings\.position_ids",),
    tie_default=True,
    adapt=(bert.check_head_activation,),
)
