"""Retrieval and nearest neighbours against slow loops: ties, duplicates, blocks; pairs without scores."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import Run
from tests.tables import parquet
from tests.tolerances import FLOAT64
from tsdae.evaluation import retrieval as module
from tsdae.evaluation.pairs import TextPairs, columns_without_score, load_text_pairs
from tsdae.evaluation.retrieval import evaluate_retrieval, nearest
from tsdae.evaluation.statistics import RESAMPLES
from tsdae.evaluation.sts import Encode, unit


def made() -> tuple[TextPairs, Callable[[list[str]], np.ndarray]]:
    """Pairs that share texts on either side and between the sides, and vectors of small integers, so many are equal."""
    generator = np.random.default_rng(0)
    texts = [f"text {i}" for i in range(40)]
    vectors = {text: generator.integers(-1, 2, 4).astype(np.float32) for text in texts}
    first, second = generator.integers(0, 30, 60), generator.integers(10, 40, 60)
    first[:3], second[:3] = (12, 12, 15), (12, 20, 15)  # a text that answers itself, once among others and once alone
    pairs = TextPairs([texts[i] for i in first], [texts[i] for i in second])
    return pairs, lambda sentences: np.stack([vectors[sentence] for sentence in sentences])


def slow_ranks(encode: Encode, pairs: TextPairs) -> dict[str, int]:
    """One query, one candidate at a time."""
    together = list(zip(pairs.first, pairs.second, strict=True))
    ranks = {}
    for query in dict.fromkeys(pairs.first):
        answers = {second for first, second in together if first == query}

        def near(text: str, query: str = query) -> float:
            a, b = encode([query, text]).astype(np.float64)
            lengths = np.sqrt(a @ a) * np.sqrt(b @ b)
            return float(a @ b / lengths) if lengths else 0.0

        best = max(near(answer) for answer in answers)
        others = set(pairs.second) - answers - {query}
        ranks[query] = 1 + sum(near(other) > best - 1e-6 for other in others)
    return ranks


def test_ranks_are_those_of_a_slow_loop() -> None:
    pairs, encode = made()
    found, ranks = evaluate_retrieval(encode, pairs), slow_ranks(encode, pairs)
    assert len(set(zip(pairs.first, pairs.second, strict=True))) > len(ranks), "the premise: several answers to a query"
    assert len(set(pairs.second)) < len(pairs), "the premise: one answer to several queries"
    assert set(pairs.first) & set(pairs.second), "the premise: texts on both sides"
    values = np.array(list(ranks.values()))
    assert (values == 1).any()
    assert (values > 5).any()
    np.testing.assert_allclose(found.accuracy_at_1, 100 * np.mean(values == 1), **FLOAT64)
    np.testing.assert_allclose(found.mrr, 100 * np.mean(1 / values), **FLOAT64)
    assert (found.n, found.candidates) == (len(ranks), len(set(pairs.second)))


def test_by_hand() -> None:
    """a finds x at once; b's own answer comes after x; c ties with x, which counts against the model."""
    vectors = {"a": (1, 0), "b": (0.9, 0.1), "c": (0, 1), "x": (2, 0), "y": (1, 1), "z": (0, 3), "x twin": (0, 5)}
    pairs = TextPairs(["a", "b", "c", "c"], ["x", "y", "z", "z"])

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([vectors[text] for text in texts])

    found = evaluate_retrieval(encode, pairs)
    assert (found.n, found.candidates) == (3, 3), "a pair that stands twice is one"
    np.testing.assert_allclose(found.accuracy_at_1, 200 / 3, **FLOAT64)
    np.testing.assert_allclose(found.mrr, 100 * (1 + 1 / 2 + 1) / 3, **FLOAT64)
    tied = evaluate_retrieval(encode, TextPairs([*pairs.first, "a"], [*pairs.second, "x twin"]))
    np.testing.assert_allclose(tied.mrr, 100 * (1 + 1 / 2 + 1 / 2) / 3, **FLOAT64)


