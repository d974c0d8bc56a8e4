"""Data settings: data sources, cleaning, tokenizer and rows."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option, section


@dataclass(frozen=True)
class SourceConfig:
    """One data source: where its examples come from and how to read them."""

    kind: str = option("text", registry="lm.data.reading.FORMATS")
    """Data format."""
    path: str = option("", affects="location")
    """File or glob pattern of the input (.gz is decompressed). For kind='tfds', the name of the data set."""
    split: str = option("train", read_by="kind")
    """Name of the split, e.g. train or train[:1%] (kind='tfds' only)."""
    data_dir: str = option("", affects="location")
    """Directory of the prepared data sets (kind='tfds' only). If empty, the default directory of TFDS is used."""
    field: str = "text"
    """Field or column of a record that holds the text. A dotted name such as `answers.text` refers to a nested field. A
    value with braces is a template that combines fields: 'question: {question} context: {context}'. If a field holds a
    list of texts, they are joined with spaces. For kind='conll', the column that holds the words is given by its number
    (from 1) or by a name such as FORM; by default, the first column that does not hold word numbers is used."""
    target_path: str = option("", affects="location")
    """File or glob pattern of the targets, for document=line. Line i of the targets corresponds to line i of `path`."""
    target_field: str = ""
    """Field that holds the target of a pair, in the same syntax as `field`, or several such fields separated by commas.
    If a record has several targets, the first is used for training, and all of them serve as references."""
    pattern: str = ""
    """Regular expression for text files with document=line. It must match each whole line and have groups named source
    and target (for pairs) or label and text (for labelled texts)."""
    pair_field: str = ""
    """Field that holds the second text. For multiple choice, the field holds the list of candidates."""
    label_field: str = ""
    """Field that holds the label, number or list of tags, in the same syntax as `field`. For kind='conll', the column
    that holds the tags is given by its number (from 1) or by a name such as UPOS. If empty, the last column is used."""
    label_pattern: str = ""
    """Regular expression to search for in the path of each text file; its group named label captures the label of the
    file."""
    label_names: tuple[str, ...] = ()
    """Names of the labels 0, 1, ..., if the label field holds these numbers. The names must not be numbers
    themselves."""
    part: tuple[float, ...] = (0.0, 1.0)
    """Use only the examples whose hash falls in this subrange of [0, 1], e.g. (0.0, 0.8). Data sources that read the
    same file with disjoint ranges share no examples. All examples of a SQuAD article stay together."""
    columns: str = ""
    """Column names, separated by commas, for text tables without a header row."""
    prefix: str = ""
    """Text prepended to the source of every pair, e.g. 'translate English to German: '."""
    document: str = option("file", choices=("file", "line", "paragraph", "separator"), read_by="kind")
    """Unit that counts as one document: a file, a line, a paragraph (ended by an empty line), or the text between two
    occurrences of `separator` (kind='text' only)."""
    separator: str = option("<|endoftext|>", needs=("document=separator",), read_by="kind")
    """String between documents, for kind='text' with document=separator."""
    encoding: str = option("utf-8", read_by="kind")
    """Character encoding of the files."""
    longest_line: int = option(1 << 28, minimum=1, read_by="kind")
    """Maximum number of characters in a line or document of a text file. A longer line or document causes an error."""
    weight: float = option(1.0, minimum=0.0)
    """Relative share of rows drawn from this data source. A weight of 0 disables the data source."""


# The steps of CleaningConfig that change words. Only some tasks read them.
WORD_STEPS = ("segment", "lowercase", "stop_words", "stem")
# Languages of nltk.stem.snowball.SnowballStemmer, and the original stemmer (Porter 1980).
LANGUAGES = "arabic danish dutch english finnish french german hungarian italian norwegian portuguese romanian russian"
STEMMERS = ("porter", *LANGUAGES.split(), "spanish", "swedish")


@dataclass(frozen=True)
class CleaningConfig:
    """Cleaning steps, applied in this order to each document before it is tokenised."""

    unicode: str = option("", choices=("", "NFC", "NFKC"))
    """Unicode normalisation form. If empty, the text is not normalised."""
    strip_html: bool = False
    """Remove HTML tags, scripts and styles, and decode character references. Tags that separate words are replaced by a
    line break or a space. A `<` or `&` that is not part of HTML is kept."""
    strip_control: bool = False
    """Remove control characters other than newline and tab. Those between two words are replaced by whitespace."""
    segment: str = option("", choices=("", "jieba"))
    """Word segmentation for Chinese: 'jieba' puts spaces between words (needs requirements-chinese.txt)."""
    lowercase: bool = False
    """Convert the text to lower case."""
    stop_words: str = ""
    """Words to remove: 'english' or 'chinese' (lists of function words without negations), or the path of a text file
    with one word per line. When the config is read, the words of the file replace this path. Case is ignored. Chinese
    text must be segmented. The spaces on one side of a removed word are removed too."""
    stem: str = option("", choices=("", *STEMMERS))
    """Language of the NLTK Snowball stemmer, or 'porter' for the original stemmer. It replaces each word with its stem
    in lower case."""
    whitespace: str = option("keep", choices=("keep", "trim", "lines", "collapse", "collapse_lines"))
    """Treatment of whitespace. 'keep' leaves it unchanged; 'trim' strips both ends of the document; 'lines' strips
    trailing spaces and merges empty lines; 'collapse' replaces each run of whitespace with one space and strips both
    ends; 'collapse_lines' does the same to each line."""
    min_chars: int = option(1, minimum=0)
    """Drop documents with fewer characters than this."""
    max_chars: int = option(0, minimum=0)
    """Drop documents with more characters than this. 0 means no limit."""
    deduplicate: bool = False
    """Drop exact duplicates of earlier documents in the same data source."""


@dataclass(frozen=True)
class PairsConfig:
    """Filters for training pairs, applied after both sides are cleaned. Evaluation keeps every pair."""

    max_ratio: float = 0.0
    """Drop pairs in which one side is more than this many times as long as the other, in characters. 0 means no
    limit."""
    drop_identical: bool = False
    """Drop pairs whose two sides are identical."""
    source_script: str = ""
    """If not empty, keep only pairs whose source is mostly written in this script, e.g. LATIN, CYRILLIC or CJK."""
    target_script: str = ""
    """Like source_script, but for the target."""
    overlong: str = option("truncate", choices=("truncate", "drop"))
    """Treatment of pairs and conversations that are longer than a row."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer settings. If `path` is empty, the tokenizer is trained on the training split."""

    kind: str = option("sentencepiece", registry="lm.data.tokenizing.TOKENIZERS")
    """Kind of tokenizer."""
    path: str = option("", affects="location")
    """SentencePiece model, tokenizer.json or (for marian) vocab.json to load. If empty, a tokenizer is trained."""
    vocab_size: int = option(8192, minimum=300, maximum=1_000_000, needs=("no path",), read_by="kind")
    """Vocabulary size for kind='sentencepiece', or maximum vocabulary size for kind='words'."""
    min_count: int = option(1, minimum=1, needs=("no path",), read_by="kind")
    """Minimum number of occurrences of a word in the training text, for kind='words'. Rarer words become <unk>."""
    line_breaks: bool = option(False, needs=("no path",), read_by="kind")
    """Treat each line break as a token, for kind='words', as published perplexities on WikiText do. This token is
    always in the vocabulary, regardless of min_count and vocab_size. If False, line breaks only separate words."""
    algorithm: str = option("unigram", choices=("unigram", "bpe"), needs=("no path",), read_by="kind")
    """Training algorithm of SentencePiece. On five data sets, small models scored at least as well with unigram as with
    bpe. For text in which spaces surround every token, bpe needs fewer tokens (see docs/guide.md)."""
    train_megabytes: float = option(64.0, minimum=0.001, needs=("no path",), read_by="kind")
    """Maximum amount of text for training SentencePiece, in MB."""
    bos_token: str = option("", read_by="kind")
    """BOS token to insert before each text (kind='huggingface' only). If empty, the tokenizer's files determine it. If
    this or eos_token is set, texts have the form `bos text eos`, whatever template the files contain."""
    eos_token: str = option("", read_by="kind")
    """EOS token to append to each document (kind='huggingface' only). If empty, the tokenizer's files determine it."""
    extra_ids: int = option(0, minimum=0, maximum=1000)
    """Number of sentinel tokens for masked spans. They are appended to the vocabulary, and <extra_id_0> comes last, as
    in T5. If a Hugging Face file already contains tokens with these names, those tokens are used."""


