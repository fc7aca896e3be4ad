"""A study's answer in sentences, each put together from the intervals of the comparisons."""

from __future__ import annotations

from collections import Counter

from workbench.study import judge, scaling, statistics
from workbench.study.collect import Study
from workbench.study.differences import Comparison, against_controls, comparisons, mean_of, measures
from workbench.study.judge import LONG_MATCH, checks, verdicts
from workbench.study.statistics import CHECKPOINTS
from workbench.study.wording import listed, show, words


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
    for arm in study.arms("result", "control"):
        names = sorted({name for run in study.select("result", "control", arm=arm) for name in run.released})
        if names:
            parts.append(f"{arm} goes on from {listed(names)}: what that was trained on before is unknown.")
    for task in study.tasks:
        looks, seeds = judge.looked(study, task), len(judge.replicates(study, task))
        if "looks" not in study.facts and len(looks) > 1:
            parts.append(
                f"Looked at after {listed([str(n) for n in looks])} seeds ({task}), which no LOOKS announced: its "
                "claims about architectures are less sure than they say."
            )
        if judge.look_level(study, task) is None and seeds >= statistics.LEAST_SEEDS:
            announced = listed([str(n) for n in study.facts["looks"]])
            parts.append(
                f"There are {seeds} seeds ({task}), and looks were announced after {announced}: nothing is said of "
                "architectures now."
            )
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
            here = [c for c in found if (c.task, c.measure, c.entries) == (task, measure, entries)]
            rows = [c for c in here if c.budget == "tokens"]
            out.append(_sentence(study, task, "tokens", measure, entries, arms, rows))
            if measure == "exact_match":
                out += filter(None, [_by_attention(study, task, arms, rows)])
                out += [_of_control(study, c) for c in controls if c.entries == entries]
                out += filter(None, [_with_twice_the_steps(study, task, arms, entries)])
            for budget in judge.budgets(study, task)[1:]:
                those = judge.ranked(study, task, budget)
                rows = [c for c in here if c.budget == budget]
                if len(those) > 1:
                    out.append(_sentence(study, task, budget, measure, entries, those, rows))
                else:
                    out.append(
                        f"No comparison on {task} at {judge.EQUAL[budget]}: fewer than two arms are ranked there."
                    )
        out += scaling.sentences(study, task)
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
    study: Study,
    task: str,
    budget: str,
    measure: str,
    entries: int | None,
    arms: list[str],
    rows: list[Comparison],
) -> str:
    """Who is best at a budget and ahead of whom."""
    ended = judge.at(study, task, budget)
    means = {arm: mean_of(ended[arm], measure, entries) for arm in arms}
    order = sorted(arms, key=lambda arm: means[arm].mean, reverse=measure == "exact_match")
    best = order[0]
    first = [arm for arm in order if means[arm].mean == means[best].mean]
    others = order[len(first) :]
    if measure == "bits_per_byte":
        where = f"On unseen {_read(study, task)}"
        what = "fewest bits per byte"
    else:
        trained = study.select("result", task=task)[0].trained_entries
        past = entries > max(trained, default=0)
        units, holder, *_ = words(task)
        where = f"With {entries} {units} in the {holder} ({'past' if past else 'the most in'} training)"
        what = "highest exact match"
    where = f"At {judge.EQUAL[budget]}, {where[0].lower()}{where[1:]}"
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


def _read(study: Study, task: str) -> str:
    """What the texts are: of packages, source code."""
    sources = [each for run in study.select("result", task=task) for each in run.config["data"].get("sources", ())]
    code = sources and all(each["class"].endswith(":Packages") for each in sources)
    return "source code" if code else "text"


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


def signed(comparison: Comparison) -> str:
    """The difference, first - second: `+23.4 [+20.1, +26.7] points`, or bits with three decimals."""
    mean, low, high, *_ = comparison.difference
    if comparison.measure == "exact_match":
        return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
