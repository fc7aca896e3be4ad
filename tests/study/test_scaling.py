"""Curves of bits per byte against what was spent: recovered where the truth is known, and silent where they must be."""

from pathlib import Path

import numpy as np
import pytest

from workbench.config import load_file
from workbench.study import answer, figures, scaling
from workbench.study.collect import collect
from workbench.study.report import html
from workbench.study.summary import study_json
from workbench.study.tables import pasted

fake = load_file(Path(__file__).with_name("fake_study.py"))
X = np.geomspace(1e9, 1e12, 5)
STEPS = (100, 200, 400, 900)


@pytest.mark.parametrize(("floor", "exponent"), [(1.2, 0.3), (0.0, 0.08), (2.0, 1.1)])
def test_a_power_law_is_recovered_from_its_points(floor, exponent):
    found = scaling.fit(X, floor + 3.0 * (X / 1e10) ** -exponent)
    assert found.floor == pytest.approx(floor, abs=2e-3) and found.exponent == pytest.approx(exponent, rel=5e-3)
    assert found.at(X) == pytest.approx(floor + 3.0 * (X / 1e10) ** -exponent, rel=1e-5)


def test_three_sizes_have_no_floor_and_two_no_curve():
    assert scaling.fit(X[:3], 2 + X[:3] ** -0.1).floor == 0
    with pytest.raises(ValueError, match="at least 3 sizes; got 2"):
        scaling.fit([1e9, 1e10, 1e10], [2.0, 1.9, 1.9])


def test_a_crossing_is_where_the_curves_are_equal():
    a, b = scaling.Power(1.0, 2.0, 0.5, 1e9), scaling.Power(1.5, 1.0, 0.5, 1e9)  # 1 + 2u = 1.5 + u at u = 0.5
    assert scaling.crossings(a, b, 1e8, 1e12) == pytest.approx([4e9], rel=1e-9)
    assert scaling.crossings(a, b, 1e10, 1e12) == []


def test_the_interval_of_an_exponent_covers_what_it_was_drawn_from():
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        fits = [scaling.fit(X[:3], 3.0 * (X[:3] / 1e9) ** -0.1 + rng.normal(0, 0.01, 3)) for _ in range(3)]
        low, high = (scaling._over(dict(enumerate(fits)), "exponent")[end] for end in ("low", "high"))
        covered.append(low <= 0.1 <= high)
    assert 0.91 <= np.mean(covered) <= 0.985


# ---- of a study


def written(folder, seeds=(0, 1, 2), arms=("mamba", "transformer"), **changes):
    """Two arms at four lengths of training; the transformer's is the steeper, and ahead at the last."""
    for arm in arms:
        for seed in seeds:
            for steps in STEPS:
                role = "result" if steps == STEPS[-1] else "scale"
                level = {"mamba": 2.2 + 0.4 * (steps / 100) ** -0.5, "transformer": 2.0 + 1.0 * (steps / 100) ** -0.5}[
                    arm
                ]
                base = {"mamba": 2.44, "transformer": 2.61}[arm]
                given = changes if (arm, seed, steps) == ("mamba", 0, 200) else {}
                fake.source(
                    folder, arm, seed, steps=steps, role=role, better=base - level, digest=f"{steps:04d}" * 16, **given
                )
    return collect(folder)


def test_the_answer_names_where_curves_cross_with_its_interval(tmp_path):
    study = written(tmp_path)
    found = scaling.curves(study, "text", "tokens")
    (crossing,) = scaling.met(found)
    assert (crossing.first, crossing.second, crossing.seeds) == ("mamba", "transformer", 3)
    assert crossing.low < 900 * 2048 < crossing.high  # 2.2 + 0.4 u = 2 + u at u = 1/3, nine times the first
    said = answer.headline(study)
    assert any("mamba is below transformer until their curves cross" in sentence for sentence in said)
    assert any("Against tokens mamba is below transformer until" in s for s in said) == (crossing.at <= found.high)
    record = study_json(study)["tasks"]["text"]["scaling"]
    assert record.keys() == {"flops", "tokens"}  # all are of one size
    assert record["tokens"]["arms"]["mamba"]["exponent"].keys() == {"mean", "low", "high"}
    drawing = next(each for each in figures.drawings(study) if each.name == "text-scaling")
    page = html(study, figures.drawings(study))
    assert len(drawing.rows) == 2 * 2 * 3 * 4 and "text-scaling" in page
    of_mamba = record["tokens"]["arms"]["mamba"]["exponent"]
    shown = f"{of_mamba['mean']:.3f} [{of_mamba['low']:.3f}, {of_mamba['high']:.3f}]"
    assert shown in pasted(study, "markdown") and "exponent, training FLOPs" in page


@pytest.mark.parametrize(
    ("changes", "why"), [({"stream": "another"}, "its token stream differs"), ({"status": "nan"}, "nan")]
)
def test_runs_that_read_otherwise_or_broke_have_no_curve_and_the_reason_is_said(tmp_path, changes, why):
    study = written(tmp_path, **changes)
    assert scaling.curves(study, "text", "flops") is None
    (sentence,) = [each for each in answer.headline(study) if "No curves" in each]
    assert why in sentence
    drawing = next(each for each in figures.drawings(study) if each.name == "text-scaling")
    assert any(why in text.get_text().replace("\n", " ") for text in drawing.figure.texts)


def test_a_study_of_one_size_says_nothing_of_scaling(tmp_path):
    study = fake.write(tmp_path, arms=("mamba", "hybrid"))
    study = collect(study)
    assert scaling.sentences(study, "text") == [] and not scaling.record(study, "text")
    assert "text-scaling" not in {each.name for each in figures.drawings(study)}
