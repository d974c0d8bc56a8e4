"""Word vectors."""

from pathlib import Path

from configs import wikitext2
from lm.config import defaults


def get_config(directory="", task="skipgram"):
    config = wikitext2.get_config(directory)
    for split in ("train", "valid", "test"):
        config.data[split].wikitext2.document = "line"
    config.data.tokenizer = defaults().data.tokenizer
    config.data.tokenizer.update(kind="words", vocab_size=1_000_000, min_count=5)
    config.data.sequence_length = 256
    config.model = defaults().model
    config.model.update(architecture="word_vectors", family="encoder", d_model=100, embedding_std=0.003)
    config.objective.name = "skipgram"
    config.optimizer = defaults().optimizer
    config.optimizer.update(
        name="adagrad", learning_rate=0.1, schedule="linear", weight_decay=0.0, warmup_steps=0, final_fraction=0.01, clip_norm=0.0, epsilon=1e-12
    )
    config.train.update(batch_size=64, num_steps=-1, num_epochs=5.0)
    config.eval.update(every_steps=1000, batch_size=64, max_rows=128, prompts=("",))
    config.checkpoint.every_steps = 1000
    return config
