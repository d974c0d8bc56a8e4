"""SCAN, simple split (Lake 2018), with an LSTM encoder-decoder with attention.

    python train.py --config=configs/scan_lstm.py:DIR --workdir=runs/scan_lstm
    python eval.py --workdir=runs/scan_lstm --split=test

DIR is the same as for configs/scan.py, the Transformer that this model is compared with. Lake and Baroni report 99.8 %
exact match.
Cost: about ten minutes on two CPU cores. Measured: 100 % exact match on the test split (results/scan_lstm.json).
"""

from configs import scan
from lm.config import defaults


def get_config(directory=""):
    config = scan.get_config(directory)
    config.model = defaults().model
    config.model.update(
        architecture="recurrent",
        family="encoder_decoder",
        num_layers=2,
        d_model=200,
        embedding_width=64,
        dropout=0.1,
        init_std=0.0,
        embedding_std=0.1,
    )
    config.optimizer.update(name="adamw", learning_rate=4e-3)
    return config
