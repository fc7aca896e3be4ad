"""The certificate of a study: what its comparison rests on, read from the run folders and linked to them by hashes.

certificate.json is {"hash", "claims", "circumstances"}. Claims follow from the runs alone: a study that was stopped and
resumed has those of one that was not. Circumstances are times, memory and hosts; no hash covers them. Imports no JAX.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from workbench.record import write_json
from workbench.study import answer, judge
from workbench.study.collect import Run, Study

FILE = "certificate.json"
FORMAT = 1
MEASURED = ("seconds", "compile_seconds", "tokens_per_second", "memory_bytes")  # of result.json: the machine's too
CODE = ("git", "python", "packages")  # of environment.json; all else there is of the host
COUNTED = (
    "parameters",
    "non_embedding_parameters",
    "train_flops_per_token",
    "state_bytes",
    "context",
)


def certificate(study: Study) -> dict[str, Any]:
    """The certificate as it follows from the folders now."""
    made = claims(study)
    return {"hash": hash_of(made), "claims": made, "circumstances": circumstances(study)}


def write(study: Study) -> dict[str, Any]:
    """Writes certificate.json beside study.json, and returns it."""
    made = certificate(study)
    write_json(study.folder / FILE, made)
    return made


def hash_of(value: Any) -> str:
    """sha256 of a value's JSON without spaces, keys in order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def claims(study: Study) -> dict[str, Any]:
    """What is claimed: of every task how its arms compare, of every run what it is, and which code made them."""
    return {
        "format": FORMAT,
        "study": study.name,
        "scale": study.facts.get("scale"),
        "overrides": study.facts.get("overrides", []),
        "tasks": {task: _task(study, task) for task in study.tasks},
        "runs": {run.name: _run(run) for run in sorted(study.runs, key=lambda run: run.name)},
        "code": _code(study.runs),
        "says": [answer.first_line(study), *answer.headline(study)],
    }


def circumstances(study: Study) -> dict[str, Any]:
    """When it was made, and of every run its time, memory and host; `earlier` are the hosts of a run that moved."""
    runs = {}
    for run in sorted(study.runs, key=lambda run: run.name):
        host = {key: value for key, value in run.environment.items() if key not in CODE}
        runs[run.name] = {key: run.result.get(key) for key in MEASURED} | {"host": host}
    return {"made": datetime.now(UTC).isoformat(timespec="seconds"), "runs": runs}


def _task(study: Study, task: str) -> dict[str, Any]:
    runs = study.select("result", "control", task=task)
    verdicts, trials = judge.verdicts(study, task), judge.trials_of(study, task)
    sizes = {run.arm: run.result["non_embedding_parameters"] for run in runs if run.role == "result" and run.finished}
    return {
        "level": "not comparable" if judge.one_stream(runs) else "same stream",
        "matched": {
            "what": "non-embedding parameters",
            "spread": max(sizes.values()) / min(sizes.values()) - 1 if sizes else None,
            "tolerance": judge.MATCHED,
        },
        "budgets": {
            budget: {arm: [judge.spent(run, budget) for run in each if run.finished] for arm, each in arms.items()}
            for budget in judge.budgets(study, task)
            for arms in [judge.at(study, task, budget)]
        },
        "checks": [check._asdict() for check in judge.checks(study, task)],
        "optimizer_differences": judge.unequal(runs, "optimizer"),
        "arms": {
            arm: {
                "ranked": verdict.ranked,
                "reasons": list(verdict.reasons),
                "trials": sorted([trial.learning_rate, trial.seed] for trial in trials.get(arm, ())),
                "released": sorted({name for run in _of(runs, arm) for name in run.released}),
                "parameters": next((run.initial["parameters"] for run in _of(runs, arm) if run.initial), None),
            }
            for arm, verdict in verdicts.items()
        },
    }


def _of(runs: Sequence[Run], arm: str) -> list[Run]:
    return [run for run in runs if run.arm == arm]


def _run(run: Run) -> dict[str, Any]:
    """Its identity, what it read, weighs and costs, and the hashes of what its folder holds."""
    if not run.config:
        return {"status": run.status}
    result = run.result
    flops = result.get("train_flops_per_token")
    return {
        "task": run.task,
        "arm": run.arm,
        "role": run.role,
        "seed": run.config.get("seed", 0),
        "data_seed": run.data_seed,
        "status": run.status,
        "digest": result.get("digest"),
        "steps": result.get("steps"),
        "tokens": result.get("tokens"),
        "tokenizer": result.get("data", {}).get("tokenizer"),
        **{name: result.get(name) for name in COUNTED},
        "train_flops": flops * result["tokens"] if flops and result.get("tokens") else None,
        "implementation": result.get("implementation"),
        "parents": result.get("parents", []),
        "initial_weights": run.initial.get("weights_hash"),
        "weights": result.get("weights_hash"),
        "items": hash_of(run.items) if run.items else None,
        "hashes": {
            "config.json": hash_of(run.config),
            "initial.json": hash_of(run.initial) if run.initial else None,
            "metrics.jsonl": hash_of(run.metrics),
            "result.json": hash_of({key: value for key, value in result.items() if key not in MEASURED}),
        },
    }


def _code(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every code version with its packages, those of before a resumption too, and the runs that it made."""
    found: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        for host in [*run.environment.get("earlier", ()), run.environment] if run.environment else ():
            code = {key: host.get(key) for key in CODE}
            made = found.setdefault(hash_of(code), code | {"runs": []})["runs"]
            made += [run.name] if run.name not in made else []
    return list(found.values())
