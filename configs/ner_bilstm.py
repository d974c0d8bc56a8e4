"""Emerging named entities in noisy text (WNUT 2017) with a bidirectional LSTM (Huang 2015, without a CRF).

    python train.py --config=configs/ner_bilstm.py:DIR --workdir=runs/ner_bilstm
    python eval.py --workdir=runs/ner_bilstm --split=test

DIR is the same as for configs/ner_wnut17.py, the Transformer that this model is compared with.
Cost: a minute on two CPU cores. Measured on the test split: entity F1 2.8 (results/ner_bilstm.json). After 300 steps,
the model finds hardly any of the test entities, which are deliberately unseen in training; the Transformer reaches 6.7.
"""

from configs import ner_wnut17
from lm.config import defaults


def get_config(directory=""):
    config = ner_wnut17.get_config(directory)
    config.model = defaults().model
    config.model.update(
        architecture="recurrent",
        family="encoder",
        num_layers=1,
        d_model=256,
        embedding_width=128,
        dropout=0.4,
        init_std=0.0,
        embedding_std=0.1,
    )
    config.optimizer.update(name="adamw", learning_rate=4e-3)
    return config
