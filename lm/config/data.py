"""Data settings: data sources, cleaning, tokenizer and rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from lm.config.schema import option, section


@dataclass(frozen=True)
class SourceConfig:
    """One data source: where its examples come from and how to read them."""

    kind: str = option("text", "Data format.", registry="lm.data.reading.FORMATS")
    path: str = option(
        "",
        "File or glob pattern (.gz files are decompressed); for tfds, name of the data set, optionally with a version.",
        affects="location",
    )
    split: str = option("train", "tfds only: name of the split, e.g. train or train[:1%].", read_by="kind")
    data_dir: str = option(
        "", "tfds only: directory of the prepared data sets; empty for the TFDS default.", affects="location"
    )
    field: str = option(
        "text",
        "Records: the field or column that holds the text; a dotted name such as `answers.text` is a nested field. A "
        "value with braces is a template that combines fields: 'question: {question} context: {context}'. If a field "
        "holds a list of texts, these are joined with spaces. conll: the column that holds the words, given by its "
        "number (from 1) or by a name such as FORM; by default, the first column that does not hold word numbers.",
    )
    target_path: str = option(
        "",
        "Pairs in two text files with document=line: file or glob pattern of the targets, which must be aligned line "
        "by line with the sources.",
        affects="location",
    )
    target_field: str = option(
        "",
        "Pairs in records: field that holds the target, in the same syntax as `field`, or several fields separated by "
        "commas. If a record has several targets, in a list or in several fields, the first one is used for training "
        "and all of them serve as references.",
    )
    pattern: str = option(
        "",
        "Text files with document=line in which each line is a pair or a labelled text: a regular expression that "
        "matches the whole line, with groups named source and target (pairs) or label and text (labelled texts).",
    )
    pair_field: str = option("", "Field that holds the second text or, for multiple choice, the list of candidates.")
    label_field: str = option(
        "",
        "Field that holds the label, number or list of tags, in the same syntax as `field`. conll: the column that "
        "holds the tags, given by its number (from 1) or by a name such as UPOS; empty for the last column.",
    )
    label_pattern: str = option(
        "",
        "Classification of text files: a regular expression that is searched for in each file path; the group named "
        "label captures the label.",
    )
    label_names: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata={
            "doc": "Names of labels 0, 1, ..., if the field holds these numbers. If the names themselves are numbers, "
            "the field must hold the names."
        },
    )
    part: tuple[float, ...] = dataclasses.field(
        default=(0.0, 1.0),
        metadata={
            "doc": "Use only the examples whose hash falls in this subrange of [0, 1], e.g. (0.0, 0.8). Data sources "
            "that read the same file with disjoint ranges share no examples. All examples of a SQuAD article stay "
            "together."
        },
    )
    columns: str = option("", "Text tables without a header row: the column names, separated by commas.")
    prefix: str = option("", "Pairs: text prepended to every source, e.g. 'translate English to German: '.")
    document: str = option(
        "file",
        "text only: whether a document is a file, a line, a paragraph (ended by an empty line), or the text between "
        "two occurrences of `separator`.",
        choices=("file", "line", "paragraph", "separator"),
        read_by="kind",
    )
    separator: str = option(
        "<|endoftext|>",
        "text with document=separator: the string between documents.",
        needs=("document=separator",),
        read_by="kind",
    )
    encoding: str = option("utf-8", "Character encoding of the files.", read_by="kind")
    longest_line: int = option(
        1 << 28,
        "Text files: maximum number of characters in a line or document; a longer line or document is an error.",
        minimum=1,
        read_by="kind",
    )
    weight: float = option(
        1.0,
        "Relative share of rows drawn from this data source; 0 disables the data source.",
        minimum=0.0,
    )


@dataclass(frozen=True)
class CleaningConfig:
    """Cleaning steps, applied in this order to each document before it is tokenised."""

    unicode: str = option("", "Unicode normalisation form; empty for none.", choices=("", "NFC", "NFKC"))
    strip_html: bool = option(
        False,
        "Remove HTML tags, scripts and styles, and decode character references. Tags that separate words are replaced "
        "by a line break or a space. A `<` or `&` that is not part of HTML is kept.",
    )
    strip_control: bool = option(
        False,
        "Remove control characters other than newline and tab; those between two words are replaced by a space or a "
        "line break.",
    )
    whitespace: str = option(
        "keep",
        "keep: leave white space unchanged; trim: strip both ends of the document; lines: strip trailing spaces and "
        "merge empty lines; collapse: replace each run of white space with one space.",
        choices=("keep", "trim", "lines", "collapse"),
    )
    min_chars: int = option(1, "Drop documents with fewer characters than this.", minimum=0)
    max_chars: int = option(0, "Drop documents with more characters than this; 0 for no limit.", minimum=0)
    deduplicate: bool = option(False, "Drop exact duplicates of earlier documents in the same data source.")


@dataclass(frozen=True)
class PairsConfig:
    """Filters for training pairs, applied after both sides are cleaned. Evaluation keeps every pair."""

    max_ratio: float = option(
        0.0,
        "Drop pairs in which one side is more than this many times as long as the other, in characters; 0 for no "
        "limit.",
    )
    drop_identical: bool = option(False, "Drop pairs whose two sides are identical.")
    source_script: str = option(
        "",
        "Keep only pairs in which most letters of the source belong to this script. The script is named as in "
        "Unicode character names, e.g. LATIN, CYRILLIC or CJK. Empty for no filter.",
    )
    target_script: str = option("", "Like source_script, but for the target.")
    overlong: str = option(
        "truncate",
        "What to do with pairs that are longer than a row: truncate or drop them.",
        choices=("truncate", "drop"),
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """How text is converted to token ids. The tokenizer is trained on the training split unless `path` is set."""

    kind: str = option("sentencepiece", "Kind of tokenizer.", registry="lm.data.tokenizing.TOKENIZERS")
    path: str = option(
        "", "SentencePiece model or tokenizer.json to load; empty to train a tokenizer.", affects="location"
    )
    vocab_size: int = option(
        8192,
        "sentencepiece: vocabulary size; words: maximum vocabulary size.",
        minimum=300,
        maximum=1_000_000,
        needs=("no path",),
        read_by="kind",
    )
    algorithm: str = option(
        "unigram",
        "sentencepiece: training algorithm. In text that has a space after every word, bpe needs fewer tokens, since "
        "unigram splits frequent words. Small models scored as well or better with unigram (see docs/guide.md).",
        choices=("unigram", "bpe"),
        needs=("no path",),
        read_by="kind",
    )
    train_megabytes: float = option(
        64.0,
        "sentencepiece: maximum amount of training text, in MB.",
        minimum=0.001,
        needs=("no path",),
        read_by="kind",
    )
    bos_token: str = option(
        "",
        "huggingface: BOS token, inserted before each document; empty to infer it from the file.",
        read_by="kind",
    )
    eos_token: str = option(
        "",
        "huggingface: EOS token, appended to each document; empty to infer it from the file.",
        read_by="kind",
    )
    extra_ids: int = option(
        0,
        "Number of sentinel tokens for masked spans, appended to the vocabulary; <extra_id_0> comes last, as in T5. If "
        "a huggingface file already contains tokens with these names, the existing tokens are used.",
        minimum=0,
        maximum=1000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Documents -> cleaning -> tokens -> packed rows. The content of row i depends only on the config and on i."""

    train: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Training data sources, keyed by name."}
    )
    valid: dict[str, SourceConfig] = field(
        default_factory=dict,
        metadata={"doc": "Validation data sources, keyed by name; if empty, a share of train is held out."},
    )
    test: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Test data sources for eval.py, keyed by name.", "affects": "nothing"}
    )
    holdout: str = option(
        "hash",
        "How the held-out share of train is chosen: hash selects documents by their hash; tail selects the last "
        "characters.",
        choices=("hash", "tail"),
        needs=("no valid",),
    )
    holdout_fraction: float = option(
        0.1, "Share of train that is held out if `valid` is empty.", minimum=0.0, maximum=0.5, needs=("no valid",)
    )
    cleaning: CleaningConfig = section(CleaningConfig)
    pairs: PairsConfig = section(PairsConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    separate_vocabularies: bool = option(False, "Pairs: train one tokenizer per side instead of a shared tokenizer.")
    sequence_length: int = option(
        256, "Tokens per row; in an encoder-decoder, tokens per row of the target.", minimum=2
    )
    source_length: int = option(
        0, "Encoder-decoder: tokens per row of the source; 0 for the value of sequence_length.", minimum=0
    )
    labels: tuple[str, ...] = field(
        default=(), metadata={"doc": "Names of the labels, in order; empty for the labels found in train, sorted."}
    )
    fold: int = option(
        0,
        "Cross-validation: index of the fold, from 0; the `part` of every data source is shifted accordingly.",
        minimum=0,
    )
    folds: int = option(
        1,
        "Cross-validation: number of folds. If `part` is (0, 1 / folds), each example belongs to exactly one fold.",
        minimum=1,
    )
    context_overlap: int = option(
        64, "span_qa: number of tokens shared by adjacent windows of a long context.", minimum=0
    )
    num_workers: int = option(
        0,
        "Number of processes that prepare batches; 0 to use a thread instead. The batches are the same in either case.",
        minimum=0,
        affects="nothing",
    )
    prefetch: int = option(4, "Number of batches to prepare in advance.", minimum=1, affects="nothing")
    cache_dir: str = option(
        "",
        "Directory for token stores and compiled programs; empty for $LM_CACHE_DIR or, if that is unset, ~/.cache/lm. "
        "The value stored in a run directory is ignored, since the directory may come from another machine.",
        affects="nothing",
    )
