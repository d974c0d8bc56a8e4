"""The One Billion Word Benchmark (Chelba 2013) from TFDS, for TPU or GPU: a decoder with 12 layers of width 1,024.

    python train.py --config=configs/lm1b.py --workdir=gs://...   (or a shared directory)

The argument is the data directory of TFDS (`--config=configs/lm1b.py:DIR`). The first run prepares `lm1b` (30 M
sentences, a 1.7 GB download) without TensorFlow. 100,000 steps of 512 x 128 tokens are 6.6 G tokens, about 5 epochs.
Cost: not measured. Expected: we have no score yet. Papers report word perplexity, which eval.py also prints.
"""

from lm.config import defaults, source


def get_config(data_dir=""):
    config = defaults()
    config.data.train.lm1b = source(kind="tfds", path="lm1b", split="train", data_dir=data_dir)
    config.data.valid.lm1b = source(kind="tfds", path="lm1b", split="test", data_dir=data_dir)
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=32_000)
    config.data.sequence_length = 128
    config.model.update(
        vocab_multiple=128,
        num_layers=12,
        d_model=1024,
        num_heads=16,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        d_ff=2816,
        use_bias=False,
        dtype="bfloat16",
        remat="dots",
    )
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=2000, final_fraction=0.1)
    config.train.update(batch_size=512, num_steps=100_000)
    config.eval.update(every_steps=2000, max_rows=4096, prompts=("The",))
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 50
    return config
