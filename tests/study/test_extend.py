import dataclasses
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
from workbench.study.extend import extend, extended
from workbench.train.checkpoint import load_model, weights_hash
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
    return {k: v for k, v in result.items() if k not in ("seconds", "compile_seconds", "tokens_per_second")}


# ---- the new run


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
        (dataclasses.replace(run, model=model), "another model: symbols.-.hidden: 16 -> 24; only rotary_base may"),
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
