"""Word vectors from the documentation that comes with Python: skip-gram with negative sampling.

    python train.py --config=configs/quickstart_vectors.py --workdir=runs/quickstart_vectors
    python -m lm.vectors neighbours --workdir=runs/quickstart_vectors --words=list,integer,returns

`--config=configs/quickstart_vectors.py:cbow` or `:glove` selects another task. Cost: two minutes on two busy CPU cores.
Expected: a pair accuracy of about 62 % (chance is 50 %) on the held-out tenth of the documents.
"""

from configs import quickstart
from lm.config import defaults


def get_config(task="skipgram"):
    config = quickstart.get_config()
    config.data.tokenizer = defaults().data.tokenizer
    config.data.tokenizer.update(kind="words", vocab_size=20_000, min_count=5)
    config.objective.name = task
    config.model = defaults().model
    config.model.update(architecture="word_vectors", family="encoder", d_model=64, embedding_std=0.003)
    config.optimizer = defaults().optimizer
    config.optimizer.update(name="adagrad", learning_rate=0.1, epsilon=1e-12, weight_decay=0.0, clip_norm=0.0)
    config.optimizer.update(schedule="linear", warmup_steps=0, final_fraction=0.01)
    config.train.update(batch_size=16, num_steps=400)
    config.eval = defaults().eval
    config.eval.update(every_steps=100, max_rows=64)
    config.checkpoint.every_steps = 100
    return config
