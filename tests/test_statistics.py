"""Paired comparisons against scipy and obvious loops; what a verdict takes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from tsdae.evaluation.statistics import Comparison, compare, detectable, holm

OURS, THEIRS = np.array([80.0, 82.5, 81.0, 79.5]), np.array([79.0, 80.0, 80.5, 79.6])


def resampled(mean: float, spread: float = 0.2, seeds: int = 4) -> np.ndarray:
    """[K, S] whose mean over the seeds is evenly spread around ``mean``."""
    return np.tile(mean + spread * np.linspace(-1, 1, 1001), (seeds, 1))


def test_over_seeds_it_is_the_paired_t_test() -> None:
    one = compare("a", OURS, THEIRS, resampled(1.0))
    expected = ttest_rel(OURS, THEIRS)
    interval = expected.confidence_interval(0.95)
    assert one.difference == pytest.approx(np.mean(OURS - THEIRS))
    assert one.over_seeds == pytest.approx((interval.low, interval.high))
    assert one.p == pytest.approx(expected.pvalue)  # larger than that of the resamples, none of which is below 0
    assert one.seed_noise == pytest.approx(math.sqrt((np.var(OURS, ddof=1) + np.var(THEIRS, ddof=1)) / 2))


def test_over_pairs_it_is_the_middle_of_the_resamples() -> None:
    """With seeds that agree the pairs decide; of their 1,001 means, from -0.5 to 1.5, a quarter lie below 0."""
    draws_KS = resampled(0.5, 1.0)
    draws_KS[0] += 3.0
    draws_KS[1] -= 3.0
    one = compare("a", THEIRS + 0.5, THEIRS, draws_KS)
    assert one.over_pairs == pytest.approx((0.5 - 0.95, 0.5 + 0.95))
    assert one.p == pytest.approx(0.5, abs=0.003)
    assert one.over_seeds == pytest.approx((0.5, 0.5))
    draws_KS[0, :500] = math.nan  # where there is no correlation, there is none of the mean either
    assert compare("a", OURS, THEIRS, draws_KS).over_pairs[0] > 0.4


def test_what_was_not_trained_stands_beside_every_seed() -> None:
    one = compare("a", OURS, np.array([79.0]), resampled(1.75))
    assert one.difference == pytest.approx(OURS.mean() - 79.0)
    assert one.seed_noise == pytest.approx(OURS.std(ddof=1))


def test_holm_multiplies_the_smallest_by_all() -> None:
    compared = [dataclasses.replace(compare("a", OURS, THEIRS, resampled(1.0)), p=p) for p in (0.04, 0.01, 0.03, 0.9)]
    assert [one.adjusted for one in holm(compared)] == pytest.approx([0.09, 0.04, 0.09, 0.9])


@pytest.mark.parametrize(
    ("difference", "p", "adjusted", "verdict"),
    [
        (2.0, 0.001, 0.01, "better"),
        (-2.0, 0.001, 0.01, "worse"),
        (-2.0, 0.03, 0.12, "worse, but not after correction"),
        (0.5, 0.03, 0.12, "below seed noise"),
        (2.0, 0.2, 0.2, "not shown"),
    ],
)
def test_verdicts(difference: float, p: float, adjusted: float, verdict: str) -> None:
    assert Comparison("a", difference, 3, (0.0, 1.0), (0.0, 1.0), 1.0, p, adjusted).verdict == verdict
    assert "fewer than 3 seeds" in Comparison("a", difference, 2, None, (0.0, 1.0), 1.0, p, adjusted).verdict


def test_two_seeds_give_no_interval_and_three_a_wide_one() -> None:
    assert compare("a", OURS[:2], THEIRS[:2], resampled(1.0, seeds=2)).over_seeds is None
    assert detectable(3) == pytest.approx(2.484, abs=1e-3)
    # Of 8 comparisons the smallest p has to be below 0.05 / 8: the t value for that with 2 degrees of freedom is 12.59.
    assert detectable(3, among=8) == pytest.approx(12.59 / math.sqrt(3), abs=0.01)


def test_many_large_differences_all_show() -> None:
    """A count of resamples cannot fall below 2 in 1,001, which times 40 is no longer small."""
    ours = 10 + THEIRS + np.array([0.01, -0.01, 0.0, 0.0])
    many = holm([compare(str(k), ours, THEIRS, resampled(10.0)) for k in range(40)])
    assert {one.verdict for one in many} == {"better"}


def test_what_is_not_defined_is_not_compared() -> None:
    collapsed = np.array([80.0, math.nan, 81.0, 79.0])
    one, other = holm([compare("a", collapsed, THEIRS, resampled(1.0)), compare("b", OURS, THEIRS, resampled(1.0))])
    assert (one.verdict, one.p) == ("not defined", 1.0)
    assert other.verdict != "not defined"
    nowhere = np.full((4, 1001), math.nan)
    assert compare("c", OURS, THEIRS, nowhere).verdict == "not defined"
