"""The scripts as a user calls them, in the test's own process: see the fixtures ``place`` and ``run`` of conftest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests import tiny

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCORES = [4.0, 1.5, 0.0, 2.5, 2.5, 5.0, 1.0]
PAIRS = [f"{a}\t{b}\t{score}\n" for a, b, score in zip(tiny.SENTENCES[:-1], tiny.SENTENCES[1:], SCORES, strict=True)]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[[str, str], Result]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
