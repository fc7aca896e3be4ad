"""Does a study's certificate hold? What can be made again from the folders is, and what does not agree is named.

In order: the certificate's hash; the claims, against the folders as they are now; what each run says of itself, against
what its config, code and seed give. A file that was changed together with its hashes passes the first two, and the
third where the change is consistent: then only doing the work again tells (`replay`).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workbench.config import RunConfig, differences, from_json, short_hash
from workbench.count import count
from workbench.record import read_json
from workbench.study import judge, tune
from workbench.study.certificate import COUNTED, FILE, claims, hash_of
from workbench.study.collect import Run, Study, collect
from workbench.study.diff import LARGEST

ROUNDED = 1e-6  # of a run's highest learning rate, and of a mean of scores kept to six digits
ELSEWHERE = 1e-4  # of a parameter's largest value: what another machine's sampling in float32 may change


class Finding(NamedTuple):
    """`holds` is None where it cannot be told here; `detail` says what was seen, or why not."""

    what: str
    holds: bool | None
    detail: str


class Absent(Exception):
    """What a check needs is not there."""


def verify(folder: str | Path, replay: int = 0) -> Iterator[Finding]:
    """Finding by finding. replay: steps that every finished run trains again, from its start and from a checkpoint.

    Raises ValueError for a folder without a study, or whose study has no certificate.
    """
    study = collect(folder)
    path = study.folder / FILE
    recorded = read_json(path)
    if recorded is None:
        raise ValueError(f"{path} is not there; `workbench report {study.folder}` makes it")
    yield _finding("the certificate's hash is that of its claims", _hash(recorded))
    yield _finding("its claims are what the folders say", differences(recorded["claims"], _plain(claims(study))))
    for check in CHECKS:
        yield _of_runs(study, check)
    yield _finding("tuning.json holds what the trials choose on the select split", *_tuning(study))
    for task in study.tasks:  # the certificate may hold and say that the comparison is not fair
        unfair = [f"not {each.name} ({each.detail})" for each in judge.checks(study, task) if not each.holds]
        for arm, verdict in judge.verdicts(study, task).items():
            unfair += [] if verdict.ranked else [f"{arm} is not ranked ({'; '.join(verdict.reasons)})"]
        yield Finding(f"it calls {task} {'no ' if unfair else 'a '}fair comparison", True, "; ".join(unfair))
    if replay:
        for run in study.runs:
            if run.finished and run.config:
                yield from replayed(study.folder / run.name, run, replay)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _finding(what: str, problems: list[str], good: str = "") -> Finding:
    return Finding(what, not problems, "; ".join(problems[:3]) or good)


def _hash(recorded: dict) -> list[str]:
    found = hash_of(recorded["claims"])
    return [] if found == recorded["hash"] else [f"it says {recorded['hash'][:12]}, and the claims give {found[:12]}"]


# ---- what a run says of itself


def _of_runs(study: Study, check: Callable[[Run, Path], list[str]]) -> Finding:
    """One check over every run that finished; the first problem of each."""
    problems, absent, seen = [], [], 0
    for run in study.runs:
        if not (run.finished and run.config) or _imported(run):
            continue
        try:
            found = check(run, study.folder / run.name)
        except Absent as why:
            absent.append(f"{run.name}: {why}")
            continue
        except (KeyError, TypeError, ValueError, OSError) as error:  # a config or file that cannot be read
            found = [f"{type(error).__name__}: {error}"]
        seen += 1
        problems += [f"{run.name}: {found[0]}"] if found else []
    what = check.__doc__.splitlines()[0].rstrip(".")
    if problems or not absent:
        return _finding(what, problems, f"{seen} runs")
    rest = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return Finding(what, True if seen else None, f"{seen} runs; not told of {absent[0]}{rest}")


def _imported(run: Run) -> bool:
    """Whether it is a released model as it came, of which nothing here says how it was made."""
    parents = run.result.get("parents", ())
    return bool(parents) and parents[-1]["relation"] == "imported"


@functools.cache
def _config(text: str) -> RunConfig:
    return from_json(json.loads(text))


def config_of(run: Run) -> RunConfig:
    """Raises Absent where this code, which may be another than the run's, cannot read the config."""
    try:
        return _config(json.dumps(run.config))
    except (ValueError, TypeError, OSError) as error:
        raise Absent(f"its config is not one of this code ({error})") from None


def named(run: Run, folder: Path) -> list[str]:
    """runs carry the names that their configs have."""
    name, made = run.result["run"], short_hash(run.config)  # as it stands there, whatever this code would make of it
    return [] if name.rpartition("-")[2] == made else [f"its result is of {name}, its config's hash is {made}"]


