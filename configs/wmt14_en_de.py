"""WMT14 English to German: the Transformer (base) of Vaswani 2017, for GPU or TPU.

    python train.py --config=configs/wmt14_en_de.py --workdir=runs/wmt14
    python eval.py --workdir=runs/wmt14 --split=test --average=5

The pairs come from TFDS (`wmt14_translate/de-en`, downloaded and prepared on first use: 4.5 M pairs, 1.6 GB).
Cost: 100,000 steps of 25,000 tokens per side, as in the paper; not run here. Expected: BLEU 27.3 (tokenised; table
2 of the paper). sacrebleu on raw text, which is reported here, is usually about half a point lower.
"""

from lm.config import defaults, source
from lm.models.presets import preset


def get_config(data_dir=""):
    config = defaults()
    for split, name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        config.data[split].wmt14 = source(
            kind="tfds",
            path="wmt14_translate/de-en",
            split=name,
            data_dir=data_dir,
            field="en",
            target_field="de",
        )
    config.data.cleaning.update(unicode="NFC", strip_control=True, whitespace="collapse", deduplicate=True)
    config.data.pairs.update(max_ratio=2.0, drop_identical=True, overlong="drop")
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=32_000, train_megabytes=200.0)
    config.data.update(sequence_length=256, source_length=256, num_workers=4)
    config.objective.update(name="seq2seq", label_smoothing=0.1)
    config.model.update(preset("transformer_base"))
    config.model.update(dropout=0.1, dtype="bfloat16", vocab_multiple=128)
    config.optimizer.update(
        learning_rate=7e-4,  # 512^-0.5 x 4000^-0.5, the paper's peak
        schedule="inverse_sqrt",
        warmup_steps=4000,
        weight_decay=0.0,
        b2=0.98,
        epsilon=1e-9,
        clip_norm=0.0,
    )
    config.train.update(batch_size=96, num_steps=100_000)
    config.eval.every_steps = 2500
    config.eval.generation.update(
        metrics=("bleu", "chrf"),
        num_beams=4,
        penalty="gnmt",
        length_penalty=0.6,
        max_new_tokens=160,
        max_examples=500,
        batch_size=96,
    )
    config.checkpoint.update(every_steps=2500, keep_latest=5, best_metric="valid/bleu")
    return config
