"""The recipe of the AWD-LSTM (Merity 2018), scaled down, on WikiText-2's words.

    python train.py --config=configs/wikitext2_awd_lstm.py:DIR --workdir=runs/wikitext2_awd_lstm
    python eval.py --workdir=runs/wikitext2_awd_lstm --split=test --step=latest --batch_size=1

As in the paper: three layers, tied embeddings, dropout of the recurrent weights, dropout masks that are the same at all
tokens of a row, penalties on the activations and on their changes, an average of the parameters for evaluation, and
states carried from window to window. The differences are: 384 units instead of 1150; a single, lower dropout rate for
inputs, layers and outputs, and no dropout of whole words in the embedding; windows of exactly 35 tokens, since a
compiled step needs a fixed shape; and AdamW with an exponential moving average instead of SGD with an average that
starts once the loss stops falling (NT-ASGD), which optax does not have. Less dropout suffices because 30 minutes are
only about one epoch, whereas the paper trains for 750.
Cost: 30 minutes on two CPU cores. Measured by `python -m benchmarks.language_models`, which trains this model and the
others in its table for the same time: word perplexity 228.2 (validation) and 209.6 (test) after 2,307 steps
(results/language_models.md). The paper's model (33 M parameters, 750 epochs) has a test perplexity of 65.8.
"""

from configs import wikitext2_lstm


def get_config(directory=""):
    config = wikitext2_lstm.get_config(directory)
    config.model.update(
        num_layers=3,
        d_model=384,
        dropout=0.2,
        locked_dropout=True,
        recurrent_dropout=0.2,
        output_penalty=2.0,
        change_penalty=1.0,
    )
    config.optimizer.ema_decay = 0.99
    return config
