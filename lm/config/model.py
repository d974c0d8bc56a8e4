"""Settings of the model and of its training objective."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the Transformer. If 0 stands for a derived value, the documentation of the setting says so."""

    family: str = option(
        "decoder",
        "decoder: each token attends to itself and earlier tokens (GPT, Llama); encoder: each token attends to all "
        "tokens (BERT); encoder_decoder: an encoder reads the source and a decoder writes the target (Transformer, T5, "
        "BART).",
        registry="lm.models.MODELS",
    )
    vocab_size: int = option(
        0,
        "Number of rows of the token embedding; 0 for the size of the tokenizer's vocabulary, rounded up to a multiple "
        "of vocab_multiple.",
        minimum=0,
        parameters=("token_embedding", "output", "output_bias"),
    )
    vocab_multiple: int = option(
        1, "Round a derived vocab_size up to a multiple of this number (128 suits TPUs).", minimum=1, affects="storage"
    )
    source_vocab_size: int = option(
        0,
        "With data.separate_vocabularies: number of rows of the encoder's token embedding; 0 for the size of the "
        "source tokenizer's vocabulary, rounded up to a multiple of vocab_multiple.",
        minimum=0,
        parameters=("source_embedding",),
        needs=("data.separate_vocabularies",),
    )
    num_layers: int = option(
        6, "Number of blocks; in an encoder-decoder, number of decoder blocks.", minimum=1, affects="shapes"
    )
    num_encoder_layers: int = option(
        0, "Encoder-decoder: number of encoder blocks; 0 for the value of num_layers.", minimum=0, affects="shapes"
    )
    d_model: int = option(384, "Width of the residual stream.", minimum=1, affects="shapes")
    num_heads: int = option(6, "Number of attention (query) heads.", minimum=1, affects="shapes")
    num_kv_heads: int = option(
        0,
        "Number of key/value heads: fewer than num_heads for grouped-query attention, 1 for multi-query attention; 0 "
        "for the value of num_heads.",
        minimum=0,
        affects="shapes",
    )
    head_dim: int = option(0, "Size of each head; 0 for d_model / num_heads.", minimum=0, affects="shapes")
    d_ff: int = option(0, "Hidden width of the MLP; 0 for 4 x d_model.", minimum=0, affects="shapes")
    max_length: int = option(
        0,
        "Maximum sequence length, in tokens; 0 for the larger of data.sequence_length and data.source_length.",
        minimum=0,
        affects="storage",
        parameters=("position_embedding",),
    )
    positions: str = option(
        "rotary",
        "How token positions are encoded; relative adds a learned bias per distance bucket to attention scores (T5).",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
    )
    relative_buckets: int = option(
        32,
        "relative: number of distance buckets; half of the buckets hold a single distance each.",
        minimum=4,
        parameters=("relative_bias",),
        needs=("positions=relative",),
    )
    relative_max_distance: int = option(
        128,
        "relative: this distance and all greater distances share one bucket.",
        minimum=2,
        needs=("positions=relative",),
    )
    rotary_theta: float = option(
        10_000.0, "rotary: base of the rotation frequencies.", minimum=1.0, needs=("positions=rotary",)
    )
    local_rotary_theta: float = option(
        0.0,
        "With global_every: the base used in layers with a window; 0 for the value of rotary_theta.",
        minimum=0.0,
        needs=("global_every", "positions=rotary"),
    )
    rotary_interleaved: bool = option(
        False,
        "rotary: pair adjacent features, as in llama.c, rather than the two halves of a head, as in Hugging Face.",
        needs=("positions=rotary",),
    )
    norm: str = option("layernorm", "Type of normalisation layer.", registry="lm.models.layers.NORMS")
    norm_position: str = option(
        "pre", "pre: normalise the input of each sub-layer; post: normalise the residual sum.", choices=("pre", "post")
    )
    norm_epsilon: float = option(
        1e-5, "Constant added to the variance (or mean square) for numerical stability.", minimum=0.0
    )
    activation: str = option(
        "gelu",
        "Activation function of the MLP. gelu is exact (erf); gelu_tanh is GPT-2's approximation. swiglu, geglu "
        "(exact) and geglu_tanh (T5 1.1) are gated.",
        registry="lm.models.layers.ACTIVATIONS",
    )
    use_bias: bool = option(True, "Use biases in linear layers and layernorm.", parameters=("bias",))
    share_embeddings: bool = option(
        True,
        "Encoder-decoder: share one token embedding between the encoder and the decoder.",
        parameters=("source_embedding",),
        needs=("family=encoder_decoder",),
    )
    tie_embeddings: bool = option(
        True,
        "Use the token embedding (in an encoder-decoder, the decoder's) as the output projection.",
        parameters=("output",),
    )
    scale_logits: bool = option(False, "Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings.")
    scale_attention: bool = option(True, "Divide attention scores by sqrt(head_dim); set this to False for T5.")
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
        "Sliding window: each token attends only to tokens fewer than this many positions away; 0 for no window.",
        minimum=0,
    )
    global_every: int = option(
        0,
        "With a window: if this is n > 0, layers 0, n, 2n, ... have no window (ModernBERT); if this is 0, every layer "
        "has a window.",
        minimum=0,
    )
    token_types: int = option(
        0,
        "Encoder: number of learned token types (BERT has 2, one for each of its two texts); 0 for none.",
        minimum=0,
        parameters=("type_embedding",),
    )
    init_std: float = option(
        0.02,
        "Standard deviation of the initial weights; 0 for 1/sqrt(fan-in) in each layer.",
        minimum=0.0,
        affects="updates",
    )
    embedding_std: float = option(
        0.0,
        "Like init_std, but for embeddings; 0 for the value of init_std or, if that is also 0, 1/sqrt(d_model).",
        minimum=0.0,
        affects="updates",
    )
    init_residual_scaling: bool = option(
        True, "Divide init_std by sqrt(2 * num_layers) in the last layer of each sub-layer (GPT-2).", affects="updates"
    )
    dtype: str = option(
        "float32", "Data type of the computation; parameters are always float32.", choices=("float32", "bfloat16")
    )
    attention: str = option(
        "auto",
        "Attention kernel: xla runs anywhere, cudnn on NVIDIA GPUs in bfloat16, splash on TPUs; auto selects one.",
        choices=("auto", "xla", "cudnn", "splash"),
        affects="nothing",
    )
    scan_layers: bool = option(
        True, "Stack the layers and scan over them, so that compile time is independent of depth.", affects="storage"
    )
    remat: str = option(
        "none",
        "Activations to recompute in the backward pass to save memory: none, all (full), or all except the results of "
        "matrix multiplications (dots).",
        choices=("none", "full", "dots"),
        affects="nothing",
    )
    pooling: str = option(
        "",
        "Vector that represents a text: the vector of the first token, the vector of the last token, or the mean over "
        "all tokens; empty for first in an encoder and last in the other families.",
        choices=("", "first", "last", "mean"),
    )
    pooler: bool = option(
        False, "Add a linear layer and tanh before the classifier, as in BERT.", parameters=("pooler",)
    )
    head_transform: bool = option(
        False,
        "masked: apply a linear layer, an activation function and a norm before the output projection, as in BERT.",
        parameters=("head_product", "head_norm"),
    )
    output_bias: bool = option(
        False,
        "masked: add a learned bias to the logit of each vocabulary entry, as in BERT.",
        parameters=("output_bias",),
    )
    lora_rank: int = option(
        0,
        "Rank of the adapters that are trained instead of the linear layers (LoRA, Hu 2021); 0 for no adapters.",
        minimum=0,
        parameters=("lora_a", "lora_b"),
    )
    lora_alpha: float = option(
        16.0, "Scale adapter outputs by lora_alpha / lora_rank.", minimum=0.0, needs=("lora_rank",)
    )
    lora_targets: tuple[str, ...] = option(
        ("query", "value"),
        "Linear layers that have an adapter: any of query, key, value, out, up, gate, down.",
        parameters=("lora_a", "lora_b"),
        needs=("lora_rank",),
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the training task and its loss. The plain cross-entropy is always reported too."""

    name: str = option("causal", "Training task.", registry="lm.tasks.TASKS", affects="shapes")
    noise_density: float = option(
        0.15,
        "span_corruption, infilling, masked: fraction of tokens that are masked.",
        minimum=0.01,
        maximum=0.9,
        affects="batches",
    )
    mean_span_length: float = option(
        3.0, "span_corruption, infilling: mean length of a masked span, in tokens.", minimum=1.0, affects="batches"
    )
    permute_sentences: bool = option(
        False, "infilling: shuffle the sentences of the source, as BART does.", affects="batches"
    )
    whole_words: bool = option(False, "masked: mask whole words only.", affects="batches")
    next_sentence: bool = option(
        False, "masked: join two texts and also predict whether the second follows the first (BERT).", affects="batches"
    )
    class_weights: tuple[float, ...] = option(
        (), "classification, tagging: loss weight of each label, in the order of data.labels."
    )
    balance_classes: bool = option(False, "classification: weight each label inversely to its frequency.")
    temperature: float = option(0.05, "contrastive: temperature by which the similarities are divided.", minimum=0.001)
    label_smoothing: float = option(
        0.0,
        "Probability mass that is moved from the target class to the classes selected by label_smoothing_over.",
        minimum=0.0,
        maximum=0.9,
    )
    label_smoothing_over: str = option(
        "vocabulary",
        "Classes that share the smoothed probability mass: vocabulary for all V entries of the vocabulary (Szegedy "
        "2016, Hugging Face), or others for the V - 1 entries other than the target (fairseq).",
        choices=("vocabulary", "others"),
        needs=("label_smoothing",),
    )
    z_loss: float = option(0.0, "Weight of the log(Z)^2 penalty, which keeps logits small (PaLM: 1e-4).", minimum=0.0)
