"""Settings of the data: sources, cleaning, tokenizer, rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from lm.config.schema import option, section


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from."""

    kind: str = option(
        "text",
        "embedded (the running Python's own documentation), text, jsonl, tsv, parquet or tfds; for tagging also conll "
        "(a word and its tag a line), for span_qa squad (its JSON).",
        choices=("embedded", "text", "jsonl", "tsv", "parquet", "tfds", "conll", "squad"),
    )
    path: str = option("", "File or glob (.gz is unpacked); for tfds the name of the data set, with version if wanted.")
    split: str = option("train", "tfds only: the split, e.g. train or train[:1%].")
    data_dir: str = option("", "tfds only: where the prepared data sets are; empty for TFDS's default.")
    field: str = option(
        "text",
        "Field or column that holds the text (jsonl, tsv, parquet, tfds); `answers.text` is one within another. With "
        "braces it is a template of several: 'question: {question} context: {context}'. A list of texts is joined by "
        "spaces.",
    )
    target_path: str = option(
        "", "Pairs in two text files with document=line: the file or glob of the targets, line by line as `path`."
    )
    target_field: str = option(
        "",
        "Pairs in jsonl, tsv, parquet or tfds: field of the target, as `field`. Of a list of texts the first is "
        "learnt and all are references.",
    )
    pattern: str = option(
        "", "Pairs in one text file with document=line: a regular expression with groups named source and target."
    )
    pair_field: str = option("", "Classification, regression: field of the second text of a pair, as `field`.")
    label_field: str = option(
        "", "Field of the label, number or list of tags, as `field`. conll: number of the column, 1 being the word."
    )
    label_pattern: str = option(
        "", "Classification of text files: a regular expression with a group named label, searched for in their paths."
    )
    label_names: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"doc": "Names of the labels 0, 1, ... where the field holds numbers."}
    )
    part: tuple[float, ...] = dataclasses.field(
        default=(0.0, 1.0),
        metadata={
            "doc": "Labelled data: take the examples whose hash lies in this part of 0 to 1, as (0.0, 0.8): sources of "
            "the same file with other parts share no example. Articles of squad stay whole."
        },
    )
    columns: str = option("", "tsv only: names of the columns, with commas, where the first line does not have them.")
    prefix: str = option("", "Pairs: put before every source text, e.g. 'translate English to German: '.")
    document: str = option(
        "file",
        "text only: what one document is: a file, a line, a paragraph (ends at an empty line), or what lies "
        "between two `separator`s.",
        choices=("file", "line", "paragraph", "separator"),
    )
    separator: str = option("<|endoftext|>", "text with document=separator: the separating string.")
    encoding: str = option("utf-8", "Text encoding of the files.")
    weight: float = option(
        1.0, "Share of the rows taken from this source, relative to the others; 0 switches it off.", minimum=0.0
    )


@dataclass(frozen=True)
class CleaningConfig:
    """What is done to each document before it is tokenised, in this order."""

    unicode: str = option("", "Unicode normal form, or empty for none.", choices=("", "NFC", "NFKC"))
    strip_html: bool = option(False, "Remove HTML tags and resolve entities.")
    strip_control: bool = option(False, "Remove control characters other than newline and tab.")
    whitespace: str = option(
        "keep",
        "keep; trim (both ends of the document); lines (also trailing space and runs of empty lines); "
        "collapse (every run of white space to one space).",
        choices=("keep", "trim", "lines", "collapse"),
    )
    min_chars: int = option(1, "Shorter documents are dropped.", minimum=0)
    max_chars: int = option(0, "Longer documents are dropped; 0 for no bound.", minimum=0)
    deduplicate: bool = option(False, "Drop exact duplicates of earlier documents of the same source.")


@dataclass(frozen=True)
class PairsConfig:
    """Which pairs of training are left out, after both sides were cleaned. Evaluation leaves none out."""

    max_ratio: float = option(0.0, "Drop a pair whose longer side has so many times the other's characters; 0: none.")
    drop_identical: bool = option(False, "Drop a pair whose sides are equal.")
    source_script: str = option(
        "", "Drop a pair unless most letters of the source are of this script, by Unicode name: LATIN, CYRILLIC, CJK."
    )
    target_script: str = option("", "The same of the target.")
    overlong: str = option("truncate", "Pairs longer than a row: cut them, or drop them.", choices=("truncate", "drop"))


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes numbers. Trained on the training split unless `path` names a file."""

    kind: str = option(
        "sentencepiece",
        "bytes, characters or words (of the training text), sentencepiece, or huggingface (a tokenizer.json).",
        choices=("bytes", "characters", "words", "sentencepiece", "huggingface"),
    )
    path: str = option("", "Load this SentencePiece model or tokenizer.json in place of training one.")
    vocab_size: int = option(
        8192, "sentencepiece: size of the vocabulary to train; words: its bound.", minimum=300, maximum=1_000_000
    )
    algorithm: str = option("unigram", "sentencepiece: unigram or bpe.", choices=("unigram", "bpe"))
    train_megabytes: float = option(64.0, "sentencepiece: train on at most so much text, MB.", minimum=0.001)
    bos_token: str = option("", "huggingface: the piece put before each document; empty to guess from the file.")
    eos_token: str = option("", "huggingface: the piece put after each document; empty to guess from the file.")
    extra_ids: int = option(
        0,
        "Tokens added behind the vocabulary for masked spans, <extra_id_0> the very last as in T5; a huggingface file "
        "that has pieces of these names keeps its own.",
        minimum=0,
        maximum=1000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Documents -> cleaning -> tokens -> packed rows. Row i depends on the config and i alone."""

    train: dict[str, SourceConfig] = field(default_factory=dict, metadata={"doc": "Training sources by name."})
    valid: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Validation sources; without any, a part of train is held out."}
    )
    test: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Test sources, for eval.py.", "affects": "nothing"}
    )
    holdout: str = option(
        "hash",
        "How the held-out part of train is chosen: by a hash of each document, or the tail (the last characters).",
        choices=("hash", "tail"),
    )
    holdout_fraction: float = option(0.1, "Share of train held out when `valid` is empty.", minimum=0.0, maximum=0.5)
    cleaning: CleaningConfig = section(CleaningConfig)
    pairs: PairsConfig = section(PairsConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    separate_vocabularies: bool = option(False, "Pairs: train a tokenizer for each side in place of one for both.")
    sequence_length: int = option(256, "Tokens a row (of the target side, where there are two).", minimum=2)
    source_length: int = option(
        0, "Encoder-decoder: tokens a row of the source side; 0 for sequence_length.", minimum=0
    )
    labels: tuple[str, ...] = field(
        default=(), metadata={"doc": "Names of the labels, in their order; empty for those of train, sorted."}
    )
    fold: int = option(
        0, "Cross-validation: which of the data.folds this is; turns the parts of all sources.", minimum=0
    )
    folds: int = option(
        1, "Cross-validation: so many; each has its own examples in the part from 0 to 1 / folds.", minimum=1
    )
    context_overlap: int = option(64, "span_qa: tokens that windows of a long context have in common.", minimum=0)
    num_workers: int = option(
        0, "Processes that prepare batches; 0 for a thread. Never changes the data.", minimum=0, affects="nothing"
    )
    prefetch: int = option(4, "Batches prepared ahead.", minimum=1, affects="nothing")
    cache_dir: str = option(
        "", "Where token stores are kept; empty for $LM_CACHE_DIR, or else ~/.cache/lm.", affects="nothing"
    )