@pytest.mark.parametrize("value", [1.0, 0.0, np.nan, np.inf])
def test_a_collapsed_model_finds_nothing(value: float) -> None:
    """All vectors of one direction, and what else tells no texts apart: zeros, NaN, infinity."""
    pairs = TextPairs([f"q{i}" for i in range(20)], [f"a{i}" for i in range(20)])
    direction_D = np.float32([0.1, 0.2, 0.7]) * value
    found = evaluate_retrieval(lambda texts: np.outer(np.linspace(1, 3, len(texts)), direction_D), pairs)
    assert (found.accuracy_at_1, found.ci95) == (0.0, (0.0, 0.0))
    assert found.mrr <= 5.0
    json.dumps(found.row(), allow_nan=False)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, encode = made()
    vectors = unit(np.random.default_rng(1).normal(size=(50, 6))).astype(np.float32)
    whole = evaluate_retrieval(encode, pairs), nearest(vectors, vectors, np.arange(50), 4)
    sizes: list[int] = []
    hide = module.hide

    def watched(cosine_BC: np.ndarray, own_B: np.ndarray) -> None:
        sizes.append(len(own_B))
        hide(cosine_BC, own_B)

    monkeypatch.setattr(module, "hide", watched)
    for block in (1, 7 * 50):
        monkeypatch.setattr(module, "BLOCK", block)
        sizes.clear()
        assert evaluate_retrieval(encode, pairs) == whole[0]
        assert sum(sizes) == whole[0].n
        sizes.clear()
        rows, found = nearest(vectors, vectors, np.arange(50), 4)
        assert sizes == [1] * 50 if block == 1 else sizes == [7] * 7 + [1]
        np.testing.assert_array_equal(rows, whole[1][0])
        np.testing.assert_allclose(found, whole[1][1], atol=1e-6)


def test_nearest_is_a_slow_loop() -> None:
    generator = np.random.default_rng(2)
    candidates, queries = generator.normal(size=(30, 5)), generator.normal(size=(4, 5))
    candidates[7] = 2 * candidates[3]  # equally near to all; the first comes first
    queries = unit(np.vstack([queries, candidates[[3, 9]]]))
    candidates = unit(candidates)
    rows, found = nearest(queries.astype(np.float32), candidates.astype(np.float32), np.array([-1] * 4 + [3, 9]), 5)
    for b, own in enumerate([-1] * 4 + [3, 9]):
        order = sorted((-float(queries[b] @ candidates[c]), c) for c in range(30) if c != own)[:5]
        np.testing.assert_allclose(found[b], [-negative for negative, _ in order], atol=1e-6)
        assert sorted(rows[b].tolist()) == sorted(c for _, c in order)
    assert rows[4, 0] == 7, "equal vectors are neighbours of each other, a text is none of itself"
    assert 3 not in rows[4]


@pytest.mark.parametrize("count", [1, 4, 29, 30, 99])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_equally_near_ones_come_in_their_order(count: int) -> None:
    """As in a stable sort of all: many are equal, some are not finite and come last."""
    generator = np.random.default_rng(3)
    vectors = unit(generator.integers(-1, 2, (30, 3))).astype(np.float32)
    vectors[[4, 11]] = np.nan
    own_B = np.where(np.arange(30) % 2, np.arange(30), -1)
    rows, found = nearest(vectors, vectors, own_B, count)
    with np.errstate(invalid="ignore"):
        cosine_BC = vectors @ vectors.T
    module.hide(cosine_BC, own_B)
    assert max(len(row) - len(set(row.tolist())) for row in cosine_BC) > 10, "the premise: there are ties"
    expected = np.argsort(-cosine_BC, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(cosine_BC, expected, axis=1))


def test_intervals_and_differences_are_those_of_a_slow_loop() -> None:
    """Over queries, paired: the mean of the differences on each resample."""
    pairs, encode = made()

    def stretched(texts: list[str]) -> np.ndarray:
        return encode(texts) * np.float32([4, 1, 1, 2])

    found = [evaluate_retrieval(model, pairs) for model in (encode, stretched)]
    ranks = np.array([list(slow_ranks(model, pairs).values()) for model in (encode, stretched)])
    rows_SB = np.random.default_rng(0).integers(0, ranks.shape[1], (RESAMPLES, ranks.shape[1]))
    for name, values in (("accuracy_at_1", 100.0 * (ranks == 1)), ("mrr", 100 / ranks)):
        difference = found[1].minus(found[0])
        expected = np.percentile([values[0, rows].mean() for rows in rows_SB], (2.5, 97.5))
        np.testing.assert_allclose(found[0].interval(name), expected, **FLOAT64)
        apart = np.percentile([(values[1] - values[0])[rows].mean() for rows in rows_SB], (2.5, 97.5))
        np.testing.assert_allclose(difference.interval(name), apart, **FLOAT64)
        np.testing.assert_allclose(difference.values[name], (values[1] - values[0]).mean(), **FLOAT64)
        assert difference.values[name] != 0, "the premise: the models differ"
    row = found[0].row()
    assert list(row) == ["accuracy_at_1", "ci95", "mrr", "mrr_ci95", "n", "candidates"]
    assert row["mrr_ci95"] == [round(x, 4) for x in found[0].interval("mrr")]


# ---------------------------------------------------------------------------------------------------------------
# Reading pairs


