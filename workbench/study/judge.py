"""Which of a study's arms may be compared: what must be equal, which arms are ranked, and why not.

An arm is ranked when it read the same token stream for the same steps as the others, was asked the same items, finished
in every seed and, on Phonebook, is trained. Only ranked arms are compared (workbench.study.differences), and at another
budget than tokens only those whose runs there have spent the same and read the beginning of the one stream.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from workbench.config import BUDGETS, differences
from workbench.study import statistics, tune
from workbench.study.collect import Run, Study
from workbench.study.tune import Trial
from workbench.study.wording import listed, words

TRAINED = 0.95  # exact match on the smallest book, in every seed
LONG_MATCH, LONG_LOSS = 0.02, 0.01  # what twice the steps may change: exact match, and the loss as a fraction
LOSS_FLOOR = 0.01  # nats; a solved arm's loss is near zero, where a fraction of it says nothing
ABOVE_CHANCE = "it stays above chance on entries that were taken out of the book"
MATCHED = 0.02  # spread of non-embedding parameters over the arms
SPENT = 0.01  # spread of what arms have spent at an equal budget, which ends between two steps
SURE = 0.05  # a p-value below it is no chance


class Check(NamedTuple):
    name: str
    holds: bool
    detail: str
    by_arm: bool = False  # arms for which it does not hold are not ranked, and say so


class Verdict(NamedTuple):
    """`trained` and `converged` are None where there is no criterion or no run to tell by."""

    same_stream: bool
    complete: bool  # finished in every seed
    trained: bool | None
    converged: bool | None
    solved: int
    seeds: int
    leaks: bool  # answers questions about entries that were taken out of the book
    same_items: bool  # asked on test
    reasons: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        fair = self.same_stream and self.same_items and self.complete
        return fair and self.trained is not False and not self.leaks


# ---- may these arms be compared


def replicates(study: Study, task: str) -> list[tuple[int, int]]:
    """(data seed, initialisation seed) of every replicate that an arm of the task should have."""
    return sorted({run.replicate for run in study.select("result", task=task)})


def one_stream(runs: Sequence[Run]) -> dict[str, str]:
    """For each run (by name) that did not read the stream of most others: why it may not stand beside them.

    Runs are of one task; those that finished are held against each other for each data seed, and of extended runs for
    each length. Where no stream has more than half of them, nothing tells which is right, and all are named.
    """
    wrong: dict[str, str] = {}
    for seed, length in sorted({(run.data_seed, run.extended_to) for run in runs}):
        group = [run for run in runs if (run.data_seed, run.extended_to) == (seed, length) and run.finished]
        streams = Counter((run.result.get("digest"), run.result.get("steps")) for run in group)
        if not group or (len(streams) == 1 and None not in next(iter(streams))):
            continue
        (digest, steps), count = streams.most_common(1)[0]
        most = None not in (digest, steps) and 2 * count > len(group)
        right = [run for run in group if (run.result.get("digest"), run.result.get("steps")) == (digest, steps)]
        for run in group:
            own = run.result.get("digest"), run.result.get("steps")
            if own == (digest, steps) and most:
                continue
            if None in own:
                why = "no digest of its token stream is recorded"
            elif not most:
                why = f"the arms' token streams differ (its digest {_short(own[0])}, {own[1]} steps)"
            elif (mine := _tokenizer(run)) != (theirs := _tokenizer(right[0])):
                why = f"another tokenizer made its tokens ({_short(mine)}, the others {_short(theirs)})"
            elif own[0] == digest or own[1] != steps:
                why = f"{own[1]} steps where the others took {steps}"
            else:
                why = f"its token stream differs (digest {_short(own[0])}, the others {_short(digest)})"
            wrong[run.name] = f"data seed {seed}{f', extended to {length}' if length else ''}: {why}"
    return wrong


def _tokenizer(run: Run) -> Any:
    """Its hash; None where the data are no text."""
    return run.result.get("data", {}).get("tokenizer")


def _short(digest: Any) -> str:
    return str(digest)[:8]


def verdicts(study: Study, task: str) -> dict[str, Verdict]:
    """Each arm's (roles result and control), with the reasons against ranking it."""
    runs = study.select("result", "control", task=task)
    wrong = one_stream(runs)
    wanted = replicates(study, task)
    leaking, asked = above_chance(runs), other_items([run for run in runs if run.finished])
    out = {}
    for arm in study.arms("result", "control", task=task):
        mine = [run for run in runs if run.arm == arm]
        streams = [wrong[run.name] for run in mine if run.name in wrong]
        have = Counter(run.replicate for run in mine)
        gaps = [f"seed {_seed(r)}: no run" for r in wanted if not have[r]]
        gaps += [f"seed {_seed(r)}: {n} runs where one belongs" for r, n in have.items() if n > 1]
        gaps += [f"seed {_seed(run.replicate)}: {run.status}" for run in mine if not run.finished]
        trained, solved, why = _trained(mine, len(wanted))
        converged, unsettled = _converged(study, task, arm, mine)
        if converged is False and trained:
            trained = False
        leaks = [ABOVE_CHANCE] if arm in leaking else []
        others = [asked[run.name] for run in mine if run.name in asked]
        reasons = (*streams, *others, *gaps, *why, *unsettled, *leaks)
        seeds = max(len(wanted), len(have))
        out[arm] = Verdict(not streams, not gaps, trained, converged, solved, seeds, bool(leaks), not others, reasons)
    return out


