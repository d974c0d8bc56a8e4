"""Options of Marian, M2M-100 and BART's classifier, against `transformers` with random weights."""

import dataclasses

import numpy as np
import pytest

from benchmarks.huggingface_peer import build_peer, peer_weights
from benchmarks.published_models import VOCABULARY, published_logits
from benchmarks.renamed import encoder_decoder_sizes
from lm.config import ModelConfig
from lm.models.heads import Classes
from lm.models.parameters import stack_layers
from tests.huggingface.drawn import as_batch, drawn_params, drawn_rows, output_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MARIAN = ModelConfig(
    family="encoder_decoder",
    vocab_size=40,
    num_layers=2,
    num_encoder_layers=2,
    d_model=24,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    d_ff=32,
    max_length=64,
    positions="sinusoidal",
    norm_position="post",
    embedding_scale=0.0,
    activation="silu",
    output_bias=True,
    scan_layers=False,
)
M2M100 = dataclasses.replace(
    MARIAN,
    norm_position="pre",
    sinusoid_variant="half_minus_one",
    sinusoid_offset=2,
    activation="relu",
    output_bias=False,
)
BART = dataclasses.replace(
    MARIAN,
    positions="learned",
    norm_embeddings=True,
    embedding_scale=1.0,
    activation="gelu",
    output_bias=False,
    shift_decoder=True,
    pooler=True,
)
EOS, PADDING = 2, 1


def pairs(config):
    target = drawn_rows((30, 8, 17), config.vocab_size, seed=1)
    return as_batch(target, source=drawn_rows((9, 40, 23), config.vocab_size))


def assert_same_logits(model, config, params):
    batch = pairs(config)
    real_BL = batch.segments > 0
    expected = published_logits(model, batch)[real_BL]
    assert expected.std() > 0.3
    np.testing.assert_allclose(output_of(config, params, batch)[real_BL], expected, atol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "quick_gelu"])
def test_marian_with_its_activation_and_biases_of_logits(activation):
    config = dataclasses.replace(MARIAN, activation=activation)
    params = drawn_params(config)
    model = build_peer(config, params, VOCABULARY, 64)
    model.final_logits_bias = torch.tensor(params["output_bias"]["bias"])[None]
    assert_same_logits(model, config, params)


def test_m2m100_with_its_sinusoids():
    params = drawn_params(M2M100)
    theirs = transformers.M2M100Config(
        **encoder_decoder_sizes(M2M100), max_position_embeddings=64, pad_token_id=PADDING, bos_token_id=0
    )
    model = transformers.M2M100ForConditionalGeneration(theirs)
    weights = {name: torch.tensor(np.array(value)) for name, value in peer_weights(params).items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and not missing, (missing, unknown)
    assert_same_logits(model.eval(), M2M100, params)


@pytest.mark.parametrize("scan", [False, True])
def test_bart_classifies_by_the_decoder_at_the_last_eos(scan):
    """Also when rows are packed, each text of which ends with EOS."""
    head, lengths = Classes(3, "last"), (30, 8, 17)
    params = drawn_params(BART, head)
    theirs = transformers.BartConfig(
        **encoder_decoder_sizes(BART),
        max_position_embeddings=64,
        pad_token_id=PADDING,
        bos_token_id=0,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        num_labels=3,
    )
    model = transformers.BartForSequenceClassification(theirs)
    weights = peer_weights(params)
    del weights["lm_head.weight"]
    for tower in ("encoder", "decoder"):
        table = params[tower]["position_embedding"]["embedding"]
        weights[f"model.{tower}.embed_positions.weight"] = np.concatenate([np.full_like(table[:2], np.nan), table])
        weights.norm(f"model.{tower}.layernorm_embedding", params[tower]["embedding_norm"])
    weights.linear("classification_head.dense", params["pooler"])
    weights.linear("classification_head.out_proj", params["classifier"])
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in weights.items()}, strict=True)

    rows = drawn_rows(lengths, BART.vocab_size)
    real_BL, ends = rows.segments > 0, np.array(lengths) - 1
    rows.tokens[np.arange(3), ends] = EOS
    tokens, mask = (torch.tensor(x, dtype=torch.int64) for x in (np.where(real_BL, rows.tokens, PADDING), real_BL))
    with torch.inference_mode():
        expected = model.eval()(input_ids=tokens, attention_mask=mask).logits.numpy()

    config = dataclasses.replace(BART, scan_layers=scan)
    params = stack_layers(params) if scan else params
    found = output_of(config, params, as_batch(rows), head)[np.arange(3), ends]
    np.testing.assert_allclose(found, expected, atol=1e-4)

    joined = [np.concatenate([each[row, : lengths[row]] for row in range(3)])[None] for each in vars(rows).values()]
    packed = dataclasses.replace(rows, **dict(zip(vars(rows), joined, strict=True)))
    packed.segments[:] = np.repeat([1, 2, 3], lengths)[None]
    found = output_of(config, params, as_batch(packed), head)[0, np.cumsum(lengths) - 1]
    np.testing.assert_allclose(found, expected, atol=1e-4)
