"""What decays, clips, is factored, and that stacking layers changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lm.config import ModelConfig, OptimizerConfig
from lm.models.transformer import build_model, initial_params
from lm.training.optimizer import (
    MUON_UPDATE_RMS,
    decay_table,
    decayed,
    global_norm,
    make_optimizer,
    matrix_axes,
    scale_by_factored_rms,
)

NAMES = ["adamw", "adafactor", "lion", "muon", "sgd"]
N = 2
SMALL = {"N": N, "D": 8, "H": 4, "G": 2, "K": 6, "F": 20, "V": 24, "L": 10}
LARGE = {"N": N, "D": 128, "H": 4, "G": 2, "K": 64, "F": 160, "V": 144, "L": 136}  # large enough to be factored

BLOCK = {
    "attention/query/kernel": "DHK",
    "attention/query/bias": "HK",
    "attention/key/kernel": "DGK",
    "attention/value/kernel": "DGK",
    "attention/out/kernel": "HKD",
    "attention/out/bias": "D",
    "mlp/up/kernel": "DF",
    "mlp/up/bias": "F",
    "mlp/gate/kernel": "DF",
    "mlp/down/kernel": "FD",
    "mlp/down/bias": "D",
    "attention_norm/scale": "D",
    "attention_norm/bias": "D",
}
TOP = {
    "token_embedding/embedding": "VD",
    "position_embedding/embedding": "LD",
    "final_norm/scale": "D",
    "output/kernel": "DV",
}
# One of each kind, for tests that compile.
FEW = ("query/kernel", "query/bias", "out/kernel", "up/kernel", "attention_norm/scale", "embedding", "output/kernel")
LOGICAL = {"N": "layers", "D": "embed", "H": "heads", "G": "kv_heads", "K": "head", "F": "mlp", "V": "vocab", "L": None}
RULES = (("embed", "fsdp"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"))
RULES += (("layers", None), ("head", None))


def letters(stacked: bool, few: bool = False) -> dict[str, str]:
    """The shape of each parameter."""
    layers = [("layers", "N")] if stacked else [(f"layer_{i}", "") for i in range(N)]
    block = {f"{layer}/{name}": axis + shape for layer, axis in layers for name, shape in BLOCK.items()}
    return {name: shape for name, shape in (TOP | block).items() if name.endswith(FEW) or not few}


def nest(flat: dict) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flatten(tree) -> dict:
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def zeros_tree(sizes: dict[str, int], stacked: bool) -> dict:
    return nest({path: np.zeros([sizes[x] for x in shape], np.float32) for path, shape in letters(stacked).items()})


def random_tree(seed: int, sizes: dict[str, int]) -> dict:
    """Float32 normals in a stacked tree with one parameter of each kind."""
    rng = np.random.default_rng(seed)
    draw = {path: rng.normal(size=[sizes[x] for x in shape]) for path, shape in letters(True, few=True).items()}
    return nest({path: leaf.astype(np.float32) for path, leaf in draw.items()})


def random_gradients(name: str, sizes: dict[str, int], steps: int) -> list[dict]:
    gradients = [random_tree(1 + step, sizes) for step in range(steps)]
    if name == "lion":
        # Its sign jumps where momentum and gradient cancel; those of proportional gradients never do.
        return [jax.tree.map(lambda g, i=i: g * (1 + i / 2), gradients[0]) for i in range(steps)]
    return gradients


def two_sided(seed: int | None = None) -> dict:
    """Shapes of an encoder-decoder's parameters or, with a seed, normals of these shapes."""
    sizes = {"d_model": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "d_ff": 20, "max_length": 10}
    model = ModelConfig(
        family="encoder_decoder",
        vocab_size=24,
        source_vocab_size=28,
        share_embeddings=False,
        tie_embeddings=False,
        num_layers=N,
        num_encoder_layers=1,
        positions="relative",
        **sizes,
    )
    shapes = nn.unbox(jax.eval_shape(lambda key: initial_params(build_model(model), key), jax.random.key(0)))
    if seed is None:
        return shapes
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def unroll(tree: dict) -> dict:
    top = {name: leaf for name, leaf in tree.items() if name != "layers"}
    return top | {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(N)}


