from lm.config import SourceConfig


def open_reader(config: SourceConfig, wants: str, *, numbers: bool = False):
    from lm.data.reading import documents, labelled, pairs

    if wants == "documents":
        return documents.open_source(config)
    if wants == "pairs":
        return pairs.open_pairs(config)
    name = {"labelled": "regression" if numbers else "classification", "tagged": "tagging", "questions": "span_qa"}
    return labelled.open_labelled(config, name[wants])
