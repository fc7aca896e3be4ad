import numpy as np
import pytest

from workbench.evaluate import suite
from workbench.evaluate.draw import curves, depth, draw, families, heat


def row(item, right, tokens, **facts):
    return {
        "item": item,
        "digest": "d",
        "cluster": f"item {item}",
        "metrics": {"exact_match": right},
        "chance": 0.1,
        "straddles": False,
        "prompt_tokens": tokens,
        "facts": facts,
    }


@pytest.fixture
def folder(tmp_path):
    """Of a model that finds what stands in the last half of books, and nothing of long ones."""
    for entries, tokens in ((4, 100), (8, 200)):
        rows = [
            row(i, float(entries == 4 and i % 5 >= 2), tokens, depth=(i % 5) / 4, entries=entries) for i in range(20)
        ]
        suite._write(tmp_path / f"phonebook-standard-{entries}.parquet", rows)
    suite._write(tmp_path / "recall-copying-4.parquet", [row(i, 1.0, 50, size=4) for i in range(3)])
    suite._write(tmp_path / "questions-letter.parquet", [row(i, 1.0, 50, answer=1) for i in range(3)])
    return tmp_path


def test_a_heat_map_is_the_mean_at_each_depth_and_size(folder):
    sizes = families(folder)["phonebook-standard"]
    np.testing.assert_array_equal(heat(sizes), np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).T)
    assert np.isnan(heat(families(folder)["recall-copying"])).all()


def test_curves_go_through_every_size_and_grey_marks_chance(folder):
    found = families(folder)
    assert set(found) == {"phonebook-standard", "recall-copying"}
    figure = curves(found)
    tokens, entries, recall = figure.axes
    line = tokens.lines[0]
    np.testing.assert_allclose([line.get_xdata(), line.get_ydata()], [[100, 200], [60, 0]])
    np.testing.assert_allclose(entries.lines[0].get_xdata(), [4, 8])
    marked = [each.get_markerfacecolor() == "white" for each in tokens.lines if each.get_marker() == "o"]
    assert marked[:2] == [False, True]
    assert recall.get_title() == "recall" and len(depth(found).axes) == 1


def test_figures_stand_beside_the_items_and_none_where_none_are(folder, tmp_path):
    assert [path.name for path in draw(folder)] == ["curves.png", "depth.png"]
    assert draw(tmp_path / "empty") == []
