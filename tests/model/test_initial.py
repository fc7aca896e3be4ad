"""The start of every parameter, held to the published values and not to the table's own words."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import AttentionConfig, Mamba2Config, MambaConfig, MLPConfig, ModelConfig
from workbench.model.initial import constant, normal, table
from workbench.model.language_model import create
from workbench.model.names import named

WIDTH, LAYERS, VOCABULARY = 64, 8, 50
SYMBOLS = {
    "M": Mamba2Config(state=16, head_dim=4),
    "S": MambaConfig(state=8),
    "*": AttentionConfig(heads=4, conv=4),
    "-": MLPConfig(),
}
# 0.02 at the paper's width of 4096, the same multiple of 1 / sqrt(width) elsewhere
STD = 0.02 * 64 / math.sqrt(WIDTH)


def gaussian(std):
    return lambda x: 0.5 * (1 + np.vectorize(math.erf)(x / std / math.sqrt(2)))


def flat(bound):
    return lambda x: np.clip((x + bound) / (2 * bound), 0, 1)


def log_flat_step(x):
    """Of the bias whose softplus has a logarithm uniform over [ln 0.001, ln 0.1]."""
    return np.clip((np.log(np.log1p(np.exp(x))) - math.log(0.001)) / math.log(100), 0, 1)


def log_flat(x):
    return np.clip((np.exp(x) - 1) / 15, 0, 1)


# What each parameter is at the start, by its name within a layer: a cumulative distribution, or the exact values.
EXPECTED = {
    "embedding": gaussian(1.0),
    "output": gaussian(STD),
    "norm.scale": 1.0,
    "norm.offset_scale": 0.0,
    "norm.bias": 0.0,
    "attention.qkv": gaussian(STD),
    "attention.conv": flat(0.5),
    "attention.conv_bias": 0.0,
    "attention.out": gaussian(STD / math.sqrt(2 * LAYERS)),
    "mlp.enter": gaussian(STD),
    "mlp.out": gaussian(STD / math.sqrt(2 * LAYERS)),
    "mamba.enter": flat(1 / 8),
    "mamba.conv": flat(0.5),
    "mamba.conv_bias": flat(0.5),
    "mamba.x": flat(1 / math.sqrt(128)),
    "mamba.dt": flat(1 / 2),  # dt_rank is 64 / 16
    "mamba.dt_bias": log_flat_step,
    "mamba.A_log": np.log(np.arange(1, 9)),
    "mamba.D": 1.0,
    "mamba.out": gaussian(STD / math.sqrt(LAYERS)),
    "mamba2.enter": flat(1 / 8),
    "mamba2.conv": flat(0.5),
    "mamba2.conv_bias": flat(0.5),
    "mamba2.dt_bias": log_flat_step,
    "mamba2.A_log": log_flat,
    "mamba2.D": 1.0,
    "mamba2.norm_scale": 1.0,
    "mamba2.out": gaussian(STD / math.sqrt(LAYERS)),
}
KINDS = {"M": "mamba2", "S": "mamba", "*": "attention", "-": "mlp"}


def config(pattern="MS*-MS*-", **fields):
    return ModelConfig(pattern, WIDTH, VOCABULARY, symbols=SYMBOLS, **fields)


def audited(model):
    """(kind, values) of every parameter of a model whose period is M S * -."""
    for name, values in named(model).items():
        parts = name.split(".")
        if parts[0] == "layers":
            kind = KINDS["MS*-"[int(parts[1])]]
            yield ".".join([kind if parts[2] == "mixer" else "norm", *parts[3:]]), np.asarray(values, np.float64)
        else:
            yield name, np.asarray(values, np.float64)


@pytest.mark.parametrize(("norm", "tied"), [("rms", False), ("layernorm1p", True)], ids=["untied", "tied"])
def test_every_parameter_starts_from_its_published_distribution(norm, tied):
    expected = EXPECTED | ({"embedding": gaussian(STD)} if tied else {})
    seen = set()
    for kind, values in audited(create(config(norm=norm, tied=tied), 0)):
        assert kind in expected, f"{kind} is not in the audit"
        seen.add(kind)
        if callable(expected[kind]):
            # Kolmogorov-Smirnov: further than this from the distribution one time in ten million
            assert distance(values, expected[kind]) < 2.9 / math.sqrt(values.size), kind
        else:
            np.testing.assert_allclose(values, np.broadcast_to(expected[kind], values.shape), atol=1e-6, err_msg=kind)
    norms = {"rms": {"norm.scale"}, "layernorm1p": {"norm.offset_scale", "norm.bias"}}
    others = set().union(*norms.values()) - norms[norm] | ({"output"} if tied else set())
    assert seen == expected.keys() - others


def distance(values, cumulative):
    """Largest difference between the empirical and a continuous distribution."""
    values = np.sort(values.ravel())
    places = cumulative(values)
    index = np.arange(values.size)
    return max(np.max(places - index / values.size), np.max((index + 1) / values.size - places))


def test_the_audit_tells_half_the_spread_and_the_wrong_shape_from_the_right_ones():
    values = np.asarray(normal(0.1)(jax.random.key(0), (1000,)))
    limit = 2.9 / math.sqrt(1000)
    assert distance(values, gaussian(0.1)) < limit
    assert distance(values, gaussian(0.05)) > limit
    assert distance(values, flat(0.1)) > limit


def test_time_scales_start_within_their_published_bounds():
    values = dict(audited(create(config(), 3)))
    A = np.exp(values["mamba2.A_log"])
    assert A.min() > 1 and A.max() < 16 and A.min() < 4 and A.max() > 12
    for kind in ("mamba.dt_bias", "mamba2.dt_bias"):
        step = np.log1p(np.exp(values[kind]))
        assert step.min() >= 0.001 * (1 - 1e-5) and step.max() <= 0.1 * (1 + 1e-5), kind


def test_at_the_papers_width_weights_start_with_a_deviation_of_a_fiftieth():
    papers = table(4096, 56)
    for kind, deviation in {
        "attention.qkv": 0.02,
        "mlp.in": 0.02,
        "head": 0.02,
        "tied_embedding": 0.02,
        "attention.out": 0.02 / math.sqrt(112),
        "mlp.out": 0.02 / math.sqrt(112),
        "mamba.out": 0.02 / math.sqrt(56),
        "mamba2.out": 0.02 / math.sqrt(56),
    }.items():
        values = papers[kind]((4096, 4096))(jax.random.key(0), (64, 256))
        assert float(jnp.std(values)) == pytest.approx(deviation, rel=0.03), kind  # 5 deviations of 16384 draws


def test_a_layer_starts_alike_in_two_architectures():
    """The same kind at the same index, beside other kinds."""
    first, second = (named(create(config(pattern), 5)) for pattern in ("M*M*", "M-M-"))
    for name in ("norm.scale", "mixer.enter", "mixer.dt_bias", "mixer.A_log", "mixer.out"):
        np.testing.assert_array_equal(first[f"layers.0.{name}"], second[f"layers.0.{name}"])
    longer = named(create(config("M*-M*-M-"), 5))
    for name in ("embedding", "output"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name], longer[name])


def test_the_convolutions_bias_starts_within_the_bound_of_its_taps():
    symbols = {"S": MambaConfig(state=8, conv=9), "M": Mamba2Config(state=16, head_dim=4, conv=9)}
    values = named(create(ModelConfig("SM", WIDTH, VOCABULARY, symbols=symbols), 0))
    for layer in (0, 1):
        bias = np.abs(np.asarray(values[f"layers.{layer}.mixer.conv_bias"]))
        assert 0.3 < bias.max() <= 1 / 3, layer  # 128 draws and more: below 0.3 one time in a million


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_parameters_hold_the_same_values(dtype):
    """A model is a pure function of config and seed: what float64 it is asked for changes no draw."""
    plain = named(create(config(), 0))
    with jax.enable_x64(True):
        other = named(create(config(dtype=dtype), 0))
    for name, values in plain.items():
        assert other[name].dtype == dtype
        np.testing.assert_allclose(np.asarray(other[name]), np.asarray(values), rtol=2e-6, atol=1e-7, err_msg=name)


def test_another_seed_another_layer_and_another_kind_draw_other_values():
    one, other = (dict(audited(create(config(), seed))) for seed in (0, 1))
    for kind, values in one.items():
        if callable(EXPECTED[kind]):
            assert not np.any(values == other[kind]), kind
            if kind not in ("embedding", "output"):
                assert not np.any(values[0] == values[1]), kind
    assert not np.any(one["mamba.dt_bias"][0, :16] == one["mamba2.dt_bias"][0, :16])


def test_a_kind_without_an_entry_is_refused_unless_it_brings_its_distribution():
    from workbench.model.initial import Make

    make = Make(jax.random.key(0), 8, 2, 0)
    with pytest.raises(ValueError, match=r"no initialisation for 'my\.weight'"):
        make("my.weight", (2, 3))
    np.testing.assert_array_equal(make("my.weight", (2, 3), constant(7))[...], np.full((2, 3), 7.0))
