"""Intervals over sentence pairs and over seeds, and what a difference between two settings of an ablation shows.

Two things vary: the seed of a run, and the choice of the sentence pairs on which it is scored. Each gives a 95 %
interval of the mean difference, Student's t over the seeds and the bootstrap over the pairs, and the verdict rests on
the less certain of the two. Differences are paired: both settings share seed, noise and batches, and both are scored on
the same resample of the pairs.

# B pairs, K seeds, S resamples
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student

from tsdae.config import FEWEST_SEEDS

LEVEL = 0.05
RESAMPLES = 1000
UNDEFINED = (math.nan, math.nan)


def resamples(size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield 1,000 draws of ``size`` rows with replacement, some of them [S, B] at a time, to bound the memory."""
    generator = np.random.default_rng(seed)
    at_once = max(1, 2_000_000 // size)
    for start in range(0, RESAMPLES, at_once):
        yield generator.integers(0, size, (min(at_once, RESAMPLES - start), size))


def interval(values_S: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of resampled values; those that are not defined are left out."""
    low, high = np.nanpercentile(values_S, (2.5, 97.5))
    return float(low), float(high)


def seed_interval(values_K: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over seeds, by Student's t; None of fewer than 3 seeds."""
    if len(values_K) < FEWEST_SEEDS:
        return None
    mean, reach = float(values_K.mean()), detectable(len(values_K)) * float(values_K.std(ddof=1))
    return mean - reach, mean + reach


def detectable(count: int, among: int = 1) -> float:
    """Return how many standard deviations of the paired differences a mean of ``count`` seeds must reach to show.

    among: how many comparisons the table has; the smallest p value is held against LEVEL / ``among`` (see `holm`).
    """
    return float(student.ppf(1 - LEVEL / among / 2, count - 1)) / math.sqrt(count)


@dataclass(frozen=True)
class Comparison:
    """One setting against another.

    name: of the setting. difference: mean over the seeds, in points. count: how many seeds.
    over_seeds, over_pairs: 95 % intervals of the mean difference; over_seeds None: fewer than 3 seeds.
    seed_noise: standard deviation of single runs over their seeds, pooled over both settings.
    p: the larger of the two p values; adjusted: by Holm over the whole table (see `holm`).
    """

    name: str
    difference: float
    count: int
    over_seeds: tuple[float, float] | None
    over_pairs: tuple[float, float]
    seed_noise: float
    p: float
    adjusted: float = math.nan

    @property
    def verdict(self) -> str:
        """Return it in words; it rests on the larger p value, that of the interval which reaches further towards 0."""
        if math.isnan(self.difference):
            return "not defined"
        if self.over_seeds is None:
            return f"not judged: fewer than {FEWEST_SEEDS} seeds"
        direction = "better" if self.difference > 0 else "worse"
        if self.adjusted < LEVEL:
            return direction
        if abs(self.difference) <= self.seed_noise:
            return "below seed noise"
        return f"{direction}, but not after correction" if self.p < LEVEL else "not shown"


def compare(name: str, ours_K: np.ndarray, theirs_K: np.ndarray, resampled_KS: np.ndarray) -> Comparison:
    """Return the paired difference of two settings, with its intervals.

    ours_K, theirs_K: scores of the same K seeds; theirs_K has one for all where nothing was trained.
    resampled_KS: differences of the two on S resamples of the sentence pairs; NaN, where there is no correlation, is
        left out. A score of NaN has no difference: its verdict is "not defined".
    """
    difference_K = ours_K - theirs_K
    mean, count = float(difference_K.mean()), len(difference_K)
    mean_S = resampled_KS.mean(0)
    mean_S = mean_S[~np.isnan(mean_S)]
    if math.isnan(mean) or not len(mean_S):  # a run without any correlation: its vectors have collapsed
        return Comparison(name, math.nan, count, None, UNDEFINED, math.nan, 1.0)
    over_seeds, p_seeds = seed_interval(difference_K), 1.0
    if over_seeds is not None:
        error = float(difference_K.std(ddof=1)) / math.sqrt(count)
        p_seeds = 2.0 * float(student.sf(abs(mean) / error, count - 1)) if error > 0 else float(mean == 0)
    noise = math.sqrt(np.mean([scores_K.var(ddof=1) for scores_K in (ours_K, theirs_K) if len(scores_K) > 1] or [0.0]))
    return Comparison(name, mean, count, over_seeds, interval(mean_S), noise, max(p_seeds, _p_of(mean_S)))


def _p_of(mean_S: np.ndarray) -> float:
    """Return twice the share of resamples on the rarer side of 0; where none is there, that of a normal distribution.

    A count alone cannot fall below 2 / (S + 1), which Holm's correction makes too much in tables of 26 rows and more.
    """
    beyond = int(min(np.sum(mean_S <= 0), np.sum(mean_S >= 0)))
    if beyond:
        return min(1.0, 2.0 * (beyond + 1) / (len(mean_S) + 1))
    tail = float(2.0 * normal.sf(abs(mean_S.mean()) / max(float(mean_S.std(ddof=1)), 1e-12)))
    return min(tail, 2.0 / (len(mean_S) + 1))


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust p values for there being many (Holm 1979): the smallest of m times m, the next times m - 1, ..."""
    p = np.array([one.p for one in comparisons])
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return [dataclasses.replace(one, adjusted=float(p)) for one, p in zip(comparisons, adjusted, strict=True)]
