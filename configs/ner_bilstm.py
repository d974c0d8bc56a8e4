"""Emerging named entities in noisy text (WNUT 2017) with a bidirectional LSTM (Huang 2015, without a CRF).

    python train.py --config=configs/ner_bilstm.py:DIR --workdir=runs/ner_bilstm
    python eval.py --workdir=runs/ner_bilstm --split=test

DIR is that of configs/ner_wnut17.py, the Transformer that it is compared with.
Cost: about two minutes on two CPU cores. This config has not been run yet to its last step.
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
