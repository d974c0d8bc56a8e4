"""The step gives the same numbers on every mesh, with microbatches, stacked layers, remat and packing."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Batch
from lm.config import Config, defaults, source
from lm.data.examples.example import from_pair
from lm.data.packing.prefetch import GlobalBatches
from lm.data.packing.rows import RowLayout
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.models import build_model
from lm.models.parameters import stack_layers, unstack_layers
from lm.objectives.losses import loss_sums
from lm.parallel.mesh import batch_sharding, make_mesh
from lm.tasks import task_of
from lm.training.state import TrainState, abstract_state, initial_state, make_state
from lm.training.step import batch_hash, compile_train_step

ROWS, LENGTH, SOURCE, VOCAB = 16, 12, 10, 32
# Everything that only an encoder-decoder has. The batches are made here, so any of its objectives will do.
TWO_SIDED = {
    "model__family": "encoder_decoder",
    "model__num_encoder_layers": 3,
    "model__positions": "relative",
    "model__relative_buckets": 6,
    "model__relative_max_distance": 8,
    "model__share_embeddings": False,
    "objective__name": "prefix_lm",
    "objective__label_smoothing": 0.1,
    "data__source_length": SOURCE,
}


def config_with(**changes) -> Config:
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    config.data.sequence_length = LENGTH
    config.train.update(batch_size=ROWS, num_steps=10)
    config.optimizer.update(warmup_steps=0, schedule="constant", weight_decay=0.1)
    config.model.update(vocab_size=VOCAB, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=32, init_std=0.2)
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return Config.from_dict(config.to_dict())


def ragged_batch(seed: int = 0) -> Batch:
    """Returns rows of two documents of different lengths, with padding at the end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row in range(ROWS):
        first, second = rng.integers(2, 6), rng.integers(1, 7)
        segments[row, :first], segments[row, first : first + second] = 1, 2
        positions[row, :first], positions[row, first : first + second] = np.arange(first), np.arange(second)
    scored = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    targets = np.where(scored, tokens[:, 1:], 0)
    return Batch(tokens[:, :-1], targets, scored.astype(np.float32), positions[:, :-1], segments[:, :-1])


def ragged_pairs(seed: int = 0) -> Batch:
    """Returns rows of one to three pairs of different lengths on both sides, with padding at the end."""
    rng = np.random.default_rng(seed)

    def side(longest: int) -> np.ndarray:
        return rng.integers(3, VOCAB, rng.integers(1, longest)).astype(np.int32)  # EOS is added

    rows = [
        [(side(SOURCE // count), side(LENGTH // count)) for _ in range(count)] for count in rng.integers(1, 4, ROWS)
    ]
    return RowLayout(LENGTH, SOURCE).lay_out([[from_pair(*pair, SpecialTokens(1, 2)) for pair in row] for row in rows])


def drawn_state(abstract: TrainState) -> TrainState:
    """Returns a state with normal parameters, seeded by their names, with mean 1 for the scales of norms; else zeros.

    This saves the time to compile `make_state`, and avoids the tiny gradients of initial parameters.
    """

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        value = np.zeros(leaf.shape)
        if leaf.dtype == jnp.float32:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            value = rng.normal(float("scale" in name), 0.3, leaf.shape)
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def sgd_gradients(config: Config, mesh_shape: dict, batch: Batch, *, drawn: bool = False) -> tuple[dict, dict]:
    """Returns the metrics and gradients of one compiled step: plain SGD with rate 1 makes them old - new parameters.

    The parameters are the initial ones of the config or, with `drawn`, those of `drawn_state`.
    """
    optimizer = optax.sgd(1.0)
    count = int(np.prod(list(mesh_shape.values())))
    mesh = make_mesh(dataclasses.replace(config.mesh, **mesh_shape), jax.devices()[:count])
    model = build_model(config.model, task_of(config).head(config))
    abstract = abstract_state(config, model, optimizer, mesh)
    state = drawn_state(abstract) if drawn else make_state(config, model, optimizer, abstract, mesh)
    before = jax.tree.map(np.asarray, state.params)
    batches = GlobalBatches(mesh, ROWS)
    step = compile_train_step(config, model, optimizer, abstract, mesh)
    state, metrics = step(state, batches.place(jax.tree.map(lambda x: x[batches.row_ids], batch)))
    grads = jax.tree.map(lambda old, new: old - np.asarray(new), before, state.params)
    return {name: float(value) for name, value in metrics.items()}, grads


def assert_same(one: tuple[dict, dict], two: tuple[dict, dict]) -> None:
    assert one[0]["train/loss"] == pytest.approx(two[0]["train/loss"], abs=1e-5)
    assert one[0]["train/batch_hash"] == two[0]["train/batch_hash"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), one[1], two[1])


ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.fixture(scope="module")
def reference() -> tuple[dict, dict]:
    return sgd_gradients(config_with(), ONE_DEVICE, ragged_batch())


@pytest.mark.parametrize(
    "shape", [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.exhaustive) for shape in ((8, 1, 1), (1, 8, 1)))]
)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(reference, shape):
    mesh_shape = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert_same(sgd_gradients(config_with(), mesh_shape, ragged_batch()), reference)


