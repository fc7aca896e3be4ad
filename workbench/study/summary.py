"""The record of a study as plain JSON: study.json."""

from __future__ import annotations

from typing import Any

from workbench.config import ROLES
from workbench.study import answer, judge, scaling
from workbench.study.collect import Run, Study
from workbench.study.differences import comparisons, mean_of

OTHERS = tuple(role for role in ROLES if role not in ("result", "control", "tuning"))  # listed run by run
RESULTS = (
    "digest",
    "steps",
    "tokens",
    "parameters",
    "non_embedding_parameters",
    "train_flops_per_token",
    "state_bytes",
    "seconds",
    "tokens_per_second",
    "memory_bytes",
    "final_loss",
    "implementation",
)


def study_json(study: Study) -> dict[str, Any]:
    """study.json: what was run and found by task, arm and seed, with checks, verdicts, comparisons and headline."""
    tasks: dict[str, Any] = {}
    for task in study.tasks:
        verdicts = judge.verdicts(study, task)
        arms = {}
        for arm in study.arms("result", "control", task=task):
            runs = study.select("result", "control", task=task, arm=arm)
            arms[arm] = {
                "role": runs[0].role,
                "pattern": runs[0].config["model"]["pattern"],
                "verdict": verdicts[arm]._asdict() | {"ranked": verdicts[arm].ranked},
                "mean": _means(runs),
                "seeds": [_record(run) for run in runs],
            }
        tasks[task] = {
            "arms": arms,
            "checks": [check._asdict() for check in judge.checks(study, task)],
            "others": [_record(run) for run in study.select(*OTHERS, task=task)],
            "scaling": scaling.record(study, task),
            "tuning_runs": len(study.select("tuning", task=task)),
        }
    return {
        "study": study.name,
        "scale": study.facts.get("scale"),
        "first_line": answer.first_line(study),
        "headline": answer.headline(study),
        "tasks": tasks,
        "comparisons": [comparison.record() for comparison in comparisons(study)],
        "failures": [{"run": r.name, "status": r.status, "problem": r.problem} for r in study.failures],
        "set_aside": study.aside,
    }


def _means(runs: list[Run]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for measure in ("exact_match", "digit_accuracy"):
        sizes = dict.fromkeys(k for run in runs for k in run.by_entries(measure))
        if sizes:
            out[measure] = {str(k): mean_of(runs, measure, k)._asdict() for k in sizes}
    if any(run.bits_per_byte for run in runs):
        out["bits_per_byte"] = mean_of(runs, "bits_per_byte")._asdict()
    if any(run.same_groups for run in runs):
        out["same_groups"] = mean_of(runs, "same_groups")._asdict()
    return out


def _record(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "arm": run.arm,
        "role": run.role,
        "seed": run.config.get("seed", 0),
        "data_seed": run.data_seed,
        "status": run.status,
        "problem": run.problem,
        "learning_rate": run.config.get("optimizer", {}).get("learning_rate"),
        **{key: run.result.get(key) for key in RESULTS},
        "evaluation": run.result.get("evaluation", {}),
        "loss_curve": run.curve(),
        "validation_curve": run.select_curve(),
    }
