import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from workbench.evaluate import suite
from workbench.evaluate.draw import at_chance, beside, curves, depth, draw, families, heat, positions
from workbench.record import write_json


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
        suite.write_items(tmp_path / f"phonebook-standard-{entries}.parquet", rows)
    suite.write_items(tmp_path / "recall-copying-4.parquet", [row(i, 1.0, 50, size=4) for i in range(3)])
    suite.write_items(tmp_path / "questions-letter.parquet", [row(i, 1.0, 50, answer=1) for i in range(3)])
    return tmp_path


def test_a_heat_map_is_the_mean_at_each_depth_and_size(folder):
    sizes = families(folder)["phonebook-standard"]
    np.testing.assert_array_equal(heat(sizes), np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).T)
    assert np.isnan(heat(families(folder)["recall-copying"])).all()


def test_cells_of_a_heat_map_where_chance_would_do_are_grey(folder):
    """Four wrong answers may be chance's, of one in twenty; four right ones are not; one alone has no interval."""
    found = families(folder)
    for row in (row for rows in found["phonebook-standard"].values() for row in rows):
        row["chance"] = 0.05
    doubtful = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool).T
    np.testing.assert_array_equal(at_chance(found["phonebook-standard"]), doubtful)
    (ax,) = depth(found).axes
    _, grey = ax.images
    np.testing.assert_array_equal(np.isnan(grey.get_array().filled(np.nan)), ~doubtful)
    drawn = grey.to_rgba(grey.get_array())[doubtful]
    assert len(np.unique(drawn, axis=0)) == 1 and np.ptp(drawn[0, :3]) < 0.05 and drawn[0, 3] == 1
    alone = found["phonebook-standard"][8][:1]
    assert not at_chance({8: alone}).any()


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


def test_a_figure_says_how_many_items_overlap_the_training_corpus(folder, monkeypatch):
    said = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: said.append(self.texts[-1].get_text()))
    draw(folder)
    write_json(
        folder / "results.json", {"phonebook-standard-4": {"items": 20, "overlapping": 3}, "other": {"error": "x"}}
    )
    draw(folder)
    assert (
        said
        == ["Not scanned for overlap with the training corpus."] * 2
        + ["3 of 20 items share 13 words in a row with the training corpus."] * 2
    )


@pytest.mark.parametrize("steps", [0, 20], ids=["imported", "trained on from it"])
def test_a_figure_of_one_model_names_it_and_an_imported_one_by_its_source(folder, tmp_path, monkeypatch, steps):
    place = shutil.copytree(folder, tmp_path / "released" / "suite" / "1a2b3c4d", ignore=lambda *_: ["released"])
    parent = {"run": "Small-135M.Q4_1.gguf", "relation": "imported"}
    write_json(place.parent.parent / "result.json", {"steps": steps, "parents": [parent]})
    said = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: said.append(self.get_suptitle()))
    draw(place)
    assert said == (["released"] if steps else ["Small-135M.Q4_1.gguf"]) * 2


def test_models_stand_side_by_side_a_panel_a_family(folder):
    found = families(folder)
    figure = beside({"one": found, "two": {"recall-copying": found["recall-copying"]}})
    drawn = {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}
    assert set(drawn) == {"phonebook-standard", "recall-copying"}
    curves_of = lambda ax: [line for line in ax.lines if len(line.get_xdata()) > 1 and line.get_alpha() is None]  # noqa: E731
    (line,) = curves_of(drawn["phonebook-standard"])
    np.testing.assert_allclose([line.get_xdata(), line.get_ydata()], [[100, 200], [60, 0]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert len(drawn["recall-copying"].get_legend_handles_labels()[1]) == 2
    assert beside({"one": {}}) is None


def test_loss_past_the_length_of_training_is_hollow_and_out_of_the_shade():
    bins = [(0, 16), (16, 32), (32, 64), (64, 128)]
    found = {
        "by_position": [
            {"start": a, "end": b, "mean": 3 - i / 2, "low": 2 - i / 2, "high": 4 - i / 2, "extrapolated": b > 32}
            for i, (a, b) in enumerate(bins)
        ]
    }
    (ax,) = positions({"one": found}).axes
    marks = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, False, True, True]
    assert [line.get_ydata()[0] for line in marks] == [3, 2.5, 2, 1.5]
    (shade,) = ax.patches
    assert shade.get_x() + shade.get_width() == 32


def test_nothing_is_shaded_or_hollow_where_the_length_of_training_is_unknown():
    bins = [{"start": 0, "end": 16, "mean": 3, "low": 2, "high": 4, "extrapolated": None}]
    (ax,) = positions({"one": {"by_position": bins}}).axes
    marks = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False]
    assert not ax.patches and not ax.texts
