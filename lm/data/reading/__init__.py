"""From files to raw examples: one file per format, and `open_reader` as the one door."""

from __future__ import annotations

from typing import Any

from lm.config import SourceConfig


def open_reader(config: SourceConfig, wants: str) -> Any:
    """Returns the reader of a source, which has `iterate`, `fingerprint` and, for labelled data, `notes`.

    Args:
        wants: the kind of raw example: documents, pairs, labelled (texts with labels), numbers (texts with numbers),
            tagged (words with tags) or questions.

    Raises UserError if there is nothing to read, or the settings cannot be understood.
    """
    from lm.data.reading import documents, labelled, pairs

    if wants == "documents":
        return documents.open_source(config)
    return pairs.open_pairs(config) if wants == "pairs" else labelled.open_labelled(config, wants)
