"""nanoGPT's setting for a laptop: 0.8 M parameters, 2,000 steps of 12 x 64 characters of Shakespeare.

    python train.py --config=configs/shakespeare_char_cpu.py:PATH/input.txt --workdir=runs/shakespeare_char_cpu

Cost: a minute or two on two CPU cores. Expected: nanoGPT's README reports a validation loss of 1.88
nats/character. What was measured here is in results/.
"""

from configs import shakespeare_char


def get_config(path=""):
    config = shakespeare_char.get_config(path)
    config.data.sequence_length = 64
    config.model.update(num_layers=4, d_model=128, num_heads=4, dropout=0.0)
    config.train.update(batch_size=12, num_steps=2000)
    config.checkpoint.every_steps = 500
    return config
