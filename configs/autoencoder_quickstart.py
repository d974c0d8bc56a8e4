"""A variational autoencoder of sentences (Bowman 2016)."""

from lm.config import defaults, source


def get_config(directory=""):
    config = defaults()
    if directory:
        config.data.train.lines = source(kind="text", path=f"{directory}/train.en", document="line")
        config.data.valid.lines = source(kind="text", path=f"{directory}/val.en", document="line")
    else:
        config.data.train.python = source(kind="embedded")
    config.data.cleaning.deduplicate = True
    config.data.tokenizer.update(kind="sentencepiece", algorithm="bpe", vocab_size=4096)
    config.data.update(sequence_length=24)
    config.objective.name = "autoencoding"
    config.objective.update(kl_annealing_steps=1000, kl_annealing="linear", free_bits=0.1, word_dropout=0.3)
    config.model.update(architecture="recurrent", family="encoder_decoder", num_layers=1, num_encoder_layers=1)
    config.model.update(d_model=256, embedding_width=128, source_attention="none", init_std=0.0, embedding_std=0.05)
    config.model.update(latent_size=32, variational=True)
    config.optimizer.update(name="adamw", learning_rate=2e-3, warmup_steps=100)
    config.train.update(batch_size=64, num_steps=1500)
    config.eval.update(every_steps=100, batch_size=128, max_rows=256)
    config.checkpoint.update(every_steps=500, best_metric="valid/negative_elbo")
    return config