def _seed(replicate: tuple[int, int]) -> str:
    data, initial = replicate
    return str(initial) if data == initial else f"{initial} (data {data})"


def _trained(runs: list[Run], seeds: int) -> tuple[bool | None, int, list[str]]:
    """Whether every seed solved the smallest book, how many did, and why not; None for a task without books."""
    found = [sizes for run in runs if run.finished and (sizes := run.by_entries())]
    if not found:
        phonebook = any("entries" in run.config["data"] for run in runs)
        return (False, 0, []) if phonebook else (None, 0, [])
    solved = sum(next(iter(sizes.values())).mean >= TRAINED for sizes in found)
    if solved == seeds == len(found):
        return True, solved, []
    entries, worst = min(((min(s), s[min(s)].mean) for s in found), key=lambda pair: pair[1])
    units = words(runs[0].task).units
    low = [f"exact match on {entries} {units} is {100 * worst:.1f} % at worst ({100 * TRAINED:.0f} % needed)"]
    return False, solved, low if worst < TRAINED else []


def _converged(study: Study, task: str, arm: str, runs: list[Run]) -> tuple[bool | None, list[str]]:
    """Whether a complete run of twice the steps changes little; None where the study has no such runs for this role.

    Exact match is the mean over the sizes in training, the loss that of the last tenth of the steps.
    """
    role = runs[0].role
    checked = {run.arm for run in study.select("long", task=task)}
    if arm not in checked:
        missing = role == "result" and bool(checked)
        return (False, ["no run of twice the steps, which the other arms have"]) if missing else (None, [])
    short = {run.replicate: run for run in runs if run.finished}
    pairs = []
    for long in study.select("long", task=task, arm=arm):
        if not long.finished:
            return False, [f"the run of twice the steps: {long.status}"]
        base = short.get(long.replicate)
        if base is None:
            return False, ["the run of twice the steps has no finished run of its seed beside it"]
        if long.result["steps"] < 2 * base.result["steps"]:
            return False, [f"the long run took {long.result['steps']} steps, not twice {base.result['steps']}"]
        pairs.append((base, long))
    for base, long in pairs:
        before, after = (_in_training(run) for run in (base, long))
        if before is not None and abs(after - before) >= LONG_MATCH:
            points = 100 * (after - before)
            return False, [
                f"not converged: twice the steps change exact match by {points:+.1f} points (under 2 needed)"
            ]
        before, after = (_last_loss(run) for run in (base, long))
        if abs(after - before) >= max(LONG_LOSS * before, LOSS_FLOOR):
            return False, [f"not converged: twice the steps change the loss from {before:.3f} to {after:.3f}"]
    return True, []


def _in_training(run: Run) -> float | None:
    sizes = run.by_entries()
    found = [sizes[k].mean for k in run.trained_entries if k in sizes]
    return float(np.mean(found)) if found else None


def _last_loss(run: Run) -> float:
    rows = [row for row in run.metrics if "loss" in row]
    if not rows:
        return float("nan")
    last = [row["loss"] for row in rows if row["step"] > 0.9 * rows[-1]["step"]]
    return float(np.mean(last))


