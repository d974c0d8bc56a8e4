"""The quickstart with an LSTM in place of the Transformer: the same data and the same number of steps.

    python train.py --config=configs/quickstart_lstm.py --workdir=runs/quickstart_lstm

`--config=configs/quickstart_lstm.py:gru` or `:rnn` selects another cell. Cost: about three minutes on two CPU cores.
Expected: about 2.3 bits per byte on the held-out tenth of the documents, compared with 1.7 for the Transformer of
configs/quickstart.py. Measurements are in results/.
"""

from configs import quickstart
from lm.config import defaults


def get_config(cell="lstm"):
    config = quickstart.get_config()
    config.model = defaults().model
    config.model.update(architecture="recurrent", cell=cell, num_layers=2, d_model=512, embedding_width=256)
    config.model.update(init_std=0.0, embedding_std=0.05, dropout=0.0)
    config.optimizer.update(name="adamw", learning_rate=4e-3)
    return config
