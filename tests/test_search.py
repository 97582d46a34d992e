"""Search and re-ranking against slow loops over sorted lists, BM25 against its formula, files in BEIR's layout."""

from __future__ import annotations

import gzip
import json
import math
import re
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.scripts import Run
from tests.tolerances import FLOAT64
from tsdae.evaluation import retrieval, search
from tsdae.evaluation.beir import Collection, Reranking, load_beir, load_reranking
from tsdae.evaluation.search import evaluate_bm25, evaluate_reranking, evaluate_search
from tsdae.evaluation.statistics import RESAMPLES
from tsdae.evaluation.sts import Encode
from tsdae.hub.auto_encoder import load_encoder
from tsdae.text import tokenization

METRICS = ["ndcg_at_10", "map", "mrr_at_10", "recall_at_100"]


def made(documents: int = 150, size: int = 30, seed: int = 0, low: int = -2) -> tuple[Collection, Encode]:
    """Graded judgements, documents with the id of a query, vectors of small integers: many are equally near."""
    generator = np.random.default_rng(seed)
    corpus = {f"d{i}": f"document {i}" for i in range(documents)} | {f"q{i}": f"own {i}" for i in range(5)}
    queries = {f"q{i}": f"query {i}" for i in range(size)}
    gains = {}
    for query in queries:
        chosen = generator.choice(documents, generator.integers(1, 14), replace=False)
        gains[query] = {f"d{i}": float(generator.integers(1, 4)) for i in chosen}
    gains["q0"]["q0"] = 2.0  # an answer that has the query's own id
    texts = [*corpus.values(), *queries.values()]
    vectors = {text: generator.integers(low, -low + 1, 6).astype(np.float32) for text in texts}
    for i in range(5):
        vectors[f"own {i}"] = vectors[f"query {i}"] + np.float32(0.01)  # would be the first, if it counted
    return Collection(corpus, queries, gains), lambda texts: np.stack([vectors[text] for text in texts])


def near(encode: Encode, first: str, second: str) -> float:
    a, b = encode([first, second]).astype(np.float64)
    lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
    return round(float(a @ b / lengths), 5) if lengths else 0.0  # what differs by less than 1e-5 is a tie here


def slow_search(encode: Encode, collection: Collection) -> dict[str, list[float]]:
    """Each query's documents sorted in plain Python, and each metric read off the list as its definition says."""
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for query, text in collection.queries.items():
        gains = collection.gains[query]
        keys = [key for key in collection.documents if key != query or key in gains]
        # Of equally near ones those come first that do less for the model.
        keys.sort(key=lambda key: (-near(encode, text, collection.documents[key]), gains.get(key, 0.0)))
        in_order = [gains.get(key, 0.0) for key in keys]
        ideal = sorted(gains.values(), reverse=True)
        dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(row[:10])) for row in (in_order, ideal))
        hits = [i + 1 for i, gain in enumerate(in_order) if gain > 0]
        found["ndcg_at_10"].append(dcg / best)
        found["map"].append(sum((i + 1) / rank for i, rank in enumerate(hits)) / len(gains))
        found["mrr_at_10"].append(1 / hits[0] if hits[0] <= 10 else 0.0)
        found["recall_at_100"].append(sum(rank <= 100 for rank in hits) / len(gains))
    return found


def test_metrics_are_those_of_a_slow_loop() -> None:
    collection, encode = made()
    slow, found = slow_search(encode, collection), evaluate_search(encode, collection)
    assert list(found.values) == list(found.compared) == METRICS
    for metric, values in slow.items():
        np.testing.assert_allclose(found.values[metric], 100 * np.mean(values), **FLOAT64, err_msg=metric)
        assert 0 < np.mean(values) < 1, "the premise"
    assert 0.0 in slow["mrr_at_10"], "the premise: some find nothing among the first ten"
    assert (found.n, found.documents, found.over) == (30, 155, "queries")


def test_by_hand() -> None:
    """Relevant at ranks 2 and 4, of gains 1 and 3."""
    vectors = {"q": (1, 0), "a": (1, 0), "b": (3, 1), "c": (2, 1), "d": (1, 1), "e": (0, 1)}
    collection = Collection({key: key for key in "abcde"}, {"1": "q"}, {"1": {"b": 1.0, "d": 3.0}})
    found = evaluate_search(lambda texts: np.array([vectors[text] for text in texts]), collection)
    dcg, ideal = 1 / math.log2(3) + 3 / math.log2(5), 3 + 1 / math.log2(3)
    expected = {"ndcg_at_10": dcg / ideal, "map": (1 / 2 + 2 / 4) / 2, "mrr_at_10": 1 / 2, "recall_at_100": 1.0}
    np.testing.assert_allclose(list(found.values.values()), [100 * expected[name] for name in METRICS], **FLOAT64)


