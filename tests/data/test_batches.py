import threading
import time
import traceback

import numpy as np
import pytest

from workbench.data.batches import check_batch, prefetch


class Counted:
    """Makes {"step": step}, and remembers which steps it was asked for; fails at one of them if told to."""

    def __init__(self, fails_at=None):
        self.made, self.fails_at = [], fails_at

    def batch(self, step):
        if step == self.fails_at:
            raise OSError(f"no batch {step}")
        self.made.append(step)
        return {"step": np.array([step])}


def loaders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("span", [(0, 0), (3, 4), (7, 20)])
def test_batches_come_in_order_each_once(span, depth):
    stream = Counted()
    out = [(step, int(batch["step"][0])) for step, batch in prefetch(stream, *span, depth=depth)]
    assert out == [(step, step) for step in range(*span)]
    assert stream.made == list(range(*span))


def test_batches_are_made_ahead_but_no_further_than_the_depth():
    stream = Counted()
    batches = prefetch(stream, 0, 100, depth=3)
    next(batches)
    deadline = time.monotonic() + 5
    while len(stream.made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert stream.made == [0, 1, 2, 3]
    batches.close()


def test_an_error_surfaces_at_its_step_with_its_traceback():
    seen = []
    with pytest.raises(OSError, match="no batch 4") as caught:
        for step, _ in prefetch(Counted(fails_at=4), 0, 10):
            seen.append(step)
    assert seen == [0, 1, 2, 3]
    assert "in batch" in "".join(traceback.format_tb(caught.value.__traceback__))


@pytest.mark.parametrize("how", ["closed early", "run to the end", "failed"])
def test_no_thread_is_left_behind(how):
    before = loaders()
    batches = prefetch(Counted(fails_at=5 if how == "failed" else None), 0, 10)
    next(batches)
    own = set(loaders()) - set(before)  # one of an earlier test may still be ending
    assert len(own) == 1
    if how == "closed early":
        batches.close()
    elif how == "failed":
        with pytest.raises(OSError):
            list(batches)
    else:
        list(batches)
    deadline = time.monotonic() + 5
    while own & set(loaders()) and time.monotonic() < deadline:  # it ends with the batch that it was making
        time.sleep(0.001)
    assert not own & set(loaders())


def test_a_depth_below_one_is_refused_at_the_call():
    with pytest.raises(ValueError, match="depth 0"):
        prefetch(Counted(), 0, 10, depth=0)


GOOD = {
    "tokens": np.array([[0, 1, 2]]),
    "targets": np.array([[1, 2, 3]]),
    "weights": np.ones((1, 3)),
    "segments": np.array([[1, 1, 0]]),
}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tokens": np.zeros((1, 4), int)}, r"tokens.*\(1, 4\).*one shape"),
        ({name: array[0] for name, array in GOOD.items()}, "one shape"),
        ({"weights": -np.ones((1, 3))}, "weights below 0"),
        ({"weights": np.full((1, 3), np.nan)}, "weights below 0"),
        ({"tokens": np.ones((1, 3))}, "tokens of float64"),
        ({"segments": np.ones((1, 3))}, "segments of float64"),
        ({"targets": np.array([[1, 2, 4]])}, "targets from 1 to 4; the model's vocabulary is 4"),
        ({"tokens": np.array([[-1, 1, 2]])}, "tokens from -1 to 2"),
    ],
)
def test_a_batch_that_training_cannot_read_is_refused_with_what_is_needed(wrong, says):
    check_batch(GOOD, 4, "the data")
    with pytest.raises(ValueError, match=says):
        check_batch(GOOD | wrong, 4, "the data")


def test_a_batch_without_targets_or_that_is_no_dictionary_is_refused():
    with pytest.raises(ValueError, match=r"gave a batch of .*needed are tokens, targets and weights"):
        check_batch({"tokens": GOOD["tokens"]}, 4, "the data (Mine)")
    with pytest.raises(ValueError, match="gave tuple as a batch"):
        check_batch((GOOD["tokens"],), 4, "the data")
