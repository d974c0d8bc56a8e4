"""Sentiment of sentences from film reviews (Pang and Lee 2005), with the encoder of bert_quickstart.

    python train.py --config=configs/classify_mr.py:DIR --workdir=runs/mr
    python train.py --config=configs/classify_mr.py:DIR --workdir=runs/mr_tuned --config.init_from=runs/bert
    python eval.py --workdir=runs/mr,runs/mr_tuned --split=test

DIR holds rt-polarity.pos and rt-polarity.neg, which are encoded in Windows-1252. There is no official split: a hash of
each sentence assigns a tenth to testing and a tenth to validation; `--config.data.fold=1` selects other tenths.
Cost: under two minutes on two CPU cores. Measured on the test tenth, from scratch with three seeds: accuracy 76.3 %
(standard deviation 0.8). For comparison, a convolutional network reaches 75.9 % in cross-validation (Kim 2014), and an
n-gram model reaches 78.8 % on the same tenth.
"""

from pathlib import Path

from configs import bert_quickstart
from lm.config import defaults, source


def get_config(directory=""):
    config = defaults()
    path = str(Path(directory) / "rt-polarity.*") if directory else ""
    for split, part in (("train", (0.2, 1.0)), ("valid", (0.1, 0.2)), ("test", (0.0, 0.1))):
        config.data[split].mr = source(
            kind="text",
            path=path,
            document="line",
            encoding="windows-1252",
            label_pattern=r"\.(?P<label>neg|pos)$",
            part=part,
        )
    config.data.folds = 10
    config.data.cleaning.whitespace = "collapse"
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=10_000, extra_ids=1)
    config.data.sequence_length = 128
    config.objective.name = "classification"
    config.model = bert_quickstart.get_config().model
    config.model.update(pooling="mean", dropout=0.6)
    config.optimizer.update(
        name="muon",
        learning_rate=2e-3,
        schedule="linear",
        warmup_steps=20,
        final_fraction=0.0,
        weight_decay=0.1,
        b2=0.98,
    )
    config.train.update(batch_size=16, num_steps=300)
    config.eval.update(every_steps=50, bootstrap=1000)
    config.checkpoint.update(every_steps=50, best_metric="valid/accuracy")
    return config
