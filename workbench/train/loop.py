"""The training loop: one for every architecture, a folder for every run, resumable anywhere."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from workbench.config import Layout, RunConfig, short_hash, to_json
from workbench.count import count
from workbench.data.batches import WHOLE, check_batch, prefetch
from workbench.data.digest import link, row_hashes
from workbench.model.language_model import create
from workbench.model.names import named
from workbench.record import add_row, keep_rows, read_json, read_rows, write_json, write_text
from workbench.train import checkpoint, cluster, track
from workbench.train.audit import audit
from workbench.train.checkpoint import Position
from workbench.train.environment import decisive_differences, environment
from workbench.train.layout import check_rows, divided, make_mesh, part, placed, shardings
from workbench.train.memory import bytes_of, keep_freed_memory
from workbench.train.optimizer import optimizer
from workbench.train.parent import inherit
from workbench.train.step import lower_step

Evaluator = Callable[[Any, str], dict[str, Any]]


class TrainingFailed(Exception):
    """A run that cannot go on: its loss, gradient or weights are no longer finite."""


class Stopped(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, a notebook's stop button, SIGTERM of a scheduler) and saved where it was."""


class _NotFinite(Exception):
    """A step's loss or gradient, or a weight; what the evaluators may raise is another matter."""


def train(
    run: RunConfig,
    folder: Path | str,
    evaluators: dict[str, Evaluator],
    *,
    layout: Layout | None = None,
    progress: bool | str = True,
    wandb: str = "offline",
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Trains a run in its folder and returns its result.json; continues one that was stopped, never repeats one.

    Continuing gives the weights of never having stopped, bit for bit, on the same machine type, CPUs and JAX (a
    difference is warned of), and may evaluate and save at other steps than before; the folder keeps the config that it
    has. Evaluators are `(model, split) -> nested dict`: on "select" every `run.evaluate_every`
    steps and at the end, on "test" at the end; a `score` in one's result (higher is better) picks the best checkpoint.
    `rows` of its result on "test" (workbench.evaluate.items) are kept in items/NAME.jsonl, and not in result.json.
    layout: devices and memory; another one continues the same run, and changes it by rounding alone.
    progress: whether to show a bar, or what to call it. on_step(step, metrics) runs one step late, so as not to wait.
    Step n is the n-th update, on batch n - 1. Tokens are positions read, padding included; seconds are of training
    alone, without compiling, evaluating and saving.

    Several processes that the environment makes a cluster (workbench.train.cluster) train one run together when each
    calls this: each reads its rows, the first alone writes the folder but for the checkpoints, and all evaluate.

    Ctrl-C and SIGTERM end it after the step that runs, saved, with Stopped (a KeyboardInterrupt); a second one at once.
    Raises TrainingFailed, naming the step, when the loss is not finite (checkpoints stay); ValueError for a folder
    that holds another config (naming the first difference) or is half-written, and for a parent that cannot be
    started from (workbench.train.parent); RuntimeError while another process trains there; OSError when the folder
    cannot be written.
    """
    folder = shared = Path(folder)
    cluster.join()
    if len(set(cluster.from_all(int(short_hash(run)[:7], 16)))) > 1:
        raise ValueError(f"the cluster's processes train different runs, this one {run.name}; start them alike")
    with contextlib.ExitStack() as stack:
        if jax.process_index():  # keeps records as the first process does, where nobody looks
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / shared.name
            progress, wandb = False, "disabled"
        when, run = run, stack.enter_context(_opened(folder, run))
        result = read_json(shared / "result.json")
        if cluster.from_all(int(result is not None and result["status"] == "finished"))[0]:
            return result
        if result is not None and result["status"] == "nan":
            raise TrainingFailed(f"{result['error']} (recorded earlier; delete {folder} to try again)")
        _record_environment(folder, layout or Layout())
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        tracker = track.start(run, folder, wandb)
        result = None
        try:
            result = _train(run, when, folder, shared, evaluators, layout or Layout(), progress, tracker, on_step)
        except TrainingFailed:
            result = read_json(folder / "result.json")
            raise
        finally:
            track.finish(tracker, result)
        return result


def _train(run, when, folder, shared, evaluators, layout, progress, tracker, on_step) -> dict[str, Any]:
    """`when` is the run with the steps at which it is evaluated and saved now."""
    stream = run.data.stream("train")
    if (spoken := getattr(stream, "tokenizer", None)) is not None:  # so that the folder alone turns text into tokens
        write_text(folder / "tokenizer.json", spoken.saved().decode())
    together = cluster.several()
    if together and layout.devices != jax.device_count():
        raise ValueError(
            f"the layout uses {layout.devices} devices, and the {jax.process_count()} processes have "
            f"{jax.device_count()}; make it use all of them"
        )
    mesh = make_mesh(layout) if layout.devices > 1 else None
    own = part(mesh) if together else WHOLE
    evaluated: dict[str, Any] = {}

    hashes: list[list[bytes]] = []  # of the rows that this process read and the digest does not have yet, by step

    def chain():
        position.digest = link(position.digest, cluster.in_order(hashes, own))
        hashes.clear()

    def laid_out():
        return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)

    def evaluate(split: str) -> dict[str, Any]:
        # by each process of a cluster for itself, on one device, since an evaluator may do anything
        with contextlib.nullcontext() if together else laid_out():
            return {name: evaluator(cluster.whole(model), split) for name, evaluator in evaluators.items()}

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.open_checkpoints(shared, when.keep)))
        model, opt_state, position = _start(run, folder, shared, checkpoints, mesh)
        for name in ("metrics.jsonl", "timing.jsonl"):
            keep_rows(folder / name, position.step)
        bar = stack.enter_context(
            tqdm(
                total=run.steps,
                initial=position.step,
                desc=progress if isinstance(progress, str) else f"{run.arm} s{run.seed}",
                unit="step",
                mininterval=0.5,
                disable=not progress,
            )
        )
        batches = stack.enter_context(contextlib.closing(prefetch(stream, position.step, run.steps, part=own)))
        stopping = stack.enter_context(_asked_to_stop())
        leaves, tree = jax.tree.flatten((model, opt_state))
        step, shape = None, None
        waiting = None  # the step before, which is looked at while the next one runs
        begun = time.perf_counter()
        try:
            for index, batch in batches:
                if step is None or batch["tokens"].shape != shape:  # shapes change with a batch-size warm-up's stages
                    if waiting is not None:
                        _look(waiting, position, hashes, begun, bar, on_step)
                        waiting = None
                        position.seconds += time.perf_counter() - begun
                    check_batch(batch, run.model.vocabulary, f"the data ({type(run.data).__name__})")
                    shape = batch["tokens"].shape
                    check_rows(shape[0] * own.of // (own.high - own.low), shape[1], layout)
                    bar.set_postfix_str("compiling")
                    with laid_out():
                        compiling = time.perf_counter()
                        lowered, position.implementation = lower_step(
                            run, layout, tree, leaves, placed(batch, mesh, own)
                        )
                        step = lowered.compile()
                    begun = time.perf_counter()
                    position.compile_seconds += begun - compiling
                    position.memory_bytes = max(position.memory_bytes, bytes_of(step))
                    bar.unpause()  # time left is from steps alone
                leaves, metrics = step(leaves, placed(batch, mesh, own))
                if waiting is not None:
                    _look(waiting, position, hashes, begun, bar, on_step)
                waiting = (metrics, batch, own.of // (own.high - own.low))
                done = index + 1
                last = done == run.steps
                evaluating = last or _due(done, when.evaluate_every)
                logging = last or _due(done, run.log_every)
                due = last or _due(done, when.checkpoint_every) or done in when.keep
                # processes ask each other only where they wait for a step anyway
                looking = logging or evaluating or due
                asked = bool(stopping) if not together else looking and cluster.from_all(len(stopping)).any()
                saving = due or asked
                if not (looking or asked):
                    continue
                values = _look(waiting, position, hashes, begun, bar, on_step)
                waiting = None
                chain()
                position.seconds += time.perf_counter() - begun
                model, opt_state = jax.tree.unflatten(tree, leaves)
                if evaluating:
                    evaluated = evaluate("select")
                if logging or evaluating:
                    _log(folder, tracker, run, position, values, evaluated if evaluating else {}, logging)
                if saving:
                    score = _score(evaluated) if evaluating else None
                    try:
                        checkpoint.save(checkpoints, run, model, opt_state, position, score)
                    except FloatingPointError as error:
                        raise _NotFinite(str(error)) from None
                if asked and not last:
                    why = stopping[0] if stopping else "another process was asked to stop"
                    raise Stopped(f"{run.name}: {why} at step {done} of {run.steps}; it is saved, run it again")
                begun = time.perf_counter()
        except _NotFinite as error:
            chain()
            raise _failed(run, folder, position, checkpoints, str(error)) from None

    result = _record(run, position) | {
        "status": "finished",
        "weights_hash": checkpoint.weights_hash(named(cluster.whole(model))),
        "final_loss": read_rows(folder / "metrics.jsonl")[-1]["loss"],
        "select": evaluated or evaluate("select"),
        "evaluation": evaluate("test"),
    }
    for name, scores in result["evaluation"].items():
        if rows := getattr(scores, "rows", None):  # of an evaluator that leaves its items
            (folder / "items").mkdir(exist_ok=True)
            write_text(folder / "items" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "result.json", result)
    return result


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[str]]:
    """Names the signal once SIGINT or SIGTERM has come, which then waits for the step; a second one does not wait.

    Python takes signals in its main thread alone: elsewhere they do what they did.
    """
    asked: list[str] = []
    before = {}

    def ask(number, frame):
        asked.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    run: RunConfig, folder: Path, shared: Path, checkpoints, mesh: Mesh | None = None
) -> tuple[Any, Any, Position]:
    """Model, optimizer's state and position: of the last checkpoint, or of a run that has not begun.

    With a mesh they are divided from the beginning: the whole need not fit on any device.
    """
    init = optimizer(run.optimizer, run.steps).init
    shapes = jax.eval_shape(lambda: create(run.model, run.seed))
    state_shapes = jax.eval_shape(init, shapes)
    found = checkpoint.latest(checkpoints, run)
    if found is not None:
        model = checkpoint.put(shapes, found.model, mesh)
        return model, checkpoint.put(state_shapes, found.optimizer, mesh), found.position
    model = create(run.model, run.seed) if mesh is None else divided(create(run.model, run.seed, host=True), mesh)
    where = None if mesh is None else shardings(state_shapes, mesh)
    opt_state = jax.jit(init, out_shardings=where)(model)
    position = Position()
    if run.parent is not None:
        model, opt_state, position = inherit(run, shared.resolve().parent, folder, model, opt_state, mesh)
    write_json(folder / "initial.json", audit(cluster.whole(model)))
    return model, opt_state, position


def _look(waiting: tuple, position: Position, hashes: list, begun: float, bar: tqdm, on_step) -> dict[str, float]:
    """Moves the position past a step: waits for it to end, checks it, adds it up. Returns its metrics.

    Raises _NotFinite, the position still before the step, if the step's loss or gradient is not finite.
    """
    metrics, batch, share = waiting
    values = jax.device_get({name: value for name, value in metrics.items() if value.ndim == 0})
    values = {name: value.item() for name, value in values.items()}
    if values["weight"] == 0:
        raise ValueError(f"batch {position.step} of the data has no weight above 0: it has nothing to learn from")
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(values[name]):
            raise _NotFinite(f"{name.replace('_', ' ')} is {values[name]} at step {position.step + 1}")
    position.step += 1
    position.tokens += batch["tokens"].size * share
    hashes.append(row_hashes(batch))
    position.steps += 1
    position.loss += values["loss"] * values["weight"]
    position.weight += values["weight"]
    position.gradient_norm += values["gradient_norm"]
    rate = position.tokens / (position.seconds + time.perf_counter() - begun)
    bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:,.0f} tokens/s", refresh=False)
    bar.update()
    if on_step is not None:
        on_step(position.step, values)
    return values


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _score(evaluated: dict[str, Any]) -> float | None:
    """The mean `score` of the evaluators that give one."""
    scores = [values["score"] for values in evaluated.values() if "score" in values]
    return sum(scores) / len(scores) if scores else None


def _log(
    folder: Path, tracker: Any, run: RunConfig, position: Position, values: dict, evaluated: dict, curves: bool
) -> None:
    """A row of metrics.jsonl and one of timing.jsonl.

    Loss and gradient norm are means since the last row that had them: those of `curves`, so that evaluating at other
    steps changes no curve.
    """
    flops_per_token = count(run.model, run.data.length).train_flops_per_token
    row = {
        "step": position.step,
        "digest": position.digest,
        "tokens": position.tokens,
        "flops": position.tokens * flops_per_token,
        "learning_rate": values["learning_rate"],
    }
    if curves:
        row |= {"loss": position.loss / position.weight, "gradient_norm": position.gradient_norm / position.steps}
        position.steps, position.loss, position.weight, position.gradient_norm = 0, 0.0, 0.0, 0.0
    row |= {f"select/{name}": interval["mean"] for name, interval in track.intervals(evaluated)}
    timing = {
        "step": position.step,
        "seconds": position.seconds,
        "tokens_per_second": position.tokens / position.seconds,
        "compile_seconds": position.compile_seconds,
    }
    for name, values in (("metrics.jsonl", row), ("timing.jsonl", timing)):
        add_row(folder / name, values)
    track.log_row(tracker, row)


def _record(run: RunConfig, position: Position) -> dict[str, Any]:
    """What result.json says of every run, however it ended."""
    counts = count(run.model, run.data.length)
    return {
        "run": run.name,
        "study": run.study,
        "arm": run.arm,
        "seed": run.seed,
        "role": run.role,
        "status": None,
        "steps": position.step,
        "tokens": position.tokens,
        "digest": position.digest,
        "parameters": counts.parameters,
        "non_embedding_parameters": counts.non_embedding_parameters,
        "train_flops_per_token": counts.train_flops_per_token,
        "state_bytes": counts.state_bytes,
        "context": counts.context,
        "seconds": position.seconds,
        "compile_seconds": position.compile_seconds,
        "tokens_per_second": position.tokens / position.seconds if position.seconds else None,
        "memory_bytes": position.memory_bytes,
        "implementation": position.implementation,
        "data": run.data.stream("train").facts(),
        "parents": position.parents,
    }


def _failed(run: RunConfig, folder: Path, position: Position, checkpoints, reason: str) -> TrainingFailed:
    """Records a run that diverged, and gives the exception to raise."""
    kept = sorted(checkpoints.all_steps())
    message = (
        f"{run.name}: {reason} of {run.steps}; "
        + (f"the checkpoint of step {kept[-1]} is kept in {checkpoints.directory}" if kept else "no checkpoint was due")
        + f"; a lower optimizer.learning_rate (now {run.optimizer.learning_rate:g}) or a longer warm-up may help"
    )
    write_json(folder / "result.json", _record(run, position) | {"status": "nan", "error": message})
    return TrainingFailed(message)


# ---- the run's folder


@contextlib.contextmanager
def _opened(folder: Path, run: RunConfig) -> Iterator[RunConfig]:
    """Holds the folder, which says that it is this run's, against other processes; death frees it.

    Gives the run as the folder has it, which may be evaluated and saved at other steps.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise OSError(
            error.errno, f"the run's folder cannot be written ({error.strerror}); give another one", str(folder)
        ) from error
    with lock:
        _hold(lock, folder)
        saved = read_json(folder / "config.json")
        if saved is not None:
            run = checkpoint.as_saved(saved, run, f"{folder}")
        elif products := [n for n in ("metrics.jsonl", "result.json", "checkpoints") if (folder / n).exists()]:
            raise ValueError(f"{folder} has {products[0]} and no config.json: not a whole run; delete it, or move it")
        else:
            write_json(folder / "config.json", to_json(run))
        yield run


def _hold(lock: Any, folder: Path) -> None:
    """Takes the lock; tried a few times, since `workbench status` looks at it by holding it for an instant."""
    for _ in range(5):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    raise RuntimeError(f"another process trains in {folder}; wait for it, or stop it and run again")


def _record_environment(folder: Path, layout: Layout) -> None:
    """Writes environment.json; of a resumed run also those before that differed, after a warning if it matters.

    The layout stands beside what the run ran on: it changes a run by rounding alone.
    """
    before, now = read_json(folder / "environment.json"), environment() | {"layout": asdict(layout)}
    earlier = []
    if before is not None:
        earlier = before.pop("earlier", [])
        if changes := decisive_differences(before, now):
            warnings.warn(
                f"{folder} is resumed in another environment ({'; '.join(changes)}): "
                f"its weights may differ from those of a run that never stopped",
                stacklevel=3,
            )
        if before != now:
            earlier = [*earlier, before]
    write_json(folder / "environment.json", now | ({"earlier": earlier} if earlier else {}))
