"""What every measurement starts from, and how the two sides take turns."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rows import Origin, Row

OURS, REFERENCE = "ours", "reference"  # as the workers are called


class NotEqual(Exception):
    """The two sides do not do the same work; the message names what differs."""


class NotRun(Exception):
    """This machine or these arguments do not allow the measurement; the message says what is missing."""


@dataclass
class Bench:
    """What to measure with.

    sentences: to train on. test_sentences: to encode; None: they cannot be had. corpus: a prepared corpus.
    short: a few repetitions of everything, for equality and not for numbers.
    scratch: a folder that is thrown away. rows: what has been measured so far.
    """

    model: Path
    sentences: list[str]
    test_sentences: list[str] | None
    corpus: str | None
    threads: int
    short: bool
    profile: bool
    vocabulary: int
    origin: Origin
    scratch: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row) -> Row:
        self.rows[row.name] = row
        return row


Blocks = list[list[float]]
Block = Callable[[int, int], list[float]]  # (first step, how many) -> seconds of each


def alternate(first: Block, second: Block, start: int, blocks: int, size: int) -> tuple[Blocks, Blocks]:
    """Both sides' seconds, block by block over the same steps; who begins changes from block to block."""
    times: tuple[Blocks, Blocks] = ([], [])
    for block in range(blocks):
        sides = [(first, times[0]), (second, times[1])]
        for work, kept in sides if block % 2 == 0 else reversed(sides):
            kept.append(work(start + block * size, size))
    return times


def flat(blocks: Blocks) -> list[float]:
    return [seconds for block in blocks for seconds in block]


def per_second(blocks: Blocks, items: int = 1) -> list[float]:
    return [items / seconds for seconds in flat(blocks)]


def check_reference() -> None:
    missing = [name for name in ("sentence_transformers", "nltk", "greenlet") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{' and '.join(missing)} missing; run: python -m pip install -e '.[benchmark]'")
