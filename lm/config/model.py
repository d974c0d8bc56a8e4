"""Settings of the model and of what it learns."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer. Where 0 stands for a derived value, the documentation of the setting says so."""

    family: str = option(
        "decoder",
        "decoder: each token attends to earlier ones only (GPT, Llama); encoder: to all (BERT); encoder_decoder: an "
        "encoder reads the source and a decoder writes the target (Transformer, T5, BART).",
        registry="lm.models.MODELS",
    )
    vocab_size: int = option(
        0,
        "Rows of the token embedding; 0 for the tokenizer's vocabulary size, rounded up to vocab_multiple.",
        minimum=0,
        parameters=("token_embedding", "output", "output_bias"),
    )
    vocab_multiple: int = option(
        1, "Round a derived vocab_size up to a multiple of this (128 suits TPUs).", minimum=1, affects="storage"
    )
    source_vocab_size: int = option(
        0,
        "Rows of the encoder's embedding with data.separate_vocabularies; 0: as for vocab_size.",
        minimum=0,
        parameters=("source_embedding",),
    )
    num_layers: int = option(6, "Blocks; in an encoder-decoder, those of the decoder.", minimum=1, affects="shapes")
    num_encoder_layers: int = option(0, "Blocks of the encoder; 0 for num_layers.", minimum=0, affects="shapes")
    d_model: int = option(384, "Width of the residual stream.", minimum=1, affects="shapes")
    num_heads: int = option(6, "Attention heads (of the queries).", minimum=1, affects="shapes")
    num_kv_heads: int = option(
        0, "Key/value heads: 0 for num_heads, fewer for grouped-query, 1 for multi-query.", minimum=0, affects="shapes"
    )
    head_dim: int = option(0, "Size of each head; 0 for d_model / num_heads.", minimum=0, affects="shapes")
    d_ff: int = option(0, "Hidden width of the MLP; 0 for 4 x d_model.", minimum=0, affects="shapes")
    max_length: int = option(
        0,
        "Longest sequence, in tokens; 0: the larger of data.sequence_length and source_length.",
        minimum=0,
        affects="storage",
        parameters=("position_embedding",),
    )
    positions: str = option(
        "rotary",
        "How the order of tokens is encoded; relative: a learned bias for each bucket of distances (T5).",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
    )
    relative_buckets: int = option(
        32, "relative: buckets; half of them hold one distance each.", minimum=4, parameters=("relative_bias",)
    )
    relative_max_distance: int = option(128, "relative: all distances from this one on share a bucket.", minimum=2)
    rotary_theta: float = option(10_000.0, "rotary: base of the rotation angles.", minimum=1.0)
    local_rotary_theta: float = option(
        0.0, "The same for the layers that have a window, with global_every; 0 for rotary_theta.", minimum=0.0
    )
    rotary_interleaved: bool = option(
        False, "Rotate adjacent pairs (llama.c) instead of the two halves of a head (Hugging Face)."
    )
    norm: str = option("layernorm", "Normalisation layer.", registry="lm.models.layers.NORMS")
    norm_position: str = option(
        "pre", "Normalise the input of a sub-layer, or its residual sum.", choices=("pre", "post")
    )
    norm_epsilon: float = option(1e-5, "Added to the variance (or mean square).", minimum=0.0)
    activation: str = option(
        "gelu",
        "Of the MLP: gelu is exact (erf), gelu_tanh is GPT-2's approximation; swiglu, geglu (exact) and geglu_tanh "
        "(T5 1.1) are gated.",
        registry="lm.models.layers.ACTIVATIONS",
    )
    use_bias: bool = option(True, "Biases in linear layers and in layernorm.", parameters=("bias",))
    share_embeddings: bool = option(
        True, "Encoder-decoder: one embedding for both stacks.", parameters=("source_embedding",)
    )
    tie_embeddings: bool = option(
        True, "The output projection is the (decoder's) token embedding.", parameters=("output",)
    )
    scale_logits: bool = option(False, "Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings.")
    scale_attention: bool = option(True, "Divide attention scores by sqrt(head_dim); T5 does not.")
    norm_embeddings: bool = option(False, "Normalise the embeddings, as BART does.")
    scale_embeddings: bool = option(False, "Multiply embeddings by sqrt(d_model) (Vaswani 2017).")
    dropout: float = option(
        0.0, "Dropout rate of embeddings and residual branches.", minimum=0.0, maximum=0.9, affects="updates"
    )
    attention_dropout: float = option(0.0, "Dropout of attention weights.", minimum=0.0, maximum=0.9, affects="updates")
    window: int = option(
        0, "Sliding window: a token attends only to tokens nearer than this, in positions; 0: no limit.", minimum=0
    )
    global_every: int = option(
        0, "With a window: layers 0, n, 2n, ... have none, as in ModernBERT; 0: all layers have it.", minimum=0
    )
    token_types: int = option(
        0,
        "Encoder: number of learned token types; BERT has 2, for the first and the second text; 0: none.",
        minimum=0,
        parameters=("type_embedding",),
    )
    init_std: float = option(
        0.02,
        "Standard deviation of initial weights; 0: 1/sqrt(input width) of a layer.",
        minimum=0.0,
        affects="updates",
    )
    embedding_std: float = option(
        0.0, "The same for embeddings; 0 for init_std or, if 0 too, 1/sqrt(d_model).", minimum=0.0, affects="updates"
    )
    init_residual_scaling: bool = option(
        True, "Divide init_std by sqrt(2 num_layers) in the last layer of each sub-layer (GPT-2).", affects="updates"
    )
    dtype: str = option(
        "float32", "Data type of the computation; parameters are always float32.", choices=("float32", "bfloat16")
    )
    attention: str = option(
        "auto",
        "Attention kernel: xla runs anywhere, cudnn on NVIDIA GPUs in bfloat16, splash on TPUs; auto chooses one.",
        choices=("auto", "xla", "cudnn", "splash"),
        affects="nothing",
    )
    scan_layers: bool = option(
        True, "Stack the layers and scan over them, so that compile time does not grow with depth.", affects="storage"
    )
    remat: str = option(
        "none",
        "Save memory by recomputing in the backward pass: nothing (none), whole blocks (full), or everything except "
        "matrix multiplications (dots).",
        choices=("none", "full", "dots"),
        affects="nothing",
    )
    pooling: str = option(
        "",
        "The vector that represents a text: that of its first or last token, or the mean of all; empty: first in an "
        "encoder, last elsewhere.",
        choices=("", "first", "last", "mean"),
    )
    pooler: bool = option(False, "A linear layer and tanh before the classifier, as in BERT.", parameters=("pooler",))
    head_transform: bool = option(
        False,
        "masked: linear layer, activation and norm before the output projection, as in BERT.",
        parameters=("head_product", "head_norm"),
    )
    output_bias: bool = option(
        False, "masked: a bias for each entry of the vocabulary, as in BERT.", parameters=("output_bias",)
    )
    lora_rank: int = option(
        0,
        "Rank of adapters, trained in place of the linear layers (LoRA, Hu 2021); 0 for none.",
        minimum=0,
        parameters=("lora_a", "lora_b"),
    )
    lora_alpha: float = option(16.0, "Adapters are scaled by lora_alpha / lora_rank.", minimum=0.0)
    lora_targets: tuple[str, ...] = option(
        ("query", "value"),
        "Linear layers that get an adapter: query, key, value, out, up, gate, down.",
        parameters=("lora_a", "lora_b"),
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model learns to predict, and its loss. The plain cross-entropy is always reported too."""

    name: str = option("causal", "Task: what the model learns.", registry="lm.tasks.TASKS", affects="shapes")
    noise_density: float = option(
        0.15, "span_corruption, infilling, masked: masked fraction.", minimum=0.01, maximum=0.9, affects="batches"
    )
    mean_span_length: float = option(
        3.0, "span_corruption, infilling: mean length of a masked span, in tokens.", minimum=1.0, affects="batches"
    )
    permute_sentences: bool = option(
        False, "infilling: shuffle the sentences of the source, as BART does.", affects="batches"
    )
    whole_words: bool = option(False, "masked: mask whole words, never only a part of one.", affects="batches")
    next_sentence: bool = option(
        False, "masked: two texts in a row; predict also whether the second follows (BERT).", affects="batches"
    )
    class_weights: tuple[float, ...] = option(
        (), "classification, tagging: weights of data.labels in the loss, in their order."
    )
    balance_classes: bool = option(False, "classification: weight each label in inverse proportion to its frequency.")
    temperature: float = option(0.05, "contrastive: divides the similarities.", minimum=0.001)
    label_smoothing: float = option(
        0.0, "Probability taken from the target and spread evenly.", minimum=0.0, maximum=0.9
    )
    label_smoothing_over: str = option(
        "vocabulary",
        "Where that probability goes: to all V entries of the vocabulary (Szegedy 2016, Hugging Face) or to the V - 1 "
        "others (fairseq).",
        choices=("vocabulary", "others"),
    )
    z_loss: float = option(0.0, "Weight of the penalty log(Z)^2, which keeps logits small (PaLM: 1e-4).", minimum=0.0)