FILES = {
    "a.tsv": b'title\tbody\na\tb \n\tgone\nc\t"d\n',
    "a.csv": b'id,sentence2,Sentence1,\n1,b ,a,\n2,gone,,\n3,"""d",c,\n',
    "a.jsonl": b'{"q": "a", "r": "b "}\n{"q": null, "r": "gone"}\n{"r": "\\"d", "q": "c"}\n{"q": "gone"}\n',
    "a.parquet": parquet(q=["a", None, "c", " "], r=["b ", "gone", '"d', "gone"]),
}


@pytest.mark.parametrize("name", FILES)
def test_pairs_without_scores(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    columns = columns_without_score(tmp_path / name)
    assert columns == {"a.tsv": ("title", "body"), "a.csv": ("Sentence1", "sentence2")}.get(name, ("q", "r"))
    notes: list[str] = []
    pairs = load_text_pairs(tmp_path / name, columns, notes.append)
    assert (pairs.first, pairs.second, len(pairs)) == (["a", "c"], ["b ", '"d'], 2)
    (note,) = notes
    empty = 1 if name in ("a.tsv", "a.csv") else 2
    assert (
        f"has no scores; evaluating retrieval: {columns[0]!r} must find its {columns[1]!r}; left out: {empty} with"
        in note
    )


@pytest.mark.parametrize(
    "header",
    [
        *("sentence1,sentence2,score", "sentence1,sentence2,label", "text,label", "a,b,c", "a"),
        *("sentence1,sentence2,similarity_score", "sentence1,sentence2,body", "Score,a", "a,Similarity Score"),
    ],
)
def test_tables_that_are_not_for_retrieval(header: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n" + ",".join("x" * len(header.split(","))) + "\n")
    assert columns_without_score(tmp_path / "a.csv") is None


def test_all_rows_decide_which_columns_there_are(tmp_path: Path) -> None:
    rows = '{"a": "x", "b": "y"}\n{"a": "z", "b": "w", "similarity_score": 1}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    assert columns_without_score(tmp_path / "a.jsonl") is None


def test_retrieval_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence1,body,score\na,b,1\nc,d,2\n")
    assert columns_without_score(tmp_path / "a.csv", ["body", "sentence1"]) == ("body", "sentence1")
    with pytest.raises(
        ValueError, match=r"--columns: .*a.csv has no column 'x'; its columns are sentence1, body, score"
    ):
        columns_without_score(tmp_path / "a.csv", ["body", "x"])


@pytest.mark.parametrize("first", ["How to boil an egg\tPut it in hot water", "Eggs\tBoil them.", "Eggs\t7"])
def test_a_first_line_that_looks_like_a_pair_is_asked_about(first: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(f"{first}\nred\tblue\n")
    asked = shlex.join(first.split("\t"))
    with pytest.raises(ValueError, match=rf"a.tsv: the first line of a table .* looks like a text; .*{asked}\)"):
        columns_without_score(tmp_path / "a.tsv")
    assert columns_without_score(tmp_path / "a.tsv", first.split("\t")) == tuple(first.split("\t"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\nc,d\n", "a.csv has no scores, and retrieval needs at least two different texts in each"),
        ("a.csv", "a,b\nc,d\ne,d\n", "needs at least two different texts"),
        ("a.csv", "a,b\nc,d\nc,e\n", "needs at least two different texts"),
        ("a.csv", "a,b\nc,d\ne\n", "a.csv, line 3: the header names 2 columns"),
        ("a.jsonl", '{"a": "x", "b": "y"}\n{"a": "x", "b": 3}\n', "a.jsonl, row 2: b holds int, not text"),
    ],
)
def test_bad_pairs_without_scores(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_text_pairs(tmp_path / name, ("a", "b"), lambda note: None)


def test_retrieval_on_the_command_line(run: Run, place: Path) -> None:
    """Pairs beside other columns are no retrieval unless they are asked for."""
    (place / "a.csv").write_text("title,text,year\na man,dog,1\na cat,a woman cooks bread,2\n")
    result = run("evaluate", "model --pairs a.csv")
    assert result.code == 2
    assert (
        "a.csv: no column sentence1, sentence2, score; its columns are title, text, year;"
        in result.err.splitlines()[-1]
    )
    assert "tsdae evaluate --columns A B" in result.err
    result = run("evaluate", "model --pairs a.csv --columns title text --device cpu")
    assert result.code == 0, result.err
    assert "evaluating retrieval: 'title' must find its 'text'" in result.err
    for columns in ("--columns title", "--pairs a.csv --columns title title", "--columns title text"):
        result = run("evaluate", f"model {columns}")
        assert result.code == 2
        assert "--columns needs --pairs and two column names" in result.err
