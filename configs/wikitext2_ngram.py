"""WikiText-2 with a word-level 5-gram model and Kneser-Ney smoothing (Chen & Goodman 1998).

    python train.py --config=configs/wikitext2_ngram.py:DIR --workdir=runs/wikitext2_ngram
    python eval.py --workdir=runs/wikitext2_ngram --split=test

DIR holds train.txt.gz (or train.txt), valid.txt and test.txt, tokenised as published. Each line is a document, so a
context never reaches into an earlier line, and the end of each line is predicted.
Cost: about ten seconds of counting and three minutes of evaluation on two CPU cores. Measured: perplexities of 239.98
(validation) and 224.81 (test) per token, where the end of each non-empty line counts as a token. KenLM's lmplz and
query give the same perplexities on the same lines. The column `word perplexity` does not count the ends of lines.
"""

from pathlib import Path

from lm.config import defaults, source


def get_config(directory=""):
    config = defaults()
    folder = Path(directory)
    packed = folder / "train.txt.gz"
    train = packed if packed.exists() else folder / "train.txt"
    for split, path in (("train", train), ("valid", folder / "valid.txt"), ("test", folder / "test.txt")):
        config.data[split].wikitext2 = source(kind="text", path=str(path) if directory else "", document="line")
    config.data.cleaning.whitespace = "collapse"
    config.data.tokenizer.update(kind="words", vocab_size=40_000)
    config.data.sequence_length = 256
    config.model.architecture = "ngram"
    config.model.ngram.update(order=5, smoothing="kneser_ney")
    config.eval.batch_size = 4
    return config
