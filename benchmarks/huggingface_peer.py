"""Models of Hugging Face's `transformers`, in PyTorch, that compute the same function as our models.

The peers get our weights. The peer of a decoder is GPT-2. For encoder-decoders, `MarianMTModel` is used for models with
norms after the residual sums (Vaswani 2017), and `PegasusForConditionalGeneration` for models with norms before the
sublayers.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.renamed import ACTIVATIONS, Weights, encoder_decoder_sizes, numbered_layers
from lm.config import ModelConfig
from lm.decoding.beam import BeamSettings
from lm.decoding.inputs import pad_rows
from lm.decoding.sampling import Vocabulary, choosable
from lm.errors import UserError
from lm.models.parameters import unstack_layers

# Settings fixed by both classes; the sizes and the position of the norms are free.
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
    "attention_scale": 0.0,
    "norm_embeddings": False,
    "window": 0,
    "dtype": "float32",
}
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 10}  # the settings with which all systems sample
# Our module names -> theirs.
NORMS = {
    "attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
}
ATTENTIONS = {"attention": "self_attn", "cross_attention": "encoder_attn"}
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
MLP = {"up": "fc1", "down": "fc2"}


def frameworks() -> tuple[ModuleType, ModuleType]:
    """Returns the modules (torch, transformers). Raises UserError unless both are installed."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"{error.name or error} is not installed; the comparison needs PyTorch and transformers: "
            "pip install -r requirements-benchmarks.txt (preferably in a separate environment)."
        ) from None
    transformers.logging.set_verbosity_error()
    return torch, transformers


def build_peer(config: ModelConfig, params: dict[str, Any], vocabulary: Vocabulary, longest_source: int) -> Any:
    """Returns the peer: a float32 model with our weights, in evaluation mode. Raises UserError if there is no peer."""
    torch, transformers = frameworks()
    wrong = [f"{name}={getattr(config, name)!r}" for name, value in FIXED.items() if getattr(config, name) != value]
    if config.num_kv_heads != config.num_heads or config.head_dim * config.num_heads != config.d_model:
        wrong.append("heads that do not split d_model evenly")
    if config.activation not in ACTIVATIONS:
        wrong.append(f"activation={config.activation!r}")
    if wrong:
        raise UserError(f"there is no peer with these settings: {', '.join(wrong)} (see {__name__}.FIXED).")
    pre = config.norm_position == "pre"
    kind = transformers.PegasusConfig if pre else transformers.MarianConfig
    peer_config = kind(
        **encoder_decoder_sizes(config),
        max_position_embeddings=max(config.max_length, longest_source),
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


def peer_weights(params: dict[str, Any]) -> Weights:
    """Returns our parameters under the names that Marian, Pegasus and BART share."""
    params = unstack_layers(params)
    embedding_VD = np.asarray(params["token_embedding"]["embedding"])
    weights = Weights({"model.shared.weight": embedding_VD, "lm_head.weight": embedding_VD})
    for tower in ("encoder", "decoder"):
        weights[f"model.{tower}.embed_tokens.weight"] = embedding_VD
        if "final_norm" in params[tower]:
            weights.norm(f"model.{tower}.layer_norm", params[tower]["final_norm"])
        for n, layer in numbered_layers(params[tower]):
            prefix = f"model.{tower}.layers.{n}"
            weights.linears(prefix, layer["mlp"], MLP)
            for ours, theirs in NORMS.items():
                if ours in layer:
                    weights.norm(f"{prefix}.{theirs}", layer[ours])
            for ours, theirs in ATTENTIONS.items():
                if ours in layer:
                    weights.linears(f"{prefix}.{theirs}", layer[ours], ATTENTION)
    return weights


def pad(sources: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Any]:
    """Returns int64 (B, L) tokens, padded to the longest row, and the mask of the tokens."""
    torch, _ = frameworks()
    tokens_BL, mask_BL = pad_rows(sources, (len(sources), max(map(len, sources))), pad_id)
    return torch.tensor(tokens_BL, dtype=torch.int64), torch.tensor(mask_BL, dtype=torch.int64)


def peer_logits(
    peer: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], vocabulary: Vocabulary
) -> np.ndarray:
    """Returns float32 (B, L, V) logits; all targets must start with BOS and have the same length."""
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
    """Returns the new tokens of each source, including the EOS token; suppresses tokens that ours never chooses."""
    assert settings.penalty == "power" and settings.num_hypotheses == 1 and not settings.no_repeat_ngram
    beams = {"length_penalty": settings.length_penalty, "early_stopping": early_stopping}
    chosen = {"do_sample": False, "num_beams": settings.num_beams, **(beams if settings.num_beams > 1 else {})}
    return _outputs(peer, sources, vocabulary, settings.max_new_tokens, chosen)


