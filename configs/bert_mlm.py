"""BERT (base), pre-trained on masked tokens of English Wikipedia from TFDS, for GPU and TPU.

    python train.py --config=configs/bert_mlm.py --workdir=runs/bert_mlm
    python train.py --config=configs/bert_mlm.py:wikipedia/20230601.de --workdir=runs/bert_mlm_de

Uses the settings of Devlin 2019, but the input sequences of Liu 2019 (RoBERTa): 512 tokens throughout, without a second
text. To train on two texts per sequence, as BERT does, add --config.objective.next_sentence=True. The data set must be
prepared once, with TensorFlow: `tfds build wikipedia/20230601.en`. This config has not been run yet.
"""

from lm.config import defaults, source
from lm.models.presets import preset


def get_config(name="wikipedia/20230601.en"):
    config = defaults()
    config.data.train.wikipedia = source(kind="tfds", path=name, split="train[1%:]")
    config.data.valid.wikipedia = source(kind="tfds", path=name, split="train[:1%]")
    config.data.cleaning.update(unicode="NFC", whitespace="lines", min_chars=200)
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=30500, extra_ids=1)
    config.data.update(sequence_length=512, num_workers=8)
    config.objective.update(name="masked", whole_words=True)
    config.model.update(preset("bert_base"))
    config.model.update(vocab_size=0, vocab_multiple=128, dropout=0.1, attention_dropout=0.1, dtype="bfloat16")
    config.optimizer.update(
        name="adamw",
        learning_rate=2e-4,
        schedule="linear",
        warmup_steps=10_000,
        final_fraction=0.0,
        weight_decay=0.01,
        b2=0.999,
        epsilon=1e-6,
    )
    config.train.update(batch_size=256, num_steps=1_000_000)
    config.eval.update(every_steps=10_000, max_rows=4096)
    config.checkpoint.every_steps = 10_000
    return config
