import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from workbench.config import (
    AttentionConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    from_json,
    load_file,
    to_json,
)
from workbench.data.digest import chain
from workbench.model.language_model import create
from workbench.model.names import named, restored
from workbench.study import certificate
from workbench.study.estimate import kept_bytes
from workbench.study.extend import branch, branched, extend, extended
from workbench.study.replay import replay
from workbench.train.checkpoint import hashes, load, load_model, weights_hash
from workbench.train.loop import train
from workbench.train.loss import loss
from workbench.train.optimizer import schedule

TOY = load_file(Path(__file__).parents[1] / "train" / "toy.py")
CHANGES = ["checkpoint_every=2", "log_every=1"]
QUIET = {"progress": False, "wandb": "disabled"}


def a_run(pattern="*-", **changes) -> RunConfig:
    symbols = {"*": AttentionConfig(heads=2), "-": MLPConfig(hidden=16)}
    return RunConfig(
        **{
            "study": "toys",
            "arm": pattern,
            "model": ModelConfig(pattern, 16, 11, symbols),
            "data": TOY.Toy(length=16, batch=6),
            "evaluation": TOY.Norm(),
            "optimizer": OptimizerConfig(learning_rate=1e-2),
            "steps": 3,
        }
        | changes
    )


def evaluators(run):
    return {"toy": run.evaluation.build(run)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run in a study's folder, and what extending it to twice the length gave."""
    study = tmp_path_factory.mktemp("study")
    run = a_run()
    folder = study / run.name
    result = train(run, folder, evaluators(run), **QUIET)
    place, longer = extend(folder, length=32, steps=4, rotary_base=40_000, overrides=CHANGES, **QUIET)
    return SimpleNamespace(study=study, run=run, folder=folder, result=result, place=place, longer=longer)


def copied(trained, path):
    """The parent alone, in a study's folder of its own."""
    return shutil.copytree(trained.folder, path / trained.folder.name)


def without_time(result):
    return {k: v for k, v in result.items() if k not in certificate.MEASURED}


# ---- the new run


def test_a_limit_of_what_the_model_can_read_rises_to_the_length_that_it_is_trained_at(tmp_path):
    """A higher one stays, and a model without one stays without."""
    run = a_run()
    limited = dataclasses.replace(run, model=dataclasses.replace(run.model, positions=24))
    assert extended(run, 32, steps=1, batch=3).model.positions == 0
    assert extended(limited, 32, steps=1, batch=3).model.positions == 32
    wide = dataclasses.replace(run, model=dataclasses.replace(run.model, positions=64))
    assert extended(wide, 32, steps=1, batch=3).model.positions == 64
    train(limited, tmp_path / limited.name, evaluators(limited), **QUIET)
    place, _ = extend(tmp_path / limited.name, length=32, steps=1, **QUIET)
    assert load_model(place)[1].config.positions == 32


def test_its_first_loss_is_its_parents_and_its_schedule_begins_anew(trained):
    """With the higher rotary base, which changes no weight."""
    run = from_json(json.loads((trained.place / "config.json").read_text()))
    model = restored(create(run.model, 7), named(load_model(trained.folder)[1]))
    total, metrics = jax.jit(loss)(model, run.data.stream().batch(0))
    first = json.loads((trained.place / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(float(total / metrics["weight"]), rel=1e-6)
    assert first["learning_rate"] == pytest.approx(float(schedule(run.optimizer, run.steps)(0)), rel=1e-6)


def test_its_record_names_its_parent(trained):
    config, result = (json.loads((trained.place / f"{name}.json").read_text()) for name in ("config", "result"))
    run = from_json(config)
    (_, model) = load_model(trained.folder)
    found = weights_hash(named(model))
    line = {"run": trained.run.name, "step": 3, "weights_hash": found, "relation": "extended"}
    assert result["parents"] == [line] and trained.result["parents"] == []
    assert (run.parent.run, run.parent.weights_hash) == (trained.run.name, trained.result["weights_hash"])
    assert trained.place == trained.study.resolve() / run.name and run.role == "extended"
    assert (run.data.length, run.data.batch, result["tokens"]) == (32, 3, 4 * 96)
    assert run.model.symbols["*"].rotary_base == 40_000


def test_stopped_and_resumed_it_is_bit_for_bit_the_same_even_without_its_parent(trained, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, _):
        if step == 3:
            raise Stop

    parent = copied(trained, tmp_path)
    run = from_json(json.loads((trained.place / "config.json").read_text()))
    with pytest.raises(Stop):
        train(run, tmp_path / run.name, evaluators(run), on_step=stop, **QUIET)
    shutil.rmtree(parent)
    result = train(run, tmp_path / run.name, evaluators(run), **QUIET)
    assert without_time(result) == without_time(trained.longer)
    metrics = [folder / "metrics.jsonl" for folder in (tmp_path / run.name, trained.place)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


def test_arms_extended_alike_read_one_stream(trained):
    other, digest = extended(a_run("-"), 32, steps=4), ""
    for step in range(other.steps):
        digest = chain(digest, other.data.stream().batch(step))
    assert digest == trained.longer["digest"] != trained.result["digest"]


def test_extending_again_does_nothing(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.place.rglob("*") if path.name != ".lock"}
    again = extend(trained.folder, length=32, steps=4, rotary_base=40_000, overrides=CHANGES, **QUIET)
    assert again == (trained.place, trained.longer)
    assert {path: path.stat().st_mtime_ns for path in before} == before


# ---- its config


def test_what_it_takes_follows_from_its_parent():
    run = a_run(role="control", control_of="other")
    longer = extended(run, 48, tokens=97)
    assert (longer.data.batch, longer.steps) == (2, 2)  # two steps of 96 tokens
    assert (longer.role, longer.control_of, longer.parent.run) == ("extended", "", run.name)
    same = dataclasses.replace(longer, data=run.data, steps=run.steps, role="control", control_of="other", parent=None)
    assert same == run
    assert extended(run, 48, steps=5, batch=7).data.batch == 7
    assert from_json(json.loads(json.dumps(to_json(longer)))) == longer


@pytest.mark.parametrize(
    ("pattern", "given", "says"),
    [
        ("*-", {"length": 16, "steps": 1}, "longer ones, not 16"),
        ("*-", {"length": 40, "steps": 1}, "no whole number of rows of 40; give batch"),
        ("*-", {"length": 32}, "give steps or tokens"),
        ("*-", {"length": 32, "steps": 1, "tokens": 1}, "give steps or tokens"),
        ("-", {"length": 32, "steps": 1, "rotary_base": 1e6}, "no layer with rotary positions"),
    ],
    ids=["no longer", "rows", "neither", "both", "not rotary"],
)
def test_what_cannot_be_extended_is_refused(pattern, given, says):
    with pytest.raises(ValueError, match=says):
        extended(a_run(pattern), given.pop("length"), **given)


# ---- a parent that is not as it was


def damaged(place, **changes):
    path = place / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda place: shutil.rmtree(place), r"not finished \(it has no result.json\); run it first"),
        (lambda place: damaged(place, status="nan"), r"not finished \(its status is 'nan'\)"),
        (lambda place: damaged(place, weights_hash="0" * 64), "and not 000000000000, as its result.json has it"),
        (lambda place: damaged(place, data={"tokenizer": "ab" * 32}), r"another tokenizer \(sha256 abababababab"),
    ],
    ids=["missing", "unfinished", "weights", "tokenizer"],
)
def test_a_parent_that_is_not_what_was_recorded_is_named(trained, tmp_path, spoil, says):
    spoil(copied(trained, tmp_path))
    run = extended(trained.run, 32, steps=1)
    with pytest.raises(ValueError, match=says):
        train(run, tmp_path / run.name, evaluators(run), **QUIET)
    assert not (tmp_path / run.name / "result.json").exists()


def test_another_model_or_other_weights_than_asked_for_are_refused(trained, tmp_path):
    copied(trained, tmp_path)
    run = extended(trained.run, 32, steps=1, rotary_base=20_000)
    wider = dataclasses.replace(run.model.symbols["-"], hidden=24)
    model = dataclasses.replace(run.model, symbols={**run.model.symbols, "-": wider})
    parent = dataclasses.replace(run.parent, weights_hash="1" * 64)
    for changed, says in (
        (dataclasses.replace(run, model=model), "another model: symbols.-.hidden: 16 -> 24; only rotary_base and"),
        (dataclasses.replace(run, parent=parent), "and not 111111111111, as parent has it"),
    ):
        with pytest.raises(ValueError, match=says):
            train(changed, tmp_path / changed.name, evaluators(run), **QUIET)


def test_an_unfinished_run_cannot_be_extended(trained, tmp_path):
    place = copied(trained, tmp_path)
    damaged(place, status="nan")
    with pytest.raises(ValueError, match="holds no finished run"):
        extend(place, length=32, steps=1, **QUIET)
    assert list(tmp_path.iterdir()) == [place]


# ---- branches

STABLE = OptimizerConfig(learning_rate=1e-2, schedule="wsd", warmup=0.25, cooldown=0.25)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A run of 8 steps with a stable rate from step 2 to 6, and its branch at step 3, kept, to an end at 5."""
    study = tmp_path_factory.mktemp("study")
    run = a_run("-", optimizer=STABLE, steps=8, keep=(3,), log_every=2, checkpoint_every=4)
    train(run, study / run.name, evaluators(run), **QUIET)
    place, result = branch(study / run.name, 3, steps=5, **QUIET)
    return SimpleNamespace(run=run, folder=study / run.name, place=place, result=result)


def test_a_branch_is_the_run_of_its_steps_from_the_start_bit_for_bit(trunk, tmp_path):
    run = from_json(json.loads((trunk.place / "config.json").read_text()))
    whole = dataclasses.replace(run, role="result", parent=None)
    result = train(whole, tmp_path / whole.name, evaluators(whole), **QUIET)
    for name in ("weights_hash", "digest", "tokens", "steps", "final_loss", "evaluation"):
        assert trunk.result[name] == result[name], name
    rows = [folder / "metrics.jsonl" for folder in (trunk.place, tmp_path / whole.name)]
    assert rows[0].read_bytes() == rows[1].read_bytes()


def test_a_branchs_record_names_the_step_and_its_schedule_decays_from_there(trunk):
    run = from_json(json.loads((trunk.place / "config.json").read_text()))
    (line,) = trunk.result["parents"]
    assert line == {"run": trunk.run.name, "step": 3, "weights_hash": run.parent.weights_hash, "relation": "branched"}
    assert (run.role, run.steps, trunk.place.parent) == ("branched", 5, trunk.folder.parent.resolve())
    before, after = (schedule(config.optimizer, config.steps) for config in (trunk.run, run))
    assert [float(after(i)) for i in range(3)] == pytest.approx([float(before(i)) for i in range(3)])
    assert float(after(4)) == pytest.approx(0.1 * 1e-2)
    assert 0.1 * 1e-2 < float(after(3)) < 1e-2


def test_a_branch_that_changes_nothing_repeats_its_run(trunk):
    place, result = branch(trunk.folder, 4, **QUIET)
    assert place != trunk.folder
    assert result["weights_hash"] == json.loads((trunk.folder / "result.json").read_text())["weights_hash"]


def test_a_step_that_was_not_kept_is_trained_again_and_branched_from(trunk, tmp_path):
    folder = shutil.copytree(trunk.folder, tmp_path / trunk.folder.name)
    place, result = branch(folder, 5, steps=7, **QUIET)
    assert 5 in hashes(folder)
    run = from_json(json.loads((place / "config.json").read_text()))
    whole = dataclasses.replace(run, role="result", parent=None)
    assert result["weights_hash"] == train(whole, tmp_path / whole.name, {}, **QUIET)["weights_hash"]


def test_a_step_that_is_not_what_it_was_when_trained_again_is_warned_of(trunk, tmp_path):
    folder = shutil.copytree(trunk.folder, tmp_path / trunk.folder.name)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (changed,) = (row for row in rows if row["step"] == 6)
    changed["loss"] += 1e-6
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"trained again from step 4 to 6 and is not what it was \(step 6, loss"):
        branch(folder, 6, steps=8, **QUIET)


def test_a_branch_is_replayed_from_where_it_left_its_parent(trunk):
    findings = list(replay(trunk.place, 2))
    assert all(holds for _, holds, _ in findings), findings
    assert findings[0][0] == "2 steps again from the start" and "steps 4, 5" in findings[0][2]


def test_what_cannot_be_branched_is_refused(trunk, tmp_path):
    cosine = a_run(steps=8)
    to = functools.partial(branched, trunk.run)
    for attempt, says in (
        (
            lambda: branched(cosine, 4, steps=6),
            "schedule 'cosine', whose rate at step 4 depends on where it was to end",
        ),
        (lambda: to(1, steps=4), "a stable rate from step 2 to 6; branch there, not at 1"),
        (lambda: to(7, steps=9), "a stable rate from step 2 to 6; branch there, not at 7"),
        (lambda: to(5, steps=5), "before the new end, not at 5"),
        (lambda: branch(tmp_path, 2, steps=4), "holds no run"),
        (lambda: branch(trunk.folder, 3, overrides=["data.batch=4"], **QUIET), "cannot change data.batch: 6 -> 4"),
    ):
        with pytest.raises(ValueError, match=says):
            attempt()
    assert branched(cosine, 4).optimizer == cosine.optimizer


def test_the_disk_that_an_estimate_tells_is_what_the_checkpoints_hold(trunk):
    held = [load(trunk.folder, step)[1] for step in hashes(trunk.folder)]
    found = sum(array.nbytes for each in held for array in (*each.model.values(), *each.optimizer.values()))
    assert kept_bytes(trunk.run) == pytest.approx(found, abs=64)  # and a few counters
