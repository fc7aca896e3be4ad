import pytest
from workbench_kernels import resolve


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