def counted(run: Run, folder: Path) -> list[str]:
    """parameters, FLOPs and state bytes are those of the configs."""
    config = config_of(run)
    counts = count(config.model, config.data.length)
    return differences(*({name: get(name) for name in COUNTED} for get in (run.result.get, counts.__getattribute__)))


def spent(run: Run, folder: Path) -> list[str]:
    """steps and tokens are those of the configs and of the logs."""
    config, result, rows = config_of(run), run.result, [row for row in run.metrics if "loss" in row]
    if not rows:
        raise Absent("metrics.jsonl has no row")
    last = rows[-1]
    wanted = {"steps": config.steps, "tokens": last["tokens"], "final_loss": last["loss"]}
    found = differences(wanted, {name: result[name] for name in wanted})
    if not getattr(config.data, "ramp", ()) and (batch := getattr(config.data, "batch", None)):
        found += differences({"tokens": config.steps * batch * config.data.length}, {"tokens": result["tokens"]})
    return found + differences({"last row": config.steps}, {"last row": last["step"]})


def scheduled(run: Run, folder: Path) -> list[str]:
    """learning rates in the logs are those of the schedules."""
    from workbench.train.optimizer import schedule

    config, rows = config_of(run), [row for row in run.metrics if "learning_rate" in row]
    if not rows:
        raise Absent("metrics.jsonl has no learning rate")
    steps = np.array([row["step"] for row in rows])
    wanted = np.asarray(schedule(config.optimizer, config.steps)(steps - 1), np.float64)
    off = np.abs(wanted - [row["learning_rate"] for row in rows]) > ROUNDED * config.optimizer.learning_rate
    at = int(np.argmax(off))
    return [f"step {steps[at]}: {rows[at]['learning_rate']:g}, scheduled {wanted[at]:g}"] if off.any() else []


def tokenised(run: Run, folder: Path) -> list[str]:
    """tokenizers kept with the runs are those that made their data."""
    path, recorded = folder / "tokenizer.json", run.result.get("data", {}).get("tokenizer")
    if recorded is None:
        return []
    if not path.is_file():
        raise Absent("tokenizer.json is not there")
    found = sha256(path.read_bytes()).hexdigest()
    return [] if found == recorded else [f"tokenizer.json is {found[:12]}, the data's was {recorded[:12]}"]


def begun(run: Run, folder: Path) -> list[str]:
    """weights at the start are the seeds' by the table, and what is decayed goes by the rule."""
    from workbench.train.optimizer import is_decayed

    if not run.initial:
        raise Absent("initial.json is not there (the run is older than that record)")
    parameters = run.initial["parameters"]
    for name, its in parameters.items():
        if its["decayed"] != is_decayed(name):
            return [f"{name} is {'' if its['decayed'] else 'not '}decayed, against the rule"]
    config = config_of(run)
    if config.parent is not None:
        return differences(
            {"weights at the start": run.result["parents"][-1]["weights_hash"]},
            {"weights at the start": run.initial["weights_hash"]},
        )
    if run.result["parameters"] > LARGEST:
        raise Absent(f"{run.result['parameters']:,} parameters are not made again (at most {LARGEST:,})")
    made = _made(config.model, config.seed)
    if run.initial == made:
        return []
    for name in dict.fromkeys([*made["parameters"], *parameters]):
        wanted, found = made["parameters"].get(name), parameters.get(name)
        if wanted is None or found is None or wanted["shape"] != found["shape"]:
            return [f"{name}: {'not recorded' if found is None else 'recorded'}, the config has {wanted}"]
        values = [key for key, value in wanted.items() if isinstance(value, float)]
        largest = max(abs(wanted["min"]), abs(wanted["max"]))
        if any(not abs(wanted[key] - found[key]) <= ELSEWHERE * largest for key in values):
            said = ("{mean:.4g} +- {std:.4g} in [{min:.4g}, {max:.4g}]".format(**each) for each in (found, wanted))
            return ["{}: recorded {}, the table gives {}".format(name, *said)]
    from workbench.train.environment import decisive_differences, environment

    elsewhere = decisive_differences(run.environment, environment())
    return [] if elsewhere else [f"hash {run.initial['weights_hash'][:12]}, made here {made['weights_hash'][:12]}"]


@functools.lru_cache(maxsize=64)
def _made(model: Any, seed: int) -> dict[str, Any]:
    from workbench.model.language_model import create
    from workbench.train.audit import audit

    return audit(create(model, seed))


