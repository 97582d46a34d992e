"""A measurement as a row of JSON: its spread, where and with what it was taken, and whether it may be written."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.utils.device import machine_name

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "rows"
MEASURED = ("tsdae", "benchmarks")  # folders whose code a row depends on
MADE_BY_THE_BENCHMARK = ("benchmarks/rows", "benchmarks/speed.md")  # may differ from the commit while rows are taken
PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy", "nltk")

Spread = dict[str, float]  # p20, p50, p80


class Refused(ValueError):
    """The row cannot be written; the message says why."""


@dataclass(frozen=True)
class Origin:
    """What all rows of one run have in common.

    clean: the tree had no change beside the commit; None: not known, as there was no repository (see `sources`).
    sources: digest of the measured code, by which ``tables.py --check`` holds a row to its commit.
    """

    versions: dict[str, str | None]
    cpu: str
    gpu: str | None
    commit: str
    clean: bool | None
    sources: str
    date: str
    command: str

    def row(
        self,
        name: str,
        unit: str,
        values: Mapping[str, Sequence[float]],
        ratio: Sequence[float] | None = None,
        *,
        threads: int,
        dtype: str,
        batch: int | None = None,
        **details: Any,
    ) -> Row:
        """A row from the numbers themselves."""
        return Row(
            name=name,
            unit=unit,
            values={side: spread(numbers) for side, numbers in values.items()},
            ratio=spread(ratio) if ratio else None,
            n=len(next(iter(values.values()))),
            threads=threads,
            dtype=dtype,
            batch=batch,
            details=details,
            **dataclasses.asdict(self),
        )


@dataclass(frozen=True, kw_only=True)
class Row(Origin):
    """One measurement.

    values: for each side what was measured, in ``unit``; the first side is the one that ``ratio`` speaks for.
    ratio: how many times better the first side is than the second, over pairs of neighbouring blocks.
    details: what belongs to this measurement only, such as the arithmetic of the limit.
    """

    name: str
    unit: str
    values: dict[str, Spread]
    ratio: Spread | None
    n: int
    threads: int
    dtype: str
    batch: int | None
    details: dict[str, Any]


def spread(numbers: Iterable[float]) -> Spread:
    """The 20th, 50th and 80th percentile, to five significant digits."""
    found = np.percentile(list(numbers), (20, 50, 80))
    return {name: float(f"{value:.5g}") for name, value in zip(("p20", "p50", "p80"), found, strict=True)}


def ratios(worse: Sequence[Sequence[float]], better: Sequence[Sequence[float]]) -> list[float]:
    """For each pair of blocks that ran next to each other: the seconds of one side's over those of the other's."""
    return [sum(first) / sum(second) for first, second in zip(worse, better, strict=True)]


def origin(command: str, gpu: str | None, copied_commit: str | None = None) -> Origin:
    """Of the rows taken now, in this tree. copied_commit: what a tree without a repository is a copy of."""
    commit, clean = tree_state()
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {name.replace("-", "_"): _version(name) for name in PACKAGES}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    cpu = machine_name()
    return Origin(versions, cpu, gpu, commit or copied_commit or "unknown", clean, sources_here(), date, command)


def check_writable(taken: Origin) -> None:
    """Refused if rows of this origin would not say which code they measured."""
    if taken.commit == "unknown":
        raise Refused(
            "no row is written: this tree has no git repository; name the commit that it is a copy of by --commit HASH"
        )
    if taken.clean is False:
        raise Refused(
            "no row is written: the tree differs from its commit, so a row could not say what it measured; commit or "
            "stash first, or measure with --dry"
        )


def write(rows: Iterable[Row], folder: Path = ROWS) -> list[Path]:
    """One file a row, replacing an older row of that name. Refused while its tree is not clean."""
    rows = list(rows)
    for row in rows:
        check_writable(row)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in rows:
        paths.append(folder / f"{row.name}.json")
        paths[-1].write_text(json.dumps(dataclasses.asdict(row), indent=1) + "\n", encoding="utf-8")
    return paths


def read(folder: Path = ROWS) -> dict[str, Row]:
    """All rows of a folder by name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = Row(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no row: {error}") from error
        if found[path.stem].name != path.stem:
            raise ValueError(f"{path} holds a row of another name, {found[path.stem].name!r}")
    return found


def git(*arguments: str) -> bytes | None:
    """What git prints about this repository; None where it fails, or where there is none."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def tree_state() -> tuple[str | None, bool | None]:
    """(commit, whether every file is as in it); files that the benchmark itself makes do not count.

    (None, None) where there is no repository.
    """
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in MADE_BY_THE_BENCHMARK))
    if commit is None or changed is None:
        return None, None
    return commit.decode().strip(), not changed.strip()


def sources_here() -> str:
    """Digest of the Python files of ``MEASURED`` as they lie on disk."""
    paths = [path for folder in MEASURED for path in (ROOT / folder).rglob("*.py")]
    return _digest({path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths})


def sources_of(commit: str) -> str | None:
    """The same digest of a commit; None if it is not in this clone."""
    archive = git("archive", "--format=tar", commit, "--", *MEASURED)
    if archive is None:
        return None
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.endswith(".py"):
                contents[member.name] = file.read()
    return _digest(contents)


def _digest(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name} {len(contents[name])}\n".encode() + contents[name])
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
