"""Settings of the model and of its training objective."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the Transformer. Where 0 stands for a derived value, the option text says so."""

    family: str = option("decoder", registry="lm.models.MODELS")
    """Architecture. In a 'decoder', each token attends to itself and earlier tokens (GPT, Llama). In an 'encoder', each
    token attends to all tokens (BERT). In an 'encoder_decoder', an encoder reads the source and a decoder writes the
    target (Transformer, T5, BART)."""
    vocab_size: int = option(0, minimum=0, parameters=("token_embedding", "output", "output_bias"))
    """Number of rows of the token embedding. If 0, the tokenizer's size, rounded up to a multiple of vocab_multiple."""
    vocab_multiple: int = option(1, minimum=1, affects="storage")
    """Round a derived vocab_size up to a multiple of this number (128 suits TPUs)."""
    source_vocab_size: int = option(
        0, minimum=0, parameters=("source_embedding",), needs=("data.separate_vocabularies",)
    )
    """Like vocab_size, but for the encoder and the source tokenizer, if data.separate_vocabularies is set."""
    num_layers: int = option(6, minimum=1, affects="shapes")
    """Number of blocks. In an encoder-decoder, this is the number of decoder blocks."""
    num_encoder_layers: int = option(0, minimum=0, affects="shapes")
    """Number of encoder blocks in an encoder-decoder. If 0, num_layers is used."""
    d_model: int = option(384, minimum=1, affects="shapes")
    """Width of the residual stream."""
    num_heads: int = option(6, minimum=1, affects="shapes")
    """Number of attention (query) heads."""
    num_kv_heads: int = option(0, minimum=0, affects="shapes")
    """Number of key/value heads (grouped-query attention; multi-query if 1). If 0, num_heads is used."""
    head_dim: int = option(0, minimum=0, affects="shapes")
    """Size of each attention head. If 0, d_model / num_heads is used."""
    d_ff: int = option(0, minimum=0, affects="shapes")
    """Hidden width of the MLP. If 0, 4 * d_model is used."""
    max_length: int = option(0, minimum=0, affects="storage", parameters=("position_embedding",))
    """Maximum sequence length, in tokens. If 0, the larger of data.sequence_length and data.source_length is used."""
    positions: str = option("rotary", choices=("learned", "sinusoidal", "rotary", "relative", "none"))
    """Encoding of token positions. 'relative' adds a learned bias per distance bucket to the attention scores (T5)."""
    relative_buckets: int = option(32, minimum=4, parameters=("relative_bias",), needs=("positions=relative",))
    """Number of distance buckets for positions='relative'. Half of the buckets hold a single distance each."""
    relative_max_distance: int = option(128, minimum=2, needs=("positions=relative",))
    """For positions='relative', this distance and all greater distances share one bucket."""
    rotary_theta: float = option(10_000.0, minimum=1.0, needs=("positions=rotary",))
    """Base of the rotation frequencies for positions='rotary'."""
    local_rotary_theta: float = option(0.0, minimum=0.0, needs=("global_every", "positions=rotary"))
    """Base of the rotation frequencies in layers with a window, if global_every is set. If 0, rotary_theta is used."""
    rotary_interleaved: bool = option(False, needs=("positions=rotary",))
    """Rotate pairs of adjacent features (llama.c) instead of pairing the two halves of a head (Hugging Face)."""
    norm: str = option("layernorm", registry="lm.models.layers.NORMS")
    """Type of normalisation layer."""
    norm_position: str = option("pre", choices=("pre", "post"))
    """Whether to normalise the input of each sub-layer ('pre') or the residual sum after each sub-layer ('post')."""
    norm_epsilon: float = option(1e-5, minimum=0.0)
    """Constant added to the variance (or mean square) for numerical stability."""
    activation: str = option("gelu", registry="lm.models.layers.ACTIVATIONS")
    """Activation function of the MLP. 'gelu' is exact (erf), and 'gelu_tanh' is GPT-2's approximation. 'swiglu',
    'geglu' (exact) and 'geglu_tanh' (T5 1.1) are gated."""
    use_bias: bool = option(True, parameters=("bias",))
    """Use biases in linear layers and in layer normalisation."""
    share_embeddings: bool = option(True, parameters=("source_embedding",), needs=("family=encoder_decoder",))
    """Share one token embedding between the encoder and the decoder of an encoder-decoder."""
    tie_embeddings: bool = option(True, parameters=("output",))
    """Use the token embedding (in an encoder-decoder, the decoder's) as the output projection."""
    scale_logits: bool = False
    """Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings."""
    scale_attention: bool = True
    """Divide attention scores by sqrt(head_dim). Set this to False for T5."""
    norm_embeddings: bool = False
    """Normalise the embeddings, as BART does."""
    scale_embeddings: bool = False
    """Multiply the embeddings by sqrt(d_model) (Vaswani 2017)."""
    dropout: float = option(0.0, minimum=0.0, maximum=0.9, affects="updates")
    """Dropout rate for embeddings and residual branches."""
    attention_dropout: float = option(0.0, minimum=0.0, maximum=0.9, affects="updates")
    """Dropout rate for attention weights."""
    window: int = option(0, minimum=0)
    """Sliding window: each token attends only to tokens fewer than this many positions away. 0 means no window."""
    global_every: int = option(0, minimum=0)
    """If this is n > 0, layers 0, n, 2n, ... have no sliding window (ModernBERT). If 0, every layer has the window."""
    token_types: int = option(0, minimum=0, parameters=("type_embedding",))
    """Number of learned token types in an encoder. BERT has 2, one for each of its two texts. 0 means none."""
    init_std: float = option(0.02, minimum=0.0, affects="updates")
    """Standard deviation of the initial weights. If 0, 1/sqrt(fan-in) is used in each layer."""
    embedding_std: float = option(0.0, minimum=0.0, affects="updates")
    """Like init_std, but for embeddings. If 0, init_std is used; if that is also 0, 1/sqrt(d_model) is used."""
    init_residual_scaling: bool = option(True, affects="updates")
    """Divide init_std by sqrt(2 * num_layers) in the last layer of each sub-layer (GPT-2)."""
    dtype: str = option("float32", choices=("float32", "bfloat16"))
    """Data type of the computation. Parameters are always float32."""
    attention: str = option("auto", choices=("auto", "xla", "cudnn", "splash"), affects="nothing")
    """Attention kernel: 'xla' runs anywhere, 'cudnn' on NVIDIA GPUs in bfloat16, 'splash' on TPUs; 'auto' selects
    one."""
    scan_layers: bool = option(True, affects="storage")
    """Stack the layers and scan over them, so that compile time is independent of depth."""
    remat: str = option("none", choices=("none", "full", "dots"), affects="nothing")
    """Activations to recompute in backward passes to save memory: all ('full') or all but matrix products ('dots')."""
    pooling: str = option("", choices=("", "first", "last", "mean"))
    """Vector that represents a text: the vector of the first token, the vector of the last token, or the mean over all
    tokens. If empty, an encoder uses 'first' and the other families use 'last'."""
    pooler: bool = option(False, parameters=("pooler",))
    """Add a linear layer and tanh before the classifier, as in BERT."""
    head_transform: bool = option(False, parameters=("head_product", "head_norm"))
    """Apply a linear layer, an activation and a norm before the output projection (objective.name='masked' only)."""
    output_bias: bool = option(False, parameters=("output_bias",))
    """Add a learned bias to the logit of each vocabulary entry, as in BERT (objective.name='masked' only)."""
    lora_rank: int = option(0, minimum=0, parameters=("lora_a", "lora_b"))
    """Rank of the adapters that are trained instead of the linear layers (LoRA, Hu 2021). 0 means no adapters."""
    lora_alpha: float = option(16.0, minimum=0.0, needs=("lora_rank",))
    """Scale adapter outputs by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = option(("query", "value"), parameters=("lora_a", "lora_b"), needs=("lora_rank",))
    """Linear layers that have an adapter. Choose any of query, key, value, out, up, gate, down."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the training task and its loss. The plain cross-entropy is always reported as well."""

    name: str = option("causal", registry="lm.tasks.TASKS", affects="shapes")
    """Training task."""
    noise_density: float = option(0.15, minimum=0.01, maximum=0.9, affects="batches")
    """Fraction of tokens that are masked, for objective.name='span_corruption', 'infilling' or 'masked'."""
    mean_span_length: float = option(3.0, minimum=1.0, affects="batches")
    """Mean length of a masked span, in tokens, for objective.name='span_corruption' or 'infilling'."""
    permute_sentences: bool = option(False, affects="batches")
    """Shuffle the sentences of the source, as BART does (objective.name='infilling' only)."""
    whole_words: bool = option(False, affects="batches")
    """Mask only whole words (objective.name='masked' only)."""
    next_sentence: bool = option(False, affects="batches")
    """Join two texts and also predict whether the second follows the first (objective.name='masked' only)."""
    class_weights: tuple[float, ...] = ()
    """Loss weight of each label, in the order of data.labels, for objective.name='classification' or 'tagging'."""
    balance_classes: bool = False
    """Weight each label inversely to its frequency (objective.name='classification' only)."""
    temperature: float = option(0.05, minimum=0.001)
    """Temperature by which the similarities are divided (objective.name='contrastive' only)."""
    label_smoothing: float = option(0.0, minimum=0.0, maximum=0.9)
    """Probability mass that is moved from the target class to the classes selected by label_smoothing_over."""
    label_smoothing_over: str = option("vocabulary", choices=("vocabulary", "others"), needs=("label_smoothing",))
    """Classes that share the smoothed probability mass. 'vocabulary' selects all V entries of the vocabulary (Szegedy
    2016, Hugging Face); 'others' selects the V - 1 entries other than the target (fairseq)."""
    z_loss: float = option(0.0, minimum=0.0)
    """Weight of the log(Z)^2 penalty, which keeps logits small (PaLM: 1e-4)."""
