import numpy as np
import pytest
from scipy import stats

from workbench.evaluate.interval import clustered, clustered_mean, holm


def _books(rng, share, correlation, books, asked, trials):
    """Right answers a book: beta-binomial, so that the queries of one book resemble each other."""
    size = 1 / correlation - 1
    return rng.binomial(asked, rng.beta(share * size, (1 - share) * size, (trials, books)))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_clustered_intervals_cover_where_wilsons_does_not(share):
    trials, books, asked = 300, 64, 8
    right = _books(np.random.default_rng(0), share, 0.3, books, asked, trials)
    covered, naive = (
        np.mean([low <= share <= high for _, low, high in intervals])
        for intervals in (
            [clustered(row, [asked] * books) for row in right],
            [(0, *stats.binomtest(int(row.sum()), asked * books).proportion_ci(method="wilson")) for row in right],
        )
    )
    assert covered >= 0.92  # 95% less 2.5 standard errors of 300 trials; Clopper and Pearson's covers more
    assert naive < 0.85


def test_clusters_that_agree_wholly_count_as_one_item_each():
    items = 20 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 19)) ** 2
    assert clustered([4] * 20, [4] * 20).low == pytest.approx(0.025 ** (1 / items), abs=1e-9)


def test_clusters_of_one_item_give_clopper_and_pearsons_interval():
    right = [1] * 1800 + [0] * 200  # so many that Student's quantile is the normal's within 1e-3
    expected = stats.binomtest(1800, 2000).proportion_ci(method="exact")
    assert clustered(right, [1] * 2000)[1:] == pytest.approx(tuple(expected), abs=1e-4)


def test_the_mean_of_clusters_of_one_item_has_students_interval():
    values = np.random.default_rng(3).normal(size=12)
    mean, low, high = clustered_mean(values, np.ones(12))
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose((mean, low, high), (values.mean(), *expected), rtol=1e-12)


def test_items_that_repeat_their_cluster_add_nothing_to_a_mean():
    values = np.random.default_rng(4).normal(size=12)
    np.testing.assert_allclose(clustered_mean(5 * values, [5] * 12), clustered_mean(values, [1] * 12), rtol=1e-12)
    with pytest.raises(ValueError, match="two clusters or more"):
        clustered_mean([3.0], [5])


def test_holm_adjusts_by_hand_computed_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.9]) == [1.0, 1.0]
