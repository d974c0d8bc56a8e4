"""T5 1.1 (small), pre-trained with span corruption on C4, for GPU or TPU.

    python train.py --config=configs/t5_small_c4.py --workdir=runs/t5_small
    python train.py --config=configs/t5_small_c4.py:/data/tfds --workdir=runs/t5_small

The text comes from TFDS (`c4/en`, which must first be prepared on a cluster; the argument is the TFDS data directory).
The settings are those of Raffel 2020: rows of 512 source tokens with 15 % masked in spans of mean length 3, batches of
128 rows, 524,288 steps, and Adafactor with an inverse square-root schedule from step 10,000. Cost: not run here.
Expected: there is no published loss; the paper reports scores of fine-tuned models.
"""

from lm.config import defaults, source
from lm.models.presets import preset


def get_config(data_dir=""):
    config = defaults()
    for split, name in (("train", "train"), ("valid", "validation[:5000]")):
        config.data[split].c4 = source(kind="tfds", path="c4/en", split=name, data_dir=data_dir)
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=32_000, train_megabytes=200.0, extra_ids=100)
    # 568 tokens of text yield 512 source and 114 target tokens, so both sides are full.
    config.data.update(sequence_length=114, source_length=512, num_workers=8)
    config.objective.update(name="span_corruption", z_loss=1e-4)
    config.model.update(preset("t5_1_1_small"))
    config.model.update(vocab_size=0, vocab_multiple=128, dtype="bfloat16")
    config.optimizer.update(
        name="adafactor",
        learning_rate=1e-2,  # 10,000^-0.5
        schedule="inverse_sqrt",
        warmup_steps=10_000,
        weight_decay=0.0,
        b2=0.999,
    )
    config.train.update(batch_size=128, num_steps=524_288)
    config.eval.update(every_steps=5000, prompts=())
    config.checkpoint.every_steps = 5000
    return config
