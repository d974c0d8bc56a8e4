"""The families of published models. To add one, write a file for it, import that file here and extend FAMILIES."""

from __future__ import annotations

from lm.huggingface.families import (
    albert,
    bart,
    bert,
    distilbert,
    electra,
    gemma,
    gpt2,
    llama,
    mbart,
    mistral,
    modernbert,
    olmo,
    phi3,
    qwen,
    roberta,
    smollm3,
    t5,
)
from lm.huggingface.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        gpt2.FAMILY,
        llama.FAMILY,
        mistral.FAMILY,
        qwen.QWEN2,
        qwen.QWEN3,
        gemma.GEMMA,
        gemma.GEMMA2,
        gemma.GEMMA3,
        phi3.FAMILY,
        olmo.OLMO2,
        olmo.OLMO3,
        smollm3.FAMILY,
        t5.FAMILY,
        t5.MT5,
        t5.ENCODER,
        t5.MT5_ENCODER,
        bart.FAMILY,
        mbart.MBART,
        mbart.PEGASUS,
        mbart.MARIAN,
        mbart.M2M100,
        bert.FAMILY,
        roberta.FAMILY,
        roberta.XLM_ROBERTA,
        distilbert.FAMILY,
        albert.FAMILY,
        electra.FAMILY,
        modernbert.FAMILY,
    )
}