def test_of_equally_near_answers_the_better_one_comes_last() -> None:
    """And an answer whose vector is not finite comes after all others."""
    vectors = {"q": (1.0, 0.0), "a": (1.0, 1.0), "b": (1.0, 1.0), "c": (0.0, 1.0), "d": (-1.0, 0.0)}
    vectors["e"] = (math.nan, 1.0)

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([vectors[text] for text in texts])

    documents = {key: key for key in "abcde"}
    finite = {key: key for key in "abcd"}
    tied = evaluate_search(encode, Collection(finite, {"1": "q"}, {"1": {"a": 3.0, "b": 1.0}}))
    np.testing.assert_allclose(tied.ndcg_at_10, 100 * (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)), **FLOAT64)
    lost = evaluate_search(encode, Collection(documents, {"1": "q"}, {"1": {"e": 1.0}}))
    np.testing.assert_allclose(lost.map, 100 / 5, **FLOAT64)


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan, math.inf])
def test_a_collapsed_model_finds_nothing(value: float) -> None:
    collection, _ = made()
    assert max(len(gains) for gains in collection.gains.values()) < 55, "the premise: others fill the first hundred"
    found = evaluate_search(lambda texts: np.full((len(texts), 3), value), collection)
    assert (found.ndcg_at_10, found.mrr_at_10, found.recall_at_100) == (0.0, 0.0, 0.0)
    json.dumps(found.row(), allow_nan=False)
    reranked = evaluate_reranking(lambda texts: np.full((len(texts), 3), value), RERANKING)
    assert reranked.mrr == pytest.approx(100 * np.mean([1 / (1 + len(n)) for n in RERANKING.negative]))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    collection, encode = made()
    whole = evaluate_search(encode, collection)
    monkeypatch.setattr(retrieval, "BLOCK", 4 * 155)
    monkeypatch.setattr(search, "AT_ONCE", 7)
    assert evaluate_search(encode, collection) == whole


def test_intervals_are_those_of_a_slow_loop() -> None:
    """Over queries; those of a difference are of the same queries under both models."""
    collection, encode = made()

    def other(texts: list[str]) -> np.ndarray:
        return encode(texts) * np.float32([3, 1, 1, 2, 1, 1])

    first, second = evaluate_search(encode, collection), evaluate_search(other, collection)
    slow = [slow_search(model, collection)["map"] for model in (encode, other)]
    rows_SB = np.random.default_rng(0).integers(0, 30, (RESAMPLES, 30))
    values_2S = 100 * np.array([[np.array(values)[rows].mean() for rows in rows_SB] for values in slow])
    np.testing.assert_allclose(first.interval("map"), np.percentile(values_2S[0], (2.5, 97.5)), **FLOAT64)
    apart = np.percentile(values_2S[1] - values_2S[0], (2.5, 97.5))
    np.testing.assert_allclose(second.minus(first).interval("map"), apart, **FLOAT64)
    assert apart[1] > apart[0], "the premise: the models differ"


WORDS = "red green blue small big dog cat bird runs sleeps sings house tree river".split()


def test_bm25_is_its_formula() -> None:
    """Lucene's: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 (1 - b + b length / mean length))."""
    pytest.importorskip("bm25s", reason="the extra [retrieval] is not installed")
    generator = np.random.default_rng(5)
    texts = {f"d{i}": " ".join(generator.choice(WORDS, generator.integers(1, 12))) for i in range(80)}
    queries = {f"q{i}": " ".join(generator.choice(WORDS, 3)) for i in range(20)} | {
        "none": "The UNKNOWN",
        "A": "The Cat",
    }
    gains = {key: {f"d{i}": 1.0 for i in generator.choice(80, 4, replace=False)} for key in queries}
    collection = Collection(texts, queries, gains)
    split = {key: text.split() for key, text in texts.items()}
    mean_length = float(np.mean([len(words) for words in split.values()]))

    def score(query: str, key: str) -> float:
        total = 0.0
        for word in query.lower().split():
            n = sum(word in words for words in split.values())
            tf = split[key].count(word)
            length = 1 - 0.75 + 0.75 * len(split[key]) / mean_length
            total += math.log(1 + (80 - n + 0.5) / (n + 0.5)) * tf / (tf + 1.5 * length)
        return round(total, 5)

    found = evaluate_bm25(collection)
    ranked = [slow_average_precision(lambda key, q=q: score(q, key), gains[i], list(texts)) for i, q in queries.items()]
    np.testing.assert_allclose(found.map, 100 * np.mean(ranked), **FLOAT64)
    assert score(queries["A"], "d0") + score(queries["A"], "d1") + score(queries["A"], "d2") > 0, "the premise"


