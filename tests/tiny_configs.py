"""Config files of tiny experiments, which train in a second: `tiny`, `tiny_pairs` and `tiny_labels` in conftest.py."""

TINY_CONFIG = """
from lm.config import defaults, source


def get_config(path):
    config = defaults()
    config.data.train.text = source(path=path, document="line")
    config.data.tokenizer.kind = "bytes"
    config.data.sequence_length = 32
    config.model.update(num_layers=1, d_model=16, num_heads=2, dropout=0.1)
    config.optimizer.update(warmup_steps=4, ema_decay=0.9)
    config.train.update(num_steps=40, batch_size=32)
    config.checkpoint.update(every_steps=8, keep_latest=100)
    config.eval.update(every_steps=20, prompts=())
    config.log.update(every_steps=1, tensorboard=False)
    return config
"""
TINY_PAIRS_CONFIG = """
from lm.config import defaults, source


def get_config(path):
    config = defaults()
    target_path = path.removesuffix("source") + "target"
    config.data.train.reversal = source(path=path, target_path=target_path, document="line")
    config.data.tokenizer.kind = "bytes"
    config.data.update(sequence_length=32, source_length=24)
    config.model.update(family="encoder_decoder", num_layers=1, d_model=16, num_heads=2, dropout=0.1)
    config.objective.name = "seq2seq"
    config.optimizer.update(warmup_steps=4, ema_decay=0.9)
    config.train.update(num_steps=40, batch_size=16)
    config.checkpoint.update(every_steps=8, keep_latest=100)
    config.eval.update(every_steps=20, prompts=())
    config.log.update(every_steps=1, tensorboard=False)
    return config
"""
TINY_LABELS_CONFIG = """
from lm.config import defaults, source


def get_config(path):
    config = defaults()
    for split, part in (("train", (0.5, 1.0)), ("valid", (0.25, 0.5)), ("test", (0.0, 0.25))):
        config.data[split].lines = source(kind="tsv", path=path, label_field="label", part=part)
    config.data.tokenizer.kind = "bytes"
    config.data.update(sequence_length=48, folds=4)
    config.model.update(family="encoder", num_layers=1, d_model=16, num_heads=2, dropout=0.1, scan_layers=False)
    config.objective.name = "classification"
    config.optimizer.update(warmup_steps=2, ema_decay=0.9)
    config.train.update(num_steps=16, batch_size=8)
    config.checkpoint.update(every_steps=8, keep_latest=100, best_metric="valid/accuracy")
    config.eval.update(every_steps=8)
    config.log.update(every_steps=1, tensorboard=False)
    return config
"""
