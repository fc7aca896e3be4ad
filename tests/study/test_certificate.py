import json
import math
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from workbench.command import main
from workbench.config import (
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    load_file,
    to_json,
)
from workbench.count import count
from workbench.study import certificate, tune
from workbench.study.certificate import COUNTED, hash_of
from workbench.study.collect import collect
from workbench.study.verify import _stream_digest, replayed, verify

HEADS = 4
MODEL = ModelConfig("M", 16, 76, {"M": Mamba2Config(state=8, head_dim=8)})
RUN = RunConfig(
    "tiny", "a", MODEL, PhonebookConfig(entries=(2,), length=24, batch=2), PhonebookEvaluation((2,), 2, 2),
    OptimizerConfig(learning_rate=1e-2, warmup=0.5), steps=4, checkpoint_every=2, log_every=1,
)  # fmt: skip
SPOKEN = b"a tokenizer"


def record(folder, run, select=1.0, test=1.0):
    """A finished run's folder, consistent in itself, without training: losses and scores are made up."""
    from workbench.model.language_model import create
    from workbench.train.audit import audit
    from workbench.train.optimizer import schedule

    place = folder / run.name
    place.mkdir(parents=True)
    rates = schedule(run.optimizer, run.steps)
    each = run.data.batch * run.data.length
    rows = [
        {"step": s, "loss": 1 / s, "tokens": s * each, "learning_rate": float(rates(s - 1)), "gradient_norm": 1.0}
        for s in range(1, run.steps + 1)
    ]
    scores = [
        {
            "exact_match": {"2": {"mean": mean, "low": mean, "high": mean, "items": 4}},
            "per_book": {"2": [mean, mean]},
            "trained_entries": [2],
            "baselines": {"2": {"copy_any": 0.5, "constant": 0.25}},
        }
        for mean in (select, test)
    ]
    rows[-1]["select/phonebook/exact_match/2"] = select
    counts = count(run.model, run.data.length)
    result = {
        "run": run.name, "study": run.study, "arm": run.arm, "seed": run.seed, "role": run.role, "status": "finished",
        "steps": run.steps, "tokens": rows[-1]["tokens"],
        "digest": _stream_digest(json.dumps(to_json(run.data)), run.steps),
        **{name: getattr(counts, name) for name in COUNTED}, "seconds": 1.0, "final_loss": rows[-1]["loss"],
        "implementation": {"ssd": "xla"}, "data": {"tokenizer": sha256(SPOKEN).hexdigest()}, "parents": [],
        "weights_hash": "ab" * 32, "select": {"phonebook": scores[0]}, "evaluation": {"phonebook": scores[1]},
    }  # fmt: skip
    environment = {"packages": {"jax": "0"}, "git": {"commit": "c" * 40, "dirty": False}, "python": "3", "cpu": "any"}
    files = {"config": to_json(run), "result": result, "initial": audit(create(run.model, run.seed))}
    for name, value in (files | {"environment": environment}).items():
        (place / f"{name}.json").write_text(json.dumps(value))
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "tokenizer.json").write_bytes(SPOKEN)
    return place


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Three arms of one model, tuned alike, where the test split would have chosen another rate. Never write to it."""
    folder = tmp_path_factory.mktemp("honest")
    for arm in "abc":
        record(folder, replace(RUN, arm=arm))
        for rate, select, test in ((3e-3, 0.5, 1.0), (1e-2, 1.0, 0.5)):
            tried = replace(RUN.optimizer, learning_rate=rate)
            data = replace(RUN.data, seed=9)
            record(folder, replace(RUN, arm=arm, role="tuning", seed=9, data=data, optimizer=tried), select, test)
    write_choices(folder, "select")
    certificate.write(collect(folder))
    return folder


@pytest.fixture
def study(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "study")


def write_choices(folder, split):
    from workbench.study.judge import trials_of

    trials = trials_of(collect(folder), "phonebook")
    choices = [{"task": "phonebook", "arm": arm} | tune.choice(each, split) for arm, each in trials.items()]
    (folder / "tuning.json").write_text(json.dumps({"choices": choices}))


def of(study, arm, role="result"):
    (run,) = [run for run in collect(study).select(role, arm=arm)]
    return study / run.name


def change(path, edit):
    """Edits a JSON file's value, or a log's rows, in place."""
    lines = path.suffix == ".jsonl"
    value = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    edit(value)
    path.write_text("".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value))


def again(study, **changes):
    """Arm b recorded anew, openly with another config."""
    shutil.rmtree(of(study, "b"))
    record(study, replace(RUN, arm="b", **changes))


def initial(study, name, **values):
    change(of(study, "b") / "initial.json", lambda v: v["parameters"][f"layers.0.mixer.{name}"].update(values))


def arange(study):
    logs = np.log(np.arange(1, HEADS + 1))
    initial(study, "A_log", mean=logs.mean(), std=logs.std(), min=0.0, max=logs.max())


def constant_step(study):
    bias = math.log(math.expm1(0.01))
    initial(study, "dt_bias", mean=bias, std=0.0, min=bias, max=bias)


def other_stream(study):
    data = json.dumps(to_json(replace(RUN.data, seed=7)))
    change(of(study, "b") / "result.json", lambda v: v.update(digest=_stream_digest(data, RUN.steps)))


def fewer_trials(study):
    shutil.rmtree(next(study / r.name for r in collect(study).select("tuning", arm="b")))


def other_rates(study):
    from workbench.train.optimizer import schedule

    rates = schedule(replace(RUN.optimizer, warmup=0.0), RUN.steps)
    edit = lambda rows: [row.update(learning_rate=float(rates(row["step"] - 1))) for row in rows]  # noqa: E731
    change(of(study, "b") / "metrics.jsonl", edit)


def retokenised(study):
    other_stream(study)
    change(of(study, "b") / "result.json", lambda v: v["data"].update(tokenizer="ee" * 32))


def cut_short(study):
    change(of(study, "b") / "metrics.jsonl", lambda rows: rows.pop())


def other_books(study):
    def edit(result):
        result["evaluation"]["phonebook"]["baselines"]["2"]["constant"] = 0.5

    change(of(study, "b") / "result.json", edit)


def openly(**changes):
    return lambda study: again(study, **changes)


def optimized(**changes):
    return openly(optimizer=replace(RUN.optimizer, **changes))


def respoken(study):
    (of(study, "b") / "tokenizer.json").write_bytes(b"another")


CONFOUNDERS = {  # openly, or hidden in one file: the planting, and the words that name it
    "A = 1..H": (arange, "layers.0.mixer.A_log: recorded"),
    "constant dt": (constant_step, "layers.0.mixer.dt_bias: recorded"),
    "decayed A_log": (lambda s: initial(s, "A_log", decayed=True), "layers.0.mixer.A_log is decayed, against the rule"),
    "data seed": (openly(data=replace(RUN.data, seed=7)), "b is not ranked (seed 0: no run"),
    "data seed, hidden": (other_stream, "b is not ranked (data seed 0: its token stream differs"),
    "unequal trials": (fewer_trials, "not same tuning trials for every arm (a 2, b 1, c 2)"),
    "warm-up": (optimized(warmup=0.25), "optimizer.warmup: 0.5 (a and c), 0.25 (b)"),
    "warm-up, hidden": (other_rates, "learning rates in the logs are those of the schedules: phonebook-b"),
    "dtype": (openly(model=replace(MODEL, dtype="bfloat16")), 'model.dtype: "float32" (a and c), "bfloat16" (b)'),
    "test used to select": (lambda s: write_choices(s, "evaluation"), "test split was used to select: learning_rate"),
    "test used to select, openly": (optimized(learning_rate=3e-3), "the test split chooses that, and must not select"),
    "tokenizer": (retokenised, "another tokenizer made its tokens (eeeeeeee"),
    "tokenizer, hidden": (respoken, "tokenizer.json is"),
    "shorter budget": (openly(steps=3), "3 steps where the others took 4"),
    "shorter budget, hidden": (cut_short, "steps and tokens are those of the configs and of the logs: phonebook-b"),
    "clip": (optimized(clip=0.1), "optimizer.clip: 1.0 (a and c), 0.1 (b)"),
    "other items": (openly(evaluation=replace(RUN.evaluation, books=3)), "evaluation.books: 2 (a and c), 3 (b)"),
    "other items, hidden": (other_books, "items of b beside a: phonebook.baselines.2.constant: 0.25 -> 0.5"),
}


@pytest.mark.parametrize("name", CONFOUNDERS)
def test_a_planted_confounder_is_named_though_every_hash_was_made_anew(study, name):
    plant, words = CONFOUNDERS[name]
    plant(study)
    certificate.write(collect(study))
    found = list(verify(study))
    assert found[0].holds and found[1].holds  # the hashes agree
    named = [each for each in found if words in f"{each.what}: {each.detail}"]
    assert named, found
    assert all(not each.holds or "no fair comparison" in each.what for each in named)


def test_an_honest_study_holds_and_is_fair(study, capsys):
    assert main(["verify", str(study)]) == 0
    out = capsys.readouterr().out
    assert "BROKEN" not in out and "it calls phonebook a fair comparison" in out and out.endswith("It holds.\n")
    claimed = json.loads((study / "certificate.json").read_text())["claims"]["tasks"]["phonebook"]["arms"]
    assert claimed["a"]["parameters"]["layers.0.mixer.A_log"]["decayed"] is False
    assert claimed["a"]["trials"] == [[3e-3, 9], [1e-2, 9]]


@pytest.mark.parametrize("file", ["config.json", "initial.json", "metrics.jsonl", "result.json"])
def test_a_file_that_was_edited_is_named_by_its_hash(study, file, capsys):
    edit = lambda value: value[0].update(loss=0.0) if file == "metrics.jsonl" else value.update(seed=5)  # noqa: E731
    change(of(study, "b") / file, edit)
    assert main(["verify", str(study)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("The first that does not hold: its claims are what the folders say")


def test_a_claim_that_was_edited_is_found_by_the_certificates_own_hash(study):
    change(study / "certificate.json", lambda v: v["claims"]["says"].append("b is better"))
    assert [each.holds for each in verify(study)][:2] == [False, False]


def test_times_and_hosts_change_no_claim(study):
    before = json.loads((study / "certificate.json").read_text())
    for name, value in (("result", {"seconds": 99.0}), ("environment", {"cpu": "another"})):
        change(of(study, "b") / f"{name}.json", lambda v, new=value: v.update(new))
    after = certificate.write(collect(study))
    assert after["hash"] == before["hash"] == hash_of(after["claims"])
    assert after["circumstances"]["runs"] != before["circumstances"]["runs"]


def test_a_run_older_than_a_record_is_not_accused(study):
    for arm in "abc":
        (of(study, arm) / "initial.json").unlink()
        (of(study, arm) / "environment.json").unlink()
    certificate.write(collect(study))
    found = {each.what: each for each in verify(study)}
    assert all(each.holds is not False for each in found.values())
    assert "older than that record" in next(f.detail for what, f in found.items() if what.startswith("weights at"))


def test_a_study_without_a_certificate_says_how_to_make_one(study, capsys):
    (study / "certificate.json").unlink()
    assert main(["verify", str(study)]) == 2
    assert "`workbench report" in capsys.readouterr().err


# ---- what only doing it again can tell

TOY = load_file(Path(__file__).parents[1] / "train" / "toy.py")
SMALL = RunConfig(  # that of the loop's tests, so that both compile one step
    "toys", "small", ModelConfig("--", 16, 11, {"-": MLPConfig(hidden=32)}), TOY.Toy(), TOY.Norm(),
    OptimizerConfig(learning_rate=1e-2, warmup=0.25), steps=12, evaluate_every=4, checkpoint_every=4, log_every=5,
)  # fmt: skip


def trained(folder, run):
    from workbench.study.experiment import task
    from workbench.train.loop import train

    place = folder / run.name
    train(run, place, {task(run): run.evaluation.build(run)}, progress=False, wandb="disabled")
    return place


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was truly trained; read it, never write."""
    return trained(tmp_path_factory.mktemp("toys"), SMALL)


