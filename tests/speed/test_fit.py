import numpy as np
import pytest

from workbench.speed.fit import Runtime, Sample, fit

KNOTS, PROMPT, TOKEN, DRIFT = (64, 256, 1024, 4096), (0.01, 0.02, 0.11, 0.9), 3e-3, 2e-7
GRID = [(p, o) for p in KNOTS for o in (1, 16, 64, 200)]


def seconds(prompt, tokens):
    """The definition, token by token."""
    return np.interp(prompt, KNOTS, PROMPT) + sum(TOKEN + DRIFT * (prompt + i) for i in range(tokens))


def test_a_cost_model_is_recovered_from_what_it_gives():
    found = fit([Sample(p, o, (seconds(p, o),)) for p, o in GRID])
    assert found.knots == KNOTS
    np.testing.assert_allclose(found.prompt_seconds, PROMPT, rtol=1e-9)
    assert found.token_seconds == pytest.approx(TOKEN, rel=1e-9)
    assert found.drift_seconds == pytest.approx(DRIFT, rel=1e-9)
    assert found.r_squared == pytest.approx(1)
    for p, o in ((100, 5), (2000, 300)):
        assert found.predict(p, o) == pytest.approx(seconds(p, o), rel=1e-9)
    assert found.drift(15_000) == pytest.approx(1)


def test_a_cache_that_is_read_whole_costs_its_room():
    room = lambda context: max(256, 2 ** int(np.ceil(np.log2(context))))  # noqa: E731
    cost = lambda p, o: np.interp(p, KNOTS, PROMPT) + sum(TOKEN + DRIFT * room(p + i + 1) for i in range(o))  # noqa: E731
    found = fit([Sample(p, o, (cost(p, o),)) for p, o in GRID], capacity=256)
    assert found.drift_seconds == pytest.approx(DRIFT, rel=1e-9)
    for p, o in ((100, 5), (700, 30), (2000, 300)):
        assert found.predict(p, o) == pytest.approx(cost(p, o), rel=1e-9)
    assert found.drift(9000) == pytest.approx(DRIFT * 16_384 / TOKEN)


def test_the_denoised_fit_stands_a_busy_machine():
    """A third of the trials take up to three times as long; nothing is ever faster than it can be."""
    rng = np.random.default_rng(0)
    samples = []
    for p, o in GRID:
        busy = rng.random(6) < 1 / 3
        samples.append(Sample(p, o, tuple(seconds(p, o) * (1 + busy * rng.uniform(0.2, 2, 6) + 0.01 * rng.random(6)))))
    error = lambda found: np.median([abs(found.predict(p, o) / seconds(p, o) - 1) for p, o in GRID])  # noqa: E731
    assert error(fit(samples)) < 0.05
    assert error(fit(samples, denoised=False)) > 0.1


def test_a_model_without_drift_gets_none():
    samples = [Sample(p, o, (1e-6 * p + 2e-3 * o,)) for p, o in GRID]
    found = fit(samples)
    assert found.drift(100_000) < 1e-6 and found.token_seconds == pytest.approx(2e-3)


def test_a_runtime_is_kept_as_json(tmp_path):
    found = fit([Sample(p, o, (seconds(p, o),)) for p, o in GRID], facts={"batch": 4})
    found.save(tmp_path / "runtime.json")
    assert Runtime.read(tmp_path / "runtime.json") == found
    with pytest.raises(ValueError, match=r"none\.json is not there"):
        Runtime.read(tmp_path / "none.json")


@pytest.mark.parametrize("points", [[], [(64, 1), (128, 1)], [(64, 1), (64, 9)]])
def test_too_few_points_are_refused(points):
    with pytest.raises(ValueError, match="at least 2 prompt lengths and 2 numbers of tokens"):
        fit([Sample(p, o, (1.0,)) for p, o in points])
