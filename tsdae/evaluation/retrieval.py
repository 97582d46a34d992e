"""Finding texts by their vectors: nearest neighbours, and how often the right answer is the nearest.

Knows nothing of models, only vectors and "a function from sentences to vectors". Cosines are computed some rows at a
time: those of all sentences with each other would not fit into memory.

# B queries, C candidates, P pairs, D width, S resamples, K neighbours
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tsdae.evaluation.sts import Encode, Figure, interval, json_row, resamples, text_of, unit
from tsdae.text.reading import check_file, read_records

BLOCK = 2**23  # cosines held in memory at a time: 32 MB
TIE = 1e-6  # cosines of float32 vectors that lie closer are equal but for rounding


@dataclass(frozen=True)
class TextPairs:
    """Pairs without a score (title and body, question and answer): ``second`` is what ``first`` should find."""

    first: list[str]
    second: list[str]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Retrieval:
    """How often, x 100, the nearest candidate is an answer, and the mean reciprocal rank of the best answer.

    n: the queries, distinct first texts. candidates: distinct second texts.
    """

    accuracy_at_1: Figure
    mrr: Figure
    n: int
    candidates: int
    caption: ClassVar[str] = "Retrieval x 100: is the nearest text an answer; mean reciprocal rank of the best answer"
    compared: ClassVar[tuple[str, ...]] = ("accuracy_at_1", "mrr")

    def figures(self) -> dict[str, Figure]:
        return {"accuracy_at_1": self.accuracy_at_1, "mrr": self.mrr}

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return json_row(self.figures()) | {"n": self.n, "candidates": self.candidates}


def evaluate_retrieval(encode: Encode, pairs: TextPairs, seed: int = 0) -> Retrieval:
    """Looks for each first text's second text among all second texts, by cosine.

    encode: a function from a list of sentences to vectors [B, D].
    Equal texts are one text: a first text that stands in several pairs is one query with several answers, each of them
    right, and a second text that stands in several pairs is one candidate. A candidate that is the query word for word
    is passed over, unless it is one of its answers. Ties, and vectors that are not finite, count against the model: one
    that gives all texts the same vector finds nothing. Intervals are drawn over queries, from ``seed``.
    """
    queries, candidates = list(dict.fromkeys(pairs.first)), list(dict.fromkeys(pairs.second))
    texts = list(dict.fromkeys(queries + candidates))
    unit_vectors = unit(encode(texts)).astype(np.float32)
    row_of, column_of = ({text: place for place, text in enumerate(side)} for side in (texts, candidates))
    answers = {(row_of[query], column_of[answer]) for query, answer in zip(pairs.first, pairs.second, strict=True)}
    rank_B = best_ranks(
        unit_vectors[: len(queries)],
        unit_vectors[[row_of[text] for text in candidates]],
        np.array(sorted(answers)),
        np.array([column_of.get(text, -1) for text in queries]),
    )
    values_2B = 100.0 * np.stack([rank_B == 1, 1.0 / rank_B])
    values_2S = np.concatenate([values_2B[:, rows_SB].mean(-1) for rows_SB in resamples(len(queries), seed)], axis=1)
    accuracy, mrr = (
        Figure(float(x_B.mean()), interval(x_S), x_S) for x_B, x_S in zip(values_2B, values_2S, strict=True)
    )
    return Retrieval(accuracy, mrr, len(queries), len(candidates))


def best_ranks(query_BD: np.ndarray, candidate_CD: np.ndarray, answer_P2: np.ndarray, own_B: np.ndarray) -> np.ndarray:
    """The rank of each query's best answer, [B], 1 for the first: one more than the wrong candidates no farther off.

    query_BD, candidate_CD: unit vectors. answer_P2: (query, candidate) of each right pair, sorted by query; every query
    has one. own_B: the candidate that is the query itself, which is not counted; -1: there is none.
    """
    rank_B = np.empty(len(query_BD), dtype=np.int64)
    for rows, cosine_BC in cosine_blocks(query_BD, candidate_CD):
        low, high = np.searchsorted(answer_P2[:, 0], (rows.start, rows.stop))
        query_P, candidate_P = answer_P2[low:high].T
        right = (query_P - rows.start, candidate_P)
        best_B = np.full(len(cosine_BC), -np.inf, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            np.maximum.at(best_B, right[0], cosine_BC[right])
        cosine_BC[right] = -np.inf
        hide(cosine_BC, own_B[rows])
        # Not ">=": what is not a number counts against the model.
        rank_B[rows] = 1 + (~(cosine_BC < best_B[:, None] - TIE)).sum(axis=1)
    return rank_B


def nearest(
    query_BD: np.ndarray, candidate_CD: np.ndarray, own_B: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` nearest candidates of each query, nearest first, [B, K], and their cosines, [B, K].

    query_BD, candidate_CD: unit vectors. own_B: the candidate that is the query itself, which is no neighbour; -1:
    there is none. Of equally near ones the first comes first.
    """
    found = []
    for rows, cosine_BC in cosine_blocks(query_BD, candidate_CD):
        hide(cosine_BC, own_B[rows])
        nearest_BK = np.argsort(-cosine_BC, axis=1, kind="stable")[:, :count]
        found.append((nearest_BK, np.take_along_axis(cosine_BC, nearest_BK, axis=1)))
    nearest_BK, cosine_BK = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return nearest_BK, cosine_BK


def cosine_blocks(query_BD: np.ndarray, candidate_CD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some queries at a time: which rows of ``query_BD``, and their cosines with all candidates. Unit vectors."""
    at_once = max(1, BLOCK // len(candidate_CD))
    for start in range(0, len(query_BD), at_once):
        rows = slice(start, min(start + at_once, len(query_BD)))
        with np.errstate(invalid="ignore"):
            cosine_BC = query_BD[rows] @ candidate_CD.T
        yield rows, cosine_BC


def hide(cosine_BC: np.ndarray, column_B: np.ndarray) -> None:
    """Makes one candidate of each query the farthest of all; -1: none."""
    rows = np.flatnonzero(column_B >= 0)
    cosine_BC[rows, column_B[rows]] = -np.inf


# ---------------------------------------------------------------------------------------------------------------
# Reading pairs


def columns_without_score(path: Path) -> tuple[str, str] | None:
    """The columns of first and second texts of a table that has no column for a score; None if it has one.

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
    """Pairs without a score: .tsv, .csv, .jsonl or .parquet.

    notes: called with one line that says what is looked for, and how many rows with an empty text are left out.
    ValueError if a row cannot be used, or if there is nothing to tell apart.
    """
    first: list[str] = []
    second: list[str] = []
    empty = 0
    for number, record in enumerate(read_records(path), start=1):
        if any(record.get(column) is None or not str(record[column]).strip() for column in columns):
            empty += 1
            continue
        for column, texts in zip(columns, (first, second), strict=True):
            texts.append(text_of(record, column, f"{path}, row {number}"))
    if len(set(first)) < 2 or len(set(second)) < 2:
        raise ValueError(f"{path} has no scores, and retrieval needs two different texts at least in either column")
    left_out = f"; {empty:,} rows with an empty text are left out" if empty else ""
    notes(f"{path} has no scores: each text of {columns[0]!r} has to find its {columns[1]!r}{left_out}")
    return TextPairs(first, second)
