"""Options of ALBERT, ELECTRA, ModernBERT and DistilBERT, against `transformers` with random weights."""

import dataclasses

import numpy as np
import pytest

from benchmarks.published_encoders import ATTENTION
from benchmarks.renamed import Weights, joined, numbered_layers, single_stack_sizes
from lm.config import ModelConfig
from lm.models.heads import Classes, MaskedTokens
from lm.models.parameters import stack_layers
from tests.huggingface.drawn import as_batch, drawn_params, drawn_rows, output_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BERT = ModelConfig(
    family="encoder",
    vocab_size=40,
    num_layers=3,
    d_model=24,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    d_ff=32,
    max_length=64,
    positions="learned",
    token_types=2,
    norm_position="post",
    norm_embeddings=True,
    norm_epsilon=1e-12,
    head_transform=True,
    output_bias=True,
    scan_layers=False,
)
ALBERT = dataclasses.replace(BERT, embedding_width=10, share_layers=True, activation="gelu_tanh")
ELECTRA = dataclasses.replace(BERT, embedding_width=10)
GELU = {"pooler": True, "pooler_activation": "gelu"}
MODERN = dataclasses.replace(
    BERT,
    num_layers=4,
    positions="rotary",
    token_types=0,
    norm_position="pre",
    first_norm=False,
    activation="geglu",
    use_bias=False,
    window=4,
    global_every=3,
    rotary_theta=1000.0,
    local_rotary_theta=100.0,
    pooler_bias=False,
    pooler_norm=True,
    **GELU,
)
DISTILBERT = dataclasses.replace(BERT, token_types=0, pooler=True, pooler_activation="relu")
LAYER = {"up": "intermediate.dense", "down": "output.dense"}
SPECIAL = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": None}


def embeddings(name, params):
    """Returns the weights of word, position and type embeddings and their norm."""
    weights, prefix = Weights(), f"{name}.embeddings"
    for ours, theirs in {"token": "word", "position": "position", "type": "token_type"}.items():
        if f"{ours}_embedding" in params:
            weights[f"{prefix}.{theirs}_embeddings.weight"] = params[f"{ours}_embedding"]["embedding"]
    weights.norm(f"{prefix}.LayerNorm", params["embedding_norm"])
    return weights


def albert(config, params, kind):
    weights, layer = embeddings("albert", params), params["shared_layer"]
    weights.linear("albert.encoder.embedding_hidden_mapping_in", params["embedding_projection"])
    prefix = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    names = {"query": "query", "key": "key", "value": "value", "out": "dense"}
    weights.linears(f"{prefix}.attention", layer["attention"], names)
    weights.norm(f"{prefix}.attention.LayerNorm", layer["attention_norm"])
    weights.linears(prefix, layer["mlp"], {"up": "ffn", "down": "ffn_output"})
    weights.norm(f"{prefix}.full_layer_layer_norm", layer["mlp_norm"])
    if kind == "MaskedLM":
        weights.linear("predictions.dense", params["head_product"])
        weights.norm("predictions.LayerNorm", params["head_norm"])
        weights["predictions.bias"] = params["output_bias"]["bias"]
    else:
        weights.linear("albert.pooler", params["pooler"])
        weights.linear("classifier", params["classifier"])
    theirs = transformers.AlbertConfig(
        **single_stack_sizes(config), embedding_size=10, type_vocab_size=2, num_labels=3, **SPECIAL
    )
    return getattr(transformers, f"AlbertFor{kind}")(theirs), weights


def electra(config, params, kind):
    weights = embeddings("electra", params)
    weights.linear("electra.embeddings_project", params["embedding_projection"])
    for n, layer in numbered_layers(params):
        prefix = f"electra.encoder.layer.{n}"
        weights.linears(prefix, layer["attention"], ATTENTION)
        weights.norm(f"{prefix}.attention.output.LayerNorm", layer["attention_norm"])
        weights.linears(prefix, layer["mlp"], LAYER)
        weights.norm(f"{prefix}.output.LayerNorm", layer["mlp_norm"])
    if kind == "MaskedLM":
        weights.linear("generator_predictions.dense", params["head_product"])
        weights.norm("generator_predictions.LayerNorm", params["head_norm"])
        weights["generator_lm_head.bias"] = params["output_bias"]["bias"]
    elif kind == "PreTraining":
        weights.linear("discriminator_predictions.dense", params["pooler"])
        weights.linear("discriminator_predictions.dense_prediction", params["classifier"])
    else:
        weights.linear("classifier.dense", params["pooler"])
        weights.linear("classifier.out_proj", params["classifier"])
    theirs = transformers.ElectraConfig(
        **single_stack_sizes(config), embedding_size=10, type_vocab_size=2, num_labels=3, **SPECIAL
    )
    return getattr(transformers, f"ElectraFor{kind}")(theirs), weights


