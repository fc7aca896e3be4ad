import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from workbench.config import MLPConfig, ModelConfig, OptimizerConfig, RunConfig, load_file

TOY = load_file(Path(__file__).with_name("toy.py"))


@pytest.fixture(scope="session")
def toy():
    return TOY.Toy


@pytest.fixture(scope="session")
def run(toy) -> RunConfig:
    """Twelve steps of a model of two layers, stacked; checkpoints and evaluations every four.

    Tests that change neither the model, nor the optimizer, nor the number of steps share one compilation.
    """
    return RunConfig(
        study="toys",
        arm="small",
        model=ModelConfig("--", width=16, vocabulary=11, symbols={"-": MLPConfig(hidden=32)}),
        data=toy(),
        evaluation=None,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.25),
        steps=12,
        evaluate_every=4,
        checkpoint_every=4,
        log_every=5,
    )


@pytest.fixture(scope="session")
def evaluator():
    """A score that depends on the weights, and a nested value, on each split."""
    from workbench.model.names import named

    def evaluate(model, split):
        total = float(np.abs(np.asarray(named(model)["embedding"])).sum())
        return {"score": total, "sums": {split: {"mean": total, "low": total - 1, "high": total + 1}}}

    return evaluate


@pytest.fixture
def train(evaluator):
    """`train(run, folder)` without a bar and without wandb; other arguments are the loop's own."""
    from workbench.train.loop import train

    def start(run, folder, **arguments):
        return train(run, folder, {"toy": evaluator}, **({"progress": False, "wandb": "disabled"} | arguments))

    return start


@pytest.fixture(scope="session")
def whole(run, evaluator, tmp_path_factory):
    """A run that was never stopped: its folder (read it, never write) and its result."""
    from workbench.train.loop import train

    folder = tmp_path_factory.mktemp("whole") / "run"
    result = train(run, folder, {"toy": evaluator}, progress=False, wandb="disabled")
    return SimpleNamespace(folder=folder, result=result)


@pytest.fixture(scope="session")
def rows():
    """The rows of a .jsonl file."""
    return lambda path: [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="session")
def replace():
    return dataclasses.replace
