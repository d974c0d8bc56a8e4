"""Settings of the model and of what it learns."""

from __future__ import annotations

from dataclasses import dataclass, field

from lm.config.schema import option


@dataclass(frozen=True)
class ModelConfig:
    """A stack of Transformer blocks. Zeros stand for "derived", as each line says."""

    family: str = option(
        "decoder",
        "decoder: one stack that sees what comes before (GPT, Llama); encoder_decoder: one that reads the source and "
        "one that writes the target (Transformer, T5, BART); encoder: one stack that sees all (BERT).",
        registry="lm.models.MODELS",
        affects="function",
    )
    vocab_size: int = option(
        0,
        "Rows of the embedding; 0 for the tokenizer's, rounded up to vocab_multiple.",
        minimum=0,
        affects="shapes",
        parameters=("token_embedding", "output", "output_bias"),
    )
    vocab_multiple: int = option(
        1, "Round a derived vocab_size up to a multiple of this (128 suits TPU).", minimum=1, affects="storage"
    )
    source_vocab_size: int = option(
        0,
        "Rows of the encoder's own embedding with data.separate_vocabularies; 0 for its tokenizer's.",
        minimum=0,
        affects="shapes",
        parameters=("source_embedding",),
    )
    num_layers: int = option(6, "Blocks (of the decoder, where there are two stacks).", minimum=1, affects="shapes")
    num_encoder_layers: int = option(0, "Blocks of the encoder; 0 for num_layers.", minimum=0, affects="shapes")
    d_model: int = option(384, "Width of the residual stream.", minimum=1, affects="shapes")
    num_heads: int = option(6, "Query heads.", minimum=1, affects="shapes")
    num_kv_heads: int = option(
        0, "Key/value heads: 0 for num_heads, fewer for grouped, 1 for multi-query.", minimum=0, affects="shapes"
    )
    head_dim: int = option(0, "Size of a head; 0 for d_model / num_heads.", minimum=0, affects="shapes")
    d_ff: int = option(0, "Hidden width of the MLP; 0 for 4 x d_model.", minimum=0, affects="shapes")
    max_length: int = option(
        0,
        "Longest sequence, in tokens; 0 for data.sequence_length.",
        minimum=0,
        affects="storage",
        parameters=("position_embedding",),
    )
    positions: str = option(
        "rotary",
        "How order is told; relative is T5's bias of the attention scores by bucketed distance.",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
        affects="function",
    )
    relative_buckets: int = option(
        32,
        "relative: number of buckets, half of them exact distances.",
        minimum=4,
        affects="shapes",
        parameters=("relative_bias",),
    )
    relative_max_distance: int = option(
        128, "relative: distances from here on share a bucket.", minimum=2, affects="function"
    )
    rotary_theta: float = option(10_000.0, "Base of the rotary angles.", minimum=1.0, affects="function")
    local_rotary_theta: float = option(
        0.0,
        "The same in layers with a window where others have none (global_every); 0 for rotary_theta.",
        minimum=0.0,
        affects="function",
    )
    rotary_interleaved: bool = option(
        False, "Rotate adjacent pairs (as llama.c) in place of the two halves (as HF).", affects="function"
    )
    norm: str = option("layernorm", "Normalisation.", registry="lm.models.layers.NORMS", affects="function")
    norm_position: str = option(
        "pre", "Before each sub-layer, or after its residual sum.", choices=("pre", "post"), affects="function"
    )
    norm_epsilon: float = option(1e-5, "Added to the variance.", minimum=0.0, affects="function")
    activation: str = option(
        "gelu",
        "gelu is the exact form (erf), gelu_tanh GPT-2's approximation; swiglu, geglu (exact) and geglu_tanh (T5 1.1) "
        "are gated.",
        registry="lm.models.layers.ACTIVATIONS",
        affects="function",
    )
    use_bias: bool = option(True, "Biases in the products and in layernorm.", affects="shapes", parameters=("bias",))
    share_embeddings: bool = option(
        True, "Encoder-decoder: both sides have one embedding.", affects="shapes", parameters=("source_embedding",)
    )
    tie_embeddings: bool = option(
        True, "The output matrix is the embedding (the decoder's).", affects="shapes", parameters=("output",)
    )
    scale_logits: bool = option(
        False, "Divide the logits by sqrt(d_model), as T5 1.0 with its tied embeddings.", affects="function"
    )
    scale_attention: bool = option(True, "Divide attention scores by sqrt(head_dim); T5 does not.", affects="function")
    norm_embeddings: bool = option(False, "A norm after the embeddings, as BART.", affects="function")
    scale_embeddings: bool = option(False, "Multiply embeddings by sqrt(d_model), as Vaswani 2017.", affects="function")
    dropout: float = option(
        0.0, "On embeddings and on every residual branch.", minimum=0.0, maximum=0.9, affects="updates"
    )
    attention_dropout: float = option(0.0, "On attention weights.", minimum=0.0, maximum=0.9, affects="updates")
    window: int = option(
        0,
        "Sliding window: how many tokens back, itself included, a token sees; 0 for all.",
        minimum=0,
        affects="function",
    )
    global_every: int = option(
        0,
        "With a window: layers 0, n, 2n, ... have none and see all, as in ModernBERT; 0: every layer has it.",
        minimum=0,
        affects="function",
    )
    token_types: int = option(
        0,
        "Encoder: kinds of token that are told apart by an embedding (BERT: 2).",
        minimum=0,
        affects="shapes",
        parameters=("type_embedding",),
    )
    init_std: float = option(
        0.02,
        "Standard deviation of the initial weights; 0 for 1/sqrt(inputs) of each product.",
        minimum=0.0,
        affects="updates",
    )
    embedding_std: float = option(
        0.0, "That of embeddings; 0 for init_std, or else 1/sqrt(d_model).", minimum=0.0, affects="updates"
    )
    init_residual_scaling: bool = option(
        True, "Divide that of residual outputs by sqrt(2 num_layers), as GPT-2.", affects="updates"
    )
    dtype: str = option(
        "float32",
        "Of the computation; parameters are always float32.",
        choices=("float32", "bfloat16"),
        affects="function",
    )
    attention: str = option(
        "auto",
        "Attention kernel: xla (anywhere), cudnn (NVIDIA, bfloat16), splash (TPU); auto chooses by platform.",
        choices=("auto", "xla", "cudnn", "splash"),
        affects="nothing",
    )
    scan_layers: bool = option(
        True, "Stack the layers and scan over them: compile time does not grow with depth.", affects="storage"
    )
    remat: str = option(
        "none",
        "What the backward pass recomputes: none, all of each block (full), or all but its matrix products (dots).",
        choices=("none", "full", "dots"),
        affects="nothing",
    )

    pooling: str = option(
        "",
        "What stands for a whole text: its first or last token, or the mean of all; empty for first in an encoder, "
        "last elsewhere.",
        choices=("", "first", "last", "mean"),
        affects="function",
    )
    pooler: bool = option(
        False, "A product and tanh before the classes of a text, as BERT.", affects="shapes", parameters=("pooler",)
    )
    head_transform: bool = option(
        False,
        "masked: a product, the activation and a norm before the output, as BERT.",
        affects="shapes",
        parameters=("head_product", "head_norm"),
    )
    output_bias: bool = option(
        False,
        "masked: a bias for each entry of the vocabulary, as BERT.",
        affects="shapes",
        parameters=("output_bias",),
    )
    lora_rank: int = option(
        0,
        "Train adapters of this rank (Hu 2021) beside frozen products; 0 for none.",
        minimum=0,
        affects="shapes",
        parameters=("lora_a", "lora_b"),
    )
    lora_alpha: float = option(16.0, "Adapters are scaled by lora_alpha / lora_rank.", minimum=0.0, affects="function")
    lora_targets: tuple[str, ...] = field(
        default=("query", "value"),
        metadata={
            "doc": "Products with an adapter: query, key, value, out, up, gate, down.",
            "affects": "shapes",
            "parameters": ("lora_a", "lora_b"),
        },
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted, and how the error is counted. Plain cross-entropy is always reported beside it."""

    name: str = option("causal", "What is predicted.", registry="lm.tasks.TASKS", affects="shapes")
    noise_density: float = option(
        0.15,
        "span_corruption, infilling, masked: share of the tokens that are hidden.",
        minimum=0.01,
        maximum=0.9,
        affects="batches",
    )
    mean_span_length: float = option(
        3.0, "span_corruption, infilling: mean length of a masked span, in tokens.", minimum=1.0, affects="batches"
    )
    permute_sentences: bool = option(
        False, "infilling: shuffle the sentences of the source, as BART.", affects="batches"
    )
    whole_words: bool = option(False, "masked: hide whole words, never a part of one.", affects="batches")
    next_sentence: bool = option(
        False, "masked: two texts, and whether the second one follows the first, as BERT.", affects="batches"
    )
    class_weights: tuple[float, ...] = field(
        default=(), metadata={"doc": "classification, tagging: weight of each label in the loss, as data.labels."}
    )
    balance_classes: bool = option(False, "classification: weights in inverse proportion to the labels' numbers.")
    temperature: float = option(0.05, "contrastive: similarities are divided by it.", minimum=0.001)
    label_smoothing: float = option(0.0, "Mass taken from the target and spread evenly.", minimum=0.0, maximum=0.9)
    label_smoothing_over: str = option(
        "vocabulary",
        "What the mass is spread over: the whole vocabulary (V entries, Szegedy 2016, Hugging Face) or the other "
        "entries (V - 1, fairseq).",
        choices=("vocabulary", "others"),
    )
    z_loss: float = option(0.0, "Weight of log(Z)^2, which keeps logits small (PaLM: 1e-4).", minimum=0.0)