def test_a_run_records_what_it_starts_from(finished):
    from workbench.model.language_model import create
    from workbench.model.names import named
    from workbench.train.checkpoint import weights_hash

    recorded = json.loads((finished / "initial.json").read_text())
    model = named(create(SMALL.model, SMALL.seed))
    assert recorded["weights_hash"] == weights_hash(model) and recorded["parameters"].keys() == model.keys()
    enter = recorded["parameters"]["layers.0.mixer.enter"]
    assert enter["shape"] == [2, 16, 32] and enter["decayed"] is True
    assert enter["std"] == pytest.approx(np.std(np.asarray(model["layers.0.mixer.enter"], np.float64)), rel=1e-12)
    assert {n for n, p in recorded["parameters"].items() if not p["decayed"]} == {"layers.0.norm.scale", "norm.scale"}


def test_an_honest_run_comes_again_bit_for_bit(finished):
    from workbench.study.replay import replay

    start, later, scores = replay(finished, 5)
    assert start == ("5 steps again from the start", True, "bit for bit: rows of steps 4, 5")
    assert later == ("4 steps again from the checkpoint of step 8", True, "bit for bit: rows of steps 10, 12")
    assert scores[1] is True


def test_numbers_that_were_made_up_do_not_come_again(finished, tmp_path):
    from workbench.study.replay import replay

    place = shutil.copytree(finished, tmp_path / finished.name)
    change(place / "metrics.jsonl", lambda rows: [r.update(loss=0.999 * r["loss"]) for r in rows if "loss" in r])
    change(place / "initial.json", lambda value: value["parameters"]["embedding"].update(mean=0.0))
    change(place / "result.json", lambda result: result["evaluation"]["toy"].update(norm=1.0))
    start, later, scores = replay(place, 5)
    assert [each[1] for each in (start, later, scores)] == [False, False, False]
    assert "embedding.mean: 0.0 -> " in start[2] and "step 5, loss: " in start[2]
    assert "step 10, loss: " in later[2] and "norm: 1.0 -> " in scores[2]


