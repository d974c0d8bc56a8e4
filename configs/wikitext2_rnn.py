"""A tanh RNN language model of WikiText-2's words: configs/wikitext2_lstm.py with a different cell.

    python train.py --config=configs/wikitext2_rnn.py:DIR --workdir=runs/wikitext2_rnn
    python eval.py --workdir=runs/wikitext2_rnn --split=test --step=latest --batch_size=1

Cost: 30 minutes on two CPU cores. Measured by `python -m benchmarks.language_models`, which trains this model and the
others in its table for the same time: word perplexity 267.3 (validation) and 241.7 (test) after 3,130 steps
(results/language_models.md).
"""

from configs import wikitext2_lstm


def get_config(directory=""):
    config = wikitext2_lstm.get_config(directory, cell="rnn")
    config.optimizer.learning_rate = 1e-3
    return config
