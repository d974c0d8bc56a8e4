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
    )
    vocab_size: int = option(
        0, "Rows of the embedding; 0 for the tokenizer's, rounded up to vocab_multiple.", minimum=0
    )
    vocab_multiple: int = option(1, "Round a derived vocab_size up to a multiple of this (128 suits TPU).", minimum=1)
    source_vocab_size: int = option(
        0, "Rows of the encoder's own embedding with data.separate_vocabularies; 0 for its tokenizer's.", minimum=0
    )
    num_layers: int = option(6, "Blocks (of the decoder, where there are two stacks).", minimum=1)
    num_encoder_layers: int = option(0, "Blocks of the encoder; 0 for num_layers.", minimum=0)
    d_model: int = option(384, "Width of the residual stream.", minimum=1)
    num_heads: int = option(6, "Query heads.", minimum=1)
    num_kv_heads: int = option(0, "Key/value heads: 0 for num_heads, fewer for grouped, 1 for multi-query.", minimum=0)
    head_dim: int = option(0, "Size of a head; 0 for d_model / num_heads.", minimum=0)
    d_ff: int = option(0, "Hidden width of the MLP; 0 for 4 x d_model.", minimum=0)
    max_length: int = option(0, "Longest sequence, in tokens; 0 for data.sequence_length.", minimum=0)
    positions: str = option(
        "rotary",
        "How order is told; relative is T5's bias of the attention scores by bucketed distance.",
        choices=("learned", "sinusoidal", "rotary", "relative", "none"),
    )
    relative_buckets: int = option(32, "relative: number of buckets, half of them exact distances.", minimum=4)
    relative_max_distance: int = option(128, "relative: distances from here on share a bucket.", minimum=2)
    rotary_theta: float = option(10_000.0, "Base of the rotary angles.", minimum=1.0)
    local_rotary_theta: float = option(
        0.0, "The same in layers with a window where others have none (global_every); 0 for rotary_theta.", minimum=0.0
    )
    rotary_interleaved: bool = option(False, "Rotate adjacent pairs (as llama.c) in place of the two halves (as HF).")
    norm: str = option("layernorm", "Normalization.", registry="lm.models.layers.NORMS")
    norm_position: str = option("pre", "Before each sub-layer, or after its residual sum.", choices=("pre", "post"))
    norm_epsilon: float = option(1e-5, "Added to the variance.", minimum=0.0)
    activation: str = option(
        "gelu",
        "gelu is the exact form (erf), gelu_tanh GPT-2's approximation; swiglu, geglu (exact) and geglu_tanh (T5 1.1) "
        "are gated.",
        registry="lm.models.layers.ACTIVATIONS",
    )
    use_bias: bool = option(True, "Biases in the products and in layernorm.")
    share_embeddings: bool = option(True, "Encoder-decoder: both sides have one embedding.")
    tie_embeddings: bool = option(True, "The output matrix is the embedding (the decoder's).")
    scale_logits: bool = option(False, "Divide the logits by sqrt(d_model), as T5 1.0 with its tied embeddings.")
    scale_attention: bool = option(True, "Divide attention scores by sqrt(head_dim); T5 does not.")
    norm_embeddings: bool = option(False, "A norm after the embeddings, as BART.")
    scale_embeddings: bool = option(False, "Multiply embeddings by sqrt(d_model), as Vaswani 2017.")
    dropout: float = option(0.0, "On embeddings and on every residual branch.", minimum=0.0, maximum=0.9)
    attention_dropout: float = option(0.0, "On attention weights.", minimum=0.0, maximum=0.9)
    window: int = option(
        0, "Sliding window: how many tokens back, itself included, a token sees; 0 for all.", minimum=0
    )
    global_every: int = option(
        0,
        "With a window: layers 0, n, 2n, ... have none and see all, as in ModernBERT; 0: every layer has it.",
        minimum=0,
    )
    token_types: int = option(0, "Encoder: kinds of token that are told apart by an embedding (BERT: 2).", minimum=0)
    init_std: float = option(
        0.02, "Standard deviation of the initial weights; 0 for 1/sqrt(inputs) of each product.", minimum=0.0
    )
    embedding_std: float = option(0.0, "That of embeddings; 0 for init_std, or else 1/sqrt(d_model).", minimum=0.0)
    init_residual_scaling: bool = option(True, "Divide that of residual outputs by sqrt(2 num_layers), as GPT-2.")
    dtype: str = option(
        "float32", "Of the computation; parameters are always float32.", choices=("float32", "bfloat16")
    )
    attention: str = option(
        "auto",
        "Attention kernel: xla (anywhere), cudnn (NVIDIA, bfloat16), splash (TPU); auto chooses by platform.",
        choices=("auto", "xla", "cudnn", "splash"),
    )
    scan_layers: bool = option(True, "Stack the layers and scan over them: compile time does not grow with depth.")
    remat: str = option(
        "none",
        "What the backward pass recomputes: none, all of each block (full), or all but its matrix products (dots).",
        choices=("none", "full", "dots"),
    )

    head: str = option(
        "tokens",
        "Set by the objective: what is computed of each token. tokens: the next one; masked: the one that is hidden "
        "there; classes: scores of labels (or one number); span: scores of being an answer's start and end; "
        "embedding: a vector for the text.",
        choices=("tokens", "masked", "classes", "span", "embedding"),
    )
    num_classes: int = option(0, "Of head=classes; 0 for as many as there are labels, 1 for regression.", minimum=0)
    pooling: str = option(
        "",
        "What of a text stands for the whole: its first or last token, or the mean; empty for first in an encoder, "
        "last elsewhere. none: each token for itself (tagging).",
        choices=("", "first", "last", "mean", "none"),
    )
    pooler: bool = option(False, "A product and tanh before the classes of a text, as BERT.")
    max_hidden: int = option(
        0,
        "Set by the objective masked: the most hidden tokens of a row, for which alone logits are computed; 0: all.",
        minimum=0,
    )
    pair_head: bool = option(False, "Set by objective.next_sentence: tell whether the second text follows.")
    head_transform: bool = option(False, "masked: a product, the activation and a norm before the output, as BERT.")
    output_bias: bool = option(False, "masked: a bias for each entry of the vocabulary, as BERT.")
    lora_rank: int = option(0, "Train adapters of this rank (Hu 2021) beside frozen products; 0 for none.", minimum=0)
    lora_alpha: float = option(16.0, "Adapters are scaled by lora_alpha / lora_rank.", minimum=0.0)
    lora_targets: tuple[str, ...] = field(
        default=("query", "value"),
        metadata={"doc": "Products with an adapter: query, key, value, out, up, gate, down."},
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted, and how the error is counted. Plain cross-entropy is always reported beside it."""

    name: str = option(
        "causal",
        "causal: every token from those before it. Encoder-decoder: seq2seq (the target of a pair), span_corruption "
        "(T5), ul2 (its mixture of denoisers), infilling (BART), prefix_lm (the rest of a text from its beginning). "
        "Encoder: masked (BERT). Any: classification or regression (a label or number for a text or a pair of texts), "
        "tagging (a label for each word), span_qa (where in a text the answer is), contrastive (texts that belong "
        "together get similar vectors).",
        choices=(
            "causal",
            "seq2seq",
            "span_corruption",
            "ul2",
            "infilling",
            "prefix_lm",
            "masked",
            "classification",
            "regression",
            "tagging",
            "span_qa",
            "contrastive",
        ),
    )
    noise_density: float = option(
        0.15, "span_corruption, infilling, masked: share of the tokens that are hidden.", minimum=0.01, maximum=0.9
    )
    mean_span_length: float = option(
        3.0, "span_corruption, infilling: mean length of a masked span, in tokens.", minimum=1.0
    )
    permute_sentences: bool = option(False, "infilling: shuffle the sentences of the source, as BART.")
    whole_words: bool = option(False, "masked: hide whole words, never a part of one.")
    next_sentence: bool = option(False, "masked: two texts, and whether the second one follows the first, as BERT.")
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
