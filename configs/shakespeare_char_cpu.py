"""nanoGPT's laptop settings: 0.8 M parameters, 2,000 steps of 12 x 64 characters of Shakespeare.

    python train.py --config=configs/shakespeare_char_cpu.py:PATH/input.txt --workdir=runs/shakespeare_char_cpu

The learning rate peaks at four times nanoGPT's and ends at twice nanoGPT's, which is better for such a small model. All
other settings are the same.
Cost: about two minutes on two CPU cores. Expected: 1.77 nats/character on the whole held-out tenth (1.768 to 1.777 with
three seeds). With nanoGPT's learning rates (--config.optimizer.learning_rate=1e-3
--config.optimizer.final_fraction=0.1), the loss is 1.90; nanoGPT's README reports 1.88 on a sample of that text.
Measurements are in results/.
"""

from configs import shakespeare_char


def get_config(path=""):
    config = shakespeare_char.get_config(path)
    config.data.sequence_length = 64
    config.model.update(num_layers=4, d_model=128, num_heads=4, dropout=0.0, attention_dropout=0.0)
    config.optimizer.update(learning_rate=4e-3, final_fraction=0.05)
    config.train.update(batch_size=12, num_steps=2000)
    config.checkpoint.every_steps = 500
    return config
