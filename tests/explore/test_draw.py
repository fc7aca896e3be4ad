import numpy as np
import pytest

from workbench.explore import draw
from workbench.explore.inside import Answers, Look, Paper


@pytest.fixture
def paper():
    """20 books of two entries of two digits; the second entry is asked for."""
    tokens = np.tile([12, 3, 4, 13, 5, 6, 1, 13, 5], (20, 1))
    kinds = np.array([0, 1, 1, 0, 1, 1, 2, 2, 2])
    return Paper(tokens, np.tile([5, 6], (20, 1)), np.array([7, 8]), np.tile([4, 5], (20, 1)), kinds)


@pytest.fixture
def looks():
    """A state-space layer of two heads, the second of which takes all from the answer, and an MLP."""
    share = np.tile(np.eye(9), (2, 1, 1))
    share[1, 7], share[1, 8] = np.eye(9)[4], np.eye(9)[5]
    steps, rates = np.tile([0.1, 0.01], (20, 9, 1)), np.array([[-1.0], [-1.0]])
    return [Look(share, np.tile([0.0, 1.0], (20, 1)), np.array([0.5, 3.0]), steps, rates), Look()]


@pytest.fixture
def found():
    """Whole, all is right; without the first layer every other book, and its second digit alone, is wrong."""
    right = np.ones((3, 20, 2), bool)
    right[1, ::2, 1] = False
    return Answers((np.zeros((3, 20, 2)), right), (np.zeros((3, 20, 2)), right))


def test_the_conclusion_names_the_layer_that_answers_and_how_long_is_kept(paper, looks, found):
    said = draw.conclusion(["1 M", "2 -"], looks, found, paper)
    assert said.startswith("100% [81%, 100%] of the numbers asked for in 20 unseen books of 2 entries are right.")
    assert "where the question stands: 50% without layer 1 M." in said and "any of the other 1 makes no" in said
    assert "any head takes from the digit asked for is 100%: head 2 of layer 1 M." in said
    assert "55 in layer 1 M; the book has 6." in said  # the median of 10 and 100


def test_a_map_shows_each_heads_shares_below_the_diagonal_and_frames_what_is_asked_for(paper, looks):
    figure = draw.maps(["1 M", "2 -"], looks, paper)
    mean, best = (ax for ax in figure.axes if ax.get_visible() and ax.images and ax.get_title(loc="left"))
    assert best.get_title(loc="left") == "1 M: head 2, most on the answer"
    shown = best.images[0].get_array()
    assert shown[7, 4] == 1 and shown.mask[0, 1] and not shown.mask[8, 5]
    assert sorted(frame.get_xy() for frame in mean.patches) == [(3.5, 6.5), (4.5, 7.5)]
    with pytest.raises(ValueError, match="none of the layers 1 -, 2 - mixes tokens"):
        draw.maps(["1 -", "2 -"], [Look(), Look()], paper)
    assert draw.steps(["1 -", "2 -"], [Look(), Look()], paper) is None


def test_bars_are_whole_numbers_right_without_each_layer(paper, looks, found):
    _, without = draw.answering(["1 M", "2 -"], found).axes
    assert [bar.get_height() for bar in without.containers[0]] == [50, 100]
    (ax,) = draw.memory(["1 M", "2 -"], looks, paper).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [10, 100])
