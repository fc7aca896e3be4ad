import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from workbench.config import ModelConfig
from workbench.model.language_model import create
from workbench.model.names import named, restored


@pytest.fixture(scope="module")
def model():
    return create(ModelConfig("*-*-", 8, 11), 0)


def test_names_are_places_in_the_model(model):
    assert set(named(model)) == {
        "embedding",
        "layers.0.norm.scale",
        "layers.0.mixer.qkv",
        "layers.0.mixer.out",
        "layers.1.norm.scale",
        "layers.1.mixer.enter",
        "layers.1.mixer.out",
        "norm.scale",
        "output",
    }


def test_what_was_named_is_restored_exactly(model):
    arrays = {name: np.asarray(values) + 1 for name, values in named(model).items()}
    back = restored(jax.tree.map(jnp.zeros_like, model), dict(reversed(arrays.items())))  # by name, not by order
    assert jax.tree.structure(back) == jax.tree.structure(model)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), back, model)


def test_a_parameter_called_value_keeps_its_name():
    class Memory(nnx.Module):
        def __init__(self):
            self.key, self.value = nnx.Param(jnp.ones(2)), nnx.Param(jnp.zeros(2))

    class Pair(nnx.Module):
        def __init__(self):
            self.value = Memory()

    assert set(named(Pair())) == {"value.key", "value.value"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("output"), r"missing \['output'\]"),
        (lambda arrays: arrays.update(more=np.zeros(1)), r"not expected \['more'\]"),
        (lambda arrays: arrays.update(output=np.zeros((3, 3))), r"output has shape \(3, 3\), needed \(8, 11\)"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_arrays_that_do_not_fit_are_refused_by_name(model, change, message):
    arrays = dict(named(model))
    change(arrays)
    with pytest.raises(ValueError, match=message):
        restored(model, arrays)
