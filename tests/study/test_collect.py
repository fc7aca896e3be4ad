import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.command import main
from workbench.config import load_file
from workbench.study import answer, certificate, differences, judge
from workbench.study.collect import collect
from workbench.study.summary import study_json

fake = load_file(Path(__file__).with_name("fake_study.py"))
TWO = ("hybrid", "mamba2")


@pytest.fixture
def two(tmp_path):
    """Two arms, two seeds, Phonebook alone."""
    return fake.write(tmp_path, TWO, text=False)


def test_collecting_and_reporting_import_no_jax():
    code = "import sys, workbench.study.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_everything_that_a_run_left_is_found_again(tmp_path):
    record = study_json(collect(fake.write(tmp_path, seeds=(0, 1))))
    arm = record["tasks"]["phonebook"]["arms"]["mamba2"]
    assert [seed["seed"] for seed in arm["seeds"]] == [0, 1] and arm["pattern"] == "MMMM"
    first = arm["seeds"][0]
    assert first["digest"].startswith("00ab") and first["non_embedding_parameters"] == fake.SIZES["mamba2"]
    assert first["validation_curve"][-1]["step"] == 1600 and first["validation_curve"][-1]["exact_match"] > 0.95
    assert first["loss_curve"][1] == {"step": 40, "tokens": 40 * 1536, "flops": 40 * 1536 * 6e5, "seconds": 2.0} | {
        "loss": first["loss_curve"][1]["loss"]
    }
    books = first["evaluation"]["phonebook"]
    assert set(books["exact_match"]["8"]) >= {"mean", "low", "high"} and {c["entries"] for c in books["by_depth"]} == {
        *fake.ENTRIES
    }
    assert 2.3 < record["tasks"]["text"]["arms"]["hybrid"]["mean"]["bits_per_byte"]["mean"] < 2.45
    assert all(check["holds"] for task in record["tasks"].values() for check in task["checks"])


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run folder"):
        collect(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        collect(tmp_path / "nothing")


def test_failed_unfinished_and_half_written_runs_are_kept_as_such(two):
    fake.phonebook(two, "mamba", 0, status="nan", error="loss is nan at step 640")
    path = fake.phonebook(two, "mamba", 1, status=None)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1620, "lo')
    error = {"output_type": "error", "ename": "MemoryError", "evalue": "no more", "traceback": []}
    (path / "train.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "outputs": [error]}]}))
    (two / "broken").mkdir()
    (two / "broken" / "config.json").write_text('{"arm": ')
    study = collect(two)
    found = {run.name.rpartition("-")[0]: (run.status, run.problem) for run in study.failures if run.config}
    assert found["phonebook-mamba-s0"] == ("nan", "loss is nan at step 640")
    assert found["phonebook-mamba-s1"] == ("failed at step 1600 of 1600", "MemoryError: no more")
    assert "unreadable" in {run.status for run in study.failures}
    assert not judge.verdicts(study, "phonebook")["mamba"].ranked
    assert "phonebook-mamba-s1" in answer.first_line(study)


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named_in_the_report_and_nothing_is_read_from_the_run(two, name):
    path = fake.phonebook(two, "mamba", 0)
    (path / name).write_text('{"step": 1, "lo\n{"step": 2}\n')
    study = collect(two)
    (run,) = study.failures
    assert run.status == "unreadable" and name in run.problem and not run.result and not run.metrics
    assert not judge.verdicts(study, "phonebook")["mamba"].ranked


def test_runs_that_the_experiment_names_are_missed_and_others_set_aside(two):
    names = [run.name for run in collect(two).runs]
    wanted = [{"run": name} for name in [*names[1:], "phonebook-transformer-s0-00000000"]]
    (two / "experiment.json").write_text(json.dumps({"name": "phonebook", "runs": wanted}))
    study = collect(two)
    assert study.aside == [names[0]]
    assert [run.status for run in study.failures] == ["not started"]


def test_an_arm_that_read_another_stream_is_not_ranked(two):
    for seed in (0, 1):
        fake.phonebook(two, "mamba", seed, digest="ffee" * 16)
    study = collect(two)
    verdicts = judge.verdicts(study, "phonebook")
    assert [arm for arm, verdict in verdicts.items() if not verdict.ranked] == ["mamba"]
    assert "ffeeffee" in verdicts["mamba"].reasons[0]
    assert not judge.checks(study, "phonebook")[0].holds
    assert all("mamba" not in (c.first, c.second) for c in differences.comparisons(study))


def test_an_arm_that_was_asked_other_items_is_neither_ranked_nor_compared(two):
    for seed in (0, 1):
        fake.phonebook(two, "mamba", seed)
    for path in two.glob("phonebook-mamba-s*/result.json"):
        result = json.loads(path.read_text())
        result["evaluation"]["phonebook"]["exact_match"]["2"]["items"] += 1
        path.write_text(json.dumps(result))
    study = collect(two)
    verdicts = judge.verdicts(study, "phonebook")
    assert [arm for arm, verdict in verdicts.items() if not verdict.ranked] == ["mamba"]
    assert "items of mamba beside" in verdicts["mamba"].reasons[0]
    assert {arm for c in differences.comparisons(study) for arm in (c.first, c.second)} == {"hybrid", "mamba2"}


def test_an_arm_that_was_asked_as_many_other_items_of_a_suite_is_not_ranked(tmp_path):
    for arm, digest in (("transformer", "aa"), ("mamba", "aa"), ("hybrid", "bb")):
        fake.source(tmp_path, arm, 0, suite={"recall-pairs-4": {"mean": 0.5, "items": 20, "digest": digest}})
    study = collect(tmp_path)
    verdicts = judge.verdicts(study, "text")
    assert [arm for arm, verdict in verdicts.items() if not verdict.ranked] == ["hybrid"]
    assert "suite.recall-pairs-4.digest: 'aa' -> 'bb'" in verdicts["hybrid"].reasons[0]
    assert not next(check for check in judge.checks(study, "text") if check.name == "same evaluation").holds
    claimed = certificate.claims(study)["runs"]
    assert len({run["items"] for run in claimed.values()}) == 2


def test_where_two_streams_stand_against_each_other_neither_is_ranked(tmp_path):
    fake.phonebook(tmp_path, "hybrid", 0)
    fake.phonebook(tmp_path, "mamba2", 0, digest="ffee" * 16)
    study = collect(tmp_path)
    assert not any(verdict.ranked for verdict in judge.verdicts(study, "phonebook").values())
    assert answer.headline(study) == ["No comparison on phonebook: no arm is ranked, and a comparison needs two."]


def test_an_arm_that_took_other_steps_is_not_ranked(two):
    for seed in (0, 1):
        fake.phonebook(two, "mamba", seed, steps=2000)
    (reason, _) = judge.verdicts(collect(two), "phonebook")["mamba"].reasons
    assert reason == "data seed 0: 2000 steps where the others took 1600"


def test_one_seed_of_two_below_95_percent_is_not_trained_and_counted(two):
    fake.phonebook(two, "transformer", 0, truth=lambda arm, k: 0.4)
    fake.phonebook(two, "transformer", 1)
    study = collect(two)
    verdict = judge.verdicts(study, "phonebook")["transformer"]
    assert (verdict.trained, verdict.solved, verdict.seeds, verdict.ranked) == (False, 1, 2, False)
    line = answer.first_line(study)
    assert line.startswith("transformer is not trained") and "1 of 2 seeds solved" in line
    assert not any("transformer" in sentence for sentence in answer.headline(study))


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_twice_the_steps_must_change_little(two, drop):
    for arm in TWO:
        at = drop if arm == "mamba2" else 0.0
        fake.phonebook(two, arm, 0, role="long", steps=3200, truth=lambda a, k, at=at: fake.truth(a, k) - at)
    verdict = judge.verdicts(collect(two), "phonebook")["mamba2"]
    assert verdict.converged == verdict.ranked == (drop == 0)
    assert bool(verdict.reasons) == (drop > 0) and all("twice the steps" in reason for reason in verdict.reasons)


def test_what_twice_the_steps_change_past_training_is_said_though_the_arm_stays_ranked(two):
    def truth(arm, entries):
        return 0.5 * fake.truth(arm, entries) if arm == "hybrid" and entries == 24 else fake.truth(arm, entries)

    for arm in TWO:
        fake.phonebook(two, arm, 0, role="long", steps=3200, truth=truth)
    study = collect(two)
    assert judge.verdicts(study, "phonebook")["hybrid"].ranked
    (said,) = (sentence for sentence in answer.headline(study) if "twice the steps" in sentence)
    assert said.startswith("With 24 entries twice the steps, one seed an arm, change hybrid from ")
    assert "mamba2" not in said and said.endswith("holds for these steps alone.")


def test_where_no_long_runs_were_made_the_first_line_says_so(two):
    assert "Convergence was not checked" in answer.first_line(collect(two))
    for arm in TWO:
        fake.phonebook(two, arm, 0, role="long", steps=3200)
    assert "Convergence" not in answer.first_line(collect(two))


def test_arms_of_unequal_size_fail_the_check(two):
    for seed in (0, 1):
        fake.phonebook(two, "mamba", seed, non_embedding_parameters=140_000)
    study = collect(two)
    (check,) = (c for c in judge.checks(study, "phonebook") if "parameters" in c.name)
    assert not check.holds and "6.14 %" in check.detail
    assert answer.first_line(study).startswith("Not a fair comparison; this does not hold: non-embedding parameters")


@pytest.mark.parametrize("at", [0.001, 0.5])
def test_with_the_entry_taken_out_an_arm_must_fall_to_chance(tmp_path, at):
    for arm in TWO:
        fake.phonebook(tmp_path, arm, 0, removed=at if arm == "mamba2" else 0.01)
    study = collect(tmp_path)
    (check,) = (c for c in judge.checks(study, "phonebook") if "removed" in c.name)
    assert check.holds == (at < 0.1)
    assert judge.verdicts(study, "phonebook")["mamba2"].ranked == (at < 0.1)
    assert ("mamba2 is not ranked: it stays above chance" in answer.first_line(study)) == (at > 0.1)


def test_with_two_seeds_sentences_are_about_these_checkpoints_only(two):
    first = answer.headline(collect(two))[0]
    start = "At equal tokens, with 8 entries in the book (the most in training) hybrid has the highest exact match"
    assert first.startswith(start)
    assert "ahead of mamba2" in first and "these checkpoints only: 2 seeds" in first


def test_with_three_seeds_they_may_be_about_architectures(tmp_path):
    study = collect(fake.write(tmp_path, TWO, seeds=(0, 1, 2), text=False))
    assert "these architectures, paired over 3 seeds" in answer.headline(study)[0]


def test_equal_arms_are_said_not_to_differ(tmp_path):
    study = collect(fake.write(tmp_path, TWO, truth=lambda arm, k: 0.97 if k < 16 else 0.5, text=False))
    assert not any(c.better for c in differences.comparisons(study))
    headline = answer.headline(study)
    assert all("no arm is seen to differ" in s for s in headline[::2]) and all(
        "ahead in 0" in s for s in headline[1::2]
    )


def test_the_sentence_turns_with_the_data(tmp_path):
    swapped = {"hybrid": "mamba2", "mamba2": "hybrid"}
    study = collect(fake.write(tmp_path, TWO, truth=lambda arm, k: fake.truth(swapped[arm], k), text=False))
    first, second, *_ = answer.headline(study)
    assert "mamba2 has the highest exact match" in first and "ahead of hybrid" in first
    assert "every arm without attention is ahead of every arm with" in second


def test_arms_that_are_equally_best_are_all_named(tmp_path):
    perfect = {"hybrid", "transformer"}
    arms = ("transformer", *TWO)
    study = collect(
        fake.write(tmp_path, arms, truth=lambda arm, k: 1.0 if arm in perfect else fake.truth(arm, k), text=False)
    )
    first = answer.headline(study)[0]
    assert "hybrid and transformer have the highest" in first or "transformer and hybrid have the highest" in first


@pytest.mark.parametrize("at", [0.08, 0.999])
def test_a_control_is_compared_with_its_arm_and_speaks_against_what_it_contradicts(tmp_path, at):
    """Here attention is ahead of none, unless it has no positions."""
    swapped = {"hybrid": "mamba2", "mamba2": "hybrid"}
    fake.write(tmp_path, TWO, truth=lambda arm, k: fake.truth(swapped[arm], k), text=False)
    for seed in (0, 1):
        fake.phonebook(
            tmp_path, "hybrid, bare", seed, role="control", control_of="hybrid",
            truth=lambda arm, k: 0.99 if k < 24 else at,
        )  # fmt: skip
    study = collect(tmp_path)
    said = answer.headline(study)
    (control,) = (s for s in said if s.startswith("Control, 24 entries: hybrid, bare has"))
    assert ("hybrid, bare is ahead by" in control) == (at > 0.9)
    (rule,) = (s for s in said[-4:] if "every arm without attention" in s)
    assert ("not so hybrid, bare, so attention as such does not decide it" in rule) == (at > 0.9)
    assert {(c.first, c.second) for c in differences.against_controls(study)} == {("hybrid, bare", "hybrid")}


def test_a_folder_without_result_runs_says_so(tmp_path):
    fake.phonebook(tmp_path, "hybrid", 0, role="tuning")
    assert answer.first_line(collect(tmp_path)).startswith("There are no result runs here.")


def test_fewer_bits_are_better(tmp_path):
    fake.source(tmp_path, "transformer", 0)
    fake.source(tmp_path, "hybrid", 0)
    (comparison,) = differences.comparisons(collect(tmp_path))
    assert comparison.better == "hybrid" and comparison.difference.mean > 0
    assert answer.gap(comparison, "hybrid").startswith("0.2")


def test_pairing_books_narrows_a_difference(tmp_path):
    fake.write(tmp_path / "paired", TWO, text=False)
    fake.write(tmp_path / "plain", TWO, text=False, keep=False)
    widths = []
    for name in ("paired", "plain"):
        c = next(c for c in differences.comparisons(collect(tmp_path / name)) if c.entries == 24)
        widths.append(c.difference.high - c.difference.low)
    assert widths[0] < widths[1]


def test_the_spread_over_seeds_tells_how_many_are_needed(two, capsys):
    assert main(["seeds", str(two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "task" and any("transformer" in line or "hybrid" in line for line in lines[1:4])
    assert main(["seeds", str(two), "--difference", "0.5"]) == 0
    assert "for a difference of 0.5" in capsys.readouterr().out


def test_one_seed_tells_nothing_of_a_spread(tmp_path, capsys):
    fake.phonebook(tmp_path, "hybrid", 0)
    fake.phonebook(tmp_path, "mamba", 0)
    assert main(["seeds", str(tmp_path)]) == 2
    assert "no two arms finished two seeds" in capsys.readouterr().err
