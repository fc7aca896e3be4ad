"""What a study's runs allow to be said: checks, which arms are ranked and why not, differences, and sentences.

An arm is ranked when it read the same token stream for the same steps as the others, finished in every seed and, on
Phonebook, is trained. Only ranked arms are compared. Every sentence is put together from the intervals.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from workbench.config import differences
from workbench.evaluate.interval import holm
from workbench.study import statistics, tune
from workbench.study.collect import Run, Study, words
from workbench.study.statistics import CHECKPOINTS, Difference, Interval, Paired
from workbench.study.tune import Trial

TRAINED = 0.95  # exact match on the smallest book, in every seed
LONG_MATCH, LONG_LOSS = 0.02, 0.01  # what twice the steps may change: exact match, and the loss as a fraction
LOSS_FLOOR = 0.01  # nats; a solved arm's loss is near zero, where a fraction of it says nothing
ABOVE_CHANCE = "it stays above chance on entries that were taken out of the book"
BITS = ("bits_per_byte", "same_groups")  # measures of text; the others are proportions
MATCHED = 0.02  # spread of non-embedding parameters over the arms
SURE = 0.05  # of Holm's adjusted p-value


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
    reasons: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        return self.same_stream and self.complete and self.trained is not False and not self.leaks


class Estimate(NamedTuple):
    """A mean over seeds, its 95% interval, and what that speaks of."""

    mean: float
    low: float
    high: float
    claim: str
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """first - second on a task: exact match at a number of entries, or bits per byte (less is better).

    Both levels of claim, each with Holm's p over all comparisons of the study at that level.
    """

    task: str
    measure: str
    entries: int | None
    first: str
    second: str
    checkpoints: Difference
    architectures: Difference | None  # with three seeds or more
    p_checkpoints: float
    p_architectures: float | None

    @property
    def claim(self) -> str:
        """The widest level at which a difference is seen; "" if at none."""
        for difference, p in ((self.architectures, self.p_architectures), (self.checkpoints, self.p_checkpoints)):
            if difference is not None and p < SURE and not difference.low <= 0 <= difference.high:
                return difference.claim
        return ""

    @property
    def difference(self) -> Difference:
        """The one that the claim rests on; where no difference is seen, the widest level's."""
        return self.checkpoints if self.claim == CHECKPOINTS else self.architectures or self.checkpoints

    @property
    def better(self) -> str | None:
        """The arm that is better, None where no difference is seen."""
        if not self.claim:
            return None
        return self.first if (self.difference.mean > 0) == (self.measure == "exact_match") else self.second

    def record(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in ("task", "measure", "entries", "first", "second")}
        levels = {"checkpoints": self.checkpoints._asdict() | {"p_holm": self.p_checkpoints}}
        if self.architectures is not None:
            levels["architectures"] = self.architectures._asdict() | {"p_holm": self.p_architectures}
        return plain | levels | {"claim": self.claim, "better": self.better}


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
    leaking = above_chance(runs)
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
        reasons = (*streams, *gaps, *why, *unsettled, *leaks)
        seeds = max(len(wanted), len(have))
        out[arm] = Verdict(not streams, not gaps, trained, converged, solved, seeds, bool(leaks), reasons)
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
    evaluations = unequal(runs, "evaluation") + _other_items(done)
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


def _other_items(runs: Sequence[Run]) -> list[str]:
    """Of finished runs: the first of the test's items in which those of one replicate differ."""
    found = []
    for replicate in sorted({run.replicate for run in runs}):
        group = [run for run in runs if run.replicate == replicate]
        for run in group[1:]:
            other = differences(group[0].items, run.items)
            found += [f"items of {run.arm} beside {group[0].arm}: {other[0]}"] if other else []
    return found


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


# ---- numbers


def mean_of(runs: Sequence[Run], measure: str, entries: int | None = None) -> Estimate:
    """The mean over these runs that finished, proportions kept in [0, 1]. Raises ValueError if none has it."""
    found = [value for run in runs if run.finished and (value := _value(run, measure, entries))]
    if not found:
        raise ValueError(f"no finished run of {runs[0].arm if runs else 'no arm'} has {measure} at {entries}")
    (mean, low, high), claim = statistics.over_seeds(found)
    if measure not in BITS:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(mean, low, high, claim, len(found))


def _value(run: Run, measure: str, entries: int | None) -> Interval | None:
    return getattr(run, measure) if measure in BITS else run.by_entries(measure).get(entries)


