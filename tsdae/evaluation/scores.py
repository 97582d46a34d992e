"""Scores of a model on a set of pairs: metrics with intervals, differences between models, and the table of both.

# B queries, M metrics, S resamples
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsdae.evaluation.statistics import UNDEFINED, interval, resamples

LABELS = {"spearman": "Spearman", "pearson": "Pearson", "accuracy_at_1": "accuracy@1", "mrr": "MRR", "map": "MAP"}
LABELS |= {"ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10", "recall_at_100": "recall@100"}


@dataclass(frozen=True)
class Scores:
    """Metrics x 100 of one model on one set of pairs, or the differences between two models (see `minus`).

    >>> mean, cls = (SentenceEncoder.from_pretrained("mini", pooling) for pooling in ("mean", "cls"))
    >>> first, second = (evaluate_sts(encoder, load_stsb("stsb")["dev"]) for encoder in (mean, cls))
    >>> first.n, second.minus(first).verdict("spearman")  # and .spearman, .interval("spearman")
    (4, 'no difference shown')

    values: {metric: value} in the order of the table, NaN where it is not defined. Each is an attribute as well, and so
        is its interval, METRIC_ci95.
    values_S: {metric: its value on each resample of the pairs, [S]}; empty if none were drawn. Resample k draws the
        same pairs for every model.
    sizes: how much was scored, {"n": pairs or queries, ...}. Each is an attribute as well.
    compared: the metrics by which two models are compared. caption: the line under the table.
    over: what is resampled for the intervals, "pairs" or "queries".
    """

    values: dict[str, float]
    values_S: dict[str, np.ndarray] = field(repr=False, compare=False)
    sizes: dict[str, int]
    compared: tuple[str, ...]
    caption: str
    over: str = "pairs"

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        known = values | self.__dict__.get("sizes", {})
        if name.removesuffix("_ci95") in values and name.endswith("_ci95"):
            return self.interval(name.removesuffix("_ci95"))
        if name not in known:
            raise AttributeError(f"there is no score {name!r}, only {', '.join(known)}")
        return known[name]

    def interval(self, metric: str) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of a metric, NaN where no resamples were drawn."""
        return interval(self.values_S[metric]) if metric in self.values_S else UNDEFINED

    @property
    def ci95(self) -> tuple[float, float]:
        """Return the interval of the first metric."""
        return self.interval(next(iter(self.values)))

    def minus(self, other: Scores) -> Scores:
        """Return the differences from another model on the same pairs, of the metrics by which models are compared.

        Their intervals are paired: over the differences on each resample.
        """
        values = {name: self.values[name] - other.values[name] for name in self.compared}
        both = self.values_S.keys() & other.values_S.keys()
        values_S = {name: self.values_S[name] - other.values_S[name] for name in self.compared if name in both}
        return dataclasses.replace(self, values=values, values_S=values_S, sizes={})

    def by_compared(self) -> Scores:
        """Return the metrics by which models are compared alone."""
        values_S = {name: values_S for name, values_S in self.values_S.items() if name in self.compared}
        return dataclasses.replace(self, values={name: self.values[name] for name in self.compared}, values_S=values_S)

    def verdict(self, metric: str) -> str:
        """Return what a difference shows, in words; its interval decides."""
        low, high = self.interval(metric)
        if math.isnan(self.values[metric]):
            return "not defined"
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"

    def row(self) -> dict[str, Any]:
        """Return all of it for JSON, NaN as null: the first metric's interval is "ci95", another's "METRIC_ci95"."""
        row: dict[str, Any] = {}
        for name, number in self.values.items():
            value, low, high = (None if math.isnan(x) else round(x, 4) for x in (number, *self.interval(name)))
            row |= {name: value, f"{name}_ci95" if row else "ci95": [low, high]}
        return row | self.sizes


def mean_of(sets: Sequence[Scores]) -> Scores:
    """Return the mean over several sets of the metrics by which models are compared.

    Its resample k is the mean over resample k of each set; sets are resampled each on its own.
    """
    metrics = sets[0].compared
    values = {name: float(np.mean([scores.values[name] for scores in sets])) for name in metrics}
    drawn = [name for name in metrics if all(name in scores.values_S for scores in sets)]
    values_S = {name: np.mean([scores.values_S[name] for scores in sets], axis=0) for name in drawn}
    return dataclasses.replace(sets[0], values=values, values_S=values_S, sizes={"sets": len(sets)})


def over_queries(values: list[dict[str, float]], sizes: dict[str, int], caption: str, seed: int) -> Scores:
    """Return the means over the queries x 100, and those of resampled queries."""
    metrics = tuple(values[0])
    values_MB = 100.0 * np.array([[of_query[metric] for of_query in values] for metric in metrics])
    values_MS = np.concatenate([values_MB[:, rows_SB].mean(-1) for rows_SB in resamples(len(values), seed)], axis=1)
    return Scores(
        values=dict(zip(metrics, values_MB.mean(-1).tolist(), strict=True)),
        values_S=dict(zip(metrics, values_MS, strict=True)),
        sizes={"n": len(values)} | sizes,
        compared=metrics,
        caption=caption,
        over="queries",
    )


def table(rows: Sequence[tuple[str, Mapping[str, Scores]]], differences: bool = False) -> str:
    """Return a plain-text table: a row a model with the metrics of each split, and under it their intervals.

    rows: (name of the model, {split: scores}). differences: add a line for each difference from the first model.
    """
    headings = [f"{split} {LABELS[metric]}" for split, scores in rows[0][1].items() for metric in scores.values]
    width, wide = max(len(name) for name, _ in rows), max(18, *(len(heading) + 2 for heading in headings))
    lines = [" " * width + "".join(heading.rjust(wide) for heading in headings)]
    undefined = False
    for name, splits in rows:
        values = [value for scores in splits.values() for value in scores.values.values()]
        intervals = [bracketed(scores.interval(metric)) for scores in splits.values() for metric in scores.values]
        lines.append(f"{name:<{width}}" + "".join(f"{value:{wide}.2f}" for value in values))
        lines.append(" " * width + "".join(text.rjust(wide) for text in intervals))
        undefined |= any(map(math.isnan, values))
    one = next(iter(rows[0][1].values()))
    lines.append(f"{one.caption}; [95 % bootstrap intervals over the {one.over}]")
    if undefined:
        lines.append("nan: no correlation is defined: all cosines or all scores are equal, or vectors are not finite")
    if differences and len(rows) > 1:
        lines += _difference_lines(rows)
    return "\n".join(lines)


def _difference_lines(rows: Sequence[tuple[str, Mapping[str, Scores]]]) -> list[str]:
    (first_name, first), *others = rows
    over = next(iter(first.values())).over
    lines = [f"Difference from {first_name}; [95 % interval, both models on the same resamples of the {over}]"]
    width = max(len(name) for name, _ in others)
    for name, splits in others:
        for split, scores in splits.items():
            difference = scores.minus(first[split])
            for metric, value in difference.values.items():
                ends, verdict = bracketed(difference.interval(metric), "+"), difference.verdict(metric)
                lines.append(f"{name:<{width}}  {split} {LABELS[metric]:<10} {value:>+7.2f} {ends:>18}  {verdict}")
    return [*lines, "(these trained models only; for the variation over training seeds use `tsdae ablate`)"]


def bracketed(ci95: tuple[float, float], sign: str = "") -> str:
    """Return an interval as text. sign "+": show the sign of its ends always."""
    return f"[{ci95[0]:{sign}.2f}, {ci95[1]:{sign}.2f}]"
