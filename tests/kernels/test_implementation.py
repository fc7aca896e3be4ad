import jax
import pytest
from jax.sharding import AbstractDevice, AxisType
from workbench_kernels import implementation, platform, resolve


@pytest.mark.parametrize("operation", ["selective_scan", "ssd", "causal_conv1d"])
def test_auto_resolves_to_a_name_that_a_record_can_quote(operation):
    assert resolve(operation) == resolve(operation, "auto") == "xla"
    assert resolve(operation, "reference") == "reference"


@pytest.mark.parametrize("operation", ["selective_scan", "ssd", "causal_conv1d"])
def test_an_implementation_that_does_not_exist_raises_with_those_that_do(make, operation):
    with pytest.raises(ValueError, match=f"'triton' of {operation} does not exist; use one of auto, .*xla, reference"):
        make(operation, 1, 2)(implementation="triton")


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="'attention' does not exist; use one of causal_conv1d, selective_scan, ssd"):
        resolve("attention")


@pytest.mark.parametrize(
    ("kind", "name"), [("NVIDIA H100 80GB HBM3", "mosaic_gpu"), ("NVIDIA A100-SXM4-80GB", "xla"), (None, "xla")]
)
def test_auto_is_decided_by_the_devices_that_are_compiled_for(monkeypatch, kind, name):
    monkeypatch.setattr(implementation, "_PROVED", frozenset({"ssd"}))
    device = kind and AbstractDevice(kind, None, "gpu")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == ("gpu" if kind else "cpu")
        assert resolve("ssd") == name
