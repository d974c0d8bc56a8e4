"""Sentiment of IMDB film reviews, from TFDS: fine-tuning, or training from scratch.

    python train.py --config=configs/imdb.py --workdir=runs/imdb --config.init_from=runs/bert_mlm
    python eval.py --workdir=runs/imdb --split=test

The model is the same as in bert_mlm. Reviews are truncated to 512 tokens. This config has not been run yet.
"""

from configs import bert_mlm
from lm.config import defaults, source


def get_config():
    config = defaults()
    for split, part in (("train", "train[:90%]"), ("valid", "train[90%:]"), ("test", "test")):
        config.data[split].imdb = source(
            kind="tfds",
            path="imdb_reviews",
            split=part,
            field="text",
            label_field="label",
            label_names=("negative", "positive"),
        )
    config.data.cleaning.update(strip_html=True, whitespace="collapse")
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=30500, extra_ids=1)
    config.data.sequence_length = 512
    config.objective.name = "classification"
    config.model = bert_mlm.get_config().model
    config.optimizer.update(
        name="adamw",
        learning_rate=3e-5,
        schedule="linear",
        warmup_steps=200,
        final_fraction=0.0,
        weight_decay=0.01,
        b2=0.999,
        layer_decay=0.9,
    )
    config.train.update(batch_size=32, num_steps=2100)
    config.eval.update(every_steps=300, bootstrap=1000)
    config.checkpoint.update(every_steps=300, best_metric="valid/accuracy")
    return config