def checks(study: Study, task: str) -> list[Check]:
    """What must be equal across the arms of a task, and whether it is."""
    runs = study.select("result", task=task)
    done = [run for run in runs if run.finished]
    wrong = one_stream(study.select("result", "control", task=task))
    seeds = sorted({run.data_seed for run in done})
    streams = [
        f"data seed {seed}: "
        + ", ".join(sorted({_short(run.result.get("digest")) for run in done if run.data_seed == seed}))
        for seed in seeds
    ]
    sizes = {run.arm: run.result["non_embedding_parameters"] for run in done}
    spread = max(sizes.values()) / min(sizes.values()) - 1 if sizes else 0.0
    steps = sorted({run.result.get("steps") for run in done})
    evaluations = unequal(runs, "evaluation") + list(other_items(done).values())
    recipes = unequal(runs, "optimizer", but=("optimizer.learning_rate",))
    settings = unequal(runs, "model", "data", "z_loss", but=("model.pattern", "model.symbols", "data.seed"))
    trials = trials_of(study, task)
    removed = [run for run in study.select("result", "control", task=task) if run.evaluation("removed").get("removed")]
    tuned = {run.replicate for run in study.select("tuning", task=task)}
    both = tuned & {run.replicate for run in runs}

    def same(differing: list[str], yes: str) -> tuple[bool, str]:
        return not differing, "; ".join(differing) or yes

    found = [
        Check(
            "same token stream",
            not wrong,
            "; ".join(streams) + ("; see the reasons below the table" if wrong else ""),
            True,
        ),
        Check("same steps", len(steps) <= 1, f"{', '.join(map(str, steps)) or 'no'} steps", True),
        Check("non-embedding parameters within 2 %", spread <= MATCHED, f"they spread by {100 * spread:.2f} %"),
        Check("same evaluation", *same(evaluations, "same items, same sizes")),
        Check("same optimizer apart from the rate", *same(recipes, "one recipe")),
        Check("same settings outside the layers", *same(settings, "data, width, vocabulary, norm, dtype and loss")),
        Check(
            "no seed is tuned on and reported", not both, f"{len(tuned)} tuning seeds" if tuned else "no tuning here"
        ),
    ]
    if trials:
        count = {arm: len(each) for arm, each in trials.items()}
        detail = ", ".join(f"{arm} {number}" for arm, number in count.items())
        tuning = {arm: study.select("tuning", task=task, arm=arm) for arm in trials}
        grids = {_plain(sorted([_rate(r), *r.replicate, r.config["steps"]] for r in each)) for each in tuning.values()}
        detail += "" if len(grids) == 1 or len(set(count.values())) > 1 else ", of other rates, seeds or steps"
        found.append(Check("same tuning trials for every arm", len(grids) == 1, detail))
        found.append(Check("rates are those that the select split chose", *same(_misused(runs, trials), "as reported")))
    for budget in budgets(study, task)[1:]:
        spends, problems = spending(study, task, budget)
        ended = {arm: {run.result.get("steps") for run in each} for arm, each in at(study, task, budget).items()}
        detail = ", ".join(f"{arm} {'/'.join(map(str, steps))} steps" for arm, steps in ended.items())
        detail = f"{min(spends):.4g} to {max(spends):.4g}; {detail}" if spends else detail
        found.append(Check(f"{EQUAL[budget]}, the same beginning of the stream", *same(problems, detail)))
    longer = study.select("extended", task=task)
    for length in sorted({run.length for run in longer}):
        off = one_stream([run for run in longer if run.length == length])
        read = sorted({_short(run.result.get("digest")) for run in longer if run.finished and run.length == length})
        detail = f"{', '.join(read)}{''.join(f'; {why}' for why in off.values())}"
        found.append(Check(f"same token stream, extended to {length:,} tokens", not off, detail))
    if removed:
        above = above_chance(removed)
        detail = f"{listed(above)} stayed above it" if above else f"{len(removed)} runs"
        found.append(Check("with the asked-for entry removed every arm falls to chance", not above, detail, True))
    checked = [arm for arm, verdict in verdicts(study, task).items() if verdict.converged is not None]
    if checked:
        unsettled = [arm for arm in checked if not verdicts(study, task)[arm].converged]
        limits = f"exact match by under {100 * LONG_MATCH:.0f} points, the loss by under {100 * LONG_LOSS:.0f} %"
        detail = f"changed more, or not finished: {listed(unsettled)}" if unsettled else listed(checked)
        name = f"twice the steps change little ({limits} or {LOSS_FLOOR:g} nats)"
        found.append(Check(name, not unsettled, detail, True))
    return found


# ---- other budgets than tokens

