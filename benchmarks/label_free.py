"""How well do metrics without labels tell what labels would have said? One table for each ablation that took them.

    python benchmarks/label_free.py benchmarks/ablation/* > benchmarks/label_free.md

FOLDER is the --output of scripts/ablate.py, with --eval-every. The study is finished; by it `noisy_retrieval` chooses
best/ by default.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tsdae.ablation.render import Section, Table, markdown  # the root has to be on the path first
from tsdae.ablation.report import read_settings
from tsdae.config import TextConfig
from tsdae.evaluation.scores import bracketed
from tsdae.evaluation.statistics import RESAMPLES, UNDEFINED, interval
from tsdae.evaluation.sts import correlations
from tsdae.evaluation.validation import GEOMETRY, RECONSTRUCTION, labelled, lower_is_better

METRICS = ("heldout_loss", *RECONSTRUCTION, *GEOMETRY)
# Settings under which metrics of held-out text are not those of the other runs: another text, or another vocabulary.
OTHER_TEXT = {setting.name for setting in dataclasses.fields(TextConfig)}
OTHER_TEXT |= {"corpus", "max_length", "model", "add_tokens"}
FEWEST_RUNS = 5  # of a rank correlation: of two runs it is always 1 or -1
HEADER = ["metric", "rank correlation with dev", "runs", "moves as dev does", "moves", "lost by choosing the step"]
HOW_TO_READ = """
Does a metric of held-out text tell which run is better? Rank correlation, over all runs, of its last value with
dev's, signed so that +1 is a perfect guide, with a 95 % interval (bootstrap over the settings). Within a run: how
often it moved in dev's direction from one evaluation to the next, and how many points of dev are lost on average by
keeping the evaluation that it calls best. heldout_loss is taken under each run's own noise and objective, so it
compares evaluations of one run rather than runs; the others are taken under the same noise for all. Settings with
another held-out text or vocabulary are left out, and from the reconstruction loss those whose decoder reads another
input.
"""


class Guide(NamedTuple):
    """One metric as a guide to the labelled score; signs are such that larger is better.

    correlation: Spearman over ``runs`` runs of the metric's last value and the last labelled score, in [-1, 1].
    ci95: its interval over groups of runs (bootstrap). agreement: share of ``moves`` from one evaluation to the next in
    which both rose or both fell. regret: labelled points lost, on average over the runs, by keeping the evaluation
    that the metric calls best. NaN where there is nothing to count.
    """

    correlation: float
    ci95: tuple[float, float]
    runs: int
    agreement: float
    moves: int
    regret: float


def guide(metric: str, runs: Sequence[Sequence[dict[str, Any]]], groups: Sequence[str], seed: int = 0) -> Guide | None:
    """Return how well ``metric`` foretells the labelled score; None if no run took it.

    runs: the evaluations of each run in their order, {"step": ..., metric: value, ...}.
    groups: the setting of each run; runs of one setting are alike, so the bootstrap draws whole settings.
    """
    sign = -1.0 if lower_is_better(metric) else 1.0
    taken = []  # (group, values, scores) of the runs that took it; NaN where the vectors had collapsed
    for run, group in zip(runs, groups, strict=True):
        both = [(entry[metric], entry[label]) for entry in run if metric in entry and (label := labelled(entry))]
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
    generator = np.random.default_rng(seed)
    each = list(last.values())
    drawn = [
        _correlation([pair for k in generator.integers(0, len(each), len(each)) for pair in each[k]])
        for _ in range(RESAMPLES)
    ]
    moves = [
        np.sign(v_move) == np.sign(s_move)
        for _, v, s in taken
        for v_move, s_move in zip(np.diff(v), np.diff(s), strict=True)
        if not math.isnan(s_move)
    ]
    return Guide(
        correlation=_correlation([pair for pairs in each for pair in pairs]),
        ci95=UNDEFINED if np.isnan(drawn).all() else interval(np.array(drawn)),
        runs=sum(map(len, each)),
        agreement=float(np.mean(moves)) if moves else math.nan,
        moves=len(moves),
        regret=float(np.mean([np.nanmax(s) - s[np.nanargmax(v)] for _, v, s in taken])),
    )


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    values, scores = (np.array([side], dtype=float) for side in zip(*pairs, strict=True))
    return float(correlations(values, scores)[0][0]) / 100


def table(folder: Path) -> Table:
    """Return a row for each metric that the ablation in ``folder`` took."""
    settings, _ = read_settings(folder)
    rows = []
    for metric in METRICS:
        apart = OTHER_TEXT | ({"decoder_input_noise"} if metric in RECONSTRUCTION else set())
        used = [one for one in settings.values() if one.is_trained and not apart & one.settings.keys()]
        runs = [[entry for entry in row["curve"] if labelled(entry)] for one in used for row in one.rows]
        found = guide(metric, runs, [one.name for one in used for _ in one.rows])
        if found is not None and not math.isnan(found.correlation):
            correlation = f"{found.correlation:+.2f} {bracketed(found.ci95, '+')}"
            rows.append(
                [
                    metric,
                    correlation if found.runs >= FEWEST_RUNS else f"fewer than {FEWEST_RUNS} runs",
                    str(found.runs),
                    f"{100 * found.agreement:.0f} %" if found.moves else "",
                    str(found.moves),
                    f"{found.regret:.2f}",
                ]
            )
    return Table(HEADER, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compares metrics without labels with STS-B, over the runs of ablations."
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="--output of scripts/ablate.py")
    folders = parser.parse_args().folders
    head = Section("What could have been known without labels", [f"`python {' '.join(sys.argv)}`", HOW_TO_READ])
    sections = [Section(folder.as_posix(), table=table(folder)) for folder in folders]
    print(markdown([head, *sections]), end="")


if __name__ == "__main__":
    main()
