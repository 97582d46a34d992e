"""Finding texts by their vectors: nearest neighbours, and how often the right answer is the nearest.

Knows nothing of models, only vectors and "a function from sentences to vectors". Cosines are computed some rows at a
time: those of all sentences with each other would not fit into memory.

# B queries, C candidates, P pairs, D hidden size, S resamples, K neighbours
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tsdae.evaluation.pairs import TextPairs
from tsdae.evaluation.scores import Scores, over_queries
from tsdae.evaluation.sts import Encode, unit

BLOCK = 2**23  # cosines held in memory at a time: 32 MB
TIE = 1e-6  # cosines of float32 vectors that differ by less are equal but for rounding
CAPTION = "Retrieval x 100: accuracy@1 (the nearest text is an answer) and mean reciprocal rank of the best answer"


def evaluate_retrieval(encode: Encode, pairs: TextPairs, seed: int = 0) -> Scores:
    """Search each first text's second text among all second texts, by cosine.

        scores = evaluate_retrieval(encoder.encode, TextPairs(questions, answers))
        print(scores.accuracy_at_1, scores.mrr)
        print(scores.n, scores.candidates)

    encode: a function from a list of sentences to vectors [B, D].
    Returns accuracy@1 (how often the nearest candidate is an answer) and the mean reciprocal rank of the best answer.
    Equal texts are one text: a first text that occurs in several pairs is one query with several answers, each of them
    right, and a second text that occurs in several pairs is one candidate. A candidate that is the query word for word
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
    values = [{"accuracy_at_1": float(rank == 1), "mrr": 1.0 / rank} for rank in rank_B.tolist()]
    return over_queries(values, {"candidates": len(candidates)}, CAPTION, seed)


def best_ranks(query_BD: np.ndarray, candidate_CD: np.ndarray, answer_P2: np.ndarray, own_B: np.ndarray) -> np.ndarray:
    """Return the rank of each query's best answer, [B], 1 for the first: 1 + the wrong candidates that are as near.

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
    """Return the ``count`` nearest candidates of each query, nearest first, [B, K], and their cosines, [B, K].

    query_BD, candidate_CD: unit vectors. own_B: the candidate that is the query itself, which is no neighbour; -1:
    there is none. Of equally near ones the first comes first; cosines that are NaN come last.
    """
    count = min(count, len(candidate_CD))
    nearest_BK = np.empty((len(query_BD), count), dtype=np.int64)
    cosine_BK = np.empty((len(query_BD), count), dtype=query_BD.dtype)
    for rows, cosine_BC in cosine_blocks(query_BD, candidate_CD):
        hide(cosine_BC, own_B[rows])
        farness_BC = -cosine_BC
        # Top-k says how far the last neighbour is, but not which of several equally far ones comes first.
        last_B = torch.topk(torch.from_numpy(farness_BC), count, largest=False).values[:, -1].numpy()
        for row, farness_C, last in zip(range(rows.start, rows.stop), farness_BC, last_B, strict=True):
            near = np.flatnonzero(~(farness_C > last))
            nearest_BK[row] = near[np.argsort(farness_C[near], kind="stable")[:count]]
        cosine_BK[rows] = np.take_along_axis(cosine_BC, nearest_BK[rows], axis=1)
    return nearest_BK, cosine_BK


def cosine_blocks(query_BD: np.ndarray, candidate_CD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield some queries at a time: their rows in ``query_BD``, and their cosines with all candidates [some B, C]."""
    at_once = max(1, BLOCK // len(candidate_CD))
    for start in range(0, len(query_BD), at_once):
        rows = slice(start, min(start + at_once, len(query_BD)))
        with np.errstate(invalid="ignore"):
            cosine_BC = query_BD[rows] @ candidate_CD.T
        yield rows, cosine_BC


def hide(cosine_BC: np.ndarray, column_B: np.ndarray) -> None:
    """Make one candidate of each query the farthest of all, in place; -1: none."""
    rows = np.flatnonzero(column_B >= 0)
    cosine_BC[rows, column_B[rows]] = -np.inf
