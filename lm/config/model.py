"""Model settings, in the order of the forward pass: sizes, positions, blocks, heads and adapters."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.autoencoding import BottleneckSettings
from lm.config.convolutional import ConvolutionalSettings
from lm.config.heads import HeadSettings
from lm.config.ngram import NgramSettings
from lm.config.positions import PositionSettings
from lm.config.recurrent import RecurrentSettings
from lm.config.schema import option, section
from lm.config.word_vectors import WordVectorSettings

DROPOUT_RATES = ("dropout", "attention_dropout", "recurrent_dropout")


@dataclass(frozen=True)
class SizeSettings:
    architecture: str = option("transformer", registry="lm.models.MODELS", affects="shapes")
    """Kind of model: 'transformer', 'recurrent' (RNN, LSTM, GRU), 'convolutional' (for whole texts, Kim 2014), 'ngram'
    (estimated from counts, not by gradient descent) or 'word_vectors' (two tables of vectors, for
    objective.name='skipgram', 'cbow' or 'glove')."""
    family: str = option("decoder", choices=("decoder", "encoder", "encoder_decoder"))
    """Architecture. In a 'decoder', each token attends to itself and earlier tokens (GPT, Llama). In an 'encoder', each
    token attends to all tokens (BERT). In an 'encoder_decoder', an encoder reads the source and a decoder generates
    the target (Transformer, T5, BART)."""
    vocab_size: int = option(0, minimum=0, parameters=("token_embedding", "output", "output_bias"))
    """Number of rows in the token embedding. If 0, the size of the tokenizer's vocabulary is used, rounded up to a
    multiple of vocab_multiple."""
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
    embedding_width: int = option(
        0,
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
    """Width of all embeddings, which a linear layer then maps to d_model (ALBERT, ELECTRA). If 0, the width is d_model
    and there is no such layer."""
    share_layers: bool = option(False, parameters=("shared_layer",))
    """Use the same parameters in all layers of a stack (ALBERT)."""
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


@dataclass(frozen=True)
class BlockSettings:
    norm: str = option("layernorm", registry="lm.models.layers.NORMS")
    """Type of normalisation layer."""
    norm_position: str = option("pre", registry="lm.models.layers.NORM_POSITIONS")
    """Position of the norms in each block. Except with 'post', there is also a norm after the last block."""
    first_norm: bool = option(True, read_by="norm_position")
    """Normalise the input of the first attention layer. If False, the norm exists but is not used (ModernBERT)."""
    norm_unit_offset: bool = False
    """Multiply normalised values by 1 + scale, with an initial scale of 0, in all norms (Gemma)."""
    norm_epsilon: float = option(1e-05, minimum=0.0)
    """Constant added to the variance (or mean square) for numerical stability."""
    activation: str = option("gelu", registry="lm.models.layers.ACTIVATIONS")
    """Activation function of the MLP. 'gelu' is exact (erf), and 'gelu_tanh' is GPT-2's approximation. 'swiglu',
    'geglu' (exact), 'geglu_tanh' (T5 1.1) and 'reglu' are gated."""
    use_bias: bool = option(True, parameters=("bias",))
    """Use biases in linear layers and in layer normalisation."""
    attention_bias: str = option("default", choices=("default", "none", "qkv", "all"), parameters=("bias",))
    """Which linear layers in attention have a bias: none, only the query, key and value projections ('qkv', Qwen 2), or
    all. 'default' means all if use_bias is set, otherwise none."""
    qk_norm: str = option("none", choices=("none", "head", "width"), parameters=("query_norm", "key_norm"))
    """Normalise queries and keys before rotary positions are applied: over each head ('head', Qwen 3 and Gemma 3) or
    over all heads together ('width', OLMo 2)."""
    share_embeddings: bool = option(True, parameters=("source_embedding",), needs=("family=encoder_decoder",))
    """Share one token embedding between the encoder and the decoder of an encoder-decoder."""
    shift_decoder: bool = option(False, needs=("family=encoder_decoder",))
    """If the encoder and the decoder read the same text, as in classification, shift the decoder's text right by one
    token and put its last token, EOS, in front (BART)."""
    tie_embeddings: bool = option(True, parameters=("output",))
    """Use the token embedding (in an encoder-decoder, the decoder's) as the output projection."""
    scale_logits: bool = False
    """Divide the logits by sqrt(d_model), as T5 1.0 does with its tied embeddings."""
    logits_softcap: float = option(0.0, minimum=0.0)
    """If this value c is positive, replace each logit z with c * tanh(z / c) (Gemma 2: 30)."""
    attention_scale: float = option(0.0, minimum=0.0)
    """Factor by which q k^T is multiplied in attention, for example 1 for T5. If 0, 1 / sqrt(head_dim) is used."""
    attention_softcap: float = option(0.0, minimum=0.0)
    """If this value c is positive, replace each attention score s with c * tanh(s / c) before the softmax (Gemma 2:
    50)."""
    norm_embeddings: bool = False
    """Normalise the embeddings, as BART does."""
    embedding_scale: float = option(1.0, minimum=0.0)
    """Factor by which the token embeddings are multiplied. If 0, sqrt(d_model) is used (Vaswani 2017, Gemma)."""
    dropout: float = option(0.0, minimum=0.0, maximum=0.9, affects="updates")
    """Dropout rate for embeddings and residual branches."""
    attention_dropout: float = option(0.0, minimum=0.0, maximum=0.9, affects="updates")
    """Dropout rate for attention weights."""
    window: int = option(0, minimum=0)
    """Sliding window: each token attends only to tokens fewer than this many positions away. 0 means no window."""
    global_every: int = option(0, minimum=0)
    """If this value n is positive, the sliding window does not apply to layers 0, n, 2n, ... (ModernBERT). If 0, the
    window applies to every layer. See also global_offset."""
    global_offset: int = option(0, minimum=0, needs=("global_every",))
    """Index of the first layer without a sliding window, if global_every is set (1 for Gemma 2, which sets
    global_every=2; 5 for Gemma 3, which sets global_every=6)."""
    token_types: int = option(0, minimum=0, parameters=("type_embedding",))
    """Number of learned token types in an encoder. BERT has 2, one for each text of a pair. RoBERTa has 1, for all
    tokens. 0 means none."""
    init_std: float = option(0.02, minimum=0.0, affects="updates")
    """Standard deviation of the initial weights. If 0, 1/sqrt(fan-in) is used in each layer."""
    embedding_std: float = option(0.0, minimum=0.0, affects="updates")
    """Like init_std, but for embeddings. If 0, init_std is used; if that is also 0, 1/sqrt(d_model) is used."""
    init_residual_scaling: bool = option(True, affects="updates")
    """Divide init_std by sqrt(2 * num_layers) in the last linear layer of each sub-layer (GPT-2)."""
    dtype: str = option("float32", choices=("float32", "bfloat16"))
    """Data type in which activations are multiplied by weight matrices. Parameters are always float32."""
    activation_dtype: str = option("auto", choices=("auto", "float32", "compute"), affects="nothing")
    """Data type of a Transformer's activations between multiplications by weight matrices. Adapters and the attention
    kernel 'xla' also use this type; the other kernels use dtype. 'compute' means the value of dtype; 'float32' takes
    more memory; 'auto' means 'float32' on a CPU, where bfloat16 activations are slower, and 'compute' on other
    platforms."""
    attention: str = option("auto", choices=("auto", "xla", "blocked", "cudnn", "splash"), affects="nothing")
    """Attention kernel: 'xla' runs anywhere; 'blocked' computes large attention in blocks that fit into a CPU cache;
    'cudnn' needs an NVIDIA GPU and bfloat16; 'splash' needs a TPU; 'auto' selects one."""
    scan_layers: bool = option(True, affects="storage")
    """Stack the layers and scan over them, so that compile time is independent of depth."""
    remat: str = option(
        "none",
        choices=("none", "full", "attention_output", "attention", "dots", "dots_and_attention"),
        affects="nothing",
    )
    """Activations to recompute in the backward pass to save memory. 'none' recomputes none of them, and
    'full' recomputes all. Each of the other choices recomputes all except some: 'attention_output' keeps the outputs of
    attention; 'attention' also keeps the results of the query, key, value and output projections; 'dots' keeps the
    results of all multiplications by parameter matrices; 'dots_and_attention' keeps these results and the outputs of
    attention."""


@dataclass(frozen=True)
class ModelConfig(
    BottleneckSettings,
    WordVectorSettings,
    ConvolutionalSettings,
    RecurrentSettings,
    HeadSettings,
    BlockSettings,
    PositionSettings,
    SizeSettings,
):
    """Settings of the model. If 0 stands for a derived value, the setting's help text says so.

    The base classes are in reverse order, because a dataclass lists the fields of its last base class first.
    """

    lora_rank: int = option(0, minimum=0, parameters=("lora_a", "lora_b"))
    """Rank of the adapters that are trained instead of the linear layers (LoRA, Hu 2021). 0 means no adapters."""
    lora_alpha: float = option(16.0, minimum=0.0, needs=("lora_rank",))
    """Scale adapter outputs by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = option(("query", "value"), parameters=("lora_a", "lora_b"), needs=("lora_rank",))
    """Linear layers that have an adapter. Choose any of query, key, value, out, up, gate, down."""
    ngram: NgramSettings = section(NgramSettings, affects="updates")
