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
        "File or glob pattern of the input; .gz files are decompressed. For kind='tfds', the path is the name of the "
        "data set, optionally with a version.",
        affects="location",
    )
    split: str = option("train", "Name of the split, e.g. train or train[:1%] (kind='tfds' only).", read_by="kind")
    data_dir: str = option(
        "",
        "Directory of the prepared data sets (kind='tfds' only). If empty, the default directory of TFDS is used.",
        affects="location",
    )
    field: str = option(
        "text",
        "Field or column of a record that holds the text. A dotted name such as `answers.text` refers to a nested "
        "field. A value with braces is a template that combines fields: 'question: {question} context: {context}'. "
        "If a field holds a list of texts, they are joined with spaces. For kind='conll', the column that holds the "
        "words is given by its number (from 1) or by a name such as FORM; by default, the first column that does not "
        "hold word numbers is used.",
    )
    target_path: str = option(
        "",
        "File or glob pattern of the targets, if pairs are stored in two text files with document=line. The targets "
        "must be aligned line by line with the sources.",
        affects="location",
    )
    target_field: str = option(
        "",
        "Field that holds the target of a pair, in the same syntax as `field`, or several such fields separated by "
        "commas. If a record has several targets, in a list or in several fields, the first one is used for training "
        "and all of them serve as references.",
    )
    pattern: str = option(
        "",
        "Regular expression for text files with document=line in which each line is a pair or a labelled text. The "
        "expression must match the whole line and contain groups named source and target (for pairs) or label and "
        "text (for labelled texts).",
    )
    pair_field: str = option(
        "", "Field that holds the second text. For multiple choice, the field holds the list of candidates."
    )
    label_field: str = option(
        "",
        "Field that holds the label, number or list of tags, in the same syntax as `field`. For kind='conll', the "
        "column that holds the tags is given by its number (from 1) or by a name such as UPOS. If empty, the last "
        "column is used.",
    )
    label_pattern: str = option(
        "",
        "Regular expression that extracts the label of a text file from its path, for classification. The expression "
        "is searched for in each file path, and the group named label captures the label.",
    )
    label_names: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata={
            "doc": "Names of the labels 0, 1, ..., if the label field holds these numbers. If the names themselves are "
            "numbers, the label field must hold the names."
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
    columns: str = option("", "Column names, separated by commas, for text tables without a header row.")
    prefix: str = option("", "Text prepended to the source of every pair, e.g. 'translate English to German: '.")
    document: str = option(
        "file",
        "Unit that counts as one document: a file, a line, a paragraph (ended by an empty line), or the text between "
        "two occurrences of `separator` (kind='text' only).",
        choices=("file", "line", "paragraph", "separator"),
        read_by="kind",
    )
    separator: str = option(
        "<|endoftext|>",
        "String between documents, for kind='text' with document=separator.",
        needs=("document=separator",),
        read_by="kind",
    )
    encoding: str = option("utf-8", "Character encoding of the files.", read_by="kind")
    longest_line: int = option(
        1 << 28,
        "Maximum number of characters in a line or document of a text file. A longer line or document is an error.",
        minimum=1,
        read_by="kind",
    )
    weight: float = option(
        1.0,
        "Relative share of rows drawn from this data source. A weight of 0 disables the data source.",
        minimum=0.0,
    )


@dataclass(frozen=True)
class CleaningConfig:
    """Cleaning steps, applied in this order to each document before it is tokenised."""

    unicode: str = option(
        "", "Unicode normalisation form. If empty, the text is not normalised.", choices=("", "NFC", "NFKC")
    )
    strip_html: bool = option(
        False,
        "Remove HTML tags, scripts and styles, and decode character references. Tags that separate words are replaced "
        "by a line break or a space. A `<` or `&` that is not part of HTML is kept.",
    )
    strip_control: bool = option(
        False,
        "Remove control characters other than newline and tab. A control character between two words is replaced by "
        "a space or a line break.",
    )
    whitespace: str = option(
        "keep",
        "Treatment of white space. 'keep' leaves it unchanged; 'trim' strips both ends of the document; 'lines' "
        "strips trailing spaces and merges empty lines; 'collapse' replaces each run of white space with one space.",
        choices=("keep", "trim", "lines", "collapse"),
    )
    min_chars: int = option(1, "Drop documents with fewer characters than this.", minimum=0)
    max_chars: int = option(0, "Drop documents with more characters than this. 0 means no limit.", minimum=0)
    deduplicate: bool = option(False, "Drop exact duplicates of earlier documents in the same data source.")


@dataclass(frozen=True)
class PairsConfig:
    """Filters for training pairs, applied after both sides are cleaned. Evaluation keeps every pair."""

    max_ratio: float = option(
        0.0,
        "Drop pairs in which one side is more than this many times as long as the other, in characters. 0 means no "
        "limit.",
    )
    drop_identical: bool = option(False, "Drop pairs whose two sides are identical.")
    source_script: str = option(
        "",
        "Keep only pairs in which most letters of the source belong to this script. The script is named as in "
        "Unicode character names, e.g. LATIN, CYRILLIC or CJK. If empty, pairs are not filtered by script.",
    )
    target_script: str = option("", "Like source_script, but for the target.")
    overlong: str = option(
        "truncate",
        "Whether to truncate or drop pairs, or conversations, that are longer than a row.",
        choices=("truncate", "drop"),
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """Settings of the tokenizer. If `path` is empty, the tokenizer is trained on the training split."""

    kind: str = option("sentencepiece", "Kind of tokenizer.", registry="lm.data.tokenizing.TOKENIZERS")
    path: str = option(
        "", "SentencePiece model or tokenizer.json to load. If empty, a tokenizer is trained.", affects="location"
    )
    vocab_size: int = option(
        8192,
        "Vocabulary size for kind='sentencepiece', or maximum vocabulary size for kind='words'.",
        minimum=300,
        maximum=1_000_000,
        needs=("no path",),
        read_by="kind",
    )
    algorithm: str = option(
        "unigram",
        "Training algorithm of SentencePiece. In text that has a space after every word, bpe needs fewer tokens, since "
        "unigram splits frequent words. Small models scored as well or better with unigram (see docs/guide.md).",
        choices=("unigram", "bpe"),
        needs=("no path",),
        read_by="kind",
    )
    train_megabytes: float = option(
        64.0,
        "Maximum amount of text, in MB, on which SentencePiece is trained.",
        minimum=0.001,
        needs=("no path",),
        read_by="kind",
    )
    bos_token: str = option(
        "",
        "BOS token to insert before each document, for kind='huggingface'. If empty, the token is inferred from the "
        "file.",
        read_by="kind",
    )
    eos_token: str = option(
        "",
        "EOS token to append to each document, for kind='huggingface'. If empty, the token is inferred from the file.",
        read_by="kind",
    )
    extra_ids: int = option(
        0,
        "Number of sentinel tokens for masked spans. They are appended to the vocabulary, and <extra_id_0> comes "
        "last, as in T5. If a Hugging Face file already contains tokens with these names, those tokens are used.",
        minimum=0,
        maximum=1000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data: documents are cleaned, tokenised and packed into rows.

    The content of row i depends only on the config and on i.
    """

    train: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Training data sources, keyed by name."}
    )
    valid: dict[str, SourceConfig] = field(
        default_factory=dict,
        metadata={"doc": "Validation data sources, keyed by name. If empty, a share of train is held out."},
    )
    test: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Test data sources for eval.py, keyed by name.", "affects": "nothing"}
    )
    holdout: str = option(
        "hash",
        "Method for choosing the held-out share of train. 'hash' selects documents by their hash; 'tail' selects the "
        "last characters.",
        choices=("hash", "tail"),
        needs=("no valid",),
    )
    holdout_fraction: float = option(
        0.1, "Share of train that is held out if `valid` is empty.", minimum=0.0, maximum=0.5, needs=("no valid",)
    )
    cleaning: CleaningConfig = section(CleaningConfig)
    pairs: PairsConfig = section(PairsConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    chat_template: str = option(
        "",
        "Jinja template that turns conversations into text, for objective.name='chat', or the name of a simple one: "
        "'plain' (each message follows its role) or 'texts' (the messages alone). If empty, the tokenizer's template "
        "is used.",
    )
    separate_vocabularies: bool = option(False, "Train one tokenizer per side of a pair instead of a shared tokenizer.")
    sequence_length: int = option(
        256, "Number of tokens per row. In an encoder-decoder, this setting applies to target rows.", minimum=2
    )
    source_length: int = option(
        0, "Number of tokens per source row of an encoder-decoder. If 0, sequence_length is used.", minimum=0
    )
    labels: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": "Names of the labels, in order. If empty, the labels found in train are used in sorted order."
        },
    )
    fold: int = option(
        0,
        "Index of the cross-validation fold, from 0. The `part` of every data source is shifted accordingly.",
        minimum=0,
    )
    folds: int = option(
        1,
        "Number of cross-validation folds. If `part` is (0, 1 / folds), each example belongs to exactly one fold.",
        minimum=1,
    )
    context_overlap: int = option(
        64, "Number of tokens shared by adjacent windows of a long context, for objective.name='span_qa'.", minimum=0
    )
    num_workers: int = option(
        0,
        "Number of processes that prepare batches. If 0, a thread prepares them. The batches are the same in either "
        "case.",
        minimum=0,
        affects="nothing",
    )
    prefetch: int = option(4, "Number of batches to prepare in advance.", minimum=1, affects="nothing")
    cache_dir: str = option(
        "",
        "Directory for token stores and compiled programs. If empty, $LM_CACHE_DIR is used if set, otherwise "
        "~/.cache/lm. The value stored in a run directory is ignored, since the directory may come from another "
        "machine.",
        affects="nothing",
    )
