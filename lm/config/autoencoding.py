"""Settings of autoencoders: the bottleneck of the model, the corruption of its inputs, and the variational loss."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class BottleneckSettings:
    """The part of ModelConfig that concerns autoencoders."""

    latent_size: int = option(32, minimum=1, parameters=("bottleneck",))
    """Size of each latent vector of an autoencoder."""
    latent_vectors: int = option(1, minimum=1, parameters=("bottleneck", "latent_start", "latent_input"))
    """Number of latent vectors into which an autoencoder compresses a text."""
    variational: bool = option(False, parameters=("log_variance",))
    """Encode each text as a normal distribution over latent vectors instead of a single point, so that texts can be
    sampled from a standard normal prior (Kingma 2014, Bowman 2016)."""


@dataclass(frozen=True)
class AutoencodingSettings:
    """The part of ObjectiveConfig that concerns autoencoders."""

    source_dropout: float = option(0.0, minimum=0.0, maximum=0.9, affects="batches")
    """Fraction of the tokens that are deleted from the encoder's input in training (denoising autoencoder, Hill
    2016)."""
    shuffle_distance: int = option(0, minimum=0, affects="batches")
    """Shuffle the encoder's input in training such that no token moves by more than this number of positions (Lample
    2018). 0 keeps the order."""
    word_dropout: float = option(0.0, minimum=0.0, maximum=1.0, affects="batches")
    """Probability with which each token of the decoder's input, except the first, is replaced by the unknown token in
    training, so that the decoder must rely on the latent vectors (Bowman 2016). If the tokenizer has no unknown token,
    padding is used instead."""
    kl_weight: float = option(1.0, minimum=0.0, needs=("model.variational",))
    """Weight of the KL divergence from the prior in the loss of a variational autoencoder. 1 gives the evidence lower
    bound (ELBO)."""
    kl_annealing_steps: int = option(0, minimum=0, needs=("model.variational",))
    """Number of steps over which the weight of the KL divergence rises to kl_weight (Bowman 2016). 0 means that the
    full weight applies from the start."""
    kl_annealing: str = option("linear", registry="lm.objectives.autoencoding.ANNEALING", needs=("kl_annealing_steps",))
    """Curve along which the weight of the KL divergence rises to kl_weight."""
    free_bits: float = option(0.0, minimum=0.0, needs=("model.variational",))
    """Floor for the KL divergence of each latent dimension in the loss, in nats (Kingma 2016). The floor is applied to
    each text separately, so the loss does not depend on how texts are batched."""
