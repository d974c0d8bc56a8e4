"""The gradients of the loss with respect to every tensor equal those of `transformers`, in layers that are not scanned.

Our loss is that of the task, theirs is computed from their logits. The tensors are compared in our layout, into which
the names of the family map theirs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from flax.traverse_util import flatten_dict

from lm.models import build_model
from lm.models.parameters import stack_layers, unstack_layers
from lm.tasks import task_of
from tests.huggingface.models import HEADLESS, MODELS, each_model
from tests.huggingface.peers import peer, their_inputs
from tests.huggingface.rows import batch_of, label_places, read_values, whole_model

TOLERANCE = 1e-4  # of a tensor's largest gradient
# Some gradients are zero: a bias of keys adds one number to all scores of a query, and scores of answers are normalised
# over tokens, so that adding a number to all of them has no effect. What both compute for such a tensor are rounding
# errors, at most this share of the model's largest gradient.
ROUNDING = 1e-6
SPAN = 3  # an answer begins at the first token of a text and ends at this one


def labels_of(published):
    """Returns a batch with random labels for the objective, and the labels of the real tokens or texts, in order."""
    config = published.config
    batch, draw = batch_of(published), np.random.default_rng(5)
    real = np.asarray(batch.segments) > 0
    weights, targets = np.zeros(real.shape, np.float32), np.zeros(real.shape, np.int32)
    places = np.argwhere(real)
    if config.objective.name in ("classification", "regression", "span_qa"):
        places = places[label_places(config)]
    at = tuple(places.T)
    classes = len(config.data.labels) or config.model.vocab_size
    labels = draw.integers(0, classes, len(places))
    if config.objective.name == "regression":
        targets, labels = targets.astype(np.float32), draw.normal(size=len(places)).astype(np.float32)
    if config.objective.name == "span_qa":
        targets[at], labels = 1, np.zeros(len(places), np.int64)
        at = (at[0], at[1] + SPAN)
        targets[at] = 2
        weights[real] = 1
    else:
        targets[at], weights[at] = labels, 1
    return dataclasses.replace(batch, targets=jnp.asarray(targets), weights=jnp.asarray(weights)), labels


def our_gradients(published, params, batch):
    """Returns (loss, values, gradients), computed in unrolled layers."""
    config = dataclasses.replace(published.config.model, scan_layers=False)
    model, task = build_model(config, whole_model(published).head, "cpu"), task_of(published.config)

    def compute(params):
        found = model.apply({"params": params}, batch)
        sums = task.loss(found, batch, published.config.objective)
        pairs = sums.pair_nll / jnp.maximum(sums.pairs, 1.0)
        return sums.loss / task.total_weight(batch) + pairs, found

    (loss, found), gradients = jax.jit(jax.value_and_grad(compute, has_aux=True))(unstack_layers(params))
    return float(loss), read_values(published, found, batch.segments), stack_layers(gradients)


def their_gradients(model, published, labels):
    """Returns (loss, logits by name, gradients by the names of tensors)."""
    inputs, real = their_inputs(model)
    model.zero_grad()
    found, objective = model(**inputs), published.config.objective
    labels = torch.tensor(labels)
    entropy = torch.nn.functional.cross_entropy
    if objective.name in ("classification", "regression"):
        values = {"logits": found.logits}
        each = found.logits[:, 0] - labels
        loss = each.square().mean() if objective.name == "regression" else entropy(found.logits, labels)
    elif objective.name == "span_qa":
        sides = {
            name: found[name].masked_fill(~torch.tensor(real), -torch.inf) for name in ("start_logits", "end_logits")
        }
        values = {name: found[name][torch.tensor(real)] for name in sides}
        loss = sum(entropy(each, labels + SPAN * (name == "end_logits")) for name, each in sides.items()) / 2
    else:
        name = "prediction_logits" if objective.next_sentence else "logits"
        values = {name: found[name][torch.tensor(real)]}
        loss = entropy(values[name], labels)
        if objective.next_sentence:  # the label of a pair is the target at its first token, at most 1
            values["seq_relationship_logits"] = found.seq_relationship_logits
            first = labels[torch.tensor(label_places(published.config))].clamp(max=1)
            loss = loss + entropy(found.seq_relationship_logits, first)
    loss.backward()
    named = model.named_parameters(remove_duplicate=False)
    return loss.item(), values, {name: each.grad for name, each in named}


@each_model([name for name in MODELS if name not in HEADLESS])
def test_gradients_match(name):
    model, published, params = peer(name)
    batch, labels = labels_of(published)
    with jax.default_matmul_precision("highest"):
        loss, values, gradients = our_gradients(published, params, batch)
    expected_loss, expected_values, expected = their_gradients(model, published, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and loss > 0.1
    for key, each in values.items():
        np.testing.assert_allclose(each, expected_values[key].detach().numpy(), rtol=0, atol=1e-4, err_msg=key)
    leaves, compared = flatten_dict(gradients), 0
    largest = max(float(each.abs().max()) for each in expected.values() if each is not None)
    for entry in published.entries:
        tensor = published.match.names[entry.name][0]
        if tensor not in expected:
            assert tensor == "final_logits_bias"  # a buffer there, which is not trained
            continue
        theirs = expected[tensor].numpy()
        unused = entry.unused(theirs)
        assert unused is None or not unused.any(), tensor
        for slot, part in zip(entry.slots, entry.split(theirs), strict=True):
            ours = np.asarray(leaves[slot.path] if slot.layer is None else leaves[slot.path][slot.layer])
            error, size = np.abs(ours - part).max(), np.abs(part).max()
            is_zero = size < ROUNDING * largest
            assert error <= (ROUNDING * largest if is_zero else TOLERANCE * size), (tensor, slot.path, error)
            compared += 1
    assert compared >= len(expected) // 2
