"""Arms at equal training FLOPs and at equal seconds: which runs are made, and what may be said of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.config import (
    ModelConfig,
    OptimizerConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    TextConfig,
    load_file,
)
from workbench.count import count
from workbench.study import answer, certificate, figures, judge
from workbench.study.budget import with_budgets
from workbench.study.collect import collect
from workbench.study.differences import comparisons
from workbench.study.report import html, report
from workbench.study.tables import terminal_table

fake = load_file(Path(__file__).with_name("fake_study.py"))
PATTERNS = {"cheap": "-", "dear": "M-", "dearer": "*-M-"}
SECONDS = {"cheap": 0.02, "dear": 0.05, "dearer": 0.02}
FLOPS = {"mamba2": 8e5, "mamba": 6e5}


def runs(schedule="wsd", seeds=(1, 2), steps=400):
    return [
        RunConfig("budgets", arm, ModelConfig(pattern, 32, 76), PhonebookConfig(seed=seed), PhonebookEvaluation(),
                  OptimizerConfig(schedule=schedule), seed, steps)
        for seed in seeds for arm, pattern in PATTERNS.items()
    ]  # fmt: skip


def cost(run, role):
    return run.step_seconds if role == "seconds" else count(run.model, run.data.length).train_flops_per_token


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize("role", ["flops", "seconds"])
def test_every_arm_ends_within_half_a_step_of_what_the_cheapest_spends(schedule, role):
    made = with_budgets(runs(schedule), SECONDS)
    for seed in (1, 2):
        group = [run for run in made if run.seed == seed]
        ended = {run.arm: run for run in group if run.role == "result"} | {
            run.arm: run for run in group if run.role == role
        }
        budget = min(cost(run, role) * 400 for run in group if run.role == "result")
        for run in ended.values():
            assert abs(run.steps * cost(run, role) - budget) <= cost(run, role) / 2
        dearest = max(ended, key=lambda arm: cost(ended[arm], role))
        assert ended[dearest].role == role and ended[dearest].steps < 400 and ended["cheap"].role == "result"


def test_a_stable_rate_is_branched_from_and_a_cosine_is_run_anew():
    made = {(run.arm, run.role, run.seed): run for run in with_budgets(runs(), SECONDS)}
    base, short = made["dear", "result", 1], made["dear", "seconds", 1]
    assert short.parent.run == base.name and short.parent.step in base.keep
    assert short.parent.step == short.steps - round(0.2 * short.steps)
    anew = next(run for run in with_budgets(runs("cosine")) if run.role == "flops")
    assert anew.parent is None and anew.optimizer == runs("cosine")[0].optimizer


def test_without_seconds_there_are_none_and_a_missing_arm_is_named():
    assert {run.role for run in with_budgets(runs())} == {"result", "flops"}
    with pytest.raises(ValueError, match="step_seconds has no 'dearer'"):
        with_budgets(runs(), {"cheap": 0.02, "dear": 0.05})


def test_a_batch_that_grows_is_refused():
    grown = [replace(run, data=TextConfig(ramp=(2, 2, 100)), model=ModelConfig("-", 16, 257)) for run in runs()[:1]]
    with pytest.raises(ValueError, match="whose steps differ in cost"):
        with_budgets(grown)


# ---- what is said


def written(folder, seeds=(0, 1, 2), short=680, **changes):
    """Mamba-2 is ahead at equal tokens; where it has spent what Mamba has, it is behind."""
    for seed in seeds:
        fake.source(folder, "mamba", seed, train_flops_per_token=FLOPS["mamba"])
        fake.source(folder, "mamba2", seed, train_flops_per_token=FLOPS["mamba2"])
        mine = {"steps": short, "role": "flops", "better": -0.1, "train_flops_per_token": FLOPS["mamba2"]}
        fake.source(folder, "mamba2", seed, **mine | {"tokens": 675 * 2048} | changes)
    return collect(folder)


def test_the_order_may_turn_with_what_is_held_equal_and_the_answer_says_which(tmp_path):
    study = written(tmp_path)
    found = {c.budget: c for c in comparisons(study)}
    assert found["tokens"].better == "mamba2" and found["flops"].better == "mamba"
    tokens, flops = answer.headline(study)
    assert tokens.startswith("At equal tokens, on unseen source code mamba2 has the fewest bits per byte")
    assert flops.startswith("At equal training FLOPs, on unseen source code mamba has the fewest bits per byte")
    assert "these architectures, paired over 3 seeds" in flops
    assert {check.name: check.holds for check in judge.checks(study, "text")}[
        "equal training FLOPs, the same beginning of the stream"
    ]


def test_all_differences_of_all_budgets_are_corrected_together(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    both = comparisons(written(tmp_path / "two"))
    for seed in (0, 1, 2):
        for arm in ("mamba", "mamba2"):
            fake.source(tmp_path / "one", arm, seed)
    (alone,) = comparisons(collect(tmp_path / "one"))
    assert alone.p_checkpoints == pytest.approx(alone.checkpoints.p)
    assert min(c.p_checkpoints / c.checkpoints.p for c in both if c.checkpoints.p > 0) >= 1
    assert max(c.p_checkpoints / c.checkpoints.p for c in both if c.checkpoints.p > 1e-300) == pytest.approx(2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tokens": 700 * 2048}, "they spread by 3.7 %"),
        ({"stream": "another"}, "its token stream differs by step 20"),
        ({"stream": ""}, "no digests on the way are recorded"),
        ({"status": "nan"}, "nan"),
    ],
)
def test_arms_that_spent_or_read_otherwise_are_not_compared_there(tmp_path, changes, why):
    study = written(tmp_path, **changes)
    check = next(c for c in judge.checks(study, "text") if c.name.startswith("equal training FLOPs"))
    assert not check.holds and why in check.detail
    assert {c.budget for c in comparisons(study)} == {"tokens"}
    assert "No comparison on text at equal training FLOPs" in answer.headline(study)[1]
    assert "equal training FLOPs" in answer.first_line(study)
    drawing = next(each for each in figures.drawings(study) if each.name == "text-budgets")
    assert any("not drawn at equal training FLOPs" in text.get_text() for text in drawing.figure.texts)


def test_seconds_are_steps_times_those_of_the_arm_alone_and_no_others(tmp_path):
    for seed in (0, 1):
        fake.source(tmp_path, "mamba", seed, step_seconds=0.02)
        fake.source(tmp_path, "mamba2", seed, step_seconds=0.03)
        fake.source(tmp_path, "mamba2", seed, step_seconds=0.03, steps=600, role="seconds", better=-0.1)
    study = collect(tmp_path)
    assert not judge.spending(study, "text", "seconds")[1]
    assert {c.budget: c.better for c in comparisons(study)} == {"tokens": "mamba2", "seconds": "mamba"}
    for path in tmp_path.glob("text-mamba-s0-*/config.json"):
        config = json.loads(path.read_text())
        del config["step_seconds"]
        path.write_text(json.dumps(config))
    assert "its config has no step_seconds" in judge.spending(collect(tmp_path), "text", "seconds")[1][0]


def test_the_page_the_terminal_and_the_certificate_have_every_budget(tmp_path):
    study = written(tmp_path)
    page, text = html(study, figures.drawings(study)), terminal_table(study)
    for said in ("equal tokens", "equal training FLOPs"):
        assert said in page and said in text
    assert "(680 steps)" in text and "(900 steps)" in text
    assert "Nothing is compared at equal seconds of training" in page
    report(tmp_path)
    assert (tmp_path / "figures" / "text-budgets.csv").read_text().count("\n") == 1 + 12
    claimed = certificate.claims(collect(tmp_path))["tasks"]["text"]["budgets"]["flops"]
    assert claimed == {"mamba": [900 * 2048 * 6e5] * 3, "mamba2": [675 * 2048 * 8e5] * 3}


# ---- the noise floor


def test_the_noise_floor_stands_beside_every_difference(tmp_path):
    study = written(tmp_path)
    (tokens, _) = comparisons(study)
    values = {arm: [run.bits_per_byte.mean for run in study.select("result", arm=arm)] for arm in ("mamba", "mamba2")}
    variance = sum(sum((v - sum(each) / 3) ** 2 for v in each) / 2 for each in values.values())
    assert tokens.floor.seeds == pytest.approx(variance**0.5) and tokens.floor.start is None
    for arm in values:
        fake.source(tmp_path, arm, 0, role="noise", start=100, better=0.03)
    study = collect(tmp_path)
    floor = comparisons(study)[0].floor
    gaps = [
        run.bits_per_byte.mean - study.select("result", arm=run.arm)[0].bits_per_byte.mean
        for run in study.select("noise")
    ]
    assert floor.start == pytest.approx((sum(gap**2 for gap in gaps) / 2) ** 0.5)
    assert floor.seeds == pytest.approx(variance**0.5)  # of the study's own seeds still
    assert f"{floor.start:.3f}" in html(study, [])


# ---- looking again


def announced(folder, seeds, looks=(3, 6)):
    for seed in seeds:
        for arm in ("mamba", "hybrid"):
            fake.source(folder, arm, seed)
    facts = {"name": "small", "runs": [{"run": path.name} for path in sorted(folder.glob("text-*"))]}
    (folder / "experiment.json").write_text(json.dumps(facts | ({"looks": looks} if looks else {})))


def test_between_announced_looks_nothing_is_said_of_architectures(tmp_path):
    announced(tmp_path, range(3))
    assert comparisons(collect(tmp_path))[0].architectures is not None
    early = comparisons(collect(tmp_path))[0].p_architectures
    announced(tmp_path, (3,))
    study = collect(tmp_path)
    assert comparisons(study)[0].architectures is None
    assert "There are 4 seeds (text), and looks were announced after 3 and 6" in answer.first_line(study)
    announced(tmp_path, range(4, 6))
    last = comparisons(collect(tmp_path))[0]
    assert last.architectures is not None and last.p_architectures < early
    assert "looks" not in answer.first_line(collect(tmp_path))


def test_looks_that_nothing_announced_are_counted_and_said(tmp_path):
    announced(tmp_path, range(3), looks=())
    report(tmp_path)
    assert "Looked at" not in answer.first_line(collect(tmp_path))
    announced(tmp_path, (3, 4), looks=())
    assert "Looked at after 3 and 5 seeds (text)" in answer.first_line(collect(tmp_path))
    report(tmp_path)
    assert json.loads((tmp_path / "looks.json").read_text()) == {"text": [3, 5]}
