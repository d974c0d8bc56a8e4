"""nanoGPT's character model of Shakespeare: 10.7 M parameters, 5,000 steps of 64 x 256 characters.

    python train.py --config=configs/shakespeare_char.py:PATH/input.txt --workdir=runs/shakespeare_char

PATH/input.txt is tiny Shakespeare, 1,115,394 characters; its last tenth is held out, as in nanoGPT.
Cost: minutes on a GPU; a day or more on two CPU cores, at 10 to 20 s per step (SIGTERM saves a checkpoint, from which
the same command continues). Expected: nanoGPT's README reports a best validation loss of 1.4697 nats/character.
Measurements are in results/.
"""

from lm.config import defaults, source


def get_config(path=""):
    config = defaults()
    config.data.train.shakespeare = source(kind="text", path=path, document="file")
    config.data.holdout = "tail"
    config.data.holdout_fraction = 0.1
    config.data.tokenizer.kind = "characters"
    config.data.sequence_length = 256
    config.model.update(
        num_layers=6,
        d_model=384,
        num_heads=6,
        positions="learned",
        activation="gelu",
        use_bias=False,
        dropout=0.2,
        attention_dropout=0.2,
        scan_layers=False,  # 10 to 20 % faster on a CPU, and six layers still compile in seconds
    )
    config.optimizer.update(
        learning_rate=1e-3, schedule="cosine", warmup_steps=100, final_fraction=0.1, b2=0.99, weight_decay=0.1
    )
    config.train.update(batch_size=64, num_steps=5000)
    config.eval.update(every_steps=250, prompts=("\n",), sample_tokens=200)
    config.checkpoint.every_steps = 50
    return config
