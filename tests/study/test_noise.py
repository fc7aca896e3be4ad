"""Runs that differ from an arm's first in their start alone."""

from dataclasses import replace

from workbench.config import (
    ModelConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RecallConfig,
    RecallEvaluation,
    RunConfig,
)
from workbench.study.noise import with_noise


def test_an_arm_and_task_gets_one_run_more_whose_initialisation_alone_is_another():
    def made(arm, seed, data, evaluation, role="result"):
        return RunConfig("noise", arm, ModelConfig("M", 32, data.vocabulary), replace(data, seed=seed), evaluation,
                         seed=seed, steps=10, role=role, keep=(5,))  # fmt: skip

    tasks = [(PhonebookConfig(), PhonebookEvaluation()), (RecallConfig("mqar"), RecallEvaluation())]
    runs = [made("a", 7, *tasks[0], role="long")]
    runs += [made(arm, seed, *task) for task in tasks for seed in (7, 8) for arm in ("a", "b")]

    found = with_noise(runs, 100)

    assert found[: len(runs)] == runs
    firsts = [run for run in runs if run.role == "result" and run.seed == 7]
    assert found[len(runs) :] == [replace(run, role="noise", seed=107, keep=()) for run in firsts] and len(firsts) == 4
