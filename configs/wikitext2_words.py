"""WikiText-2 with its 33,278 words as the vocabulary: the Transformer that the older models are compared with.

    python train.py --config=configs/wikitext2_words.py:DIR --workdir=runs/wikitext2_words
    python eval.py --workdir=runs/wikitext2_words --split=test --step=latest --stride=32

DIR holds train.txt.gz (or train.txt), valid.txt and test.txt, tokenised as published. Each file is one document in
which the end of a line is a token, so `word_perplexity` counts the same 245,569 tokens of the test split as published
figures. `word_data` returns the data settings that all configs of word-based models of WikiText-2 share.
Cost: 30 minutes on two CPU cores. Measured by `python -m benchmarks.language_models`, which trains this model and the
others in its table for the same time: word perplexity 198.7 (validation) and 184.0 (test) after 2,303 steps
(results/language_models.md). At a time when the machine was slower, it completed only 1,610 steps and reached 214.1 and
197.8.
"""

from pathlib import Path

from lm.config import defaults, source


def word_data(directory=""):
    """Returns a config with the words of WikiText-2 as tokens."""
    config = defaults()
    folder = Path(directory)
    packed = folder / "train.txt.gz"
    train = packed if packed.exists() else folder / "train.txt"
    for split, path in (("train", train), ("valid", folder / "valid.txt"), ("test", folder / "test.txt")):
        config.data[split].wikitext2 = source(kind="text", path=str(path) if directory else "", document="file")
    config.data.cleaning.whitespace = "collapse_lines"
    config.data.tokenizer.update(kind="words", vocab_size=40_000, line_breaks=True)
    config.eval.prompts = ("= ",)
    return config


def get_config(directory=""):
    config = word_data(directory)
    config.data.sequence_length = 128
    config.model.update(
        num_layers=4,
        d_model=256,
        num_heads=4,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        d_ff=640,
        use_bias=False,
        dropout=0.2,
        scan_layers=False,
    )
    config.optimizer.update(
        name="muon",
        learning_rate=4e-3,
        schedule="warmup_stable_decay",
        warmup_steps=50,
        final_fraction=0.0,
    )
    config.train.update(batch_size=8, num_steps=2000)
    config.eval.update(every_steps=250, batch_size=16, max_rows=176)
    config.checkpoint.every_steps = 250
    return config
