"""Settings of the model, in the order in which a token meets them: sizes, positions, blocks, heads and adapters."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.heads import HeadSettings
from lm.config.positions import PositionSettings
from lm.config.schema import option


@dataclass(frozen=True)
class SizeSettings:
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
    embedding_width: int = option(
        0,
        "Width of all embeddings, which a linear layer then maps to d_model (ALBERT, ELECTRA). If 0, the width is "
        "d_model and there is no such layer.",
        minimum=0,
        parameters=(
            "token_embedding",
            "source_embedding",
            "position_embedding",
            "type_embedding",
            "embedding_norm",
            "embedding_projection",
            "head_product",
            "head_norm",
            "output",
            "output_projection",
        ),
    )
    share_layers: bool = option(
        False, "Use the same parameters in all layers of a stack (ALBERT).", parameters=("shared_layer",)
    )
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


@dataclass(frozen=True)
class BlockSettings:
    norm: str = option("layernorm", "Type of normalisation layer.", registry="lm.models.layers.NORMS")
    norm_position: str = option(
        "pre",
        "What is normalised in each block. If not the residual sums, there is also a norm after the last block.",
        registry="lm.models.layers.NORM_POSITIONS",
    )
    first_norm: bool = option(
        True,
        "Normalise the input of the first attention. If False, its norm exists but is not used (ModernBERT).",
        read_by="norm_position",
    )
    norm_unit_offset: bool = option(
        False, "Multiply normalised values by 1 + scale, with an initial scale of 0, in all norms (Gemma)."
    )
    norm_epsilon: float = option(
        1e-5, "Constant added to the variance (or mean square) for numerical stability.", minimum=0.0
    )
    activation: str = option(
        "gelu",
        "Activation function of the MLP. 'gelu' is exact (erf), and 'gelu_tanh' is GPT-2's approximation. 'swiglu', "
        "'geglu' (exact), 'geglu_tanh' (T5 1.1) and 'reglu' are gated.",
        registry="lm.models.layers.ACTIVATIONS",
    )
    use_bias: bool = option(True, "Use biases in linear layers and in layer normalisation.", parameters=("bias",))
    attention_bias: str = option(
        "default",
        "Linear layers of attention that have a bias: none, only those of queries, keys and values ('qkv', Qwen 2), or "
        "all. 'default' means all if use_bias is set, otherwise none.",
        choices=("default", "none", "qkv", "all"),
        parameters=("bias",),
    )
    qk_norm: str = option(
        "none",
        "Normalise queries and keys before rotary positions are applied: over each head ('head', Qwen 3 and Gemma 3) "
        "or over all heads together ('width', OLMo 2).",
        choices=("none", "head", "width"),
        parameters=("query_norm", "key_norm"),
    )
    share_embeddings: bool = option(
        True,
        "Share one token embedding between the encoder and the decoder of an encoder-decoder.",
        parameters=("source_embedding",),
        needs=("family=encoder_decoder",),
    )
    shift_decoder: bool = option(
        False,
        "If the encoder and the decoder read the same text, as in classification, shift the decoder's text right by "
        "one token and put its last token, EOS, in front (BART).",
        needs=("family=encoder_decoder",),
    )
    tie_embeddings: bool = option(
        True,
        "Use the token embedding (in an encoder-decoder, the decoder's) as the output projection.",
        parameters=("output",),
    )
    scale_logits: bool = option(False, "Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings.")
    logits_softcap: float = option(
        0.0, "If this is c > 0, replace each logit z with c * tanh(z / c) (Gemma 2: 30).", minimum=0.0
    )
    attention_scale: float = option(
        0.0,
        "Factor of the attention scores, for example 1 for T5. If 0, 1 / sqrt(head_dim) is used.",
        minimum=0.0,
    )
    attention_softcap: float = option(
        0.0,
        "If this is c > 0, replace each attention score s with c * tanh(s / c) before the softmax (Gemma 2: 50).",
        minimum=0.0,
    )
    norm_embeddings: bool = option(False, "Normalise the embeddings, as BART does.")
    embedding_scale: float = option(
        1.0, "Factor of the token embeddings. If 0, sqrt(d_model) is used (Vaswani 2017, Gemma).", minimum=0.0
    )
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
        "applies to every layer. See also global_offset.",
        minimum=0,
    )
    global_offset: int = option(
        0,
        "Number of the first layer without a sliding window, if global_every is set (Gemma 2: 1 of every 2, Gemma 3: 5 "
        "of every 6).",
        minimum=0,
        needs=("global_every",),
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


@dataclass(frozen=True)
class ModelConfig(HeadSettings, BlockSettings, PositionSettings, SizeSettings):
    """Settings of the Transformer. Where 0 stands for a derived value, the option text says so.

    A dataclass lists the fields of its last base first.
    """

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
