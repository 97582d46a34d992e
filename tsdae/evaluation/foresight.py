"""How well does a measure without labels tell what labels would have said, over many runs?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tsdae.evaluation.statistics import RESAMPLES, interval
from tsdae.evaluation.sts import correlations
from tsdae.evaluation.validation import GEOMETRY, RECONSTRUCTION, lower_is_better

LABELLED = ("stsb_dev", "pairs")  # measures of the log that are taken with labels
MEASURES = ("heldout_loss", *RECONSTRUCTION, *GEOMETRY)


class Foresight(NamedTuple):
    """One measure as a guide to the labelled score; signs are such that the larger is the better guide.

    correlation: Spearman over ``runs`` runs of the measure's last value and the last labelled score, in [-1, 1].
    ci95: its interval over groups of runs (bootstrap). agreement: share of ``moves`` from one evaluation to the next in
    which both rose or both fell. regret: labelled points lost, on average over the runs, by keeping the evaluation
    that the measure calls best. NaN where there is nothing to count.
    """

    correlation: float
    ci95: tuple[float, float]
    runs: int
    agreement: float
    moves: int
    regret: float


def labelled(entry: dict[str, Any]) -> str | None:
    """The name of the measure of an evaluation that used labels."""
    return next((name for name in LABELLED if name in entry), None)


def foresight(
    measure: str, runs: Sequence[Sequence[dict[str, Any]]], groups: Sequence[str], seed: int = 0
) -> Foresight | None:
    """How well ``measure`` foretells the labelled score; None if no run took it.

    runs: the evaluations of each run in their order, {"step": ..., measure: value, ...}.
    groups: the setting of each run; runs of one setting are alike, so the bootstrap draws whole settings.
    """
    sign = -1.0 if lower_is_better(measure) else 1.0
    taken = []  # (group, values, scores) of the runs that took it; NaN where the vectors had collapsed
    for run, group in zip(runs, groups, strict=True):
        both = [(entry[measure], entry[label]) for entry in run if measure in entry and (label := labelled(entry))]
        known = [not math.isnan(value + score) for value, score in both]
        if any(known):
            values, scores = (np.where(known, side, math.nan) for side in np.array(both, dtype=float).T)
            taken.append((group, sign * values, scores))
    last: dict[str, list[tuple[float, float]]] = {}
    for group, v, s in taken:
        if not math.isnan(s[-1]):
            last.setdefault(group, []).append((v[-1], s[-1]))
    if not last:
        return None
    correlation = _correlation([pair for pairs in last.values() for pair in pairs])
    generator = np.random.default_rng(seed)
    each = list(last.values())
    drawn = [
        _correlation([pair for k in generator.integers(0, len(each), len(each)) for pair in each[k]])
        for _ in range(RESAMPLES)
    ]
    ci95 = (math.nan, math.nan) if np.isnan(drawn).all() else interval(np.array(drawn))
    moves = [
        (np.sign(v_move), np.sign(s_move))
        for _, v, s in taken
        for v_move, s_move in zip(np.diff(v), np.diff(s), strict=True)
        if not math.isnan(s_move)
    ]
    agreement = float(np.mean([a == b for a, b in moves])) if moves else math.nan
    regret = float(np.mean([np.nanmax(s) - s[np.nanargmax(v)] for _, v, s in taken]))
    return Foresight(correlation, ci95, sum(map(len, last.values())), agreement, len(moves), regret)


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    values, scores = (np.array([side], dtype=float) for side in zip(*pairs, strict=True))
    return float(correlations(values, scores)[0][0]) / 100