EQUAL = {"tokens": "equal tokens", "flops": "equal training FLOPs", "seconds": "equal seconds of training"}


def budgets(study: Study, task: str) -> list[str]:
    """Those at which the task's arms can be compared: tokens, and those that the study has runs for."""
    return [budget for budget in BUDGETS if budget == "tokens" or study.select(budget, task=task)]


def at(study: Study, task: str, budget: str) -> dict[str, list[Run]]:
    """Every arm's runs that end at the budget, one a replicate: its runs of the role, else those at equal tokens."""
    runs = {arm: {run.replicate: run for run in study.select("result", task=task, arm=arm)}
            for arm in study.arms("result", task=task)}  # fmt: skip
    for run in study.select(budget, task=task) if budget != "tokens" else ():
        runs.setdefault(run.arm, {})[run.replicate] = run
    return {arm: [each[replicate] for replicate in sorted(each)] for arm, each in runs.items()}


def spent(run: Run, budget: str) -> float | None:
    """Of a finished run: tokens, training FLOPs, or the seconds that its steps take where its arm is alone."""
    if budget == "seconds":
        each = run.config.get("step_seconds")
        return each and each * run.result["steps"]
    return run.result["tokens"] * (run.result["train_flops_per_token"] if budget == "flops" else 1)


def spending(study: Study, task: str, budget: str) -> tuple[list[float], list[str]]:
    """What the arms' runs have spent at a budget, and what forbids comparing them there."""
    arms = at(study, task, budget)
    runs = [run for each in arms.values() for run in each]
    wanted = replicates(study, task)
    problems = [f"{arm} has no run of some seed" for arm, each in arms.items() if len(each) < len(wanted)]
    problems += [f"{run.name}: {run.status}" for run in runs if not run.finished]
    if problems:
        return [], problems
    spends = [spent(run, budget) for run in runs]
    if None in spends:
        return [], [f"{run.name}: its config has no step_seconds" for run in runs if spent(run, budget) is None]
    if max(spends) / min(spends) - 1 > SPENT:
        problems.append(f"they spread by {100 * (max(spends) / min(spends) - 1):.1f} %, from {min(spends):.4g}")
    return spends, problems + off_stream(study, task, runs)


def off_stream(study: Study, task: str, runs: Sequence[Run]) -> list[str]:
    """Of finished runs, those that did not read the beginning of what the longest run of their data seed read."""
    found = []
    for run in runs:
        same = [other for other in study.select("result", task=task) if other.data_seed == run.data_seed]
        longest = max((other for other in same if other.finished), key=lambda other: other.result["steps"])
        why = _parts_from(run, longest)
        found += [f"{run.name}: {why}"] if why else []
    return found


def _parts_from(run: Run, longer: Run) -> str:
    """Why a run's stream is not the beginning of a longer run's; "" if it is, as far as digests on the way tell."""
    if run.result.get("steps") == longer.result.get("steps"):
        return "" if run.result.get("digest") == longer.result.get("digest") else "its token stream differs"
    mine, theirs = ({row["step"]: row["digest"] for row in each.metrics if "digest" in row} for each in (run, longer))
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return "no digests on the way are recorded, which would tell its token stream"
    other = next((step for step in both if mine[step] != theirs[step]), None)
    return "" if other is None else f"its token stream differs by step {other}"


def ranked(study: Study, task: str, budget: str = "tokens") -> list[str]:
    """The arms that may be compared at a budget: none where what they spent, or read, is not the same."""
    judged = verdicts(study, task)
    arms = [arm for arm in study.arms("result", task=task) if judged[arm].ranked]
    if budget == "tokens":
        return arms
    if spending(study, task, budget)[1]:
        return []
    ended, seeds = at(study, task, budget), len(replicates(study, task))
    return [arm for arm in arms if _trained(ended[arm], seeds)[0] is not False]


# ---- looking more than once


def look_level(study: Study, task: str) -> float | None:
    """What a claim about architectures may err by now: of announced looks this one's share, None between them."""
    looks = study.facts.get("looks")
    return statistics.spent_at(looks).get(len(replicates(study, task))) if looks else statistics.ALPHA


def looked(study: Study, task: str) -> list[int]:
    """After how many seeds reports of the task were made that could make such a claim, this one among them."""
    complete = [verdict.complete for verdict in verdicts(study, task).values()]
    now = [len(replicates(study, task))] if all(complete) else []
    before = study.facts.get("looked", {}).get(task, [])
    return sorted({seeds for seeds in (*before, *now) if seeds >= statistics.LEAST_SEEDS})