def test_four_microbatches_give_the_loss_and_gradients_of_one(reference):
    assert_same(sgd_gradients(config_with(train__accumulation=4), ONE_DEVICE, ragged_batch()), reference)
    mesh_shape = {"data": 2, "fsdp": 2, "tensor": 1}
    assert_same(sgd_gradients(config_with(train__accumulation=4), mesh_shape, ragged_batch()), reference)


@pytest.fixture(scope="module")
def pairs_reference() -> tuple[dict, dict]:
    metrics, grads = sgd_gradients(config_with(**TWO_SIDED), ONE_DEVICE, ragged_pairs())
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        # The bias of keys adds the same number to all scores of a query, which a softmax ignores.
        assert "['key']['bias']" in (name := jax.tree_util.keystr(path)) or np.abs(leaf).max() > 1e-4, name
    assert metrics["train/nll"] != pytest.approx(metrics["train/loss"], abs=1e-3), "labels are smoothed"
    return metrics, grads


@pytest.mark.parametrize(
    ("shape", "accumulation"), [((2, 2, 2), 1), pytest.param((2, 1, 1), 4, marks=pytest.mark.exhaustive)]
)
def test_pairs_give_the_same_on_every_mesh_and_in_microbatches(pairs_reference, shape, accumulation):
    mesh_shape = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    config = config_with(train__accumulation=accumulation, **TWO_SIDED)
    assert_same(sgd_gradients(config, mesh_shape, ragged_pairs()), pairs_reference)


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.exhaustive)])
def test_remat_changes_nothing(reference, remat):
    assert_same(sgd_gradients(config_with(model__remat=remat), ONE_DEVICE, ragged_batch()), reference)


@pytest.mark.exhaustive
def test_dropout_is_the_same_on_every_mesh(reference):
    config = config_with(model__dropout=0.3)
    one = sgd_gradients(config, ONE_DEVICE, ragged_batch())
    assert_same(sgd_gradients(config, {"data": 2, "fsdp": 2, "tensor": 2}, ragged_batch()), one)
    assert one[0]["train/loss"] != pytest.approx(reference[0]["train/loss"], abs=1e-3)


def loss_and_gradients(config: Config, params: dict, batch: Batch) -> tuple[float, dict]:
    model = build_model(config.model, task_of(config).head(config))

    def loss(params: dict) -> jax.Array:
        sums = loss_sums(model.apply({"params": params}, batch).logits, batch, config.objective)
        return sums.loss / sums.weight

    return jax.jit(jax.value_and_grad(loss))(params)  # without jit, each operation would be compiled


def random_params(config: Config) -> dict:
    model = build_model(config.model, task_of(config).head(config))
    return jax.jit(lambda key: initial_state(config, model, optax.sgd(1.0), key))(jax.random.key(1)).params


def test_scanned_and_unrolled_layers_agree():
    scanned, unrolled = config_with(model__scan_layers=True), config_with(model__scan_layers=False)
    params = random_params(scanned)
    loss, grads = loss_and_gradients(scanned, params, ragged_batch())
    loss_unrolled, grads_unrolled = loss_and_gradients(unrolled, unstack_layers(params), ragged_batch())
    assert loss == pytest.approx(float(loss_unrolled), abs=1e-5)
    restacked = stack_layers(grads_unrolled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), grads, restacked)


@pytest.mark.parametrize(
    ("positions", "window"),
    [
        ("rotary", 0),
        pytest.param("learned", 3, marks=pytest.mark.exhaustive),
        pytest.param("sinusoidal", 0, marks=pytest.mark.exhaustive),
    ],
)
def test_packed_documents_give_what_each_gives_alone(positions, window):
    config = config_with(model__positions=positions, model__window=window)
    params = random_params(config)
    packed = ragged_batch()
    alone: list[Batch] = []
    for row in range(ROWS):
        for segment in (1, 2):
            indices = np.flatnonzero(packed.segments[row] == segment)
            if len(indices) == 0:
                continue
            row_alone = jax.tree.map(
                lambda x, r=row, i=indices: np.pad(x[r : r + 1, i], ((0, 0), (0, LENGTH - len(i)))), packed
            )
            alone.append(row_alone.replace(segments=(row_alone.segments > 0).astype(np.int32)))
    unpacked = jax.tree.map(lambda *rows: np.concatenate(rows), *alone)
    loss, grads = loss_and_gradients(config, params, packed)
    loss_alone, grads_alone = loss_and_gradients(config, params, unpacked)
    assert loss == pytest.approx(float(loss_alone), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), grads, grads_alone)


