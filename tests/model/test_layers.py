"""Each layer against its published formulas in plain NumPy, and against its promises; that the promises find faults."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from workbench.config import AttentionConfig, Mamba2Config, MambaConfig, MLPConfig, ModelConfig
from workbench.count import Operation
from workbench.model.attention import AttentionState, attend, attend_cache
from workbench.model.initial import Make, constant, normal
from workbench.model.language_model import create
from workbench.model.names import named, restored
from workbench.model.norm import norm
from workbench.model.where import locate
from workbench.study import contract

WIDTH, BATCH, TIME = 16, 2, 11

LAYERS = {
    "attention": AttentionConfig(),
    "attention-all": AttentionConfig(kv_heads=2, rotary=0.5, window=8, conv=4),
    "attention-plain": AttentionConfig(rotary=0),
    "attention-scaled": AttentionConfig(rotary_base=100.0, rotary_scaling=(4, 0.5, 4, 64)),
    "mamba": MambaConfig(state=8),
    "mamba2": Mamba2Config(state=8, head_dim=16, groups=2),
    "mlp-gelu": MLPConfig(),
    "mlp-gelu_erf": MLPConfig(activation="gelu_erf"),
    "mlp-squared_relu": MLPConfig(activation="squared_relu"),
    "mlp-swiglu": MLPConfig(activation="swiglu"),
}
IN_THE_NORMAL_RUN = ("attention-all", "mamba2")


def broken(results):
    assert [result.promise for result in results[1:]] == [p.__name__.replace("_", " ") for p in contract.PROMISES]
    return [result for result in results if not result.held]


@pytest.mark.parametrize(
    "name", [n if n in IN_THE_NORMAL_RUN else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def test_every_layer_keeps_its_promises_to_the_rounding_of_float64(x64, name):
    assert broken(contract.check(LAYERS[name], dtype="float64")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_keeps_its_promises_to_the_rounding_of_float32(name):
    assert broken(contract.check(LAYERS[name])) == []


# ---- the checker finds faults


@dataclass(frozen=True)
class Planted:
    """h_t = exp(-rate) h_{t-1} + x_t W, with a fault of the given name."""

    fault: str = ""

    def build(self, width, make):
        return PlantedLayer(self, width, make)

    def parameters(self, width):
        return width * width + width + (self.fault == "counts one parameter too many")

    def operations(self, width, context):
        return [Operation("w", 1, width, width, 1)]

    def state_bytes(self, width, context, element_bytes):
        return 4 * width * (2 if self.fault == "counts its state twice" else 1)


class PlantedLayer(nnx.Module):
    def __init__(self, config, width, make):
        self.fault, self.width = config.fault, width
        self.weight = make("planted.weight", (width, width), normal(width**-0.5))
        self.rate = make("planted.rate", (width,), constant(0.3))

    def __call__(self, x, state, where):
        fault = self.fault
        if fault == "sums from the end":
            x = jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]
        elif fault == "reads the next token":
            x = x + jnp.roll(x, -1, axis=1)
        elif fault == "mixes the rows of a batch":
            x = x + x.mean(axis=0, keepdims=True)
        shape = x.shape[:2]
        real = jnp.ones(shape, bool) if where.segments is None else where.segments != 0
        first = jnp.broadcast_to(where.positions == 0, shape)
        if fault == "lets documents leak":
            first = jnp.zeros(shape, bool)
        if fault == "lets time pass in padding":
            real = jnp.ones(shape, bool)
        rate = jax.lax.stop_gradient(self.rate[...]) if fault == "learns nothing" else self.rate[...]

        def step(h, inputs):
            x, real, first = (a if a.ndim > 1 else a[:, None] for a in inputs)
            after = jnp.where(first, 0, jnp.exp(-rate)[None] * h) + x
            h = jnp.where(real, after, h)
            return h, h

        start = jnp.zeros((shape[0], self.width), x.dtype)
        if state is not None and fault != "forgets":
            start = state
        inputs = (jnp.moveaxis(x @ self.weight[...], 1, 0), real.T, first.T)
        h, y = jax.lax.scan(step, start, inputs)
        y = jnp.moveaxis(y, 0, 1)
        if fault == "masks after the exponential":
            y = jnp.where(where.positions[..., None] < 0, jnp.exp(1e5 * rate)[None, None], y)
        return y, None if state is None else h, {}

    def initial_state(self, batch, capacity, dtype):
        return jnp.zeros((batch, self.width), dtype)


FAULTS = {
    "sums from the end": contract.no_output_depends_on_a_later_token,
    "reads the next token": contract.no_output_depends_on_a_later_token,
    "forgets": contract.cutting_a_sequence_anywhere_changes_nothing,
    "lets documents leak": contract.packed_documents_equal_documents_alone,
    "lets time pass in padding": contract.padding_means_no_time_passes,
    "mixes the rows of a batch": contract.padding_means_no_time_passes,
    "counts one parameter too many": contract.parameters_are_as_counted,
    "counts its state twice": contract.state_bytes_are_as_counted,
    "masks after the exponential": contract.every_parameter_gets_a_finite_gradient,
    "learns nothing": contract.every_parameter_gets_a_finite_gradient,
}


def test_a_sound_mixer_passes_the_check():
    results = contract.check(Planted())
    assert broken(results) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds_a_mixer_that(fault):
    layer = Planted(fault)
    model = create(ModelConfig("XX", 8, contract.VOCABULARY, symbols={"X": layer}), 0)
    held, seen = FAULTS[fault](model, layer, 1e-5)
    assert not held, seen


def test_a_difference_that_is_no_number_is_not_close():
    ones, nan = jnp.ones(2), jnp.full(2, jnp.nan)
    assert contract._close((ones, ones), (ones, ones), 1e-5)[0]
    assert not contract._close((nan, ones), (ones, ones), 1e-5)[0]
    assert not contract._close((ones, nan), (ones, ones), 1e-5)[0]


# ---- the published formulas, in NumPy


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def convolved(x, weight, bias):
    """Each channel with its own taps, the last one on the present."""
    taps, y = weight.shape[1], np.zeros_like(x)
    for t in range(x.shape[1]):
        for k in range(taps):
            if t - (taps - 1) + k >= 0:
                y[:, t] += x[:, t - (taps - 1) + k] * weight[:, k]
    return y + bias


def mamba2(config, p, u):
    inner, heads = 2 * WIDTH, 2 * WIDTH // config.head_dim
    bc = config.groups * config.state
    z, xBC, dt = np.split(u @ p["enter"], [inner, 2 * inner + 2 * bc], axis=-1)
    xBC = silu(convolved(xBC, p["conv"], p["conv_bias"]))
    x, B, C = np.split(xBC, [inner, inner + bc], axis=-1)
    dt, A = softplus(dt + p["dt_bias"]), -np.exp(p["A_log"])
    y = np.zeros_like(x)
    for b in range(u.shape[0]):
        for head in range(heads):
            own = slice(head * config.head_dim, (head + 1) * config.head_dim)
            group = head // (heads // config.groups)
            of_group = slice(group * config.state, (group + 1) * config.state)
            h = np.zeros((config.head_dim, config.state))
            for t in range(u.shape[1]):
                h = np.exp(dt[b, t, head] * A[head]) * h
                h = h + dt[b, t, head] * np.outer(x[b, t, own], B[b, t, of_group])
                y[b, t, own] = h @ C[b, t, of_group] + p["D"][head] * x[b, t, own]
    y = y * silu(z)
    for part in np.split(np.arange(inner), config.groups):
        y[..., part] = y[..., part] / np.sqrt((y[..., part] ** 2).mean(axis=-1, keepdims=True) + 1e-5)
    return (y * p["norm_scale"]) @ p["out"]


def mamba(config, p, u):
    inner, rank = 2 * WIDTH, 1
    x, z = np.split(u @ p["enter"], 2, axis=-1)
    x = silu(convolved(x, p["conv"], p["conv_bias"]))
    low, B, C = np.split(x @ p["x"], [rank, rank + config.state], axis=-1)
    dt, A = softplus(low @ p["dt"] + p["dt_bias"]), -np.exp(p["A_log"])
    y = np.zeros_like(x)
    for b in range(u.shape[0]):
        h = np.zeros((inner, config.state))
        for t in range(u.shape[1]):
            h = np.exp(dt[b, t, :, None] * A) * h + (dt[b, t] * x[b, t])[:, None] * B[b, t]
            y[b, t] = h @ C[b, t] + p["D"] * x[b, t]
    return (y * silu(z)) @ p["out"]


def rotated(head, position, fraction, base, scaling=()):
    """Dimensions i and i + R/2 turn by position / base^(2i/R), for the R first dimensions; slowed down as Llama 3's."""
    size, out = int(len(head) * fraction), head.copy()
    for i in range(size // 2):
        angle = position * base ** (-2 * i / size)
        if scaling:
            factor, low, high, length = scaling
            wavelength = 2 * math.pi * base ** (2 * i / size)
            if wavelength > length / low:
                angle /= factor
            elif wavelength >= length / high:
                part = (length / wavelength - low) / (high - low)
                angle = (1 - part) * angle / factor + part * angle
        a, b = head[i], head[i + size // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + size // 2] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(config, p, u):
    heads, kv_heads, size = config.heads, config.kv_heads or config.heads, WIDTH // config.heads
    qkv = u @ p["qkv"]
    if config.conv:
        qkv = convolved(qkv, p["conv"], p["conv_bias"])
    y = np.zeros((*u.shape[:2], heads, size))
    for b in range(u.shape[0]):
        parts = qkv[b].reshape(u.shape[1], heads + 2 * kv_heads, size)
        q, k, v = parts[:, :heads], parts[:, heads : heads + kv_heads], parts[:, heads + kv_heads :]
        turn = lambda x, t: rotated(x, t, config.rotary, config.rotary_base, config.rotary_scaling)  # noqa: E731
        for head in range(heads):
            group = head // (heads // kv_heads)
            for t in range(u.shape[1]):
                seen = range(max(0, t + 1 - (config.window or t + 1)), t + 1)
                scores = np.array([turn(q[t, head], t) @ turn(k[s, group], s) for s in seen]) / math.sqrt(size)
                weights = np.exp(scores) / np.exp(scores).sum()
                y[b, t, head] = sum(w * v[s, group] for w, s in zip(weights, seen, strict=True))
    return y.reshape(*u.shape[:2], -1) @ p["out"]


def mlp(config, p, u):
    h = u @ p["enter"]
    if config.activation == "gelu":  # its usual approximation by tanh, Hendrycks & Gimpel 2016
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    elif config.activation == "gelu_erf":
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    elif config.activation == "squared_relu":
        h = np.maximum(h, 0) ** 2
    else:
        gate, h = np.split(h, 2, axis=-1)
        h = silu(gate) * h
    return h @ p["out"]


FORMULAS = {AttentionConfig: attention, MambaConfig: mamba, Mamba2Config: mamba2, MLPConfig: mlp}


def away_from_the_start(layer):
    """The layer with every parameter moved at random: ones and zeros would hide a wrong use."""
    rng = np.random.default_rng(7)
    arrays = {name: jnp.asarray(a + 0.3 * rng.standard_normal(a.shape)) for name, a in named(layer).items()}
    return restored(layer, arrays), {name: np.asarray(a) for name, a in arrays.items()}


def signals(*shape):
    return np.random.default_rng(3).standard_normal(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_its_published_formulas(x64, name):
    config = LAYERS[name]
    layer, arrays = away_from_the_start(config.build(WIDTH, Make(jax.random.key(0), WIDTH, 2, 0, jnp.float64)))
    u = signals(BATCH, TIME, WIDTH)
    where, _ = locate(BATCH, TIME, None, None)
    y, state, aux = jax.jit(lambda layer, u: layer(u, None, where))(layer, jnp.asarray(u))
    np.testing.assert_allclose(y, FORMULAS[type(config)](config, arrays, u), rtol=1e-11, atol=1e-11)
    assert state is None and aux == {}


def test_norms_equal_their_published_formulas(x64):
    x, make = 3 + 2 * signals(4, WIDTH), Make(jax.random.key(0), WIDTH, 2, 0, jnp.float64)
    rms, p = away_from_the_start(norm("rms", WIDTH, make))
    want = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * p["scale"]
    np.testing.assert_allclose(rms(jnp.asarray(x)), want, rtol=1e-12, atol=1e-12)
    layer, p = away_from_the_start(norm("layernorm1p", WIDTH, make))
    want = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    want = want * (1 + p["offset_scale"]) + p["bias"]
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, rtol=1e-12, atol=1e-12)


# ---- documents


@pytest.mark.parametrize("name", ["attention-all", "attention", "mamba2"])
def test_an_id_that_comes_back_is_another_document(x64, name):
    """Whichever layer reads it: 1 2 1 are three documents."""
    layer, _ = away_from_the_start(LAYERS[name].build(WIDTH, Make(jax.random.key(0), WIDTH, 2, 0, jnp.float64)))

    @jax.jit
    def read(layer, u, segments):
        where, _ = locate(1, TIME, segments, None)
        return layer(u, None, where)[0]

    u = jnp.asarray(signals(1, TIME, WIDTH))
    back, other = (jnp.asarray(np.repeat(ids, [4, 3, 4])[None], jnp.int32) for ids in ([1, 2, 1], [1, 2, 3]))
    np.testing.assert_allclose(read(layer, u, back), read(layer, u, other), rtol=0, atol=1e-12)


# ---- long sequences


def plain(q, k, v, segments, window):
    """All scores at once."""
    time, repeats = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(a, repeats, axis=2) for a in (k, v))
    query, key = jnp.arange(time)[:, None], jnp.arange(time)[None]
    seen = (key <= query) & ((query - key < window) if window else True)
    seen = seen[None] & (segments[:, :, None] == segments[:, None, :])
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


@pytest.mark.parametrize(
    ("time", "window"),
    [
        (300, 40),
        pytest.param(300, None, marks=pytest.mark.slow),
        pytest.param(2100, None, marks=pytest.mark.slow),
        pytest.param(2100, 150, marks=pytest.mark.slow),
    ],
)
def test_long_attention_in_blocks_equals_all_scores_at_once_in_value_and_gradients(x64, time, window):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, time, heads, 4))) for heads in (4, 2, 2))
    weigh = jnp.asarray(rng.standard_normal(q.shape))
    cuts = [time // 3, time // 2, time - time // 3 - time // 2]
    segments = jnp.asarray(np.stack([np.repeat([1, 2, 3], cuts), np.ones(time)]), jnp.int32)

    def with_gradients(attention):
        def total(q, k, v):
            y = attention(q, k, v)
            return jnp.sum(y * weigh), y

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    blocked = with_gradients(lambda q, k, v: attend(q, k, v, segments, window))
    for got, want in zip(
        jax.tree.leaves(blocked),
        jax.tree.leaves(with_gradients(lambda q, k, v: plain(q, k, v, segments, window))),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_memory_of_long_attention_grows_with_its_length_and_not_with_its_square():
    def temporary(time, window=None):
        q = jax.ShapeDtypeStruct((1, time, 2, 8), jnp.float32)
        gradient = jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, None, window)), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(4096), temporary(8192)
    assert long < 2.5 * short
    assert long < 2 * 8192 * 8192  # a quarter of one head's scores
    assert temporary(8192, window=100) < long / 4  # a window scores its own keys alone