def test_in_another_environment_what_differs_is_not_comparable_and_no_accusation(finished):
    from workbench.study.replay import _elsewhere, _judged

    recorded = json.loads((finished / "environment.json").read_text())
    assert _elsewhere(recorded) == []
    moved = _elsewhere(recorded | {"earlier": [recorded | {"cpus": 640}]})
    assert moved == [f"cpus: 640 -> {recorded['cpus']}"]
    assert _judged(["loss: 1 -> 2"], 1.0, moved, "row 1")[0] is None
    assert _judged(["loss: 1 -> 1.0001"], 1e-4, moved, "row 1")[0] is True
    assert _judged(["loss: 1 -> 1.0001"], 1e-4, [], "row 1")[0] is False


@pytest.mark.slow
def test_too_few_steps_to_reach_a_row_are_said_to_be(finished):
    from workbench.study.replay import replay

    start, *_ = replay(finished, 1)
    assert start[1] is None and "the first loss after that is of step 5: give --replay 5 or more" in start[2]


def test_a_stream_that_is_not_the_recipes_is_found_whatever_its_digest_says(study):
    (run,) = collect(study).select("result", arm="b")
    assert next(replayed(study / run.name, run, 1)).holds
    other_stream(study)
    (run,) = collect(study).select("result", arm="b")
    finding = next(replayed(study / run.name, run, 1))
    assert finding.holds is False and "its data's recipe gives its token stream" in finding.what


