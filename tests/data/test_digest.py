from itertools import pairwise

import numpy as np
import pytest

from workbench.data.digest import chain


def some_batch(rows=6):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 99, (rows, 5), dtype=np.int32),
        "weights": rng.random((rows, 5), dtype=np.float32),
        "source": rng.integers(0, 3, rows),
    }


def rows_of(batch, start, stop):
    return {name: array[start:stop] for name, array in batch.items()}


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 6), (0, 2, 4, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_the_digest_does_not_depend_on_how_rows_are_grouped(cuts):
    batch, digest = some_batch(), ""
    for start, stop in pairwise(cuts):
        digest = chain(digest, rows_of(batch, start, stop))
    assert digest == chain("", batch)


@pytest.mark.parametrize("name", ["tokens", "weights", "source"])
@pytest.mark.parametrize("row", [0, 5])
def test_one_changed_value_changes_the_digest(name, row):
    batch = some_batch()
    changed = batch | {name: batch[name].copy()}
    changed[name][row] += 1
    assert chain("", changed) != chain("", batch)


def test_the_order_of_rows_changes_the_digest():
    batch = some_batch()
    assert chain("", {name: array[::-1] for name, array in batch.items()}) != chain("", batch)


def test_the_order_in_which_arrays_are_listed_does_not():
    batch = some_batch()
    assert chain("", dict(reversed(batch.items()))) == chain("", batch)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.view(np.float32),
        lambda x: x.astype(np.int64),
        lambda x: x.reshape(6, 1, 5),
    ],
    ids=["dtype", "width", "shape"],
)
def test_the_same_bytes_with_another_type_or_shape_are_another_stream(change):
    batch = some_batch()
    assert chain("", batch | {"tokens": change(batch["tokens"])}) != chain("", batch)


def test_moving_an_array_to_another_name_changes_the_digest():
    batch = some_batch()
    renamed = {"tokenz" if name == "tokens" else name: array for name, array in batch.items()}
    assert chain("", renamed) != chain("", batch)


def test_memory_layout_and_byte_order_do_not_count():
    batch = some_batch()
    other = {name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">")) for name, array in batch.items()}
    assert chain("", other) == chain("", batch)


def test_a_prefix_of_the_stream_has_the_prefix_of_the_chain():
    batch = some_batch()
    assert chain(chain("", rows_of(batch, 0, 4)), rows_of(batch, 4, 6)) == chain("", batch)
    assert chain("", rows_of(batch, 4, 6)) != chain("", batch)


@pytest.mark.parametrize(
    "batch",
    [{}, {"a": np.zeros(3), "b": np.zeros(4)}, {"a": np.array(1.0)}, {"a": np.array([object()])}],
    ids=["nothing", "unequal rows", "no rows", "objects"],
)
def test_what_has_no_rows_or_no_bytes_is_refused(batch):
    with pytest.raises(ValueError):
        chain("", batch)
