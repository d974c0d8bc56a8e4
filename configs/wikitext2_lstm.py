"""An LSTM language model of WikiText-2's words, whose state is carried from window to window (Zaremba 2014).

    python train.py --config=configs/wikitext2_lstm.py:DIR --workdir=runs/wikitext2_lstm
    python eval.py --workdir=runs/wikitext2_lstm --split=test --step=latest --batch_size=1

DIR is the same as for configs/wikitext2_words.py. Row r of each step continues row r of the step before
(data.stateful), with back-propagation through 35 tokens. With --batch_size=1, eval.py carries the state through the
whole text.
Cost: 30 minutes on two CPU cores. Measured by `python -m benchmarks.language_models`, which trains this model and the
others in its table for the same time: word perplexity 228.6 (validation) and 211.0 (test) after 2,392 steps
(results/language_models.md).
"""

from configs import wikitext2_words


def get_config(directory="", cell="lstm"):
    config = wikitext2_words.word_data(directory)
    config.data.update(sequence_length=35, stateful=True)
    config.model.update(
        architecture="recurrent",
        cell=cell,
        num_layers=2,
        d_model=512,
        embedding_width=256,
        dropout=0.3,
        init_std=0.0,
        embedding_std=0.05,
    )
    config.optimizer.update(
        learning_rate=3e-3,
        schedule="warmup_stable_decay",
        warmup_steps=50,
        final_fraction=0.0,
        weight_decay=0.01,
        b2=0.98,
    )
    config.train.update(batch_size=32, num_steps=2000)
    config.eval.update(every_steps=250, batch_size=32, max_rows=640)
    config.checkpoint.every_steps = 250
    return config