def scored(run: Run, folder: Path) -> list[str]:
    """means are those of the scores of books, and selection was logged as it is recorded."""
    from workbench.train.track import intervals

    found = []
    for name, evaluation in run.result["evaluation"].items():
        books = evaluation.get("per_book", {}) if isinstance(evaluation, dict) else {}
        for size, scores in books.items():
            mean = evaluation["exact_match"][size]["mean"]
            if abs(np.mean(scores) - mean) > ROUNDED:
                found.append(f"{name}, {size}: {mean:.4f} is not the mean of its books, {np.mean(scores):.4f}")
    last = run.metrics[-1] if run.metrics else {}
    recorded = {f"select/{name}": each["mean"] for name, each in intervals(run.result.get("select", {}))}
    return found + differences(*({k: of[k] for k in recorded if k in last} for of in (last, recorded)))


def kept(run: Run, folder: Path) -> list[str]:
    """the last checkpoints hold the weights that the results name."""
    from workbench.model.names import named as arrays
    from workbench.train.checkpoint import load_model, weights_hash

    if not (folder / "checkpoints").is_dir():
        raise Absent("no checkpoints here")
    config = config_of(run)
    saved, model = load_model(folder, run.result["steps"])
    if short_hash(saved) != short_hash(config):
        return ["the checkpoint is of another config: " + differences(saved, config)[0]]
    found = weights_hash(arrays(model))
    return (
        []
        if found == run.result["weights_hash"]
        else [f"weights {found[:12]}, recorded as " + run.result["weights_hash"][:12]]
    )


CHECKS = (named, counted, spent, scheduled, tokenised, begun, scored, kept)


def _tuning(study: Study) -> tuple[list[str], str]:
    """What tuning.json says that the trials on the select split do not; and what was looked at."""
    recorded = read_json(study.folder / "tuning.json")
    if recorded is None:
        return [], "no tuning.json here"
    found = []
    for each in recorded["choices"]:
        trials = judge.trials_of(study, each["task"]).get(each["arm"], [])
        trials = [t for t in trials if t.learning_rate in {row["learning_rate"] for row in each["rates"]}]
        said = {key: each[key] for key in ("learning_rate", "measure", "rates")}
        for split in ("select", "evaluation"):
            try:
                chosen = tune.choice(trials, split) if trials else {}
            except (KeyError, ValueError) as error:
                chosen = {"learning_rate": str(error)}
            other = differences(said, {key: chosen.get(key) for key in said})
            if split == "select":
                first = other[:1]
            elif first:
                why = "the test split was used to select: " if not other else ""
                found += [f"{each['task']} {each['arm']}: {why}{first[0]}"]
    return found, f"{len(recorded['choices'])} choices"


# ---- doing it again


@functools.lru_cache(maxsize=64)
def _stream_digest(data: str, steps: int) -> str:
    from workbench.data.digest import chain

    stream, digest = from_json(json.loads(data)).stream("train"), ""
    for step in range(steps):
        digest = chain(digest, stream.batch(step))
    return digest


def replayed(folder: Path, run: Run, steps: int) -> Iterator[Finding]:
    """The stream's digest from the recipe, then `workbench.study.replay` with the CPUs and flags that the run had."""
    try:
        digest = _stream_digest(json.dumps(run.config["data"]), run.result["steps"])
        problems = differences({"digest": digest[:16]}, {"digest": str(run.result["digest"])[:16]})
        problems = problems if digest != run.result["digest"] else []
        yield _finding(
            f"{run.name}: its data's recipe gives its token stream", problems, f"{run.result['steps']} steps"
        )
    except (ValueError, OSError) as error:  # a corpus that is not here
        yield Finding(f"{run.name}: its data's recipe gives its token stream", None, str(error))
    from workbench.study.launch import environment as variables

    cpus, flags = run.environment.get("cpus"), run.environment.get("xla_flags", "")
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = tuple(here[:cpus]) if cpus and cpus <= len(here) else ()
    given = os.environ | variables(len(cores)) | {"XLA_FLAGS": flags}
    if run.environment.get("devices") and set(run.environment["devices"]) == {"cpu"}:
        given["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-m", "workbench.study.replay", str(folder), str(steps)],
        env=given,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    for line in done.stdout.splitlines():
        what, holds, detail = json.loads(line)
        yield Finding(f"{run.name}: {what}", holds, detail)
    if done.returncode:
        yield Finding(f"{run.name}: it trains again", False, f"the process ended with status {done.returncode}")


def describe(finding: Finding) -> str:
    """A line of `workbench verify`."""
    sign = {True: "holds ", False: "BROKEN", None: "?     "}[finding.holds]
    return f"{sign}  {finding.what}: {finding.detail}" if finding.detail else f"{sign}  {finding.what}"
