"""WikiText-2 with a SentencePiece vocabulary, scored per word for comparison with word-level models.

    python train.py --config=configs/wikitext2.py:DIR --workdir=runs/wikitext2
    python eval.py --workdir=runs/wikitext2 --split=test --stride=32

DIR holds train.txt.gz (or train.txt), valid.txt and test.txt, tokenised as published. Each file is one stream of
tokens.
Cost: about 20 minutes on two CPU cores, for two thirds of an epoch. Expected: see the measurements in results/; the
AWD-LSTM (750 epochs) has a test perplexity of 65.6 per word, where end-of-line marks count as words, as in
`word_perplexity`.
"""

from pathlib import Path

from lm.config import defaults, source


def get_config(directory=""):
    config = defaults()
    folder = Path(directory)
    packed = folder / "train.txt.gz"
    train = packed if packed.exists() else folder / "train.txt"
    for split, path in (("train", train), ("valid", folder / "valid.txt"), ("test", folder / "test.txt")):
        config.data[split].wikitext2 = source(kind="text", path=str(path) if directory else "", document="file")
    config.data.tokenizer.update(kind="sentencepiece", vocab_size=8192)
    config.data.sequence_length = 256
    config.model.update(
        num_layers=4,
        d_model=256,
        num_heads=4,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        d_ff=640,
        use_bias=False,
        scan_layers=False,
    )
    config.optimizer.update(
        name="muon",
        learning_rate=4e-3,
        schedule="warmup_stable_decay",
        warmup_steps=50,
        decay_steps=550,
        final_fraction=0.0,
    )
    config.train.update(batch_size=8, num_steps=1000)
    config.eval.update(every_steps=250, batch_size=16, max_rows=128, prompts=(" = ",))
    config.checkpoint.every_steps = 100
    return config
