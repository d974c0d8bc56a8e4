"""BERT (Devlin 2019) and other models that use its class, such as MiniLM, with their heads."""

from __future__ import annotations

from typing import Any

from lm.errors import UserError
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, Settings, choice, number, only, position_rows
from lm.huggingface.names import Names, Spelling, place

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 30522),
    number("hidden_size", "d_model", 768),
    number("num_hidden_layers", "num_layers", 12),
    number("num_attention_heads", "num_heads", 12),
    number("intermediate_size", "d_ff", 3072),
    choice("hidden_act", "activation", ACTIVATIONS, "gelu"),
    position_rows("max_position_embeddings", 512),
    number("type_vocab_size", "token_types", 2, least=1),
    number("layer_norm_eps", "norm_epsilon", 1e-12),
    # `transformers` 5 silently ignores other values.
    only("position_embedding_type", "absolute"),
    only("embedding_size", None),
)
SETTINGS = {
    "family": "encoder",
    "positions": "learned",
    "norm": "layernorm",
    "norm_position": "post",
    "norm_embeddings": True,
}


def layers_of(body: str) -> dict[str, str]:
    """Returns the names of the layer modules for a model body such as "bert"."""
    theirs, ours = f"{body}.encoder.layer.{{n}}", "layer_{n}"
    return {
        f"{theirs}.attention.self.query": f"{ours}/attention/query",
        f"{theirs}.attention.self.key": f"{ours}/attention/key",
        f"{theirs}.attention.self.value": f"{ours}/attention/value",
        f"{theirs}.attention.output.dense": f"{ours}/attention/out",
        f"{theirs}.attention.output.LayerNorm": f"{ours}/attention_norm",
        f"{theirs}.intermediate.dense": f"{ours}/mlp/up",
        f"{theirs}.output.dense": f"{ours}/mlp/down",
        f"{theirs}.output.LayerNorm": f"{ours}/mlp_norm",
    }


NAMES: Names = {
    "bert.embeddings.word_embeddings": "token_embedding",
    "bert.embeddings.position_embeddings": place("position_embedding", partial=True),
    "bert.embeddings.token_type_embeddings": "type_embedding",
    "bert.embeddings.LayerNorm": "embedding_norm",
    **layers_of("bert"),
}
POOLER: Names = {"bert.pooler.dense": "pooler"}
MASKED: Names = {
    "cls.predictions.transform.dense": "head_product",
    "cls.predictions.transform.LayerNorm": "head_norm",
    "cls.predictions": place("output_bias", also=("cls.predictions.decoder",)),
    "cls.predictions.decoder": "output",
}
MASKED_SETTINGS = {"head_transform": True, "output_bias": True}
NO_POOLER = {"pooler": False}  # our token classifiers could have a pooler, but those of `transformers` have none


def check_head_activation(settings: Settings, folder: Any) -> Settings:
    """Checks that models with a masked-token head use exact GELU, as this head always does in ELECTRA and RoBERTa."""
    if settings.get("head_transform") and settings["activation"] != "gelu":
        raise UserError(f"{folder.source}: config.json: hidden_act must be 'gelu' for the masked-token head.")
    return {}


FAMILY = Family(
    name="bert",
    model_types=("bert",),
    settings=SETTINGS,
    fields=FIELDS,
    neutral=frozenset(
        """
        pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
        pooler_type directionality
        """.split()
    ),
    names=NAMES,
    heads={
        "BertForMaskedLM": Head("masked", MASKED, MASKED_SETTINGS),
        "BertForPreTraining": Head(
            "masked",
            {**MASKED, **POOLER, "cls.seq_relationship": "next_sentence"},
            MASKED_SETTINGS,
            {"next_sentence": True},
        ),
        "BertForSequenceClassification": Head(
            "classification", {**POOLER, "classifier": "classifier"}, {"pooler": True, "pooling": "first"}
        ),
        "BertForTokenClassification": Head("tagging", {"classifier": "classifier"}, NO_POOLER),
        "BertForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        "BertModel": Head("contrastive"),
    },
    spelling=Spelling("bert."),
    ignored=(r"(bert\.)?embeddings\.position_ids",),
    tie_default=True,
    marks=(r"(^|\.)encoder\.layer\.0\.attention\.self\.query\.weight$", r"(^|\.)embeddings\.token_type_embeddings\."),
)