def _paired(a: Run, b: Run, measure: str, entries: int | None) -> Paired | None:
    """The difference over the same books or groups of documents, where the evaluations kept them."""
    if measure == "bits_per_byte":
        first, second = (run.evaluation(measure).get("by_group") or {} for run in (a, b))
        if not first or first.keys() != second.keys() or not all("bytes" in entry for entry in first.values()):
            return None
        means = [[float(side[name]["mean"]) for name in first] for side in (first, second)]
        return statistics.paired_clusters(*means, [entry["bytes"] for entry in first.values()])
    books = [run.evaluation(measure).get("per_book", {}).get(str(entries)) for run in (a, b)]
    if None in books or len(books[0]) != len(books[1]):
        return None
    return statistics.paired_clusters(*books)


def sizes_of_interest(study: Study, task: str) -> list[int]:
    """The largest size in training and every evaluated size past it."""
    runs = [run for run in study.select("result", task=task) if run.finished and run.by_entries()]
    if not runs:
        return []
    evaluated = [k for k in runs[0].by_entries() if all(k in run.by_entries() for run in runs)]
    trained = runs[0].trained_entries
    within = [k for k in evaluated if k <= max(trained, default=0)]
    return within[-1:] + [k for k in evaluated if k > max(trained, default=0)]


def comparisons(study: Study) -> list[Comparison]:
    """Every pair of ranked arms: exact match at the largest size in training and of all, and bits per byte."""
    pairs = []
    for task in study.tasks:
        judged = verdicts(study, task)
        arms = [arm for arm in study.arms("result", task=task) if judged[arm].ranked]
        for measure, entries in measures(study, task):
            pairs += [(task, measure, entries, *pair) for pair in combinations(arms, 2)]
    return _compared(study, pairs)


def against_controls(study: Study) -> list[Comparison]:
    """Each ranked control against the ranked arm that it differs from in one thing, where `comparisons` looks."""
    pairs = []
    for task in study.tasks:
        judged = verdicts(study, task)
        for arm, of in control_of(study, task).items():
            if judged[arm].ranked and of in judged and judged[of].ranked:
                pairs += [(task, measure, entries, arm, of) for measure, entries in measures(study, task)]
    return _compared(study, pairs)


def control_of(study: Study, task: str) -> dict[str, str]:
    """The arm that each control differs from."""
    return {run.arm: run.config["control_of"] for run in study.select("control", task=task)}


def measures(study: Study, task: str) -> list[tuple[str, int | None]]:
    """What is compared: few sizes, since Holm's correction grows with their number."""
    sizes = sizes_of_interest(study, task)
    found: list[tuple[str, int | None]] = [("exact_match", k) for k in dict.fromkeys((*sizes[:1], *sizes[-1:]))]
    runs = [run for run in study.select("result", task=task) if run.finished]
    return [*found, ("bits_per_byte", None)] if runs and all(run.bits_per_byte for run in runs) else found


def _compared(study: Study, pairs: list[tuple[str, str, int | None, str, str]]) -> list[Comparison]:
    raw = []
    for task, measure, entries, first, second in pairs:
        a, b = ({r.replicate: r for r in study.select("result", "control", task=task, arm=x)} for x in (first, second))
        seeds = [
            (
                _value(a[r], measure, entries),
                _value(b[r], measure, entries),
                _paired(a[r], b[r], measure, entries),
            )
            for r in replicates(study, task)
        ]
        raw.append((task, measure, entries, first, second, *statistics.compare(seeds)))
    items = holm([row[-2].p for row in raw])
    seeded = iter(holm([row[-1].p for row in raw if row[-1]]))
    return [Comparison(*row, p, next(seeded) if row[-1] else None) for row, p in zip(raw, items, strict=True)]


class Spread(NamedTuple):
    """How the difference of two arms varies over the seeds that were run."""

    task: str
    measure: str
    entries: int | None
    first: str
    second: str
    mean: float
    deviation: float
    seeds: int


def spreads(study: Study) -> list[Spread]:
    """Of every pair of arms that finished two seeds or more, ranked or not: for planning, never for a claim."""
    found = []
    for task in study.tasks:
        for measure, entries in measures(study, task):
            values: dict[str, dict] = {}
            for run in study.select("result", task=task):
                value = _value(run, measure, entries) if run.finished else None
                if value:
                    values.setdefault(run.arm, {})[run.replicate] = value.mean
            for first, second in combinations(values, 2):
                both = [r for r in values[first] if r in values[second]]
                if len(both) > 1:
                    gaps = np.array([values[first][r] - values[second][r] for r in both])
                    mean, deviation = float(gaps.mean()), float(gaps.std(ddof=1))
                    found.append(Spread(task, measure, entries, first, second, mean, deviation, len(both)))
    return found


# ---- sentences