@pytest.mark.parametrize(("time", "capacity"), [(1, 4096), (1, 2500), pytest.param(300, 4096, marks=pytest.mark.slow)])
def test_a_long_cache_is_read_as_far_as_it_is_filled(x64, time, capacity):
    """Rows that have read unequally much; values further on are no numbers, which any weight would spread, even 0.

    A single query reads them too, and gives them a weight of 0: for it they are huge.
    """
    rng = np.random.default_rng(0)
    start = np.array([0, 1500, 2100])
    end = start + time
    q = jnp.asarray(rng.standard_normal((3, time, 4, 4)))
    k, v = (jnp.asarray(rng.standard_normal((3, capacity, 2, 4))) for _ in range(2))
    v = v.at[:, 3072:].set(1e300 if time == 1 else jnp.nan)
    index = np.arange(capacity)[None]
    documents = np.where(index < end[:, None], np.where(np.array([[0], [1], [1]]) & (index >= 1200), 2, 1), -1)
    queries = np.repeat([[1], [2], [2]], time, axis=1)
    cache = AttentionState(k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.asarray(documents, jnp.int32), None)
    where = (start[:, None] + np.arange(time)[None], queries, index)
    got = jax.jit(lambda *a: attend_cache(*a, None))(q, cache, *(jnp.asarray(a, jnp.int32) for a in where))
    for row, first in enumerate((0, 1200, 1200)):
        keys, values = k[row : row + 1, first : end[row]], v[row : row + 1, first : end[row]]
        own = jnp.concatenate([jnp.zeros((1, start[row] - first, 4, 4)), q[row : row + 1]], axis=1)
        alone = plain(own, keys, values, jnp.ones((1, end[row] - first), jnp.int32), None)[:, start[row] - first :]
        np.testing.assert_allclose(got[row : row + 1], alone, rtol=0, atol=1e-12)
