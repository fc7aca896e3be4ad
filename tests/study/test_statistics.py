from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from workbench.evaluate.interval import Interval, clustered, holm
from workbench.study import statistics


def _wilson(right, items):
    return Interval(right / items, *stats.binomtest(right, items).proportion_ci(method="wilson"))


def _books(rng, share, correlation, books, asked, trials):
    """Right answers a book: beta-binomial, so that the queries of one book resemble each other."""
    size = 1 / correlation - 1
    return rng.binomial(asked, rng.beta(share * size, (1 - share) * size, (trials, books)))


def _compared(a, b):
    """`compare` for bits per byte of two arms, (seed, package)."""
    means = ([Interval(m, m, m) for m in arm.mean(axis=1)] for arm in (a, b))
    return statistics.compare(list(zip(*means, map(statistics.paired_clusters, a, b), strict=True)))


@pytest.mark.parametrize("items", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_widest_claim_covers_with_seed_and_item_variance_present(seeds, items):
    """Two seeds speak of these checkpoints, three of these architectures: each covers the truth that it speaks of.

    items: the error of a mean that the items leave, whichever the seeds, as a multiple of the one that the seeds leave.
    """
    rng, trials, packages = np.random.default_rng([seeds, int(4 * items), 7]), 2000, 40
    luck = rng.normal(0, 0.02, (trials, 1, seeds)) + rng.normal(0, 0.05, (trials, 2, seeds))  # of the data, of a start
    own = items * 0.05 * np.sqrt(packages / seeds)
    hard = rng.normal(0, 0.3, (trials, 1, 1, packages)) + rng.normal(0, own, (trials, 2, 1, packages))  # all, an arm
    bits = 2 + luck[..., None] + hard + rng.normal(0, 0.005, (trials, 2, seeds, packages))
    covered = []
    for arms, came_out in zip(bits, luck, strict=True):
        checkpoints, architectures = _compared(*arms)
        found, true = (architectures, 0.0) if architectures else (checkpoints, np.subtract(*came_out).mean())
        assert found.claim == ("these checkpoints" if seeds == 2 else "these architectures")
        covered.append(found.low <= true <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_one_architecture_under_four_names_is_told_apart_in_at_most_five_percent_of_studies(seeds):
    """Any two of the names, after Holm's correction over all pairs, as a report does it; items are hard for a name."""
    rng, studies, packages = np.random.default_rng(seeds), 200, 12
    bits = 2 + rng.normal(0, 0.02, (studies, 4, seeds, 1)) + rng.normal(0, 0.3, (studies, 1, 1, packages))
    bits = bits + rng.normal(0, 0.02 * np.sqrt(packages / seeds), (studies, 4, 1, packages))
    bits = bits + rng.normal(0, 0.005, (studies, 4, seeds, packages))
    ps = [[_compared(a, b)[1].p for a, b in combinations(arms, 2)] for arms in bits]
    false = sum(min(holm(each)) < 0.05 for each in ps)
    assert false <= 0.05 * studies < sum(min(each) < 0.05 for each in ps)  # which would be too many without it


def test_the_paired_t_is_students():
    a, b = np.random.default_rng(0).normal(0.7, 0.05, (2, 3))
    assert statistics.paired_t(a, b).p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_looks_that_were_announced_are_wrong_together_in_at_most_five_percent_of_studies():
    """A claim at any look counts; unannounced, three looks at equal architectures are wrong too often."""
    rng, trials, looks = np.random.default_rng(2), 4000, (3, 5, 8)
    gaps = rng.normal(0, 0.02, (trials, 8))
    ps = np.stack([stats.ttest_1samp(gaps[:, :seeds], 0, axis=1).pvalue for seeds in looks], axis=1)
    wrong = lambda p: (p < 0.05).any(axis=1).mean()  # noqa: E731
    shares = statistics.spent_at(looks)
    scaled = ps * [0.05 / shares[seeds] for seeds in looks]
    error = 3 * np.sqrt(0.05 * 0.95 / trials)
    assert wrong(scaled) <= 0.05 + error < wrong(ps)


def test_what_looks_spend_is_as_obrien_and_fleming_spend_it_and_adds_up_to_five_percent():
    shares = statistics.spent_at((3, 5, 8))
    half = stats.norm.ppf(0.975)
    assert shares[3] == pytest.approx(2 * stats.norm.sf(half / np.sqrt(3 / 8)))
    assert sum(shares.values()) == pytest.approx(0.05)
    pair = (Interval(0.9, 0.89, 0.91), Interval(0.7, 0.69, 0.71), None)
    other = (Interval(0.9, 0.89, 0.91), Interval(0.72, 0.71, 0.73), None)
    given = [pair, other, pair]
    _, plain = statistics.compare(given)
    _, early = statistics.compare(given, shares[3])
    assert early.high - early.low > plain.high - plain.low and early.p == pytest.approx(plain.p * 0.05 / shares[3])
    assert statistics.compare(given, None)[1] is None
    for looks in ((2, 4), (5, 5), ()):
        with pytest.raises(ValueError, match="growing numbers of seeds"):
            statistics.spent_at(looks)


def test_two_seeds_make_no_claim_about_architectures():
    with pytest.raises(ValueError, match="at least 3; got 2"):
        statistics.paired_t([0.9, 0.8], [0.1, 0.2])
    pair = (Interval(0.9, 0.85, 0.94), Interval(0.5, 0.42, 0.58), None)
    checkpoints, architectures = statistics.compare([pair] * 2)
    assert checkpoints.claim == "these checkpoints" and architectures is None
    assert statistics.compare([pair] * 3)[1].claim == "these architectures"


def test_seeds_that_happen_to_agree_are_no_surer_than_their_items():
    pair = (Interval(0.9, 0.8, 0.95), Interval(0.8, 0.7, 0.88), None)
    items = statistics.average([statistics.independent(*pair[:2])] * 3)
    _, found = statistics.compare([pair] * 3)  # the three differences are equal: a t alone would have no width
    assert found[:3] == pytest.approx(items) and found.p > 1e-4


@pytest.mark.parametrize(("a", "b"), [(0.95, 0.9), (0.6, 0.6), (0.995, 0.99)])
def test_differences_between_checkpoints_cover_paired_and_not(a, b):
    rng, trials, books, asked = np.random.default_rng(1), 200, 64, 8
    right = [_books(rng, share, 0.2, books, asked, trials) for share in (a, b)]
    covered = []
    for x, y in zip(*right, strict=True):
        found = statistics.paired_clusters(x / asked, y / asked)
        if found is None:
            found = statistics.independent(*(clustered(z, [asked] * books) for z in (x, y)))
        covered.append(found.low <= a - b <= found.high)
    assert np.mean(covered) >= 0.92


def test_the_p_value_of_few_clusters_is_students():
    """Seven packages of one arm against another: the paired t-test's p, not the normal tail that is far smaller."""
    a = np.array([2.1, 2.4, 2.0, 2.6, 2.3, 2.2, 2.5])
    b = a - np.array([0.05, 0.02, 0.04, 0.03, 0.06, 0.01, 0.05])
    ends = Interval(2.3, 2.0, 2.6), Interval(2.26, 1.96, 2.56)
    found, _ = statistics.compare([(*ends, statistics.paired_clusters(a, b))])
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_few_clusters_that_differ_give_no_interval_of_their_own():
    assert statistics.paired_clusters([1.0] * 40, [1.0] * 36 + [0.5] * 4) is None


def test_newcombes_interval_is_the_published_one():
    # Newcombe 1998, Statistics in Medicine 17, table II (a), method 10: 56/70 - 48/80
    found = statistics.independent(_wilson(56, 70), _wilson(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_checkpoints_asked_the_same_books_cover_no_less_for_being_many():
    rng, trials, books, asked, seeds = np.random.default_rng(3), 200, 48, 8, 3
    covered = []
    for _ in range(trials):
        hard = rng.normal(0, 1.2, books)  # a book is hard for every checkpoint
        right = rng.binomial(asked, 1 / (1 + np.exp(-1 - hard)), (seeds, books))
        found = statistics.average([clustered(row, [asked] * books) for row in right])
        covered.append(found.low <= TRUTH <= found.high)
    assert np.mean(covered) >= 0.92


TRUTH = float(np.mean(1 / (1 + np.exp(-1 - 1.2 * stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)))))


@pytest.mark.parametrize(("seeds", "difference"), [(3, 0.05), (5, 0.02), (10, 0.02), (4, 0.0)])
def test_the_power_of_a_paired_t_is_how_often_it_sees_a_difference(seeds, difference):
    rng, trials, deviation = np.random.default_rng(0), 20_000, 0.02
    gaps = rng.normal(difference, deviation, (trials, seeds))
    seen = np.mean(stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05)
    error = 3 * np.sqrt(0.25 / trials)
    assert statistics.power(seeds, difference, deviation) == pytest.approx(seen, abs=error)


def test_the_seeds_needed_are_the_fewest_that_reach_the_power():
    for difference in (0.005, 0.02, 0.1, 10.0):
        needed = statistics.seeds_needed(difference, 0.02)
        assert statistics.power(needed, difference, 0.02) >= 0.8
        assert needed == 3 or statistics.power(needed - 1, difference, 0.02) < 0.8
    assert statistics.seeds_needed(1e-6, 1.0) is None
    smallest = statistics.detectable(5, 0.02)
    assert statistics.power(5, smallest, 0.02) == pytest.approx(0.8, abs=1e-6)


def test_the_interval_of_a_deviation_covers():
    rng = np.random.default_rng(1)
    covered = [
        low <= 2.0 <= high
        for low, high in (statistics.deviation_interval(x.std(ddof=1), 4) for x in rng.normal(0, 2.0, (4000, 4)))
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)
