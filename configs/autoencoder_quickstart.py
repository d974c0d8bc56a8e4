"""A variational autoencoder of short texts with LSTMs (Bowman 2016), on the documentation that comes with Python.

    python train.py --config=configs/autoencoder_quickstart.py --workdir=runs/autoencoder
    python -m lm.generate --workdir=runs/autoencoder --from_prior --num_samples=5
    python -m lm.generate --workdir=runs/autoencoder --walk=linear --prompt="Return a list." --prompt="Open the file."
    python -m benchmarks.posterior_collapse --runs=runs/collapse

The texts are cut into pieces of up to 15 tokens. `--config=configs/autoencoder_quickstart.py:FILE` reads another file,
with one sentence per line. Without annealing and free bits, the posterior collapses: add
`--config.objective.kl_annealing_steps=0 --config.objective.free_bits=0.0`. The last command trains both variants and
compares them. Cost: a few minutes on two idle CPU cores (17 minutes beside other jobs). Measured: 3.98 nats per token,
a KL divergence of 4.2 nats per text and 32 active units; without annealing and free bits, these figures are 4.04, 0.0
and 0. After such a short training, the model does not yet reconstruct whole texts. The record and the curves are in
results/.
"""

from lm.config import defaults, source


def get_config(file=""):
    config = defaults()
    config.data.train.text = source(kind="text", path=file, document="line") if file else source(kind="embedded")
    config.data.cleaning.update(deduplicate=True, whitespace="collapse")
    config.data.holdout_fraction = 0.01
    config.data.tokenizer.update(kind="sentencepiece", algorithm="bpe", vocab_size=1000)
    config.data.sequence_length = 16
    config.objective.name = "autoencoding"
    config.objective.update(kl_annealing_steps=1000, kl_annealing="sigmoid", free_bits=0.1, word_dropout=0.4)
    config.model.update(
        architecture="recurrent",
        family="encoder_decoder",
        num_layers=1,
        d_model=128,
        embedding_width=64,
        source_attention="none",
        latent_size=32,
        variational=True,
        init_std=0.0,
        embedding_std=0.05,
    )
    config.optimizer.update(name="adamw", learning_rate=8e-3, warmup_steps=50)
    config.train.update(batch_size=64, num_steps=2000)
    config.eval.update(every_steps=100, batch_size=64, max_rows=128)
    config.eval.generation.batch_size = 128
    config.checkpoint.update(every_steps=500, best_metric="valid/negative_elbo")
    return config
