"""The families of published models. To add one, write one file and add one line here."""

from __future__ import annotations

from lm.huggingface.families import gpt2, llama, mistral
from lm.huggingface.families.family import Family

FAMILIES: dict[str, Family] = {each.FAMILY.name: each.FAMILY for each in (gpt2, llama, mistral)}