# ---- settings and trials


def unequal(runs: Sequence[Run], *sections: str, but: Sequence[str] = ()) -> list[str]:
    """Settings in these sections of the config in which runs differ: `optimizer.clip: 0.1 (mamba), 1.0 (hybrid)`."""
    leaves = [{k: v for name in sections for k, v in _leaves(run.config.get(name), name).items()} for run in runs]
    out = []
    for path in dict.fromkeys(path for each in leaves for path in each):
        if any(path == name or path.startswith(f"{name}.") for name in but):
            continue
        arms: dict[str, dict[str, None]] = {}
        for run, each in zip(runs, leaves, strict=True):
            arms.setdefault(_plain(each.get(path)), {})[run.arm] = None
        if len(arms) > 1:
            out.append(f"{path}: " + ", ".join(f"{value} ({listed(list(names))})" for value, names in arms.items()))
    return out


def _leaves(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for name, item in value.items() for k, v in _leaves(item, f"{path}.{name}").items()}


def other_items(runs: Sequence[Run]) -> dict[str, str]:
    """For each finished run (by name) that was not asked what most of its replicate were on test: where it differs.

    Where no items are those of more than half, nothing tells which are right, and all are named.
    """
    wrong = {}
    for replicate in sorted({run.replicate for run in runs}):
        group = [run for run in runs if run.replicate == replicate]
        (usual, count) = Counter(_plain(run.items) for run in group).most_common(1)[0]
        first = next(run for run in group if _plain(run.items) == usual)
        for run in group if 2 * count <= len(group) and count < len(group) else ():
            wrong[run.name] = f"the arms were asked other items, {run.arm} some of its own"
        for run in group:
            if other := differences(first.items, run.items):
                wrong[run.name] = f"items of {run.arm} beside {first.arm}: {other[0]}"
    return wrong


def trials_of(study: Study, task: str) -> dict[str, list[Trial]]:
    """The tuning runs of every arm that is reported or was tuned; {} where nothing was tuned."""
    tuned = study.select("tuning", task=task)
    arms = dict.fromkeys([*study.arms("result", task=task), *(run.arm for run in tuned)]) if tuned else {}
    return {arm: [Trial(r.name, _rate(r), r.replicate[1], r.result) for r in tuned if r.arm == arm] for arm in arms}


def _rate(run: Run) -> float:
    return run.config["optimizer"]["learning_rate"]


def _misused(runs: Sequence[Run], trials: dict[str, list[Trial]]) -> list[str]:
    """Arms that were not run with the rate that their trials choose on the select split."""
    found = []
    for arm, each in trials.items():
        rates = sorted({_rate(run) for run in runs if run.arm == arm})
        if not each or not rates:
            continue
        try:
            best = tune.choice(each)["learning_rate"]
        except ValueError as error:
            found.append(str(error))
            continue
        if rates != [best]:
            on_test = rates == [chosen_on_test(each)]
            why = "; the test split chooses that, and must not select" if on_test else ""
            found.append(f"{arm} was run with {', '.join(f'{rate:g}' for rate in rates)}, chosen is {best:g}{why}")
    return found


def chosen_on_test(trials: Sequence[Trial]) -> float | None:
    """The rate that the trials would choose by their evaluations on test, if these tell."""
    try:
        return tune.choice(trials, "evaluation")["learning_rate"]
    except (KeyError, ValueError):
        return None


def above_chance(runs: Sequence[Run]) -> list[str]:
    """Arms that are right about entries that were taken out of the book more often than chance is, at 5% for all."""
    asked = [run for run in runs if run.evaluation("removed").get("removed")]
    arms = {run.arm: [each for each in asked if each.arm == run.arm] for run in asked}
    return [arm for arm, each in arms.items() if _above_chance(each) < SURE / len(arms)]


def _above_chance(runs: Sequence[Run]) -> float:
    """One-sided binomial p-value, against chance, of an arm's right answers about entries that were taken out."""
    entries = [entry for run in runs for entry in run.evaluation("removed")["removed"].values()]
    asked = sum(entry["items"] for entry in entries)
    right = round(sum(entry["items"] * entry["mean"] for entry in entries))
    return float(special.bdtrc(right - 1, asked, entries[0]["chance"])) if right else 1.0


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
