"""The lines of the speed table: what is measured, what is asked of it, and whether a row meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.rows import Row

Rows = Mapping[str, Row]
SHARE_OF_LIMIT = 0.75  # of the computed limit, which also counts as reaching the wanted ratio


@dataclass(frozen=True)
class Line:
    """One line. ``meets``: of the row and of all rows; None: nothing is asked, the line shows a slower case."""

    name: str
    what: str
    target: str
    meets: Callable[[Row, Rows], bool] | None = None


def ratio(row: Row) -> float:
    """The median ratio of the first side over the second."""
    if row.ratio is None:
        raise ValueError(f"row {row.name} compares nothing")
    return row.ratio["p50"]


def share_of_limit(row: Row) -> float:
    return float(row.details["limit"]["share"]["p50"])


def _training(row: Row, rows: Rows) -> bool:
    return ratio(row) >= 2.0 or share_of_limit(row) >= SHARE_OF_LIMIT


def _no_smaller_than(other: str) -> Callable[[Row, Rows], bool]:
    return lambda row, rows: other in rows and ratio(row) >= ratio(rows[other])


def _start(row: Row, rows: Rows) -> bool:
    return row.values["ours"]["p50"] < 5 and row.details["anonymous_gb"]["peak"] < 1


LINES = (
    Line("train-fp32-8", "training, CPU fp32, batch 8", "2.0 x, aim 2.4 x; or 75 % of the limit", _training),
    Line("train-bf16-8", "training, CPU bf16, batch 8", "2.0 x, aim 3 x; or 75 % of the limit", _training),
    Line("train-fp32-64", "training, CPU fp32, batch 64", "no smaller than at 8", _no_smaller_than("train-fp32-8")),
    Line("train-bf16-64", "training, CPU bf16, batch 64", "no smaller than at 8", _no_smaller_than("train-bf16-8")),
    Line("mini-fp32-32", "the default run (`mini`, batch 32), CPU fp32", "none"),
    Line("mini-bf16-32", "the default run (`mini`, batch 32), CPU bf16", "none"),
    Line(
        "noise-tokens",
        "noise and tokens of a batch of 8",
        "50 x, and under 3 % of a step",
        lambda row, rows: ratio(row) >= 50 and max(row.details["share_of_step"].values()) < 0.03,
    ),
    Line(
        "encode",
        "`encode`, CPU fp32, the 2,758 STS-B test sentences",
        "1.2 x, aim 1.5 x",
        lambda row, rows: ratio(row) >= 1.2,
    ),
    Line(
        "memory",
        "peak memory of training (two steps), vocabulary 250,002, 64 sentences of 64 tokens",
        "a quarter (4 x)",
        lambda row, rows: ratio(row) >= 4,
    ),
    Line("start", "start of training on a prepared corpus of 10M sentences", "5 s, 1 GB beyond the model", _start),
    Line(
        "gpu-8",
        "GPU, bert-base, batch 8: 12,500 steps (100,000 sentences)",
        "60 s",
        lambda row, rows: row.values["ours"]["p50"] <= 60,
    ),
    Line(
        "gpu-256",
        "GPU, bert-base, batch 256: share of the best bf16 matrix rate",
        "30 %, aim 45 %",
        lambda row, rows: row.values["ours"]["p50"] >= 30,
    ),
)
SLOWER = (
    Line("slower-threads-1", "training, CPU fp32, batch 8, one thread", "none"),
    Line("slower-bf16-8", "ours in bf16 against ours in fp32, batch 8", "none"),
    Line("slower-encode-1", "`encode` of one sentence a call", "none"),
    Line("gpu-8-no-attention-dropout", "the same 12,500 steps on a GPU without attention dropout", "none"),
    Line("gpu-256-no-attention-dropout", "the same share on a GPU without attention dropout", "none"),
)
PROFILES = (
    Line("profile-fp32-8", "where a step's time goes, CPU fp32, batch 8", "none"),
    Line("profile-bf16-8", "where a step's time goes, CPU bf16, batch 8", "none"),
)
