"""Emerging named entities in noisy text (WNUT 2017): people, places, groups, products, works and companies.

    python train.py --config=configs/ner_wnut17.py:DIR --workdir=runs/ner
    python eval.py --workdir=runs/ner --split=test

DIR holds wnut17train.conll, emerging.dev.conll and emerging.test.annotated: each line holds a word, a tab and the
word's BIO tag.
Cost: two minutes on two CPU cores. Measured on the test split: entity F1 6.7. The model is not pre-trained, and the
test entities are deliberately unseen in training; the best system of the shared task, which used pre-trained word
vectors, reached 41.86.
"""

from pathlib import Path

from lm.config import defaults, source

FILES = (("train", "wnut17train.conll"), ("valid", "emerging.dev.conll"), ("test", "emerging.test.annotated"))


def get_config(directory=""):
    config = defaults()
    for split, name in FILES:
        config.data[split].wnut17 = source(kind="conll", path=str(Path(directory) / name) if directory else "")
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=4000, extra_ids=1)
    config.data.sequence_length = 128
    config.objective.name = "tagging"
    config.model.update(
        family="encoder",
        num_layers=3,
        d_model=192,
        num_heads=6,
        d_ff=384,
        positions="rotary",
        norm="rmsnorm",
        activation="geglu",
        use_bias=False,
        dropout=0.3,
        scan_layers=False,
    )
    config.optimizer.update(
        name="muon",
        learning_rate=3e-3,
        schedule="linear",
        warmup_steps=20,
        final_fraction=0.0,
        weight_decay=0.1,
    )
    config.train.update(batch_size=16, num_steps=300)
    config.eval.update(every_steps=50, bootstrap=1000)
    config.checkpoint.update(every_steps=50, best_metric="valid/entity_f1")
    return config
