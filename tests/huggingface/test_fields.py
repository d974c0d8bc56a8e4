"""Every field of config.json is consumed, neutral or refused by name.

Each field of each family is changed. Where the values of `transformers` change, ours change alike, or the import is
refused with the name of the field; where ours would change, so do those of `transformers`.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


from lm.errors import UserError
from lm.huggingface.importing import load_params
from lm.huggingface.recognising import recognise
from lm.models import build_model
from lm.models.parameters import unstack_layers
from tests.huggingface.models import MODELS, each_model
from tests.huggingface.peers import build, folder_of, stored, their_outputs
from tests.huggingface.rows import MemoryFolder, batch_of, read_values, whole_model

NAMES = """
    gpt2 gemma3 t5 bert llama mistral qwen2 qwen3 gemma gemma2 phi3 olmo2 olmo3 smollm3 mt5 bart mbart pegasus marian
    m2m_100 roberta xlm_roberta distilbert albert electra modernbert bert_classes modernbert_classes
""".split()
WORDS = {
    "gelu": ["relu", "gelu_new", "silu", "mish"],
    "gelu_new": ["relu", "gelu", "gelu_10"],
    "gelu_pytorch_tanh": ["gelu", "silu", "relu2"],
    "silu": ["gelu", "relu", "gelu_pytorch_tanh"],
    "swish": ["relu", "quick_gelu"],
    "relu": ["gelu", "silu", "gated-gelu"],
    "gated-gelu": ["gated-silu", "gated-relu"],
    "cls": ["mean"],
    "mean": ["cls"],
}
ROPES = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 2.0, "mscale_all_dim": 0.5},
]
# Not changed: the names of another class or family, the number and names of labels (see test_spellings.py), and
# bookkeeping. All other fields that the class of a config writes are changed.
SKIPPED = {"architectures", "model_type", "transformers_version", "id2label", "label2id", "num_labels", "dtype"}

# Lists with one element for each layer, which the class of a config makes anew if they are absent.
FOLLOWING = {"num_hidden_layers": ("layer_types", "no_rope_layers")}
# No other value works there: outputs would be tuples, encoders have no cross-attention, and these names are not used.
IMPOSSIBLE = {"return_dict", "add_cross_attention", "summary_activation"}


def changes(name, value, config):
    """Returns other values of a field."""
    if name == "rope_parameters":
        if "full_attention" in value:
            theta = {"rope_theta": 7.0}
            nested = [{**value, kind: {**value[kind], **theta}} for kind in value]
            return nested + [{**value, "full_attention": {**value["full_attention"], **rope}} for rope in ROPES[:1]]
        return [{"rope_theta": 7.0, "rope_type": "default"}, *({**value, **rope} for rope in ROPES)]
    if name == "layer_types":
        other = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
        return [[other[each] for each in value], [other[value[0]], *value[1:]], value[::-1]]
    if name == "no_rope_layers":
        return [[1 - each for each in value], [1] * len(value), [0, *value[1:]]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value or 2]  # widths must remain multiples of the number of heads
    if isinstance(value, float):
        return [value * 3 + 0.25]
    if isinstance(value, str):
        return WORDS.get(value, ["other"])
    if value is None:
        return [True, 2, 0.5]
    return []


def variant(kind, values):
    """Returns a model of `transformers` with these fields, or None if its class refuses them."""
    cls = getattr(transformers, kind)
    try:
        config = cls.config_class(**copy.deepcopy(values))
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        return cls(config).eval()
    except Exception:
        return None


def our_logits(published, params):
    """Returns the values of `their_logits`, computed without compiling the whole."""
    config = dataclasses.replace(published.config.model, scan_layers=False)
    model, batch = build_model(config, whole_model(published).head, "cpu"), batch_of(published)
    params = jax.tree.map(jnp.asarray, unstack_layers(jax.tree.map(np.asarray, params)))  # NumPy slices are views
    found = model.apply({"params": params}, jax.tree.map(jnp.asarray, batch))
    return read_values(published, found, batch.segments)["logits"]


def their_logits(model):
    return their_outputs(model)[0]["logits"]


def check_change(name, kind, field, value, base, state, before):
    """Returns how a changed field is treated. `before` holds the values and settings without the change."""
    values = {key: each for key, each in base.items() if key not in FOLLOWING.get(field, ())} | {field: value}
    model = variant(kind, values)
    if model is None:
        return "impossible"
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if all(key in state and tuple(state[key].shape) == tuple(shape) for key, shape in shapes.items()):
        model.load_state_dict({key: torch.tensor(state[key]) for key in shapes})
    try:
        theirs = their_logits(model)
    except Exception:
        theirs = None
    changed = theirs is None or theirs.shape != before[0].shape or not np.allclose(theirs, before[0], atol=1e-5)
    changed |= stored(model).keys() != before[2]
    folder = MemoryFolder({**folder_of(model).config, field: value}, stored(model))
    try:
        published = recognise(folder)
    except UserError as error:
        assert field in str(error) or any(part in str(error) for part in ("tensor", "config.model", "config.data")), (
            error
        )
        return "refused"
    if not changed and published.config.model == before[1]:
        return "neutral"
    if theirs is None:
        return "impossible"
    params = load_params(folder, published)
    ours = our_logits(published, params)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0, err_msg=f"{field}={value!r}")
    return "consumed" if changed else "neutral"


@each_model(NAMES, quick=NAMES[:4])
def test_every_field_is_consumed_neutral_or_refused(name):
    kind, settings = MODELS[name]
    with jax.default_matmul_precision("highest"):
        model = build(kind, settings)
        skipped = {"id2label", "label2id", "dtype", "torch_dtype"}
        base = {key: each for key, each in model.config.to_dict().items() if key not in skipped}
        base["num_labels"] = len(model.config.id2label)
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        before = their_logits(model), recognise(folder_of(model)).config.model, stored(model).keys()
        found = {}
        for field in sorted(base.keys() - SKIPPED):
            others = changes(field, base[field], model.config)
            assert others, field
            for value in others:
                found.setdefault(check_change(name, kind, field, value, base, state, before), set()).add(field)
    print(name, {verdict: sorted(fields) for verdict, fields in found.items()})
    tried = set().union(*(fields for verdict, fields in found.items() if verdict != "impossible"))
    assert tried | IMPOSSIBLE >= base.keys() - SKIPPED
    assert len(found.get("consumed", ())) >= 3 and len(found.get("neutral", ())) >= 10