def first_line(study: Study) -> str:
    """Who is not ranked, what failed, and whether convergence was checked: the report begins with it."""
    parts = []
    unchecked = False
    for task in study.tasks:
        where = f" ({task})" if len(study.tasks) > 1 else ""
        for arm, verdict in verdicts(study, task).items():
            unchecked |= (
                arm in study.arms("result", task=task) and verdict.trained is not None and verdict.converged is None
            )
            if verdict.ranked:
                continue
            what = "not trained" if verdict.trained is False and verdict.same_stream else "not ranked"
            solved = f"; {verdict.solved} of {verdict.seeds} seeds solved" if verdict.trained is not None else ""
            parts.append(f"{arm}{where} is {what}: {'; '.join(verdict.reasons) or 'no result'}{solved}.")
        broken = [check.name for check in checks(study, task) if not check.holds and not check.by_arm]
        if broken:
            parts.append(f"Not a fair comparison{where}; this does not hold: {'; '.join(broken)}.")
    failed = study.failures
    if not study.select("result"):
        parts.append("There are no result runs here.")
    if failed:
        parts.append(f"{len(failed)} of {len(study.runs)} runs did not finish: {', '.join(r.name for r in failed)}.")
    if not parts:
        parts.append("Every arm is ranked and every run finished.")
    if unchecked:
        parts.append("Convergence was not checked at this scale (no runs of twice the steps).")
    return " ".join(parts)


def headline(study: Study) -> list[str]:
    """The answer in sentences, each from the intervals of the comparisons."""
    found, against = comparisons(study), against_controls(study)
    out = []
    for task in study.tasks:
        judged = verdicts(study, task)
        controls = [c for c in against if (c.task, c.measure) == (task, "exact_match")]
        arms = [arm for arm in study.arms("result", task=task) if judged[arm].ranked]
        if len(arms) < 2:
            ranked = f"only {arms[0]} is" if arms else "no arm is"
            out.append(f"No comparison on {task}: {ranked} ranked, and a comparison needs two.")
            continue
        chosen = measures(study, task)
        if not chosen:
            out.append(f"No comparison on {task}: its evaluation has neither exact match nor bits per byte.")
        for measure, entries in chosen:
            rows = [c for c in found if (c.task, c.measure, c.entries) == (task, measure, entries)]
            out.append(_sentence(study, task, measure, entries, arms, rows))
            if measure == "exact_match":
                out += filter(None, [_by_attention(study, task, arms, rows)])
                out += [_of_control(study, c) for c in controls if c.entries == entries]
                out += filter(None, [_with_twice_the_steps(study, task, arms, entries)])
    return out


def _with_twice_the_steps(study: Study, task: str, arms: list[str], entries: int) -> str:
    """What twice the steps change at a size, arm by arm; "" where they change little. Training is held to this too."""
    short = {(run.arm, run.replicate): run for run in study.select("result", task=task) if run.finished}
    changed = []
    for long in study.select("long", task=task):
        base = short.get((long.arm, long.replicate))
        if (
            long.arm in arms
            and long.finished
            and base
            and entries in base.by_entries()
            and entries in long.by_entries()
        ):
            before, after = (run.by_entries()[entries].mean for run in (base, long))
            if abs(after - before) >= LONG_MATCH:
                changed.append(f"{long.arm} from {100 * before:.1f} to {100 * after:.1f} %")
    if not changed:
        return ""
    return (
        f"With {entries} {words(task).units} twice the steps, one seed an arm, change {listed(changed)}: "
        "what is said there holds for these steps alone."
    )


def _sentence(
    study: Study, task: str, measure: str, entries: int | None, arms: list[str], rows: list[Comparison]
) -> str:
    means = {arm: mean_of(study.select("result", task=task, arm=arm), measure, entries) for arm in arms}
    order = sorted(arms, key=lambda arm: means[arm].mean, reverse=measure == "exact_match")
    best = order[0]
    first = [arm for arm in order if means[arm].mean == means[best].mean]
    others = order[len(first) :]
    if measure == "bits_per_byte":
        where = "On unseen source code"
        what = "fewest bits per byte"
    else:
        trained = study.select("result", task=task)[0].trained_entries
        past = entries > max(trained, default=0)
        units, holder, *_ = words(task)
        where = f"With {entries} {units} in the {holder} ({'past' if past else 'the most in'} training)"
        what = "highest exact match"
    pairs = {frozenset((c.first, c.second)): c for c in rows}
    to_best = {arm: pairs[frozenset((best, arm))] for arm in others}
    lead = f"{where} {listed(first)} {'has' if len(first) == 1 else 'have'} the {what}, {show(means[best], measure)}"
    if not others:
        return f"{lead}."
    parts = []
    for claim in (statistics.ARCHITECTURES, CHECKPOINTS):
        behind = [arm for arm in others if to_best[arm].claim == claim]
        if behind:
            gaps = ", ".join(f"of {arm} by {gap(to_best[arm], best)}" for arm in behind)
            parts.append(f"ahead {gaps} ({level(to_best[behind[0]])})")
    level_with = [arm for arm in others if not to_best[arm].claim]
    if parts:
        even = f"; no difference is seen from {listed(level_with)}" if level_with else ""
        return f"{lead}, {'; '.join(parts)}{even}."
    last = others[-1]
    return (
        f"{lead}, but no arm is seen to differ from it: the furthest, {last}, is behind by "
        f"{gap(to_best[last], best)} ({level(to_best[last])})."
    )