def boxed(tree: dict) -> dict:
    names = {path: tuple(LOGICAL[x] for x in shape) for path, shape in letters("layers" in tree).items()}
    return nest({path: nn.LogicallyPartitioned(leaf, names[path]) for path, leaf in flatten(tree).items()})


def config(name: str, **changes) -> OptimizerConfig:
    base = OptimizerConfig(name=name, schedule="constant", learning_rate=0.1, warmup_steps=0, clip_norm=1.0)
    return dataclasses.replace(base, **changes)


@functools.cache
def compiled(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Shared, because compiling is what these tests spend their time on."""
    optimizer = make_optimizer(settings, num_steps=100)
    return optax.GradientTransformation(jax.jit(optimizer.init), jax.jit(optimizer.update))


def run_steps(settings: OptimizerConfig, params: dict, gradients: list[dict]) -> list[dict]:
    """The update of each step; parameters move by a hundredth of it."""
    optimizer, updates = compiled(settings), []
    state = optimizer.init(params)
    for grads in gradients:
        step, state = optimizer.update(grads, state, params)
        updates.append(jax.device_get(step))
        params = jax.tree.map(lambda p, u: p + np.float32(0.01) * u, params, updates[-1])
    return updates


def test_what_decays_unrolled():
    kernels = ["query", "key", "value", "out"]
    expected = {f"layer_{i}/attention/{name}/kernel" for i in range(N) for name in kernels}
    expected |= {f"layer_{i}/mlp/{name}/kernel" for i in range(N) for name in ("up", "gate", "down")}
    expected |= {"token_embedding/embedding", "output/kernel"}
    table = decay_table(zeros_tree(SMALL, stacked=False))
    assert set(table) == set(letters(False))
    assert {path for path, decays in table.items() if decays} == expected


def test_what_decays_stacked_plain_boxed_and_abstract():
    expected = {f"layers/attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    expected |= {f"layers/mlp/{name}/kernel" for name in ("up", "gate", "down")}
    expected |= {"token_embedding/embedding", "output/kernel"}
    params = zeros_tree(SMALL, stacked=True)
    for tree in (params, boxed(params), jax.eval_shape(lambda: boxed(params))):
        table = decay_table(tree)
        assert set(table) == set(letters(True))
        assert {path for path, decays in table.items() if decays} == expected


def test_what_decays_of_an_encoder_decoder():
    parts = ("encoder/layers/attention", "decoder/layers/attention", "decoder/layers/cross_attention")
    expected = {f"{part}/{name}/kernel" for part in parts for name in ("query", "key", "value", "out")}
    expected |= {f"{side}/layers/mlp/{name}/kernel" for side in ("encoder", "decoder") for name in ("up", "down")}
    expected |= {"token_embedding/embedding", "source_embedding/embedding", "output/kernel"}
    table = decay_table(two_sided())
    assert {path for path, decays in table.items() if decays} == expected
    assert any(path.startswith("decoder/relative_bias/") for path in table)


def test_other_embeddings_do_not_decay_and_an_unknown_kind_is_an_error():
    assert not decayed(("decoder", "positions", "embedding"))
    assert decayed(("decoder", "token_embedding", "embedding"))
    with pytest.raises(AssertionError, match="layers/gain"):
        decayed(("layers", "gain"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stacked", [True, False])
def test_decay_is_decoupled_and_acts_where_the_table_says(name, stacked):
    """The first direction depends on the gradients alone: updates at two sets of parameters differ by the decay."""
    params, grads = random_tree(0, SMALL), random_tree(1, SMALL)
    if not stacked:
        params, grads = unroll(params), unroll(grads)
    (update,) = run_steps(config(name), params, [grads])
    (at_zero,) = run_steps(config(name), jax.tree.map(np.zeros_like, params), [grads])
    found = flatten(jax.tree.map(np.subtract, update, at_zero))
    for path, decays in decay_table(params).items():
        expected = (-0.1 * 0.1 if decays else 0.0) * flatten(params)[path]
        np.testing.assert_allclose(found[path], expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(("name", "sizes"), [*((name, SMALL) for name in NAMES), ("adafactor", LARGE)])
def test_stacked_layers_are_updated_as_single_ones(name, sizes):
    params, gradients = random_tree(0, sizes), random_gradients(name, sizes, 3)
    stacked = run_steps(config(name), params, gradients)
    single = run_steps(config(name), unroll(params), [unroll(grads) for grads in gradients])
    for one, other in zip(stacked, single, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), unroll(one), other)


def test_factored_moments_never_mix_layers_or_heads():
    """More layers than anything else: optax would factor the layer axis here."""
    sizes = {"N": 40, "D": 8, "H": 4, "G": 2, "K": 6, "F": 20, "V": 24, "L": 10}
    params, grads = random_tree(0, sizes), random_tree(1, sizes)
    # Layers of very different gradients: mixing them would show.
    strengths = 10.0 ** np.linspace(-4, 4, 40, dtype=np.float32)
    grads["layers"] = jax.tree.map(lambda g: (g.T * strengths).T, grads["layers"])
    tx = scale_by_factored_rms(b2=0.99, min_size=2)
    state = tx.init(params)
    query, out = (state.moments["layers"]["attention"][name]["kernel"] for name in ("query", "out"))
    assert query.row.shape == (40, 8) and query.column.shape == (40, 4, 6)
    assert out.row.shape == (40, 4, 6) and out.column.shape == (40, 8)
    assert state.moments["layers"]["attention"]["query"]["bias"].shape == (40, 4, 6)
    layers, update = grads["layers"], jax.jit(tx.update)
    updates, _ = update({"layers": layers}, tx.init({"layers": layers}))
    for i in (0, 17, 39):
        alone = {"layer_0": jax.tree.map(lambda g, i=i: g[i], layers)}
        expected, _ = update(alone, tx.init(alone))
        for path, wanted in flatten(expected["layer_0"]).items():
            np.testing.assert_allclose(flatten(updates["layers"])[path][i], wanted, rtol=1e-5, err_msg=path)


def test_adafactor_is_that_of_optax_on_a_matrix():
    rng = np.random.default_rng(0)
    params, *gradients = (
        {"up": {"kernel": (rng.exponential() * rng.normal(size=(130, 170))).astype(np.float32)}} for _ in range(7)
    )
    ours = scale_by_factored_rms(b2=0.99999)
    theirs = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    states, updates = [ours.init(params), theirs.init(params)], [jax.jit(ours.update), jax.jit(theirs.update)]
    for grads in gradients:
        (found, states[0]), (expected, states[1]) = (
            update(grads, state, params) for update, state in zip(updates, states, strict=True)
        )
        np.testing.assert_allclose(found["up"]["kernel"], expected["up"]["kernel"], rtol=2e-5, atol=1e-6)


def test_b2_bounds_the_decay_of_adafactor():
    tx, grads = scale_by_factored_rms(b2=0.5), {"bias": jnp.ones(3)}
    state = tx.init(grads)
    moment = 0.0
    for step in range(1, 8):
        grads = {"bias": jnp.full(3, float(step))}
        _, state = tx.update(grads, state)
        decay = min(0.5, 1 - step**-0.8)
        moment = decay * moment + (1 - decay) * step**2
        np.testing.assert_allclose(state.moments["bias"], moment, rtol=1e-5)


def test_rows_without_gradient_stay_finite_in_adafactor():
    """Tokens that a batch lacks have no gradient at all, next to others with a large one."""
    params = {"token_embedding": {"embedding": jnp.zeros((200, 130))}}
    grads = {"token_embedding": {"embedding": jnp.zeros((200, 130)).at[3].set(1e6)}}
    tx = scale_by_factored_rms(b2=0.99)
    updates, _ = tx.update(grads, tx.init(params))
    found = updates["token_embedding"]["embedding"]
    assert np.isfinite(found).all() and (found[3] > 0).all() and (found[4] == 0).all()


@pytest.mark.parametrize("has_source", [False, True])
def test_muon_orthogonalises_each_block_matrix_and_nothing_else(has_source):
    grads = random_tree(1, SMALL)
    if has_source:
        tree = two_sided(seed=1)
        block = {"cross_attention": tree["decoder"]["layers"]["cross_attention"]}
        grads = {"decoder": {"layers": block}, "source_embedding": tree["source_embedding"]}
    params = jax.tree.map(np.zeros_like, grads)  # no decay
    (muon,) = run_steps(config("muon"), params, [grads])
    (adamw,) = run_steps(config("adamw"), params, [grads])
    for path, update in flatten(muon).items():
        if not ("layers" in path.split("/") and path.endswith("/kernel")):
            np.testing.assert_allclose(update, flatten(adamw)[path], rtol=1e-6, err_msg=path)
            continue
        inputs = 1 if not path.endswith("out/kernel") else 2
        for layer in np.asarray(update):
            matrix = layer.reshape(int(np.prod(layer.shape[:inputs])), -1)
            singular = np.linalg.svd(matrix, compute_uv=False) / (0.1 * MUON_UPDATE_RMS * max(matrix.shape) ** 0.5)
            assert 0.4 < singular.min() and singular.max() < 1.4, (path, singular)


def test_muon_is_that_of_optax_on_plain_matrices():
    rng = np.random.default_rng(0)
    shapes = {"up": (8, 20), "down": (20, 8)}
    params, *gradients = (
        {"layer_0": {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}}
        for _ in range(4)
    )
    found = run_steps(config("muon", clip_norm=0.0), params, gradients)
    theirs = optax.contrib.muon(0.1, beta=0.9, weight_decay=0.1, consistent_rms=0.2)
    state, update = theirs.init(params), jax.jit(theirs.update)
    for grads, step in zip(gradients, found, strict=True):
        expected, state = update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + np.float32(0.01) * u, params, jax.device_get(expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), step, expected)


def test_matrix_axes():
    assert matrix_axes(("layers", "attention", "query", "kernel")) == ((-3,), (-2, -1))
    assert matrix_axes(("layers", "attention", "out", "kernel")) == ((-3, -2), (-1,))
    assert matrix_axes(("decoder", "layer_0", "cross_attention", "key", "kernel")) == ((-3,), (-2, -1))
    assert matrix_axes(("decoder", "layer_0", "cross_attention", "out", "kernel")) == ((-3, -2), (-1,))
    assert matrix_axes(("output", "kernel")) == ((-2,), (-1,))


def test_adamw_is_the_textbook_one():
    """Twenty steps of AdamW with clipping, decay and a schedule, in NumPy and float64."""
    settings = config(
        "adamw", schedule="cosine", learning_rate=1e-2, warmup_steps=5, decay_steps=20, clip_norm=2.0, b2=0.98
    )
    rng = np.random.default_rng(0)
    shapes = {"up/kernel": (5, 7), "up/bias": (7,), "token_embedding/embedding": (6, 5), "norm/scale": (5,)}
    expected = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    params = nest({path: value.astype(np.float32) for path, value in expected.items()})
    first = {path: np.zeros(shape) for path, shape in shapes.items()}
    second = {path: np.zeros(shape) for path, shape in shapes.items()}
    optimizer = compiled(settings)
    state = optimizer.init(params)
    clipped = 0
    for step in range(20):
        scale = rng.exponential()
        grads = {path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()}
        updates, state = optimizer.update(nest(grads), state, params)
        params = jax.tree.map(np.add, params, jax.device_get(updates))

        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        clipped += norm > 2.0
        share = (step + 1) / 5 if step < 5 else 0.1 + 0.9 * (1 + np.cos(np.pi * (step - 5) / 15)) / 2
        for path, grad in grads.items():
            g = grad.astype(np.float64) * min(1.0, 2.0 / norm)
            first[path] = 0.9 * first[path] + 0.1 * g
            second[path] = 0.98 * second[path] + 0.02 * g**2
            m, v = first[path] / (1 - 0.9 ** (step + 1)), second[path] / (1 - 0.98 ** (step + 1))
            decay = 0.1 * expected[path] if path in ("up/kernel", "token_embedding/embedding") else 0.0
            expected[path] = expected[path] - 1e-2 * share * (m / (np.sqrt(v) + 1e-8) + decay)
    assert 0 < clipped < 20
    for path, leaf in flatten(params).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-6, err_msg=path)


def test_clipping_comes_first_and_zero_turns_it_off():
    params = {"up": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(3, np.float32)}}
    grads = {"up": {"kernel": np.full((2, 2), 2.0, np.float32), "bias": np.array([0.0, 3.0, 0.0], np.float32)}}
    assert global_norm(grads) == 5.0
    for clip, factor in ((0.0, 1.0), (0.5, 0.1), (10.0, 1.0)):
        settings = config("sgd", weight_decay=0.0, b1=0.0, learning_rate=1.0, clip_norm=clip)
        (update,) = run_steps(settings, params, [grads])
        jax.tree.map(lambda u, g, f=factor: np.testing.assert_allclose(u, -f * g, rtol=1e-6), update, grads)
    # Before the moments: Adam would undo a scaling of all gradients, but not of one step's among others.
    once, large = (
        run_steps(config("adamw", clip_norm=5.0), params, [grads, g])[1]
        for g in (grads, jax.tree.map(lambda g: 2 * g, grads))
    )
    jax.tree.map(np.testing.assert_array_equal, once, large)


def test_global_norm_of_bfloat16_is_summed_in_float32():
    assert global_norm({"a": jnp.ones((100, 100), jnp.bfloat16)}) == 100.0  # a bfloat16 sum would stick at 256
    assert global_norm({"a": jnp.ones(3, jnp.bfloat16)}).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gradients_leave_everything_else_in_float32(name):
    optimizer = compiled(config(name, learning_rate=1e-4))
    pick = lambda tree: {"layers": {"mlp": tree["layers"]["mlp"]}}  # noqa: E731
    params = pick(random_tree(0, SMALL))
    rounded = jax.tree.map(lambda g: g.astype(jnp.bfloat16), pick(random_tree(1, SMALL)))
    results = []
    for grads in (rounded, jax.tree.map(lambda g: g.astype(np.float32), rounded)):
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        results.append((optax.apply_updates(params, updates), state))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    jax.tree.map(np.testing.assert_array_equal, *results)
    # Steps of 1e-4 on parameters of about 1 would be lost in bfloat16.
    jax.tree.map(lambda new, old: np.testing.assert_array_less(0.5, np.mean(new != old)), results[0][0], params)


def test_the_state_counts_the_steps_of_the_schedule():
    settings = config("sgd", b1=0.0, schedule="linear", warmup_steps=2, decay_steps=4, weight_decay=0.0, clip_norm=0.0)
    params, gradients = random_tree(0, SMALL), [random_tree(1, SMALL)] * 6
    updates = run_steps(settings, params, gradients)
    for update, rate in zip(updates, (0.05, 0.1, 0.1, 0.055, 0.01, 0.01), strict=True):
        jax.tree.map(lambda u, g, r=rate: np.testing.assert_allclose(u, -r * g, rtol=1e-5), update, gradients[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_regression_is_learnt(name):
    rng = np.random.default_rng(0)
    x_BD = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    y_BD = jnp.tanh(x_BD @ jnp.asarray(rng.normal(size=(8, 8)) * 0.5, jnp.float32)) + 0.5
    params = nest(
        {
            "layer_0/up/kernel": jnp.asarray(rng.normal(size=(8, 16)) * 0.3, jnp.float32),
            "layer_0/up/bias": jnp.zeros(16),
            "layer_0/down/kernel": jnp.asarray(rng.normal(size=(16, 8)) * 0.3, jnp.float32),
            "layer_0/down/bias": jnp.zeros(8),
        }
    )

    def loss_fn(params):
        layer = params["layer_0"]
        h_BF = jnp.tanh(x_BD @ layer["up"]["kernel"] + layer["up"]["bias"][None])
        return jnp.mean(jnp.square(h_BF @ layer["down"]["kernel"] + layer["down"]["bias"][None] - y_BD))

    rate = {"sgd": 0.3, "lion": 0.01}.get(name, 0.03)
    settings = config(name, schedule="cosine", learning_rate=rate, warmup_steps=5, decay_steps=150, weight_decay=1e-3)
    optimizer = make_optimizer(settings, 150)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    before = float(loss_fn(params))
    for _ in range(150):
        params, state = step(params, state)
    assert float(loss_fn(params)) < 0.1 * before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stacked", [True, False])
def test_state_of_boxed_parameters_is_boxed_alike(name, stacked):
    params = zeros_tree(LARGE, stacked)
    optimizer = make_optimizer(config(name), 100)
    state = jax.eval_shape(optimizer.init, boxed(params))
    specs = nn.get_partition_spec(state)
    plain = jax.eval_shape(optimizer.init, params)
    is_spec = lambda node: isinstance(node, P)  # noqa: E731
    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(plain)
    assert nn.unbox(state) == plain

    shapes = letters(stacked)
    full = 0
    for (path, spec), leaf in zip(
        jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec), jax.tree.leaves(plain), strict=True
    ):
        names = [key.key for key in path if hasattr(key, "key")]
        owner = "/".join(names[names.index("muon") + 1 :] if "muon" in names else names).removeprefix("adam/")
        if owner not in shapes:
            assert leaf.size <= 3 and spec == P(), (path, leaf)  # counts and Muon's coefficients
            continue
        part = getattr(path[-1], "name", None)
        wanted = shapes[owner]
        if part in ("row", "column"):
            inputs, outputs = matrix_axes(tuple(owner.split("/")))
            gone = outputs if part == "row" else inputs
            wanted = "".join(letter for i, letter in enumerate(wanted) if i - len(wanted) not in gone)
        assert leaf.shape == tuple(LARGE[letter] for letter in wanted), path
        assert spec == P(*(LOGICAL[letter] for letter in wanted)), path
        full += 1
    assert full >= len(shapes)


@pytest.mark.parametrize(("name", "sizes"), [("adamw", SMALL), ("muon", SMALL), ("adafactor", LARGE)])
def test_sharded_updates_equal_those_of_one_device(name, sizes):
    params, gradients = random_tree(0, sizes), random_gradients(name, sizes, 2)
    optimizer = compiled(config(name))
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    logical = nn.get_partition_spec(jax.eval_shape(lambda tree: (tree, optimizer.init(tree)), boxed(params)))
    shardings = nn.logical_to_mesh_sharding(logical, mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        state = jax.jit(optimizer.init, out_shardings=shardings[1])(params)
        update, found = jax.jit(optimizer.update, out_shardings=shardings), []
        for grads in gradients:
            sharded = [jax.device_put(tree, shardings[0]) for tree in (grads, params)]
            updates, state = update(sharded[0], state, sharded[1])
            found.append(jax.device_get(updates))
            params = jax.tree.map(lambda p, u: p + np.float32(0.01) * u, params, found[-1])
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert len(split) >= len(jax.tree.leaves(params))
    expected = run_steps(config(name), random_tree(0, sizes), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), found, expected)
