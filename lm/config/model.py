"""Settings of the model and of its training objective."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the Transformer. Where 0 stands for a derived value, the option text says so."""

    family: str = option(
        "decoder",
        "Architecture. In a 'decoder', each token attends to itself and earlier tokens (GPT, Llama). In an "
        "'encoder', each token attends to all tokens (BERT). In an 'encoder_decoder', an encoder reads the source "
        "and a decoder writes the target (Transformer, T5, BART).",
        registry="lm.models.MODELS",
    )
    vocab_size: int = option(
        0,
        "Number of rows of the token embedding. If 0, the size of the tokenizer's vocabulary is used, rounded up to "
        "a multiple of vocab_multiple.",
        minimum=0,
        parameters=("token_embedding", "output", "output_bias"),
    )
    vocab_multiple: int = option(
        1, "Round a derived vocab_size up to a multiple of this number (128 suits TPUs).", minimum=1, affects="storage"
    )
    source_vocab_size: int = option(
        0,
        "Number of rows of the encoder's token embedding, if data.separate_vocabularies is set. If 0, the size of "
        "the source tokenizer's vocabulary is used, rounded up to a multiple of vocab_multiple.",
        minimum=0,
        parameters=("source_embedding",),
        needs=("data.separate_vocabularies",),
    )
    num_layers: int = option(
        6, "Number of blocks. In an encoder-decoder, this is the number of decoder blocks.", minimum=1, affects="shapes"
    )
    num_encoder_layers: int = option(
        0, "Number of encoder blocks in an encoder-decoder. If 0, num_layers is used.", minimum=0, affects="shapes"
    )
    d_model: int = option(384, "Width of the residual stream.", minimum=1, affects="shapes")
    num_heads: int = option(6, "Number of attention (query) heads.", minimum=1, affects="shapes")
    num_kv_heads: int = option(
        0,
        "Number of key/value heads. A number below num_heads gives grouped-query attention, and 1 gives multi-query "
        "attention. If 0, num_heads is used.",
        minimum=0,
        affects="shapes",
    )
    head_dim: int = option(
        0, "Size of each attention head. If 0, d_model / num_heads is used.", minimum=0, affects="shapes"
    )
    d_ff: int = option(0, "Hidden width of the MLP. If 0, 4 * d_model is used.", minimum=0, affects="shapes")
    max_length: int = option(
        0,
        "Maximum sequence length, in tokens. If 0, the larger of data.sequence_length and data.source_length is used.",
        minimum=0,
        affects="storage",
        parameters=("position_embedding",),
    )
    positions: str = option(
        "rotary",
        "Encoding of token positions. 'relative' adds a learned bias per distance bucket to the attention scores (T5).",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
    )
    relative_buckets: int = option(
        32,
        "Number of distance buckets for positions='relative'. Half of the buckets hold a single distance each.",
        minimum=4,
        parameters=("relative_bias",),
        needs=("positions=relative",),
    )
    relative_max_distance: int = option(
        128,
        "For positions='relative', this distance and all greater distances share one bucket.",
        minimum=2,
        needs=("positions=relative",),
    )
    rotary_theta: float = option(
        10_000.0, "Base of the rotation frequencies for positions='rotary'.", minimum=1.0, needs=("positions=rotary",)
    )
    local_rotary_theta: float = option(
        0.0,
        "Base of the rotation frequencies in layers with a window, if global_every is set. If 0, rotary_theta is used.",
        minimum=0.0,
        needs=("global_every", "positions=rotary"),
    )
    rotary_interleaved: bool = option(
        False,
        "Rotate pairs of adjacent features, as in llama.c, instead of pairing the two halves of a head, as in "
        "Hugging Face (positions='rotary' only).",
        needs=("positions=rotary",),
    )
    norm: str = option("layernorm", "Type of normalisation layer.", registry="lm.models.layers.NORMS")
    norm_position: str = option(
        "pre",
        "Whether to normalise the input of each sub-layer ('pre') or the residual sum after each sub-layer ('post').",
        choices=("pre", "post"),
    )
    norm_epsilon: float = option(
        1e-5, "Constant added to the variance (or mean square) for numerical stability.", minimum=0.0
    )
    activation: str = option(
        "gelu",
        "Activation function of the MLP. 'gelu' is exact (erf), and 'gelu_tanh' is GPT-2's approximation. 'swiglu', "
        "'geglu' (exact) and 'geglu_tanh' (T5 1.1) are gated.",
        registry="lm.models.layers.ACTIVATIONS",
    )
    use_bias: bool = option(True, "Use biases in linear layers and in layer normalisation.", parameters=("bias",))
    share_embeddings: bool = option(
        True,
        "Share one token embedding between the encoder and the decoder of an encoder-decoder.",
        parameters=("source_embedding",),
        needs=("family=encoder_decoder",),
    )
    tie_embeddings: bool = option(
        True,
        "Use the token embedding (in an encoder-decoder, the decoder's) as the output projection.",
        parameters=("output",),
    )
    scale_logits: bool = option(False, "Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings.")
    scale_attention: bool = option(True, "Divide attention scores by sqrt(head_dim). Set this to False for T5.")
    norm_embeddings: bool = option(False, "Normalise the embeddings, as BART does.")
    scale_embeddings: bool = option(False, "Multiply the embeddings by sqrt(d_model) (Vaswani 2017).")
    dropout: float = option(
        0.0, "Dropout rate for embeddings and residual branches.", minimum=0.0, maximum=0.9, affects="updates"
    )
    attention_dropout: float = option(
        0.0, "Dropout rate for attention weights.", minimum=0.0, maximum=0.9, affects="updates"
    )
    window: int = option(
        0,
        "Size of the sliding window: each token attends only to tokens fewer than this many positions away. 0 means "
        "no window.",
        minimum=0,
    )
    global_every: int = option(
        0,
        "If this is n > 0, the sliding window does not apply to layers 0, n, 2n, ... (ModernBERT). If 0, the window "
        "applies to every layer.",
        minimum=0,
    )
    token_types: int = option(
        0,
        "Number of learned token types in an encoder. BERT has 2, one for each of its two texts. RoBERTa has 1, for "
        "all tokens. 0 means no token types.",
        minimum=0,
        parameters=("type_embedding",),
    )
    init_std: float = option(
        0.02,
        "Standard deviation of the initial weights. If 0, 1/sqrt(fan-in) is used in each layer.",
        minimum=0.0,
        affects="updates",
    )
    embedding_std: float = option(
        0.0,
        "Like init_std, but for embeddings. If 0, init_std is used; if that is also 0, 1/sqrt(d_model) is used.",
        minimum=0.0,
        affects="updates",
    )
    init_residual_scaling: bool = option(
        True, "Divide init_std by sqrt(2 * num_layers) in the last layer of each sub-layer (GPT-2).", affects="updates"
    )
    dtype: str = option(
        "float32", "Data type of the computation. Parameters are always float32.", choices=("float32", "bfloat16")
    )
    attention: str = option(
        "auto",
        "Attention kernel. 'xla' runs anywhere, 'cudnn' runs on NVIDIA GPUs in bfloat16, and 'splash' runs on TPUs. "
        "'auto' selects one of these kernels.",
        choices=("auto", "xla", "cudnn", "splash"),
        affects="nothing",
    )
    scan_layers: bool = option(
        True, "Stack the layers and scan over them, so that compile time is independent of depth.", affects="storage"
    )
    remat: str = option(
        "none",
        "Activations to recompute in the backward pass to save memory. 'none' recomputes none of them, 'full' "
        "recomputes all, and 'dots' recomputes all except the results of matrix multiplications.",
        choices=("none", "full", "dots"),
        affects="nothing",
    )
    pooling: str = option(
        "",
        "Vector that represents a text: the vector of the first token, the vector of the last token, or the mean "
        "over all tokens. If empty, an encoder uses 'first' and the other families use 'last'.",
        choices=("", "first", "last", "mean"),
    )
    pooler: bool = option(
        False, "Add a linear layer and tanh before the classifier, as in BERT.", parameters=("pooler",)
    )
    head_transform: bool = option(
        False,
        "Apply a linear layer, an activation function and a norm before the output projection, as in BERT "
        "(objective.name='masked' only).",
        parameters=("head_product", "head_norm"),
    )
    output_bias: bool = option(
        False,
        "Add a learned bias to the logit of each vocabulary entry, as in BERT (objective.name='masked' only).",
        parameters=("output_bias",),
    )
    lora_rank: int = option(
        0,
        "Rank of the adapters that are trained instead of the linear layers (LoRA, Hu 2021). 0 means no adapters.",
        minimum=0,
        parameters=("lora_a", "lora_b"),
    )
    lora_alpha: float = option(
        16.0, "Scale adapter outputs by lora_alpha / lora_rank.", minimum=0.0, needs=("lora_rank",)
    )
    lora_targets: tuple[str, ...] = option(
        ("query", "value"),
        "Linear layers that have an adapter. Choose any of query, key, value, out, up, gate, down.",
        parameters=("lora_a", "lora_b"),
        needs=("lora_rank",),
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the training task and its loss. The plain cross-entropy is always reported as well."""

    name: str = option("causal", "Training task.", registry="lm.tasks.TASKS", affects="shapes")
    noise_density: float = option(
        0.15,
        "Fraction of tokens that are masked, for objective.name='span_corruption', 'infilling' or 'masked'.",
        minimum=0.01,
        maximum=0.9,
        affects="batches",
    )
    mean_span_length: float = option(
        3.0,
        "Mean length of a masked span, in tokens, for objective.name='span_corruption' or 'infilling'.",
        minimum=1.0,
        affects="batches",
    )
    permute_sentences: bool = option(
        False, "Shuffle the sentences of the source, as BART does (objective.name='infilling' only).", affects="batches"
    )
    whole_words: bool = option(False, "Mask only whole words (objective.name='masked' only).", affects="batches")
    next_sentence: bool = option(
        False,
        "Join two texts and also predict whether the second follows the first, as in BERT (objective.name='masked' "
        "only).",
        affects="batches",
    )
    class_weights: tuple[float, ...] = option(
        (), "Loss weight of each label, in the order of data.labels, for objective.name='classification' or 'tagging'."
    )
    balance_classes: bool = option(
        False, "Weight each label inversely to its frequency (objective.name='classification' only)."
    )
    temperature: float = option(
        0.05, "Temperature by which the similarities are divided (objective.name='contrastive' only).", minimum=0.001
    )
    label_smoothing: float = option(
        0.0,
        "Probability mass that is moved from the target class to the classes selected by label_smoothing_over.",
        minimum=0.0,
        maximum=0.9,
    )
    label_smoothing_over: str = option(
        "vocabulary",
        "Classes that share the smoothed probability mass. 'vocabulary' selects all V entries of the vocabulary "
        "(Szegedy 2016, Hugging Face); 'others' selects the V - 1 entries other than the target (fairseq).",
        choices=("vocabulary", "others"),
        needs=("label_smoothing",),
    )
    z_loss: float = option(0.0, "Weight of the log(Z)^2 penalty, which keeps logits small (PaLM: 1e-4).", minimum=0.0)
