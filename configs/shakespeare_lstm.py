"""A character LSTM of Shakespeare, as in char-rnn (Karpathy 2015): two layers with states carried between windows.

    python train.py --config=configs/shakespeare_lstm.py:PATH/input.txt --workdir=runs/shakespeare_lstm
    python -m lm.generate --workdir=runs/shakespeare_lstm --prompt="ROMEO:" --max_new_tokens=300

The data, the held-out tenth and the number of steps are those of configs/shakespeare_char_cpu.py, the Transformer that
this model is compared with. `:PATH/input.txt,gru` or `:PATH/input.txt,rnn` selects another cell.
Cost: about ten minutes on two CPU cores. This config has not been run yet to the last step.
"""

from configs import shakespeare_char
from lm.config import defaults


def get_config(argument=""):
    path, _, cell = argument.partition(",")
    config = shakespeare_char.get_config(path)
    config.data.update(sequence_length=64, stateful=True)
    config.model = defaults().model
    config.model.update(architecture="recurrent", cell=cell or "lstm", num_layers=2, d_model=256, embedding_width=64)
    config.model.update(dropout=0.1, init_std=0.0, embedding_std=0.1, tie_embeddings=False)
    config.optimizer.update(learning_rate=5e-3, final_fraction=0.05, b2=0.98, weight_decay=0.01)
    config.train.update(batch_size=32, num_steps=2000)
    config.checkpoint.every_steps = 500
    return config
