"""Settings of the model and of its training objective."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer. The documentation of each setting says whether 0 stands for a derived value."""

    family: str = option(
        "decoder",
        "decoder: each token attends to itself and earlier tokens (GPT, Llama); encoder: each token attends to all "
        "tokens (BERT); encoder_decoder: an encoder reads the source and a decoder writes the target (Transformer, T5, "
        "BART).",
        registry="lm.models.MODELS",
    )
    vocab_size: int = option(
        0,
        "Number of rows of the token embedding; 0 for the tokenizer's vocabulary size, rounded up by vocab_multiple.",
        minimum=0,
        parameters=("token_embedding", "output", "output_bias"),
    )
    vocab_multiple: int = option(
        1, "Round a derived vocab_size up to a multiple of this (128 suits TPUs).", minimum=1, affects="storage"
    )
    source_vocab_size: int = option(
        0,
        "With data.separate_vocabularies: number of rows of the encoder's token embedding; 0 for the size of the "
        "source tokenizer's vocabulary, rounded up by vocab_multiple.",
        minimum=0,
        parameters=("source_embedding",),
        needs=("data.separate_vocabularies",),
    )
    num_layers: int = option(
        6, "Number of blocks (in an encoder-decoder, of decoder blocks).", minimum=1, affects="shapes"
    )
    num_encoder_layers: int = option(0, "Number of encoder blocks; 0 for num_layers.", minimum=0, affects="shapes")
    d_model: int = option(384, "Width of the residual stream.", minimum=1, affects="shapes")
    num_heads: int = option(6, "Number of attention (query) heads.", minimum=1, affects="shapes")
    num_kv_heads: int = option(
        0,
        "Number of key/value heads: 0 for num_heads, fewer for grouped-query attention, 1 for multi-query attention.",
        minimum=0,
        affects="shapes",
    )
    head_dim: int = option(0, "Size of each head; 0 for d_model / num_heads.", minimum=0, affects="shapes")
    d_ff: int = option(0, "Hidden width of the MLP; 0 for 4 x d_model.", minimum=0, affects="shapes")
    max_length: int = option(
        0,
        "Longest sequence, in tokens; 0 for the larger of data.sequence_length and data.source_length.",
        minimum=0,
        affects="storage",
        parameters=("position_embedding",),
    )
    positions: str = option(
        "rotary",
        "How token order is encoded; relative is a learned bias per distance bucket (T5).",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
    )
    relative_buckets: int = option(
        32,
        "relative: number of distance buckets; half of them hold one distance each.",
        minimum=4,
        parameters=("relative_bias",),
        needs=("positions=relative",),
    )
    relative_max_distance: int = option(
        128, "relative: this distance and all greater ones share a bucket.", minimum=2, needs=("positions=relative",)
    )
    rotary_theta: float = option(
        10_000.0, "rotary: base of the rotation angles.", minimum=1.0, needs=("positions=rotary",)
    )
    local_rotary_theta: float = option(
        0.0,
        "With global_every: rotary_theta for the layers that have a window; 0 for rotary_theta.",
        minimum=0.0,
        needs=("global_every", "positions=rotary"),
    )
    rotary_interleaved: bool = option(
        False,
        "rotary: pair adjacent features (llama.c) instead of the two halves of a head (Hugging Face).",
        needs=("positions=rotary",),
    )
    norm: str = option("layernorm", "Normalisation layer.", registry="lm.models.layers.NORMS")
    norm_position: str = option(
        "pre", "pre: normalise the input of each sub-layer; post: normalise the residual sum.", choices=("pre", "post")
    )
    norm_epsilon: float = option(
        1e-5, "Constant added to the variance (or mean square) for numerical stability.", minimum=0.0
    )
    activation: str = option(
        "gelu",
        "Activation of the MLP: gelu is exact (erf), gelu_tanh is GPT-2's approximation; swiglu, geglu (exact) and "
        "geglu_tanh (T5 1.1) are gated.",
        registry="lm.models.layers.ACTIVATIONS",
    )
    use_bias: bool = option(True, "Use biases in linear layers and layernorm.", parameters=("bias",))
    share_embeddings: bool = option(
        True,
        "Encoder-decoder: share one token embedding between both stacks.",
        parameters=("source_embedding",),
        needs=("family=encoder_decoder",),
    )
    tie_embeddings: bool = option(
        True, "Use the (decoder's) token embedding as the output projection.", parameters=("output",)
    )
    scale_logits: bool = option(False, "Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings.")
    scale_attention: bool = option(True, "Divide attention scores by sqrt(head_dim), which T5 does not do.")
    norm_embeddings: bool = option(False, "Normalise the embeddings, as BART does.")
    scale_embeddings: bool = option(False, "Multiply the embeddings by sqrt(d_model) (Vaswani 2017).")
    dropout: float = option(
        0.0, "Dropout rate of embeddings and residual branches.", minimum=0.0, maximum=0.9, affects="updates"
    )
    attention_dropout: float = option(
        0.0, "Dropout rate of attention weights.", minimum=0.0, maximum=0.9, affects="updates"
    )
    window: int = option(
        0, "Sliding window: attend only to tokens less than this many positions away; 0 for no window.", minimum=0
    )
    global_every: int = option(
        0,
        "With a window: if this is n, layers 0, n, 2n, ... have none (ModernBERT); if it is 0, every layer has one.",
        minimum=0,
    )
    token_types: int = option(
        0,
        "Encoder: number of learned token types (2 in BERT: one for the first text, one for the second); 0 for none.",
        minimum=0,
        parameters=("type_embedding",),
    )
    init_std: float = option(
        0.02,
        "Standard deviation of initial weights; 0 for 1/sqrt(fan-in) in each layer.",
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
        "Activations to recompute in the backward pass to save memory: none, full (those of whole blocks) or dots (all "
        "except the results of matrix multiplications).",
        choices=("none", "full", "dots"),
        affects="nothing",
    )
    pooling: str = option(
        "",
        "Vector that represents a text: that of the first or last token, or the mean over all tokens; empty selects "
        "first for an encoder and last for the other families.",
        choices=("", "first", "last", "mean"),
    )
    pooler: bool = option(
        False, "Add a linear layer and tanh before the classifier, as in BERT.", parameters=("pooler",)
    )
    head_transform: bool = option(
        False,
        "masked: apply a linear layer, activation and norm before the output projection, as in BERT.",
        parameters=("head_product", "head_norm"),
    )
    output_bias: bool = option(
        False,
        "masked: add a bias for each vocabulary entry to the logits, as in BERT.",
        parameters=("output_bias",),
    )
    lora_rank: int = option(
        0,
        "Rank of the adapters that are trained instead of the linear layers (LoRA, Hu 2021); 0 for none.",
        minimum=0,
        parameters=("lora_a", "lora_b"),
    )
    lora_alpha: float = option(
        16.0, "Scale adapter outputs by lora_alpha / lora_rank.", minimum=0.0, needs=("lora_rank",)
    )
    lora_targets: tuple[str, ...] = option(
        ("query", "value"),
        "Linear layers with an adapter: any of query, key, value, out, up, gate, down.",
        parameters=("lora_a", "lora_b"),
        needs=("lora_rank",),
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The prediction task and its loss. The plain cross-entropy is always reported as well."""

    name: str = option("causal", "Training task.", registry="lm.tasks.TASKS", affects="shapes")
    noise_density: float = option(
        0.15,
        "span_corruption, infilling, masked: fraction of masked tokens.",
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
    temperature: float = option(0.05, "contrastive: temperature that divides the similarities.", minimum=0.001)
    label_smoothing: float = option(
        0.0,
        "Probability mass moved from the target to the classes given by label_smoothing_over.",
        minimum=0.0,
        maximum=0.9,
    )
    label_smoothing_over: str = option(
        "vocabulary",
        "Classes that receive the smoothing mass: all V vocabulary entries (Szegedy 2016, Hugging Face) or the other "
        "V - 1 (fairseq).",
        choices=("vocabulary", "others"),
        needs=("label_smoothing",),
    )
    z_loss: float = option(0.0, "Weight of the log(Z)^2 penalty, which keeps logits small (PaLM: 1e-4).", minimum=0.0)
