"""GPT-2's smallest model (124 M parameters) on web text: 600,000 steps of 480 x 1,024 tokens, in microbatches.

    python train.py --config=configs/gpt2_124m.py --workdir=... (C4 from TFDS)
    python train.py --config=configs/gpt2_124m.py:'DIR/*.txt.gz' --workdir=... (your own text, .jsonl or .parquet files)

For GPT-2's own vocabulary, add --config.data.tokenizer.kind=huggingface --config.data.tokenizer.path=tokenizer.json.
Otherwise, a BPE vocabulary of the same size is trained on the text. The recipe is nanoGPT's for OpenWebText: batches of
0.5 M tokens, a peak learning rate of 6e-4, a cosine decay to a tenth of the peak over 600,000 steps, b2 = 0.95 and a
weight decay of 0.1.
Cost: nanoGPT reports 4 days on eight A100 GPUs; not measured here. Expected: nanoGPT reports about 2.85 nats/token on
held-out OpenWebText; we have no score yet.
"""

from lm.config import defaults, source
from lm.models.presets import preset


def get_config(path=""):
    config = defaults()
    if path:
        kind = next((kind for kind in ("jsonl", "parquet") if f".{kind}" in path), "text")
        config.data.train.web = source(kind=kind, path=path, document="separator")
        config.data.holdout_fraction = 0.001
    else:
        config.data.train.web = source(kind="tfds", path="c4/en", split="train")
        config.data.valid.web = source(kind="tfds", path="c4/en", split="validation[:1%]")
    config.data.tokenizer.update(kind="sentencepiece", algorithm="bpe", vocab_size=50_257)
    config.data.sequence_length = 1024
    config.model.update(preset("gpt2_124m"))
    config.model.update(
        vocab_size=50_304,  # a multiple of 128
        dtype="bfloat16",
        remat="dots",
    )
    config.optimizer.update(
        learning_rate=6e-4, schedule="cosine", warmup_steps=2000, final_fraction=0.1, b2=0.95, weight_decay=0.1
    )
    config.train.update(batch_size=480, accumulation=5, num_steps=600_000)
    config.eval.update(every_steps=2000, batch_size=96, max_rows=960, prompts=("The meaning of life is",))
    config.checkpoint.update(every_steps=1000, keep_latest=3)
    return config
