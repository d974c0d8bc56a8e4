"""RoBERTa (Liu 2019) and XLM-R (Conneau 2020), with their heads.

Positions start at the id of the padding token plus 1, so the first rows of the table are never read. All tokens have
type 0.
"""

from __future__ import annotations

import dataclasses

from lm.config import ModelConfig
from lm.huggingface.families import bert
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, Settings, Values, gathered, only
from lm.huggingface.names import Names, Spelling, place

PAD = 1  # the id of the padding token in all published models


def _read_positions(values: Values) -> Settings:
    pad, rows = values["pad_token_id"], values["max_position_embeddings"]
    if pad != PAD:
        raise ValueError(f"pad_token_id={pad!r} is not supported; supported: {PAD}")
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < PAD + 2:
        raise ValueError(f"max_position_embeddings={rows!r} is not a valid number of positions")
    return {"max_length": rows - PAD - 1}


def _write_positions(model: ModelConfig) -> Values:
    return {"max_position_embeddings": model.max_length + PAD + 1, "pad_token_id": PAD}


def _read_types(values: Values) -> Settings:
    types = values["type_vocab_size"]
    if isinstance(types, bool) or not isinstance(types, int) or types < 1:
        raise ValueError(f"type_vocab_size={types!r} is not supported; supported: 1 or more")
    return {"token_types": 1}


FIELDS: tuple[Field, ...] = gathered(
    bert.FIELDS,
    Field({"max_position_embeddings": 512, "pad_token_id": PAD}, ("max_length",), _read_positions, _write_positions),
    Field({"type_vocab_size": 2}, ("token_types",), _read_types, lambda model: {"type_vocab_size": model.token_types}),
    only("position_embedding_type", "absolute"),
)
NAMES: Names = {
    "roberta.embeddings.word_embeddings": "token_embedding",
    "roberta.embeddings.position_embeddings": place("position_embedding", skip=PAD + 1, partial=True),
    "roberta.embeddings.token_type_embeddings": place("type_embedding", partial=True),
    "roberta.embeddings.LayerNorm": "embedding_norm",
    **bert.layers_of("roberta"),
}
MASKED: Names = {
    "lm_head.dense": "head_product",
    "lm_head.layer_norm": "head_norm",
    "lm_head": place("output_bias", also=("lm_head.decoder",)),
    "lm_head.decoder": "output",
}
CLASSIFIER = {"classifier.dense": "pooler", "classifier.out_proj": "classifier"}


def heads_of(kind: str) -> dict[str, Head]:
    """Returns the heads of the classes whose names begin with `kind`.

    In the class without a head, the pooler is unused, but it is kept for the export.
    """
    return {
        f"{kind}ForMaskedLM": Head("masked", MASKED, bert.MASKED_SETTINGS),
        f"{kind}ForSequenceClassification": Head("classification", CLASSIFIER, {"pooler": True, "pooling": "first"}),
        f"{kind}ForTokenClassification": Head("tagging", {"classifier": "classifier"}, bert.NO_POOLER),
        f"{kind}ForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        f"{kind}Model": Head("contrastive"),
    }


FAMILY = Family(
    name="roberta",
    model_types=("roberta", "camembert"),
    settings=bert.SETTINGS,
    fields=FIELDS,
    neutral=bert.FAMILY.neutral,
    names=NAMES,
    heads=heads_of("Roberta"),
    kept={"roberta.pooler.dense": "pooler"},
    adapt=(bert.check_head_activation,),
    spelling=Spelling("roberta."),
    ignored=(r"(roberta\.)?embeddings\.position_ids",),
    tie_default=True,
)
XLM_ROBERTA = dataclasses.replace(
    FAMILY, name="xlm-roberta", model_types=("xlm-roberta",), heads=heads_of("XLMRoberta")
)
