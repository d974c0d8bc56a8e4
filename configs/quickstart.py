"""A first run: a language model with 3.4 M parameters, trained on the documentation that comes with Python.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Cost: about four minutes on two CPU cores. Expected: about 1.7 bits per byte on the held-out tenth of the documents,
compared with 2.3 for `xz -9` (for Python 3.11; the documentation differs between versions). Measurements are in
results/.
"""

from lm.config import defaults, source


def get_config():
    config = defaults()
    config.data.train.python = source(kind="embedded")
    config.data.cleaning.deduplicate = True
    config.data.tokenizer.update(kind="sentencepiece", algorithm="bpe", vocab_size=4096)
    config.data.sequence_length = 256
    config.model.update(
        num_layers=3,
        d_model=256,
        num_heads=4,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        d_ff=640,
        use_bias=False,
        scan_layers=False,  # faster on a CPU, and three layers still compile in seconds
    )
    config.optimizer.update(
        name="muon",
        learning_rate=4e-3,
        schedule="warmup_stable_decay",
        warmup_steps=20,
        decay_steps=160,
        final_fraction=0.0,
    )
    config.train.update(batch_size=8, num_steps=300)
    config.eval.update(every_steps=75, batch_size=16, max_rows=64, compare_with_xz=True, prompts=("Return the",))
    config.checkpoint.every_steps = 60
    return config