def test_bad_step_is_skipped_and_counted():
    config = config_with()
    optimizer = optax.adam(1e-2)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = build_model(config.model, task_of(config).head(config))
    abstract = abstract_state(config, model, optimizer, mesh)
    state = make_state(config, model, optimizer, abstract, mesh)
    step = compile_train_step(config, model, optimizer, abstract, mesh)
    good = jax.device_put(ragged_batch(), batch_sharding(mesh))
    state, _ = step(state, good)
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    broken = good.replace(weights=good.weights * jnp.float32(np.nan))
    state, metrics = step(state, broken)
    after = jax.tree.map(np.asarray, (state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert (int(state.step), int(metrics["train/bad_steps"]), int(metrics["bad_in_row"])) == (2, 1, 1)
    state, metrics = step(state, good)
    assert (int(metrics["train/bad_steps"]), int(metrics["bad_in_row"])) == (1, 0)


def test_batch_hash_differs_between_batches():
    """Changing one value, or swapping two rows, two neighbours, or tokens and targets, changes the hash."""
    batch = ragged_batch()
    batches = [batch, ragged_batch(1), batch.replace(tokens=batch.targets, targets=batch.tokens)]
    for name in ("tokens", "targets"):
        values = getattr(batch, name)
        changed, rows, neighbours = values.copy(), values.copy(), values.copy()
        changed[-1, -1] += 1
        rows[[0, 1]] = rows[[1, 0]]
        neighbours[2, [0, 1]] = neighbours[2, [1, 0]]
        batches += [batch.replace(**{name: each}) for each in (changed, rows, neighbours)]
    assert len({int(batch_hash(each)) for each in batches}) == len(batches)
    large = batch.replace(
        tokens=np.full((ROWS, LENGTH), 2**31 - 1, np.int32), targets=np.zeros((ROWS, LENGTH), np.int32)
    )
    indices = np.arange(ROWS * LENGTH, dtype=np.uint64)
    mixed = indices * 2654435761 % 2**32
    assert int(batch_hash(large)) == int(
        np.sum((mixed ^ (mixed >> np.uint64(15)) | np.uint64(1)) * (2**31 - 1)) % 2**32
    )


def test_parameters_stay_float32_and_change_with_bfloat16_compute():
    config = config_with(model__dtype="bfloat16", model__activation_dtype="compute")
    _, grads = sgd_gradients(config, ONE_DEVICE, ragged_batch())
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == np.float32
        assert np.abs(leaf).max() > 0
    model = build_model(config.model, task_of(config).head(config))
    params = jax.eval_shape(lambda: random_params(config))
    assert jax.eval_shape(lambda p: model.apply({"params": p}, ragged_batch()).logits, params).dtype == jnp.float32


def test_compiled_step_contains_the_sharding_constraints():
    """The old `with mesh:` would ignore them silently, and the program would contain no collective."""
    config = config_with()
    optimizer = optax.adam(1e-2)
    mesh = make_mesh(dataclasses.replace(config.mesh, data=2, fsdp=2, tensor=2))
    model = build_model(config.model, task_of(config).head(config))
    abstract = abstract_state(config, model, optimizer, mesh)
    text = compile_train_step(config, model, optimizer, abstract, mesh).as_text()
    assert "all-reduce" in text and "all-gather" in text
    kernel = abstract.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    moment = abstract.opt_state[0].mu["layers"]["mlp"]["up"]["kernel"]
    assert moment.sharding == kernel.sharding


def test_a_state_that_is_not_carried_is_no_part_of_the_tree():
    """Otherwise, checkpoints written before the field existed could not be restored."""
    state = TrainState(*(np.zeros(()) for _ in range(5)), bad_in_row=np.zeros(()))
    names = ["step", "params", "opt_state", "ema", "bad_steps", "bad_in_row"]
    for given, expected in ((state, names), (dataclasses.replace(state, carried=np.ones(2)), [*names, "carried"])):
        paths = jax.tree_util.tree_leaves_with_path(given, is_leaf=lambda x: x is None)
        assert [jax.tree_util.keystr(path, simple=True) for path, _ in paths] == expected
