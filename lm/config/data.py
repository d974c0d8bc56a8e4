"""Settings of the data: data sources, cleaning, tokenizer, rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from lm.config.schema import option, section


@dataclass(frozen=True)
class SourceConfig:
    """One data source: where examples come from."""

    kind: str = option("text", "Format of the data.", registry="lm.data.reading.FORMATS")
    path: str = option("", "File or glob (.gz is unpacked); for tfds the name of the data set, with version if wanted.")
    split: str = option("train", "tfds only: the split, e.g. train or train[:1%].")
    data_dir: str = option("", "tfds only: folder of the prepared data sets; empty for TFDS's default.")
    field: str = option(
        "text",
        "Records: the field or column that holds the text; `answers.text` is one within another. With braces it is a "
        "template of several: 'question: {question} context: {context}'. A list of texts is joined by spaces.",
    )
    target_path: str = option(
        "", "Pairs in two text files with document=line: the file or glob of the targets; line i belongs to line i."
    )
    target_field: str = option(
        "",
        "Pairs in records: field of the target, as `field`. If it holds a list of texts, the first one is learnt and "
        "all are references.",
    )
    pattern: str = option(
        "", "Pairs in one text file with document=line: a regular expression with groups named source and target."
    )
    pair_field: str = option("", "Field of a second text, or of a list of texts where the task reads one, as `field`.")
    label_field: str = option(
        "", "Field of the label, number or list of tags, as `field`. conll: number of the column; the word is column 1."
    )
    label_pattern: str = option(
        "",
        "Classification of text files: a regular expression with a group named label, which is searched for in their "
        "paths.",
    )
    label_names: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"doc": "Names of the labels 0, 1, ..., if the field holds numbers."}
    )
    part: tuple[float, ...] = dataclasses.field(
        default=(0.0, 1.0),
        metadata={
            "doc": "Labelled data: take only the examples whose hash lies in this range within 0 to 1, e.g. "
            "(0.0, 0.8). Data sources of the same file whose ranges do not overlap share no example. Articles of "
            "squad stay whole."
        },
    )
    columns: str = option("", "Tables in text files: names of the columns, with commas, if the first line lacks them.")
    prefix: str = option("", "Pairs: put before every source text, e.g. 'translate English to German: '.")
    document: str = option(
        "file",
        "text only: what is one document: a file, a line, a paragraph (which ends at an empty line), or the text "
        "between two `separator`s.",
        choices=("file", "line", "paragraph", "separator"),
    )
    separator: str = option("<|endoftext|>", "text with document=separator: the separating string.")
    encoding: str = option("utf-8", "Text encoding of the files.")
    weight: float = option(
        1.0,
        "Share of the rows taken from this data source, relative to the others; 0 switches it off.",
        minimum=0.0,
    )


@dataclass(frozen=True)
class CleaningConfig:
    """How each document is changed before it is tokenised, in this order."""

    unicode: str = option("", "Unicode normal form; empty for none.", choices=("", "NFC", "NFKC"))
    strip_html: bool = option(False, "Remove HTML tags and resolve entities.")
    strip_control: bool = option(False, "Remove control characters other than newline and tab.")
    whitespace: str = option(
        "keep",
        "keep; trim (both ends of the document); lines (also trailing space and runs of empty lines); "
        "collapse (every run of white space to one space).",
        choices=("keep", "trim", "lines", "collapse"),
    )
    min_chars: int = option(1, "Drop shorter documents.", minimum=0)
    max_chars: int = option(0, "Drop longer documents; 0 for no bound.", minimum=0)
    deduplicate: bool = option(False, "Drop exact duplicates of earlier documents of the same data source.")


@dataclass(frozen=True)
class PairsConfig:
    """Which training pairs are dropped after both sides were cleaned. Evaluation drops none."""

    max_ratio: float = option(
        0.0, "Drop a pair if one side has more than this many times the characters of the other; 0 for no bound."
    )
    drop_identical: bool = option(False, "Drop a pair whose sides are equal.")
    source_script: str = option(
        "",
        "Drop a pair unless most letters of the source belong to this script, named as in Unicode's names of letters: "
        "LATIN, CYRILLIC, CJK.",
    )
    target_script: str = option("", "The same for the target.")
    overlong: str = option(
        "truncate", "Pairs longer than a row: truncate them, or drop them.", choices=("truncate", "drop")
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids. The tokenizer is trained on the training split unless `path` names a file."""

    kind: str = option("sentencepiece", "What the tokens are.", registry="lm.data.tokenizing.TOKENIZERS")
    path: str = option("", "Load this SentencePiece model or tokenizer.json instead of training a tokenizer.")
    vocab_size: int = option(
        8192,
        "sentencepiece: size of the vocabulary to train; words: its upper bound.",
        minimum=300,
        maximum=1_000_000,
    )
    algorithm: str = option("unigram", "sentencepiece: unigram or bpe.", choices=("unigram", "bpe"))
    train_megabytes: float = option(64.0, "sentencepiece: train on at most this much text, in MB.", minimum=0.001)
    bos_token: str = option("", "huggingface: the token before each document; empty to guess it from the file.")
    eos_token: str = option("", "huggingface: the token after each document; empty to guess it from the file.")
    extra_ids: int = option(
        0,
        "Number of tokens added behind the vocabulary for masked spans; <extra_id_0> is the very last, as in T5. A "
        "huggingface file that has tokens with these names keeps its own.",
        minimum=0,
        maximum=1000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Documents -> cleaning -> tokens -> packed rows. Row i depends on the config and i alone."""

    train: dict[str, SourceConfig] = field(default_factory=dict, metadata={"doc": "Training data sources by name."})
    valid: dict[str, SourceConfig] = field(
        default_factory=dict,
        metadata={"doc": "Validation data sources by name; if there are none, a share of train is held out."},
    )
    test: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Test data sources by name, for eval.py.", "affects": "nothing"}
    )
    holdout: str = option(
        "hash",
        "How the held-out share of train is chosen: by a hash of each document, or the tail (the last characters).",
        choices=("hash", "tail"),
    )
    holdout_fraction: float = option(0.1, "Share of train held out if `valid` is empty.", minimum=0.0, maximum=0.5)
    cleaning: CleaningConfig = section(CleaningConfig)
    pairs: PairsConfig = section(PairsConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    separate_vocabularies: bool = option(False, "Pairs: train a tokenizer for each side instead of one for both.")
    sequence_length: int = option(256, "Tokens per row (of the target side, if there are two).", minimum=2)
    source_length: int = option(
        0, "Encoder-decoder: tokens per row of the source side; 0 for sequence_length.", minimum=0
    )
    labels: tuple[str, ...] = field(
        default=(), metadata={"doc": "Names of the labels, in their order; empty for those of train, sorted."}
    )
    fold: int = option(
        0, "Cross-validation: the number of this fold, from 0; rotates the parts of all data sources.", minimum=0
    )
    folds: int = option(
        1,
        "Cross-validation: the number of folds. Over all of them the part from 0 to 1 / folds holds each example once.",
        minimum=1,
    )
    context_overlap: int = option(64, "span_qa: tokens shared by neighbouring windows of a long context.", minimum=0)
    num_workers: int = option(
        0, "Processes that prepare batches; 0 for a thread. Never changes the data.", minimum=0, affects="nothing"
    )
    prefetch: int = option(4, "Batches prepared ahead.", minimum=1, affects="nothing")
    cache_dir: str = option(
        "", "Directory of token stores; empty for $LM_CACHE_DIR, or else ~/.cache/lm.", affects="nothing"
    )
