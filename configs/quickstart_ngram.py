"""A baseline for quickstart: a 5-gram model with Kneser-Ney smoothing, on the same data with the same tokenizer.

    python train.py --config=configs/quickstart_ngram.py --workdir=runs/quickstart_ngram

Cost: about ten seconds of counting and half a minute of evaluation on two CPU cores. Measured: 1.562 bits per byte on
the held-out documents (Python 3.11), compared with 1.750 for quickstart and 2.333 for `xz -9`.
"""

from lm.config import defaults, source


def get_config():
    config = defaults()
    config.data.train.python = source(kind="embedded")
    config.data.cleaning.deduplicate = True
    config.data.tokenizer.update(kind="sentencepiece", algorithm="bpe", vocab_size=4096)
    config.data.sequence_length = 256
    config.model.architecture = "ngram"
    config.model.ngram.order = 5
    config.eval.update(batch_size=16, compare_with_xz=True, prompts=("Return the",))
    return config