@dataclass(frozen=True)
class DataConfig:
    """Data settings. Documents are cleaned, tokenised and packed into rows.

    The content of row i depends only on the config and on i.
    """

    train: dict[str, SourceConfig] = section(dict)
    """Training data sources, keyed by name."""
    valid: dict[str, SourceConfig] = section(dict)
    """Validation data sources, keyed by name. If empty, a share of train is held out."""
    test: dict[str, SourceConfig] = section(dict, affects="nothing")
    """Test data sources for eval.py, keyed by name."""
    holdout: str = option("hash", choices=("hash", "tail"), needs=("no valid",))
    """How the held-out share of train is chosen: 'hash' selects documents by their hash, and 'tail' takes the end of
    the text."""
    holdout_fraction: float = option(0.1, minimum=0.0, maximum=0.5, needs=("no valid",))
    """Share of train that is held out if `valid` is empty."""
    cleaning: CleaningConfig = section(CleaningConfig)
    pairs: PairsConfig = section(PairsConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    chat_template: str = ""
    """Jinja template that turns conversations into text, for objective.name='chat', or the name of a built-in template:
    'plain' (each message follows its role) or 'texts' (the messages alone). If empty, the tokenizer's template is
    used."""
    separate_vocabularies: bool = False
    """Train one tokenizer per side of a pair instead of a shared tokenizer."""
    sequence_length: int = option(256, minimum=2)
    """Number of tokens per row. In an encoder-decoder, this setting applies to target rows."""
    stateful: bool = False
    """Continue row r of each batch in row r of the next batch, and carry the state of a recurrent model from batch to
    batch (truncated back-propagation through time, Merity 2018). The state is reset at the first token of a document.
    In evaluations, eval.batch_size is the number of stretches into which the text is cut."""
    source_length: int = option(0, minimum=0)
    """Number of tokens per source row of an encoder-decoder. If 0, sequence_length is used."""
    labels: tuple[str, ...] = ()
    """Names of the labels, in order. If empty, the labels found in train are used in sorted order."""
    fold: int = option(0, minimum=0)
    """Index of the cross-validation fold, from 0. The `part` of every data source is shifted accordingly."""
    folds: int = option(1, minimum=1)
    """Number of cross-validation folds. A data source with part=(0, 1 / folds) contains each example in exactly one
    fold."""
    context_overlap: int = option(64, minimum=0)
    """Number of tokens shared by adjacent windows of a long context, for objective.name='span_qa'."""
    num_workers: int = option(0, minimum=0, affects="nothing")
    """Number of processes that prepare batches. If 0, a thread prepares them. The batches are the same either way."""
    prefetch: int = option(4, minimum=1, affects="nothing")
    """Number of batches to prepare in advance."""
    store_workers: int = option(0, minimum=0, affects="nothing")
    """Number of processes that clean and tokenise the text of token stores. If 0, one process per available core is
    used. Small texts are tokenised without extra processes. With holdout='tail', the main process cleans the text. The
    contents of the stores do not depend on this number."""
    beam: str = option("", affects="nothing")
    """Options for the Apache Beam pipeline that cleans and tokenises text in place of the processes set by
    store_workers, e.g. '--runner=FlinkRunner --flink_master=HOST:8081' (needs requirements-beam.txt). All machines must
    see the data and the cache under the same paths. Beam is not used if this setting is empty, or for data that is
    split by holdout='tail'."""
    cache_dir: str = option("", affects="nothing")
    """Directory for token stores and compiled programs. If empty, $LM_CACHE_DIR is used if set, otherwise ~/.cache/lm.
    The value stored in a run directory is ignored, since the run may come from another machine."""
