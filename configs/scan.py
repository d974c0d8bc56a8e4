"""SCAN, simple split (Lake 2018): translates commands such as "jump twice" into actions.

    python train.py --config=configs/scan.py:DIR --workdir=runs/scan
    python eval.py --workdir=runs/scan --split=test

DIR holds tasks_train_simple.txt and tasks_test_simple.txt, with lines of the form `IN: command OUT: ACTION ACTION ...`.
Cost: a few minutes on two CPU cores. Expected: at least 99 % exact match (99.8 % has been published for an LSTM). A
lower score points to an error in the masks or the decoding. Measurements are in results/.
"""

from pathlib import Path

from lm.config import defaults, source


def get_config(directory=""):
    config = defaults()
    for split in ("train", "test"):
        path = str(Path(directory) / f"tasks_{split}_simple.txt") if directory else ""
        pattern = r"IN: (?P<source>.*) OUT: (?P<target>.*)"
        config.data[split].scan = source(path=path, document="line", pattern=pattern)
    config.data.holdout_fraction = 0.03
    config.data.tokenizer.kind = "words"
    config.data.update(sequence_length=64, source_length=32)
    config.objective.name = "seq2seq"
    config.model.update(
        family="encoder_decoder",
        num_layers=2,
        d_model=128,
        num_heads=4,
        d_ff=256,
        positions="relative",
        norm="rmsnorm",
        activation="swiglu",
        use_bias=False,
        dropout=0.1,
        scan_layers=False,
    )
    config.optimizer.update(
        name="muon",
        learning_rate=4e-3,
        schedule="warmup_stable_decay",
        warmup_steps=50,
        decay_steps=600,
        final_fraction=0.0,
        weight_decay=0.01,
    )
    config.train.update(batch_size=64, num_steps=1000)
    config.eval.every_steps = 250
    config.eval.generation.update(metrics=("exact_match",), max_new_tokens=52, max_examples=200, batch_size=128)
    config.checkpoint.update(every_steps=250, best_metric="valid/exact_match")
    return config
