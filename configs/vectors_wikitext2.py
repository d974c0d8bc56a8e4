"""Word vectors from WikiText-2: skip-gram with negative sampling, as in word2vec.

    python train.py --config=configs/vectors_wikitext2.py:DIR --workdir=runs/vectors
    python -m lm.vectors export --workdir=runs/vectors --output=vectors.txt
    python -m lm.vectors similarity --workdir=runs/vectors --pairs=wordsim353.tsv

DIR is the same as for configs/wikitext2.py. Each line is a document, and words that occur fewer than five times are
left out. `--config.objective.name=cbow` selects another task, and `--config.model.ngram_buckets=50000` adds character
n-grams (fastText). `--config=configs/vectors_wikitext2.py:DIR,glove` selects GloVe. `--config.eval.word_pairs=FILE`
reports the rank correlation with the human scores of a file such as WordSim-353. Cost: 40 seconds on two CPU cores.
Measured: rank correlation 0.36 (mean of three seeds) on the 291 pairs of WordSim-353 whose words are known; gensim
reaches 0.33 with the same settings. After 15 epochs, this config reaches 0.45. Measurements are in results/.
"""

from configs import wikitext2
from lm.config import defaults


def get_config(argument=""):
    directory, _, glove = argument.partition(",")
    config = wikitext2.get_config(directory)
    for split in ("train", "valid", "test"):
        config.data[split].wikitext2.document = "line"
    config.data.tokenizer = defaults().data.tokenizer
    config.data.tokenizer.update(kind="words", vocab_size=1_000_000, min_count=5)
    config.objective.name = "skipgram"
    config.model = defaults().model
    config.model.update(architecture="word_vectors", family="encoder", d_model=100, embedding_std=0.003)
    config.optimizer = defaults().optimizer
    config.optimizer.update(name="adagrad", learning_rate=0.1, epsilon=1e-12, weight_decay=0.0, clip_norm=0.0)
    config.optimizer.update(schedule="linear", warmup_steps=0, final_fraction=0.01)
    config.train.update(batch_size=64, num_steps=-1, num_epochs=5.0)
    config.eval = defaults().eval
    config.eval.update(every_steps=100, max_rows=128)
    config.checkpoint.every_steps = 200
    if glove:
        config.objective.update(name="glove", context_window=10)
        config.optimizer.learning_rate = 0.05
        config.train.num_epochs = 15.0
        config.eval.every_steps = 1000
    return config