def slow_average_precision(score: Callable[[str], float], right: Any, keys: list[str]) -> float:
    in_order = sorted(keys, key=lambda key: (-score(key), key in right))
    hits = [i + 1 for i, key in enumerate(in_order) if key in right]
    return sum((i + 1) / rank for i, rank in enumerate(hits)) / len(hits)


RERANKING = Reranking(
    [f"q{i}" for i in range(12)],
    [[f"p{i}", f"p{i + 1}"][: 1 + i % 2] for i in range(12)],
    [[f"n{j}" for j in range(i, i + 3 + i % 4)] for i in range(12)],
)


def test_reranking_is_a_slow_loop() -> None:
    generator = np.random.default_rng(6)
    vectors = {text: generator.integers(-2, 3, 5).astype(np.float32) for text in sorted(set(RERANKING.texts))}

    def encode(texts: list[str]) -> np.ndarray:
        assert len(set(texts)) == len(texts), "each text is encoded once"
        return np.stack([vectors[text] for text in texts])

    precisions, reciprocals = [], []
    for query, right, wrong in zip(RERANKING.queries, RERANKING.positive, RERANKING.negative, strict=True):
        cosine = {text: near(lambda pair: np.stack([vectors[t] for t in pair]), query, text) for text in right + wrong}
        precisions.append(slow_average_precision(cosine.__getitem__, right, [*cosine]))
        in_order = sorted(cosine, key=lambda text: (-cosine[text], text in right))
        reciprocals.append(1 / min(in_order.index(text) + 1 for text in right))
    found = evaluate_reranking(encode, RERANKING)
    np.testing.assert_allclose(
        [found.map, found.mrr], [100 * np.mean(precisions), 100 * np.mean(reciprocals)], **FLOAT64
    )
    assert found.map != found.mrr, "the premise: some have two positives"
    assert (found.n, found.candidates) == (12, len(RERANKING.texts) - 12)


@pytest.mark.slow
def test_50_000_documents_take_less_than_1_gb() -> None:
    """Of vectors of BERT-base's width, the model itself and the texts left out."""
    collection = Collection({str(i): str(i) for i in range(50_000)}, {f"q{i}": f"q{i}" for i in range(300)}, {})
    collection = replace(collection, gains={key: {str(i): 1.0 for i in range(5)} for key in collection.queries})

    def encode(texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 768), dtype=np.float32)
        vectors[:, :10] = np.random.default_rng(len(texts)).normal(size=(len(texts), 10))
        return vectors

    tracemalloc.start()
    try:
        found = evaluate_search(encode, collection)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.documents == 50_000
    assert 50_000 * 768 * 4 < peak < 0.6e9


# ---------------------------------------------------------------------------------------------------------------
# sentence-transformers


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, list[str]]:
    """A saved model, and 80 different texts."""
    tiny.encoder("mean").save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(7)
    return tmp_path / "model", [" ".join(generator.choice(tiny.WORDS, 4 + i % 9)) for i in range(80)]


@pytest.mark.reference
def test_search_is_sentence_transformers(texts: tuple[Path, list[str]]) -> None:
    """Judgements without grades: its nDCG knows none. 6.2, 2026-11."""
    st = pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    folder, (*documents,) = texts
    corpus = {f"d{i}": text for i, text in enumerate(documents[:60])}
    queries = {f"q{i}": text for i, text in enumerate(documents[60:])}
    generator = np.random.default_rng(8)
    right = {key: {f"d{i}" for i in generator.choice(60, 1 + i % 5, replace=False)} for i, key in enumerate(queries)}
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, right, map_at_k=[60], precision_recall_at_k=[100], write_csv=False
    )
    theirs = evaluator(st.SentenceTransformer(str(folder), device="cpu"))
    gains = {key: dict.fromkeys(sorted(found), 1.0) for key, found in right.items()}
    ours = evaluate_search(load_encoder(str(folder)).encode, Collection(corpus, queries, gains))
    for name, metric in zip(METRICS, ("ndcg@10", "map@60", "mrr@10", "recall@100"), strict=True):
        assert ours.values[name] / 100 == pytest.approx(theirs[f"cosine_{metric}"], abs=1e-6), metric
    assert 0.01 < ours.map / 100 < 0.9, "the premise"


