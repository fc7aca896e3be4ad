import threading
import time
import traceback

import numpy as np
import pytest

from workbench.data.batches import prefetch


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
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


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
    assert len(loaders()) == len(before) + 1
    if how == "closed early":
        batches.close()
    elif how == "failed":
        with pytest.raises(OSError):
            list(batches)
    else:
        list(batches)
    assert loaders() == before


def test_a_depth_below_one_is_refused_at_the_call():
    with pytest.raises(ValueError, match="depth 0"):
        prefetch(Counted(), 0, 10, depth=0)
