"""A tanh RNN language model of WikiText-2's words: configs/wikitext2_lstm.py with another cell.

    python train.py --config=configs/wikitext2_rnn.py:DIR --workdir=runs/wikitext2_rnn
    python eval.py --workdir=runs/wikitext2_rnn --split=test --batch_size=1

Cost: 30 minutes on two CPU cores. This config has not been run yet to its last step;
`python -m benchmarks.language_models` trains this model and the others of its table for the same time.
"""

from configs import wikitext2_lstm


def get_config(directory=""):
    config = wikitext2_lstm.get_config(directory, cell="rnn")
    config.optimizer.learning_rate = 1e-3
    return config