@pytest.mark.reference
def test_reranking_is_sentence_transformers(texts: tuple[Path, list[str]]) -> None:
    st = pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    from sentence_transformers.sentence_transformer.evaluation import RerankingEvaluator

    folder, some = texts
    reranking = Reranking(
        some[:15], [some[15 + i : 16 + i + i % 3] for i in range(15)], [some[40 + i : 44 + i] for i in range(15)]
    )
    sides = zip(reranking.queries, reranking.positive, reranking.negative, strict=True)
    samples: list[Any] = [{"query": query, "positive": right, "negative": wrong} for query, right, wrong in sides]
    theirs = RerankingEvaluator(samples, at_k=100, write_csv=False)(st.SentenceTransformer(str(folder), device="cpu"))
    ours = evaluate_reranking(load_encoder(str(folder)).encode, reranking)
    assert ours.map / 100 == pytest.approx(theirs["map"], abs=1e-6)
    assert ours.mrr / 100 == pytest.approx(theirs["mrr@100"], abs=1e-6)
    assert 0.2 < ours.mrr / 100 < 0.95, "the premise"


# ---------------------------------------------------------------------------------------------------------------
# Files

CORPUS = [
    {"_id": "a", "title": "Horses", "text": " a horse runs in the morning\n"},
    {"_id": 7, "text": "the cat eats bread"},
    {"_id": "c", "title": None, "text": "", "metadata": {}},
    {"_id": "d", "title": "", "text": "a small dog"},
]
QUERIES = [{"_id": "1", "text": "which horse runs"}, {"_id": "2", "text": "who eats"}, {"_id": "3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\n1\ta\t2\n\n2\t7\t1\r\n1\td\t0\n3\td\t0\n"


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def beir(place: Path) -> Path:
    (place / "beir" / "qrels").mkdir(parents=True)
    (place / "beir" / "corpus.jsonl").write_text(lines(CORPUS))
    (place / "beir" / "queries.jsonl").write_text("\n" + lines(QUERIES))
    (place / "beir" / "qrels" / "test.tsv").write_text(QRELS)
    return place / "beir"


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_folder_in_the_layout_of_beir(packed: str, beir: Path) -> None:
    if packed:
        for path in [*beir.glob("*.jsonl"), *beir.glob("qrels/*.tsv")]:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    notes: list[str] = []
    collection = load_beir(beir, notes.append)
    texts = ["Horses a horse runs in the morning", "the cat eats bread", "", "a small dog"]
    assert collection.documents == dict(zip(["a", "7", "c", "d"], texts, strict=True))
    assert collection.queries == {"1": "which horse runs", "2": "who eats"}
    assert collection.gains == {"1": {"a": 2.0}, "2": {"7": 1.0}}
    assert notes == [f"{beir}: 4 documents, 2 queries with relevant documents; left out: 1 without a relevant document"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", None, "beir has no corpus.jsonl (or corpus.jsonl.gz), which BEIR's layout requires"),
        ("corpus.jsonl", "", "corpus.jsonl is empty"),
        ("corpus.jsonl", '\n{"id": "a", "text": "b"}', "corpus.jsonl, line 2: no _id; its fields are id, text"),
        ("corpus.jsonl", lines([*CORPUS, CORPUS[1]]), "corpus.jsonl, line 5: the _id '7' is on line 2 already"),
        ("corpus.jsonl", '{"_id": "a", "text": 3}', "corpus.jsonl, line 1: text holds int, not text"),
        ("corpus.jsonl", '{"_id": ["a"], "text": ""}', "corpus.jsonl, line 1: the _id ['a'] is not text"),
        ("queries.jsonl", '{"_id": "a", "text": " "}', "queries.jsonl, line 1: the query 'a' has no text"),
        ("queries.jsonl", '{"_id": "a", "text": "b"}\n{', "queries.jsonl, line 2: not valid JSON"),
        ("qrels/test.tsv", "", "test.tsv, line 1: the header must be query-id, corpus-id, score (with tabs), not ''"),
        ("qrels/test.tsv", "1\t0\ta\t1\n", "test.tsv, line 1: the header must be query-id, corpus-id, score"),
        ("qrels/test.tsv", QRELS + "1\tz\t1\n", "test.tsv, line 7: no document has the _id 'z'"),
        ("qrels/test.tsv", QRELS + "z\ta\t1\n", "test.tsv, line 7: no query has the _id 'z'"),
        ("qrels/test.tsv", QRELS + "1\tc\tmuch\n", "test.tsv, line 7: the score 'much' is not a number"),
        ("qrels/test.tsv", QRELS + "1\tc\tnan\n", "test.tsv, line 7: the score 'nan' is not a number"),
        ("qrels/test.tsv", QRELS + "1\tc\n", "test.tsv, line 7: 2 columns, there must be query-id, corpus-id, score"),
        ("qrels/test.tsv", QRELS + "2\t7\t0\n", "line 7: query '2' and document '7' are on line 4 already"),
        ("qrels/test.tsv", QRELS[:25] + "1\td\t0\n", "test.tsv names no relevant document: it has no score above 0"),
    ],
)
def test_bad_folders(name: str, content: str | None, message: str, beir: Path, run: Run) -> None:
    (beir / name).unlink()
    if content is not None:
        (beir / name).write_text(content)
    result = run("evaluate", "./nowhere --retrieval beir")
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


ROW = {"query": "a", "positive": ["b"], "negative": ["c", "d"]}


def test_files_for_reranking(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines([ROW, ROW | {"positive": []}, ROW | {"positive": "one", "negative": ["\ud800"]}]))
    notes: list[str] = []
    reranking = load_reranking(path, notes.append)
    assert reranking == Reranking(["a", "a"], [["b"], ["one"]], [["c", "d"], ["?"]])
    assert notes == [f"{path}: queries left out, without a positive or without a negative text: 1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([ROW, {"query": "a", "pos": []}], "a.jsonl, line 2: no positive and no negative; its fields are query, pos"),
        ([ROW, ROW | {"query": " "}], "a.jsonl, line 2: the query has no text"),
        ([ROW, ROW | {"negative": [1]}], "a.jsonl, line 2: negative holds int, not text"),
        ([ROW | {"negative": []}], "a.jsonl holds no query with both positive and negative texts"),
        ([], "a.jsonl holds no query with both positive and negative texts"),
        ([[]], "a.jsonl, line 1: a JSON object was expected, not list"),
    ],
)
def test_bad_files_for_reranking(content: list[Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_reranking(tmp_path / "a.jsonl")


# ---------------------------------------------------------------------------------------------------------------
# The command


def test_models_beside_bm25(beir: Path, run: Run) -> None:
    pytest.importorskip("bm25s", reason="the extra [retrieval] is not installed")
    found = run("evaluate", "model --pooling mean --retrieval beir --json a.json --device cpu")
    assert found.code == 0, found.err
    model, bm25 = json.loads((beir.parent / "a.json").read_text())
    assert (model["model"], model["pooling"], bm25["model"], bm25["pooling"]) == ("model", "mean", "BM25", None)
    assert (bm25["retrieval"]["ndcg_at_10"], bm25["retrieval"]["n"]) == (100.0, 2)
    collection = load_beir(beir)
    expected = evaluate_search(load_encoder("model", "mean").encode, collection)
    assert model["retrieval"] == expected.row()
    assert bm25["difference"]["retrieval"] == evaluate_bm25(collection).minus(expected).row()
    assert "BM25" in found.out
    assert "bootstrap intervals over the queries" in found.out
    assert "on the same resamples of the queries" in found.out


def test_without_bm25_the_models_are_scored_all_the_same(beir: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    found = run("evaluate", "model --retrieval beir --device cpu")
    assert found.code == 0, found.err
    assert 'the BM25 row needs a package: python -m pip install "bm25s' in found.err
    assert "nDCG@10" in found.out
    assert "BM25" not in found.out


def test_reranking_as_a_user_gets_it(place: Path, run: Run) -> None:
    (place / "a.jsonl").write_text(lines([ROW, ROW | {"query": "a dog", "positive": ["the dog", "a cat"]}]))
    found = run("evaluate", "model --rerank a.jsonl --json a.json --device cpu")
    assert found.code == 0, found.err
    (model,) = json.loads((place / "a.json").read_text())
    assert model["rerank"] == evaluate_reranking(load_encoder("model").encode, load_reranking("a.jsonl")).row()
    assert "rerank MAP" in found.out
    assert "rerank MRR" in found.out


def test_tokens_of_many_documents_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer's own record of 50,000 documents would take more than the vectors; errors keep their number."""
    tokenizer, texts = tiny.tokenizer(), [" ".join(tiny.WORDS[i : i + 3 + i % 5]) for i in range(20)]
    whole = tokenization.token_ids(texts, tokenizer, 6)
    monkeypatch.setattr(tokenization, "AT_ONCE", 7)
    parts = tokenization.token_ids(texts, tokenizer, 6)
    np.testing.assert_array_equal(parts.token_ids_T, whole.token_ids_T)
    np.testing.assert_array_equal(parts.boundaries, whole.boundaries)
    with pytest.raises(ValueError, match="15"):
        tokenization.token_ids([*texts[:15], 3, *texts], tokenizer)  # type: ignore[list-item]
