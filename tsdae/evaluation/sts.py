"""Semantic textual similarity: how well cosines of sentence vectors rank pairs as people do.

Knows nothing of models, only "a function from sentences to vectors". The main metric is Spearman's rank correlation
between cosine and gold score, x 100, as in the paper (section 4) and in SemEval's STS benchmark (Cer et al. 2017).

# B pairs, D hidden size, S resamples
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tsdae.evaluation.pairs import Pairs, check_labels
from tsdae.evaluation.scores import Scores
from tsdae.evaluation.statistics import resamples

Encode = Callable[[list[str]], np.ndarray]


def evaluate_sts(encode: Encode | Any, pairs: Pairs, intervals: bool = True, seed: int = 0) -> Scores:
    """Score sentence vectors on labelled pairs, by Spearman's and Pearson's correlation x 100.

    >>> encoder = SentenceEncoder.from_pretrained("mini")
    >>> evaluate_sts(encoder, load_stsb("stsb")["dev"]).n  # and .spearman, .pearson, with intervals
    4

    encode: a function from a list of sentences to vectors [B, D], or an object with such an ``encode``.
    intervals: draw the bootstrap (1,000 resamples of the pairs, percentile intervals, from ``seed``).
    Vectors or scores without any variation have no correlation: the result is NaN, as it is for vectors that are not
    finite. ValueError for hidden labels.
    """
    check_labels(pairs)
    cosines_B = cosines(getattr(encode, "encode", encode), pairs)
    spearman, pearson = (float(value[0]) for value in correlations(cosines_B[None], pairs.scores[None]))
    values, values_S = {"spearman": spearman, "pearson": pearson}, {}
    if intervals and not math.isnan(spearman):
        values_S = dict(zip(values, resampled_correlations(cosines_B, pairs.scores, seed), strict=True))
    return Scores(values, values_S, {"n": len(pairs)}, ("spearman",), "Correlations x 100")


def cosines(encode: Encode, pairs: Pairs) -> np.ndarray:
    """Return the cosine of each pair, [B]; a sentence that occurs in several pairs is encoded once."""
    distinct = list(dict.fromkeys(pairs.first + pairs.second))
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    vectors = unit(encode(distinct))
    first, second = ([row_of[sentence] for sentence in side] for side in (pairs.first, pairs.second))
    return np.einsum("bd,bd->b", vectors[first], vectors[second])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors [B, D] by their length, float64: one that is not finite makes cosines NaN, one of zeros 0."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms != 0)


def correlations(x_SB: np.ndarray, y_SB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman and Pearson x 100 of each row, [S] each; ties share their mean rank."""
    pearson_S = _pearson(x_SB, y_SB)
    spearman_S = _pearson(rankdata(x_SB, axis=1), rankdata(y_SB, axis=1))
    # Numbers that are equal but for rounding have ranks all the same, which mean nothing.
    return np.where(np.isnan(pearson_S), np.nan, spearman_S), pearson_S


def _pearson(x_SB: np.ndarray, y_SB: np.ndarray) -> np.ndarray:
    x_SB = x_SB - x_SB.mean(axis=1, keepdims=True)
    y_SB = y_SB - y_SB.mean(axis=1, keepdims=True)
    scale_S = np.sqrt((x_SB**2).sum(axis=1) * (y_SB**2).sum(axis=1))
    # Below rounding error of equal numbers there is no variation to correlate.
    constant_S = (np.abs(x_SB).max(axis=1) < 1e-12) | (np.abs(y_SB).max(axis=1) < 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant_S, np.nan, 100.0 * (x_SB * y_SB).sum(axis=1) / scale_S)


def resampled_correlations(cosines_B: np.ndarray, scores_B: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman and Pearson of each of 1,000 resamples of the pairs, [S] each.

    Resample k draws the same pairs for every model, so that the difference of two models is paired by k.
    """
    collected = [correlations(cosines_B[rows_SB], scores_B[rows_SB]) for rows_SB in resamples(len(scores_B), seed)]
    spearman_S, pearson_S = (np.concatenate(values) for values in zip(*collected, strict=True))
    return spearman_S, pearson_S