def modernbert(config, params, kind):
    weights = Weights({"model.embeddings.tok_embeddings.weight": params["token_embedding"]["embedding"]})
    weights.norm("model.embeddings.norm", params["embedding_norm"])
    weights.norm("model.final_norm", params["final_norm"])
    for n, layer in numbered_layers(params):
        prefix = f"model.layers.{n}"
        if n:
            weights.norm(f"{prefix}.attn_norm", layer["attention_norm"])
        weights.norm(f"{prefix}.mlp_norm", layer["mlp_norm"])
        weights.linear(f"{prefix}.attn.Wqkv", joined(layer["attention"], "query", "key", "value"))
        weights.linears(f"{prefix}.attn", layer["attention"], {"out": "Wo"})
        weights.linear(f"{prefix}.mlp.Wi", joined(layer["mlp"], "gate", "up"))
        weights.linear(f"{prefix}.mlp.Wo", layer["mlp"]["down"])
    if kind == "MaskedLM":
        weights.linear("head.dense", params["head_product"])
        weights.norm("head.norm", params["head_norm"])
        weights["decoder.bias"] = params["output_bias"]["bias"]
    else:
        weights.linear("head.dense", params["pooler"])
        weights.norm("head.norm", params["pooler_norm"])
        weights.linear("classifier", params["classifier"])
    theirs = transformers.ModernBertConfig(
        **single_stack_sizes(config),
        norm_eps=config.norm_epsilon,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        global_attn_every_n_layers=3,
        local_attention=6,
        classifier_pooling="mean",
        num_labels=3,
        cls_token_id=None,
        sep_token_id=None,
        **SPECIAL,
    )
    return getattr(transformers, f"ModernBertFor{kind}")(theirs), weights


def distilbert(config, params, kind):
    weights = embeddings("distilbert", params)
    for n, layer in numbered_layers(params):
        prefix = f"distilbert.transformer.layer.{n}"
        names = {"query": "q_lin", "key": "k_lin", "value": "v_lin", "out": "out_lin"}
        weights.linears(f"{prefix}.attention", layer["attention"], names)
        weights.norm(f"{prefix}.sa_layer_norm", layer["attention_norm"])
        weights.linears(f"{prefix}.ffn", layer["mlp"], {"up": "lin1", "down": "lin2"})
        weights.norm(f"{prefix}.output_layer_norm", layer["mlp_norm"])
    weights.linear("pre_classifier", params["pooler"])
    weights.linear("classifier", params["classifier"])
    theirs = transformers.DistilBertConfig(
        vocab_size=40, dim=24, hidden_dim=32, n_layers=3, n_heads=4, max_position_embeddings=64, num_labels=3, **SPECIAL
    )
    return getattr(transformers, f"DistilBertFor{kind}")(theirs), weights


CASES = {
    "albert": (albert, "MaskedLM", ALBERT, MaskedTokens()),
    "albert classes": (albert, "SequenceClassification", dataclasses.replace(ALBERT, pooler=True), Classes(3, "first")),
    "electra": (electra, "MaskedLM", ELECTRA, MaskedTokens()),
    "electra classes": (
        electra, "SequenceClassification", dataclasses.replace(ELECTRA, **GELU), Classes(3, "first")
    ),
    "electra discriminator": (electra, "PreTraining", dataclasses.replace(ELECTRA, **GELU), Classes(1, "none")),
    "modernbert": (modernbert, "MaskedLM", MODERN, MaskedTokens()),
    "modernbert classes": (modernbert, "SequenceClassification", MODERN, Classes(3, "mean")),
    "distilbert classes": (distilbert, "SequenceClassification", DISTILBERT, Classes(3, "first")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logits_match_the_published_encoder(name):
    build, kind, config, head = CASES[name]
    params, rows = drawn_params(config, head), drawn_rows((60, 7, 33), config.vocab_size)
    model, weights = build(config, params, kind)
    missing, unknown = model.load_state_dict({k: torch.tensor(np.array(v)) for k, v in weights.items()}, strict=False)
    tied = ("decoder.weight", "decoder.bias", "generator_lm_head.weight", "albert.pooler.weight", "albert.pooler.bias")
    assert not unknown and all(each.endswith(tied) for each in missing), (missing, unknown)
    model.tie_weights()
    real_BL, types = rows.segments > 0, {}
    inputs = {"input_ids": np.where(real_BL, rows.tokens, 1), "attention_mask": real_BL}
    if config.token_types:
        types = {"types": (rows.positions > 3).astype(np.int32)}
        inputs["token_type_ids"] = types["types"]
    with torch.inference_mode():
        expected = model.eval()(**{key: torch.tensor(value, dtype=torch.int64) for key, value in inputs.items()}).logits
    expected = expected.numpy()
    assert expected.std() > 0.1
    for scan in (False, True):
        each = dataclasses.replace(config, scan_layers=scan)
        found = output_of(each, stack_layers(params) if scan else params, as_batch(rows, **types), head)
        if kind == "SequenceClassification":
            np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)
        else:
            np.testing.assert_allclose(found[real_BL], expected.reshape(found.shape)[real_BL], atol=1e-4)
