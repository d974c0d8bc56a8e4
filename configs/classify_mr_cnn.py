"""Sentiment of sentences from film reviews with the convolutional network of Kim 2014 and random initial vectors.

    python train.py --config=configs/classify_mr_cnn.py:DIR --workdir=runs/mr_cnn --folds=10

DIR is the same as for configs/classify_mr.py. Words are used exactly as they appear in the files, and all weights are
trained. As in the paper, ten-fold cross-validation is used. Cost: about twelve minutes for the ten folds on two CPU
cores. Measured: accuracy 76.5 % (mean over the ten test folds). Kim reports 76.1 % (CNN-rand). Measurements are in
results/.
"""

from configs import classify_mr
from lm.config import defaults


def get_config(directory=""):
    config = classify_mr.get_config(directory)
    config.data.tokenizer = defaults().data.tokenizer
    config.data.tokenizer.update(kind="words", vocab_size=30_000)
    config.model = defaults().model
    config.model.update(architecture="convolutional", family="encoder", embedding_width=300, d_model=300, dropout=0.5)
    config.model.update(init_std=0.0, embedding_std=0.15)
    config.data.sequence_length = 256
    config.optimizer.update(name="adamw", learning_rate=1e-3, weight_decay=0.1, b2=0.98, schedule="linear")
    config.train.update(batch_size=10, num_steps=-1, num_epochs=6.0)
    config.eval.update(every_steps=100)
    config.checkpoint.update(every_steps=100)
    return config
