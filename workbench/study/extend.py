"""Runs that go on from others, as runs of their own: at longer sequences, on other data, or from any step to an end.

Extended at longer sequences, any model can be: recurrences, and attention without positions, as they are; rotary
attention with a higher base, which turns the slow angles less over the new distances (Xiong et al. 2023,
arXiv:2309.16039, section 2.1).

Branched, a run with warm-up, stable rate and decay ends at several budgets for the price of the longest and the decays
(Haegele et al. 2024, arXiv:2405.18392): each branch is, bit for bit, the run of that budget trained from the start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.config import (
    AttentionConfig,
    ModelConfig,
    Parent,
    RunConfig,
    TextConfig,
    TextEvaluation,
    from_json,
    override,
)
from workbench.record import read_json


def extended(
    run: RunConfig,
    length: int,
    *,
    steps: int = 0,
    tokens: int = 0,
    batch: int | None = None,
    rotary_base: float | None = None,
) -> RunConfig:
    """The run that goes on from this one's last weights at a longer length; an experiment's runs() lists both.

    It takes `steps`, or as many as read at least `tokens`, of `batch` rows each, by default as many rows as keep a
    step's tokens. Optimizer and schedule begin anew. rotary_base: of every layer with rotary positions. A limit of
    what the model can read (ModelConfig.positions) is at least the length.
    Raises ValueError for a length that is not longer, and for a base where nothing is rotary.
    """
    if length <= run.data.length:
        raise ValueError(
            f"{run.name} has sequences of {run.data.length} tokens; extend it to longer ones, not {length}"
        )
    if batch is None:
        batch, rest = divmod(run.data.batch * run.data.length, length)
        if rest:
            raise ValueError(
                f"a step of {run.name} reads {run.data.batch} rows of {run.data.length} tokens, which are no whole "
                f"number of rows of {length}; give batch"
            )
    if (steps > 0) == (tokens > 0):
        raise ValueError(f"give steps or tokens, one of them; got steps={steps} and tokens={tokens}")
    model = run.model if rotary_base is None else _turned(run.model, rotary_base, run.arm)
    warm = {"ramp": ()} if getattr(run.data, "ramp", ()) else {}  # a batch that has grown stays so
    return replace(
        run,
        model=_reaching(model, length),
        data=replace(run.data, length=length, batch=batch, **warm),
        steps=steps or -(-tokens // (batch * length)),
        role="extended",
        control_of="",
        parent=Parent(run.name),
    )


def _turned(model: ModelConfig, rotary_base: float, arm: str) -> ModelConfig:
    """The model with another base in every layer with rotary positions. Raises ValueError where there is none."""
    rotary = {
        letter: replace(layer, rotary_base=float(rotary_base))
        for letter, layer in model.symbols.items()
        if isinstance(layer, AttentionConfig) and layer.rotary and layer in model.layers
    }
    if not rotary:
        raise ValueError(f"{arm} ({model.pattern}) has no layer with rotary positions; leave rotary_base out")
    return replace(model, symbols={**model.symbols, **rotary})


def _reaching(model: ModelConfig, length: int) -> ModelConfig:
    """The model that can read so many tokens, once it is trained on them."""
    return replace(model, positions=max(model.positions, length)) if model.positions else model


def continued(
    folder: Path | str, study: Path | str, data: TextConfig, *, steps: int, rotary_base: float | None = None,
    **fields: Any,
) -> RunConfig:  # fmt: skip
    """The run that trains the finished or imported run of a folder further, on other data: fine-tuning.

    study: the folder in which the new run will lie, such as runs/mine; its name is the study's. The data are read with
    the model's own tokenizer. rotary_base: as in `extended`, for longer sequences. fields: of RunConfig, such as
    optimizer, seed, arm (by default the run's) or evaluation (by default bits per byte at the data's length).
    Raises ValueError for a run that is not finished, or has no tokenizer to read text with.
    """
    folder = Path(folder)
    saved, result = (read_json(folder / name) for name in ("config.json", "result.json"))
    if saved is None or result is None or result["status"] != "finished":
        raise ValueError(f"{folder} holds no finished run, and no other can be continued; give a run's folder")
    kept = folder / "tokenizer.json"
    if not kept.is_file():
        raise ValueError(f"{folder} has no tokenizer.json, so that no text can be read with it; import it with one")
    before = from_json(saved)
    model = before.model if rotary_base is None else _turned(before.model, rotary_base, before.arm)
    beside = os.path.relpath(folder.resolve(), Path(study).resolve())
    given = {"arm": before.arm, "evaluation": TextEvaluation(length=data.length)} | fields
    return RunConfig(
        study=Path(study).resolve().name,
        model=_reaching(model, data.length),
        data=replace(data, tokenizer=str(kept)),
        steps=steps,
        parent=Parent(beside, result["weights_hash"]),
        **given,
    )


def branched(run: RunConfig, step: int, *, steps: int = 0) -> RunConfig:
    """The run that goes on from this one's state after `step` updates; an experiment's runs() lists both.

    steps: of all its updates, by default as many as this run's, which it then repeats unless something else is changed.
    With another number the rate must have been stable: what is left from `step` on is the decay. In a study, the run's
    `keep` names the step.
    Raises ValueError for a step that it does not have, and for another end of a rate that was not stable.
    """
    if not 0 < step <= run.steps or step >= (steps or run.steps):
        raise ValueError(f"{run.name} has {run.steps} steps; branch at one of them, before the new end, not at {step}")
    optimizer = run.optimizer
    if steps and steps != run.steps:
        warmup, decay = optimizer.warmup_steps(run.steps), round(optimizer.cooldown * run.steps)
        if optimizer.schedule != "wsd":
            raise ValueError(
                f"{run.name} has the schedule {optimizer.schedule!r}, whose rate at step {step} depends on where it "
                "was to end; train it with optimizer.schedule=wsd to branch to another number of steps"
            )
        if not warmup <= step <= run.steps - decay:
            raise ValueError(
                f"{run.name} has a stable rate from step {warmup} to {run.steps - decay}; branch there, not at {step}"
            )
        optimizer = replace(optimizer, warmup=warmup / steps, cooldown=(steps - step) / steps)
    return replace(
        run,
        steps=steps or run.steps,
        optimizer=optimizer,
        role="branched",
        control_of="",
        keep=(),
        parent=Parent(run.name, step=step),
    )


def extend(
    folder: Path | str,
    *,
    length: int,
    steps: int = 0,
    tokens: int = 0,
    batch: int | None = None,
    rotary_base: float | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> tuple[Path, dict[str, Any]]:
    """Continues the finished run of a folder at a longer length (see `extended`), evaluated as the run was.

    Returns the new run's folder, beside the old one, and its result.json; called again it resumes, or does nothing.
    overrides: `name=value` changes of the new run. options: of workbench.train.loop.train.
    Raises ValueError, before anything is written, for a run that is not finished, and what `extended` raises.
    """
    folder = Path(folder).resolve()
    saved, result = (read_json(folder / name) for name in ("config.json", "result.json"))
    if saved is None or result is None or result["status"] != "finished":
        raise ValueError(f"{folder} holds no finished run, and no other can be extended; give a run's folder")
    run = extended(from_json(saved), length, steps=steps, tokens=tokens, batch=batch, rotary_base=rotary_base)
    return _trained(folder, replace(run, parent=Parent(folder.name, result["weights_hash"])), overrides, options)


def branch(
    folder: Path | str, step: int, *, steps: int = 0, overrides: Sequence[str] = (), **options: Any
) -> tuple[Path, dict[str, Any]]:
    """Continues the run of a folder, finished or not, from a step (see `branched`), and returns as `extend` does.

    A step that the run did not keep is made again first, by training there from the last one before it that it kept.
    Raises ValueError for a folder without a run, and what `branched` raises.
    """
    from workbench.study.replay import remake
    from workbench.train.checkpoint import hashes

    folder = Path(folder).resolve()
    saved = read_json(folder / "config.json")
    if saved is None:
        raise ValueError(f"{folder} holds no run (it has no config.json); give a run's folder, RUN_FOLDER@STEP")
    run = branched(from_json(saved), step, steps=steps)
    if step not in hashes(folder):
        remake(folder, step, options.get("progress", True) and f"step {step} again")
    return _trained(folder, replace(run, parent=Parent(folder.name, hashes(folder)[step], step)), overrides, options)


def _trained(
    folder: Path, run: RunConfig, overrides: Sequence[str], options: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """The run, with its overrides, beside its parent's folder."""
    from workbench.study.experiment import task
    from workbench.train.loop import train

    run = override(run, *overrides)
    place = folder.parent / run.name
    return place, train(run, place, {task(run): run.evaluation.build(run)}, **options)