def sampled_by_other_table(patch):
    from workbench.model import initial

    table = initial.table
    patch.setattr(initial, "table", lambda *of: table(*of) | {"mamba2.A_log": lambda shape: initial.log_arange()})


def constant_steps(patch):
    from workbench.model import initial

    table = initial.table
    step = initial.constant(math.log(math.expm1(0.01)))
    patch.setattr(initial, "table", lambda *of: table(*of) | {"mamba2.dt_bias": lambda shape: step})


def all_decayed(patch):
    from workbench.train import optimizer

    patch.setattr(optimizer, "UNDECAYED", ("D", "bias", "scale"))


def optimized_by(**changes):
    def plant(patch):
        from workbench.train import step

        optimizer = step.optimizer
        patch.setattr(step, "optimizer", lambda config, steps: optimizer(replace(config, **changes), steps))

    return plant


def in_bfloat16(patch):
    from workbench.train import loop

    create = loop.create
    patch.setattr(loop, "create", lambda model, seed: create(replace(model, dtype="bfloat16"), seed))


def on_other_data(patch):
    from workbench.data.phonebook import PhonebookStream

    batch = PhonebookStream.batch
    other = PhonebookStream(replace(RUN.data, seed=7))
    patch.setattr(PhonebookStream, "batch", lambda self, step: batch(other, step))


def asked_other_books(patch):
    from workbench.evaluate import phonebook

    patch.setattr(phonebook, "SEED", 1)


HIDDEN = (
    sampled_by_other_table, constant_steps, all_decayed, optimized_by(clip=0.01), optimized_by(warmup=0.0),
    in_bfloat16, on_other_data, asked_other_books,
)  # fmt: skip
NAMES = ("A = 1..H", "constant dt", "decayed A_log", "clip", "warm-up", "dtype", "data seed", "other items")


def forget():
    """What was compiled or made with the code that a test has changed."""
    from workbench.model import language_model
    from workbench.train import optimizer, step

    language_model._create.clear_cache()
    step._step.cache_clear()
    optimizer.optimizer.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("plant", HIDDEN, ids=NAMES)
def test_a_confounder_hidden_from_every_file_is_caught_by_doing_it_again(tmp_path, plant):
    """Trained by other code than the record says, and every record of it forged: nothing but replay can tell."""
    run = replace(RUN, evaluation=PhonebookEvaluation((2, 4), 16, 4), steps=8)
    with pytest.MonkeyPatch.context() as patch:
        forget()
        plant(patch)
        place = trained(tmp_path, run)
    forget()
    honest = record(tmp_path / "honest", run)
    (place / "initial.json").write_bytes((honest / "initial.json").read_bytes())
    rates = [json.loads(line)["learning_rate"] for line in (honest / "metrics.jsonl").read_text().splitlines()]
    digest = json.loads((honest / "result.json").read_text())["digest"]
    edit = lambda rows: [row.update(learning_rate=rate) for row, rate in zip(rows, rates, strict=True)]  # noqa: E731
    change(place / "metrics.jsonl", edit)
    change(place / "result.json", lambda v: v.update(digest=digest))
    certificate.write(collect(tmp_path))
    assert all(each.holds is not False for each in verify(tmp_path))
    broken = [each for each in verify(tmp_path, replay=4) if each.holds is False]
    assert broken and all(each.what.startswith(f"{place.name}: ") for each in broken)
