"""Settings of word-vector models and of the tasks that train them."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class WordVectorSettings:
    """The part of ModelConfig that concerns word vectors."""

    embedding_from: str = option("", affects="updates")
    """File of word vectors with which the token embedding is initialised: word2vec text or binary (.bin), GloVe text or
    fastText .vec. Tokens are matched by their text; tokens without a match keep their random vectors. To keep all
    embeddings unchanged during training, add 'token_embedding' to optimizer.freeze."""
    static_channel: bool = option(False, parameters=("static_embedding",), needs=("embedding_from",))
    """Give a convolutional network a second copy of the embeddings, which is never trained (the two-channel variant,
    Kim 2014). Each filter reads both copies."""
    ngram_buckets: int = option(0, minimum=0, parameters=("ngram_embedding",))
    """Number of vectors shared by all character n-grams; a hash assigns one of these vectors to each n-gram. The vector
    of a word is then the mean of its own vector and the vectors of its n-grams (Bojanowski 2017). 0 means no
    n-grams."""
    ngram_lengths: tuple[int, int] = option((3, 6), needs=("ngram_buckets",))
    """Shortest and longest character n-gram, in characters. Words are first enclosed in < and >."""


@dataclass(frozen=True)
class ContextSettings:
    """The part of ObjectiveConfig that concerns word vectors."""

    context_window: int = option(5, minimum=1, maximum=100, affects="batches")
    """Maximum distance between a word and its context words. For objective.name='skipgram' or 'cbow', the maximum
    for each word is drawn uniformly from 1 to this number (Mikolov 2013). For 'glove', the maximum is fixed, and a
    context word at distance d has weight 1/d (Pennington 2014)."""
    negatives: int = option(5, minimum=1, affects="updates")
    """Number of random words in the loss for each context word (negative sampling, Mikolov 2013)."""
    shared_negatives: int = option(32, minimum=1, affects="batches")
    """Number of random words that are drawn for each block of 32 words of a row and shared by these words. Each has the
    weight negatives / shared_negatives, so that the expected loss is that of `negatives` separate draws (Ji 2016)."""
    subsample: float = option(1e-3, minimum=0.0, maximum=1.0, affects="batches")
    """Threshold t for dropping frequent words: a word of relative frequency f is kept with probability sqrt(t / f) +
    t / f, as in word2vec. 0 keeps all words."""
    count_limit: float = option(100.0, minimum=1.0)
    """Co-occurrence count at and above which pairs of words have weight 1 (x_max in GloVe)."""
    count_power: float = option(0.75, minimum=0.0, maximum=1.0)
    """Exponent a in the weight (count / count_limit)^a of rarer pairs of words (GloVe)."""
