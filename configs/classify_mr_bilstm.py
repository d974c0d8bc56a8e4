"""Sentiment of sentences from film reviews with a bidirectional LSTM.

    python train.py --config=configs/classify_mr_bilstm.py:DIR --workdir=runs/mr_bilstm --folds=10

The data, the words and the ten-fold cross-validation are those of configs/classify_mr_cnn.py, the convolutional network
that this model is compared with. The mean of the LSTM's outputs represents a text.
Cost: about two minutes for each fold on two CPU cores. This config has not been run yet to the last step.
"""

from configs import classify_mr_cnn
from lm.config import defaults


def get_config(directory=""):
    config = classify_mr_cnn.get_config(directory)
    config.data.sequence_length = 128
    config.model = defaults().model
    config.model.update(
        architecture="recurrent",
        family="encoder",
        num_layers=1,
        d_model=256,
        embedding_width=128,
        dropout=0.5,
        init_std=0.0,
        embedding_std=0.1,
    )
    config.optimizer.update(learning_rate=2e-3, schedule="linear", weight_decay=0.1)
    config.train.update(batch_size=16, num_epochs=4.0)
    return config
