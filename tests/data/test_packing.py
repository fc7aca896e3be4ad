from fractions import Fraction

import numpy as np
import pytest

from workbench.data.packing import LONGEST, blend, order, pack


@pytest.mark.parametrize(
    "weights", [(70, 15, 15), (0.5, 0.5), (1,), (0.9, 0.05, 0.03, 0.02), (1, 1, 1), (3, 2, 2, 1, 1)]
)
def test_after_any_number_of_rows_each_source_has_its_share_to_within_one_row(weights):
    schedule = blend(weights)
    share = np.array(weights) / sum(weights)
    counts = np.zeros(len(weights), int)
    for row in range(3 * len(schedule.source)):
        source, place = schedule.at(row)
        assert place == counts[source]  # a source's own rows come in order, none twice
        counts[source] += 1
        assert (abs(counts - (row + 1) * share) < 1).all()


def test_any_window_as_long_as_the_period_has_the_shares_exactly():
    schedule = blend((70, 15, 15))
    assert len(schedule.source) == 20
    for start in range(40):
        seen = [schedule.at(row)[0] for row in range(start, start + 20)]
        assert [seen.count(source) for source in range(3)] == [14, 3, 3]


@pytest.mark.parametrize(
    ("weights", "rows"),
    [((1, 0.0001), (10000, 1)), ((2000, 1), (2000, 1)), ((123, 457, 421), (123, 457, 421)),
     ((12345, 6789, 2345, 999), (12345, 6789, 2345, 999)), ((0.5, 1), (1, 2)), ((1 / 6, 5 / 6), (1, 5))],
)  # fmt: skip
def test_a_period_has_each_sources_exact_share_of_rows(weights, rows):
    schedule = blend(weights)
    assert schedule.counts.tolist() == list(rows) == np.bincount(schedule.source).tolist()


def test_of_sources_that_fall_due_together_the_first_is_read_first():
    """Tijdeman's rule with fractions throughout: floats decide nothing in another way."""
    for weights in [(1, 1, 1), (70, 15, 15), (9, 6, 3, 2), (49999, 50001)]:
        total, counts = sum(weights), [0] * len(weights)
        slack = 1 - Fraction(1, max(2 * len(weights) - 2, 2))
        for row, source in enumerate(blend(weights).source[:500].tolist(), 1):
            shares = [Fraction(weight, total) for weight in weights]
            able = [j for j, share in enumerate(shares) if row * share - counts[j] >= 1 - slack]
            assert source == min(able, key=lambda j: ((counts[j] + slack) / shares[j], j))
            counts[source] += 1


def test_weights_that_are_exact_only_in_too_many_rows_are_refused():
    assert len(blend((LONGEST - 1, 1)).source) == LONGEST
    for weights in [(LONGEST, 1), (1, 1e-9), (0.123456789, 0.876543211)]:
        with pytest.raises(ValueError, match=r"after at most 100,000 rows; \(.*\) would need more: give rounder"):
            blend(weights)


@pytest.mark.parametrize("weights", [(), (1, 0), (1, -1), (1, float("inf")), (1, float("nan"))])
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(ValueError, match="positive numbers"):
        blend(weights)


def test_an_order_is_a_permutation_of_its_own_for_each_seed_epoch_and_source():
    found = [order(seed, epoch, 50, source) for seed in (0, 1) for epoch in (0, 1) for source in (0, 1)]
    assert all(sorted(each) == list(range(50)) for each in found)
    assert len({each.tobytes() for each in found}) == 8


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_every_token_of_every_document_lies_in_one_row_and_no_row_is_too_long(length):
    rng = np.random.default_rng(0)
    sizes, group = rng.integers(1, 200, 80), rng.integers(0, 5, 80)
    pieces = pack(sizes, group, length)
    seen = [np.zeros(size, int) for size in sizes]
    for document, offset, size in zip(pieces.document, pieces.offset, pieces.size, strict=True):
        seen[document][offset : offset + size] += 1
    assert all((each == 1).all() for each in seen)
    for first, last in zip(pieces.first[:-1], pieces.first[1:], strict=True):
        assert 0 < pieces.size[first:last].sum() <= length
        assert len(set(group[pieces.document[first:last]])) == 1
