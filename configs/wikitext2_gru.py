"""A GRU language model of WikiText-2's words: configs/wikitext2_lstm.py with a different cell.

    python train.py --config=configs/wikitext2_gru.py:DIR --workdir=runs/wikitext2_gru
    python eval.py --workdir=runs/wikitext2_gru --split=test --step=latest --batch_size=1

Cost: 30 minutes on two CPU cores. Measured by `python -m benchmarks.language_models`, which trains this model and the
others in its table for the same time: word perplexity 224.9 (validation) and 206.3 (test) after 2,381 steps
(results/language_models.md).
"""

from configs import wikitext2_lstm


def get_config(directory=""):
    return wikitext2_lstm.get_config(directory, cell="gru")
