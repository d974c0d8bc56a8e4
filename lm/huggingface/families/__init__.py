"""The families of published models. To add one, write one file and add one line here."""

from __future__ import annotations

from lm.huggingface.families import bart, bert, gpt2, llama, mistral, roberta, t5
from lm.huggingface.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        gpt2.FAMILY,
        llama.FAMILY,
        mistral.FAMILY,
        t5.FAMILY,
        t5.MT5,
        bart.FAMILY,
        bert.FAMILY,
        roberta.FAMILY,
        roberta.XLM_ROBERTA,
    )
}