def _by_attention(study: Study, task: str, arms: list[str], rows: list[Comparison]) -> str:
    """Whether arms with attention and arms without stand apart; "" where the ranked arms are all of one kind."""
    attends = {arm: study.select("result", task=task, arm=arm)[0].attends for arm in arms}
    across = [c for c in rows if attends[c.first] != attends[c.second]]
    if not across:
        return ""
    ahead = Counter(None if c.better is None else attends[c.better] for c in across)
    for kind, name, other in ((True, "with", "without"), (False, "without", "with")):
        if ahead[kind] == len(across):
            least = min(across, key=lambda c: abs(c.difference.mean))
            behind = least.second if least.better == least.first else least.first
            weakest = next((c for c in across if c.claim == CHECKPOINTS), least)
            margin = f"the least by {gap(least, least.better)} ({least.better} over {behind}; {level(weakest)})"
            said = f"There every arm {name} attention is ahead of every arm {other}, {margin}"
            against = _controls_against(study, task, kind, [arm for arm in arms if not attends[arm]], least.entries)
            return (
                f"{said}; not so {listed(against)}, so attention as such does not decide it." if against else f"{said}."
            )
    return (
        f"Of the {len(across)} pairs there of an arm with attention and one without, the first is ahead in "
        f"{ahead[True]}, the second in {ahead[False]}, and no difference is seen in {ahead[None]}."
    )


def _controls_against(study: Study, task: str, ahead: bool, without: list[str], entries: int | None) -> list[str]:
    """Ranked controls with attention that are not ahead of (or, if not `ahead`, not behind) the arms without."""

    def mean(arm: str) -> float:
        return mean_of(study.select("result", "control", task=task, arm=arm), "exact_match", entries).mean

    judged, bars = verdicts(study, task), [mean(arm) for arm in without]
    attending = dict.fromkeys(run.arm for run in study.select("control", task=task) if run.attends)
    ranked = [arm for arm in attending if judged[arm].ranked]
    return [arm for arm in ranked if (mean(arm) <= max(bars) if ahead else mean(arm) >= min(bars))]


def _of_control(study: Study, c: Comparison) -> str:
    """What changing one thing of an arm did."""
    means = [
        show(mean_of(study.select("result", "control", task=c.task, arm=arm), c.measure, c.entries))
        for arm in (c.first, c.second)
    ]
    found = f"{c.better} is ahead by {gap(c, c.better)} ({level(c)})" if c.better else "no difference is seen"
    return f"Control, {c.entries} {words(c.task).units}: {c.first} has {means[0]} and {c.second} {means[1]}; {found}."


def level(comparison: Comparison) -> str:
    """What a comparison's difference speaks of, and why no further."""
    seeds = comparison.difference.seeds
    count = f"{seeds} seed{'s' * (seeds != 1)}"
    if comparison.difference.claim != CHECKPOINTS:
        return f"{comparison.difference.claim}, paired over {count}"
    if comparison.architectures is None:
        return f"{CHECKPOINTS} only: {count}"
    return f"{CHECKPOINTS} only: {count} do not show it for the architectures"


def gap(comparison: Comparison, ahead: str) -> str:
    """`23.4 [20.1, 26.7] points`, positive where `ahead` is ahead."""
    mean, low, high, *_ = comparison.difference
    if (comparison.first == ahead) != (comparison.measure == "exact_match"):
        mean, low, high = -mean, -high, -low
    if comparison.measure == "exact_match":
        return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] points"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}] bits per byte"


def show(estimate: Any, measure: str = "exact_match") -> str:
    """`98.4 [96.9, 99.2] %`, or bits with three decimals."""
    mean, low, high = estimate[:3]
    if measure in BITS:
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]\u00a0%"  # no line break before the unit


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
