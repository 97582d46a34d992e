"""The summary of a finished run: tables, differences from its start with intervals, warnings.

Rows are the evaluations in metrics.jsonl, in their order; the first is of step 0, before training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsdae.evaluation.scores import Scores, bracketed
from tsdae.evaluation.validation import (
    AGAINST_COLLAPSE,
    COLLAPSED,
    GEOMETRY,
    RECONSTRUCTION,
    labelled,
    lower_is_better,
    shown_names,
)

# How far a metric may fall before it is called harm. Over the ablations (benchmarks/label_free.md) a fall of noisy
# retrieval found 23 of 34 harmed runs and accused 7 of 149 others. A fall of the rank found no further one, and it
# falls in runs that help: by up to 24 % from `mini`, 40 % from a random network.
ALLOWED_FALL = {"noisy_retrieval": 0.0, "effective_rank": 0.5}
# Spearman x 100 on STS-B test: GloVe by Reimers and Gurevych 2019 (table 1), SimCSE and whitening as in Gao et al. 2021
# (table 5), BERT's own vectors as in Li et al. 2020 (table 2), MiniLM as in MTEB.
PUBLISHED = (
    ("BERT-base, [CLS], untrained", 20.30),
    ("BERT-base, mean, untrained", 47.29),
    ("averaged GloVe vectors", 58.02),
    ("BERT-base, whitened", 68.24),
    ("SimCSE, BERT-base, no labels", 76.85),
    ("all-MiniLM-L6-v2, trained on labels", 82.03),
)


def measured(run: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run, in their order."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" not in row]


def before_and_after(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the metrics without labels at start and end; empty unless they were measured twice."""
    names = shown_names(rows) if len(rows) > 1 else []
    names = [name for name in (*GEOMETRY, *RECONSTRUCTION, "heldout_loss") if name in names]
    if not names:
        return ""
    head = "held-out sentences, no labels"
    lines = [f"{head:<34}{'before':>12}{'after':>12}"]
    for name in names:
        better = "lower" if lower_is_better(name) else "higher"
        lines.append(f"{f'{name} ({better} is better)':<34}{rows[0][name]:>12.4g}{rows[-1][name]:>12.4g}")
    return "\n".join(lines)


def harm(rows: Sequence[Mapping[str, Any]], run: Path, advice: str) -> str | None:
    """Return a warning if a metric that detects harm ended below its start, a note if it fell a little, else None.

    advice: what to try, unless the vectors have collapsed.
    """
    names = [name for name in ALLOWED_FALL if len(rows) > 1 and name in rows[0]]
    fell = [name for name in names if rows[-1][name] < rows[0][name]]
    if not fell:
        return None
    moved = " and ".join(f"{name} fell from {rows[0][name]:.4g} to {rows[-1][name]:.4g}" for name in fell)
    if all(rows[-1][name] >= (1 - ALLOWED_FALL[name]) * rows[0][name] for name in fell):
        return f"{moved}; it fell in runs that helped as well: compare before and after with `tsdae evaluate`"
    if rows[-1].get("mean_cosine", 0.0) > COLLAPSED:
        advice = f"{AGAINST_COLLAPSE.capitalize()}."
    best = f" The model of the best evaluation is {run / 'best'}." if (run / "best").is_dir() else ""
    return f"WARNING: {moved}: this run has probably made the sentence vectors worse. {advice}{best}"


def over_the_steps(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the labelled score at each evaluation, in one line that names the dip; None without labels."""
    name = labelled(dict(rows[0])) if rows else None
    if name is None:
        return None
    values = [float(row[name]) for row in rows]
    lowest = min(range(len(values)), key=values.__getitem__)
    parts = [
        f"{value:.1f} at {row['step']:,}" + (" (the dip)" if k == lowest and 0 < k < len(rows) - 1 else "")
        for k, (row, value) in enumerate(zip(rows, values, strict=True))
    ]
    return f"{name} over the steps: {', '.join(parts)}"


def gains(after: Mapping[str, Scores], starts: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, Any]]:
    """Return for each untrained pooling the gain over it on the last split, its paired 95 % interval and a verdict."""
    split, found = list(after)[-1], {}
    for pooling, before in starts.items():
        difference = after[split].minus(before[split])
        row = difference.row() | {"split": split, "verdict": difference.verdict("spearman")}
        found[pooling] = {name: row[name] for name in ("split", "verdict", "spearman", "ci95")}
    return found


def gain_line(trained_by: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return `gains` in one line."""
    parts = []
    for pooling, gain in found.items():
        size = "" if gain["spearman"] is None else f", {gain['spearman']:+.1f} {bracketed(gain['ci95'], '+')}"
        parts.append(f"{gain['verdict']}{size} against the untrained {pooling}")
    split = next(iter(found.values()))["split"]
    return f"{trained_by}, Spearman on {split}: {'; '.join(parts)} [95 % interval, paired over the pairs]"


def for_orientation() -> str:
    """Return published scores, so that a reader sees what is strong on STS-B."""
    lines = ["For orientation, published scores on STS-B test (not measured here):"]
    return "\n".join(lines + [f"  {name:<38}{value:6.2f}" for name, value in PUBLISHED])


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> str | None:
    """Plot the labelled score and the metrics that detect harm over the steps; return a line that says where it is.

    None: fewer than two evaluations, or none of these metrics.
    """
    first = dict(rows[0]) if len(rows) > 1 else {}
    names = [name for name in (labelled(first), *ALLOWED_FALL) if name is not None and name in first]
    if not names:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "No learning curve is drawn without matplotlib: python -m pip install matplotlib"
    figure = Figure(figsize=(6, 2.2 * len(names)), layout="constrained")
    for k, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, k + 1)
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], marker="o")
        axes.axhline(rows[0][name], linestyle=":", color="grey")
        axes.set_ylabel(name)
    figure.axes[-1].set_xlabel("step (dotted: before training)")
    figure.savefig(path)
    return f"The learning curve is {path}"