def peer_sample(
    peer: Any, vocabulary: Vocabulary, max_new_tokens: int, sources: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Returns new tokens of each source, sampled with the settings `SAMPLED`."""
    return _outputs(peer, sources, vocabulary, max_new_tokens, SAMPLED)


def _outputs(
    peer: Any, sources: Sequence[Sequence[int]], vocabulary: Vocabulary, max_new_tokens: int, settings: dict[str, Any]
) -> list[list[int]]:
    torch, _ = frameworks()
    tokens_BL, mask_BL = pad(sources, vocabulary.pad_id)
    with torch.inference_mode():
        made_BT = peer.generate(
            input_ids=tokens_BL,
            attention_mask=mask_BL,
            max_new_tokens=max_new_tokens,
            suppress_tokens=_suppressed(peer, vocabulary),
            **settings,
        )
    rows, eos_id = [row[1:] for row in made_BT.tolist()], vocabulary.eos_id  # without bos
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in rows]


def _suppressed(peer: Any, vocabulary: Vocabulary) -> list[int]:
    return np.flatnonzero(~np.asarray(choosable(vocabulary, peer.config.vocab_size))).tolist()


def build_decoder_peer(config: ModelConfig, params: dict[str, Any], vocabulary: Vocabulary) -> Any:
    """Returns a float32 GPT-2 with the weights of a decoder with the same structure (preset gpt2_124m)."""
    torch, transformers = frameworks()
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_length,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            layer_norm_epsilon=config.norm_epsilon,
            bos_token_id=vocabulary.bos_id,
            eos_token_id=None,
            pad_token_id=vocabulary.pad_id,
        )
    )
    params = unstack_layers(params)
    embedding_VD = np.asarray(params["token_embedding"]["embedding"])
    weights = {"transformer.wte.weight": embedding_VD, "lm_head.weight": embedding_VD}
    weights["transformer.wpe.weight"] = np.asarray(params["position_embedding"]["embedding"])

    def add(name: str, layers: Sequence[dict[str, Any]]) -> None:
        """Adds linear layers side by side, as one matrix (inputs, outputs)."""
        biases = [np.asarray(each["bias"]).reshape(-1) for each in layers]
        kernels = [np.asarray(each["kernel"]).reshape(-1, len(bias)) for each, bias in zip(layers, biases, strict=True)]
        weights[f"{name}.weight"] = np.concatenate(kernels, axis=1)
        weights[f"{name}.bias"] = np.concatenate(biases)

    def norm(name: str, each: dict[str, Any]) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.asarray(each["scale"]), np.asarray(each["bias"])

    for n, layer in numbered_layers(params):
        prefix = f"transformer.h.{n}"
        norm(f"{prefix}.ln_1", layer["attention_norm"])
        norm(f"{prefix}.ln_2", layer["mlp_norm"])
        add(f"{prefix}.attn.c_attn", [layer["attention"][name] for name in ("query", "key", "value")])
        add(f"{prefix}.attn.c_proj", [layer["attention"]["out"]])
        add(f"{prefix}.mlp.c_fc", [layer["mlp"]["up"]])
        add(f"{prefix}.mlp.c_proj", [layer["mlp"]["down"]])
    norm("transformer.ln_f", params["final_norm"])
    missing, unknown = peer.load_state_dict({name: torch.tensor(each) for name, each in weights.items()}, strict=False)
    assert not unknown and not missing, (missing, unknown)
    return peer.eval()


def peer_continuations(
    peer: Any,
    prompts: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    new_tokens: int,
    settings: dict[str, Any] | None = None,
) -> list[list[int]]:
    """Returns `new_tokens` tokens that continue each prompt. Prompts are padded on the left."""
    torch, _ = frameworks()
    longest = max(map(len, prompts))
    padded = [[vocabulary.pad_id] * (longest - len(each)) + list(each) for each in prompts]
    mask = [[0] * (longest - len(each)) + [1] * len(each) for each in prompts]
    with torch.inference_mode():
        made_BT = peer.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            max_new_tokens=new_tokens,
            suppress_tokens=_suppressed(peer, vocabulary),
            **(settings or SAMPLED),
        )
    return made_BT[:, longest:].tolist()
