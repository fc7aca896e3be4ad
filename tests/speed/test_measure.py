import pytest

from workbench.config import Mamba2Config, ModelConfig
from workbench.model.language_model import create
from workbench.speed.fit import fit
from workbench.speed.measure import profile, this_machine


@pytest.fixture(scope="module")
def model():
    return create(ModelConfig("M", 16, 20, {"M": Mamba2Config(state=4, head_dim=8)}), 0)


def test_every_point_is_timed_as_often_as_asked_and_can_be_fitted(model):
    found = profile(model, (4, 16), (1, 40), batch=2, trials=2, progress=False)
    assert [(s.prompt, s.tokens) for s in found.samples] == [(4, 1), (4, 40), (16, 1), (16, 40)]
    assert all(len(s.seconds) == 2 and min(s.seconds) > 0 for s in found.samples)
    assert found.facts["batch"] == 2 and found.facts["pattern"] == "M"
    fitted = fit(found.samples)  # what a busy machine makes of it is nobody's claim
    assert fitted.knots == (4, 16) and min(*fitted.prompt_seconds, fitted.token_seconds, fitted.drift_seconds) >= 0


def test_a_grid_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match=r"at least 1; got \(0, 4"):
        profile(model, (0, 4), (1,), progress=False)


def test_this_machine_is_measured_within_what_machines_can_do():
    found = this_machine(trials=1)
    assert 1e8 < found.bandwidth < 1e14 and 1e9 < found.flops < 1e17 and found.memory_bytes > 1e9
    assert found.source == "measured"
