"""The PyTorch model of Hugging Face's `transformers` that computes what an encoder-decoder of ours computes.

It has our very weights: `MarianMTModel` for norms after the residual sums (Vaswani 2017), and
`PegasusForConditionalGeneration` for norms before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.decoding.beam import BeamSettings
from lm.decoding.inputs import Vocabulary, choosable
from lm.errors import UserError
from lm.models.stack import LAYER_PREFIX, unstack_layers

# What both classes can only be; the sizes and the place of the norms are free.
FIXED = {
    "family": "encoder_decoder",
    "positions": "sinusoidal",
    "norm": "layernorm",
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "share_embeddings": True,
    "source_vocab_size": 0,
    "tie_embeddings": True,
    "scale_logits": False,
    "scale_attention": True,
    "norm_embeddings": False,
    "window": 0,
    "dtype": "float32",
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
# Our name of a part -> theirs. The names of attention's four products and of the MLP's two:
NORMS = {
    "attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
}
ATTENTIONS = {"attention": "self_attn", "cross_attention": "encoder_attn"}
PRODUCTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
MLP = {"up": "fc1", "down": "fc2"}


def frameworks() -> tuple[ModuleType, ModuleType]:
    """(torch, transformers). Raises UserError if they are not installed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"{error.name or error} is not installed; the comparison needs PyTorch and transformers: "
            "pip install -r requirements-benchmarks.txt (best in an environment of its own)."
        ) from None
    transformers.logging.set_verbosity_error()
    return torch, transformers


def build_peer(config: ModelConfig, params: dict[str, Any], vocabulary: Vocabulary, longest_source: int) -> Any:
    """Their model with our weights, float32, in evaluation mode. Raises UserError for a shape that it cannot have."""
    torch, transformers = frameworks()
    wrong = [f"{name}={getattr(config, name)!r}" for name, value in FIXED.items() if getattr(config, name) != value]
    if config.num_kv_heads != config.num_heads or config.head_dim * config.num_heads != config.d_model:
        wrong.append("heads that do not split d_model evenly")
    if config.activation not in ACTIVATIONS:
        wrong.append(f"activation={config.activation!r}")
    if wrong:
        raise UserError(f"there is no such model to compare with: {', '.join(wrong)} (see {__name__}.FIXED).")
    pre = config.norm_position == "pre"
    kind = transformers.PegasusConfig if pre else transformers.MarianConfig
    peer_config = kind(
        vocab_size=config.vocab_size,
        max_position_embeddings=max(config.max_length, longest_source),
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_layers,
        encoder_attention_heads=config.num_heads,
        decoder_attention_heads=config.num_heads,
        encoder_ffn_dim=config.d_ff,
        decoder_ffn_dim=config.d_ff,
        d_model=config.d_model,
        activation_function=ACTIVATIONS[config.activation],
        scale_embedding=config.scale_embeddings,
        pad_token_id=vocabulary.pad_id,
        eos_token_id=vocabulary.eos_id,
        decoder_start_token_id=vocabulary.bos_id,
        forced_eos_token_id=None,
    )
    peer = (transformers.PegasusForConditionalGeneration if pre else transformers.MarianMTModel)(peer_config)
    weights = {name: torch.tensor(value) for name, value in peer_weights(params).items()}
    missing, unknown = peer.load_state_dict(weights, strict=False)
    computed = [name for name in missing if name.endswith(("embed_positions.weight", "final_logits_bias"))]
    assert not unknown and len(computed) == len(missing), (missing, unknown)
    return peer.eval()


def peer_weights(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters under their names. A matrix is (in, out) here, heads apart, and (out, in) there."""
    params = unstack_layers(params)
    embedding_VD = np.asarray(params["token_embedding"]["embedding"])
    named = {"model.shared.weight": embedding_VD, "lm_head.weight": embedding_VD}

    def add(name: str, part: dict[str, Any], inputs: int = 0) -> None:
        """A norm, or a product with so many dimensions of inputs."""
        named[f"{name}.bias"] = np.asarray(part["bias"]).reshape(-1)
        if not inputs:
            named[f"{name}.weight"] = np.asarray(part["scale"])
            return
        kernel = np.asarray(part["kernel"])
        named[f"{name}.weight"] = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1).T

    for tower in ("encoder", "decoder"):
        named[f"model.{tower}.embed_tokens.weight"] = embedding_VD
        for place, layer in params[tower].items():
            if place == "final_norm":
                add(f"model.{tower}.layer_norm", layer)
                continue
            prefix = f"model.{tower}.layers.{place.removeprefix(LAYER_PREFIX)}"
            for ours, part in layer.items():
                if ours in NORMS:
                    add(f"{prefix}.{NORMS[ours]}", part)
                elif ours == "mlp":
                    for name, product in part.items():
                        add(f"{prefix}.{MLP[name]}", product, inputs=1)
                else:
                    for name, product in part.items():
                        add(f"{prefix}.{ATTENTIONS[ours]}.{PRODUCTS[name]}", product, 2 if name == "out" else 1)
    return named


def pad(sources: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Any]:
    """int64 (B, L) tokens and their mask, padded to the longest."""
    torch, _ = frameworks()
    length = max(len(source) for source in sources)
    tokens_BL = torch.full((len(sources), length), pad_id)
    mask_BL = torch.zeros((len(sources), length), dtype=torch.int64)
    for row, source in enumerate(sources):
        tokens_BL[row, : len(source)] = torch.tensor(source)
        mask_BL[row, : len(source)] = 1
    return tokens_BL, mask_BL


def peer_logits(
    peer: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], vocabulary: Vocabulary
) -> np.ndarray:
    """float32 (B, L, V) of targets that begin with bos and are all of one length."""
    torch, _ = frameworks()
    tokens_BL, mask_BL = pad(sources, vocabulary.pad_id)
    with torch.inference_mode():
        return peer(input_ids=tokens_BL, attention_mask=mask_BL, decoder_input_ids=torch.tensor(targets)).logits.numpy()


def peer_search(
    peer: Any,
    sources: Sequence[Sequence[int]],
    settings: BeamSettings,
    vocabulary: Vocabulary,
    early_stopping: bool | str = False,
) -> list[list[int]]:
    """New tokens of each source, end token included, by `generate`, with the tokens that we never choose suppressed."""
    torch, _ = frameworks()
    assert settings.penalty == "power" and settings.num_hypotheses == 1 and not settings.no_repeat_ngram
    tokens_BL, mask_BL = pad(sources, vocabulary.pad_id)
    beams = {"length_penalty": settings.length_penalty, "early_stopping": early_stopping}
    with torch.inference_mode():
        made_BT = peer.generate(
            input_ids=tokens_BL,
            attention_mask=mask_BL,
            do_sample=False,
            num_beams=settings.num_beams,
            max_new_tokens=settings.max_new_tokens,
            suppress_tokens=np.flatnonzero(~np.asarray(choosable(vocabulary, peer.config.vocab_size))).tolist(),
            **(beams if settings.num_beams > 1 else {}),
        )
    return [up_to_end(row[1:], vocabulary.eos_id) for row in made_BT.tolist()]  # without bos


def up_to_end(tokens: list[int], eos_id: int) -> list[int]:
    return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens
