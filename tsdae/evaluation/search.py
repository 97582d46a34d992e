"""Search and re-ranking: how high the vectors of queries rank the documents that people have judged relevant.

Knows nothing of models, only "a function from sentences to vectors"; BM25 is the yardstick without one. All metrics
follow from the ranks of a query's relevant documents, so that no list of results is ever made.

# B queries, C candidates, R relevant candidates of one query, D hidden size, S resamples
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from tsdae.evaluation.beir import Collection, Reranking
from tsdae.evaluation.retrieval import TIE, cosine_blocks
from tsdae.evaluation.scores import Scores, over_queries
from tsdae.evaluation.sts import Encode, unit
from tsdae.utils.progress import progress_bar

AT_ONCE = 8192  # vectors that are scaled to length 1 at a time
SEARCH = "Search x 100; nDCG with linear gains, MAP over the whole ranking"
RERANKING = "Re-ranking of each query's own candidates x 100"


class MissingBM25(ValueError):
    """The package of the extra [retrieval] is not installed."""


def evaluate_search(encode: Encode, collection: Collection, seed: int = 0, show_progress: bool = False) -> Scores:
    """Rank all documents for each query by cosine: nDCG@10, MAP, MRR@10 and recall@100, x 100.

        scores = evaluate_search(encoder.encode, load_beir("scifact"))
        print(scores.ndcg_at_10, scores.interval("ndcg_at_10"))
        print(scores.n, scores.documents)  # queries, documents

    encode: a function from a list of sentences to vectors [B, D].
    As in BEIR's own evaluation, a document that has the query's own id is passed over (unless it is judged relevant).
    Ties, and vectors that are not finite, count against the model. Intervals are drawn over queries, from ``seed``.
    """
    query_BD = unit_vectors(encode, list(collection.queries.values()))
    document_CD = unit_vectors(encode, list(collection.documents.values()))
    blocks = (cosine_BC for _, cosine_BC in cosine_blocks(query_BD, document_CD))
    return _search_scores((cosine_C for cosine_BC in blocks for cosine_C in cosine_BC), collection, seed, show_progress)


def evaluate_bm25(collection: Collection, seed: int = 0, show_progress: bool = False) -> Scores:
    """Rank all documents for each query by the words that they share with it; the metrics of `evaluate_search`.

    BM25 of the package bm25s as it comes (Lucene's variant, k1 1.5, b 0.75, English stop words, no stemming), words
    being \\w\\w+ in lower case. MissingBM25 (a ValueError) if it is not installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise MissingBM25('the BM25 row needs a package: python -m pip install "bm25s>=0.3.16,<1"') from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # set to DEBUG when it is imported
    index = bm25s.BM25()
    words = bm25s.tokenize(list(collection.documents.values()), show_progress=False)
    index.index(words, show_progress=False)
    known = words.vocab.keys()
    asked = bm25s.tokenize(list(collection.queries.values()), return_ids=False, show_progress=False)
    size = len(collection.documents)
    queries = ([word for word in query if word in known] for query in asked)
    scores = (index.get_scores(query) if query else np.zeros(size) for query in queries)
    return _search_scores(scores, collection, seed, show_progress)


def _search_scores(score_BC: Iterable[np.ndarray], collection: Collection, seed: int, show_progress: bool) -> Scores:
    """Return the scores of a search. score_BC: those of all documents for each query in turn, [C]."""
    column_of = {key: column for column, key in enumerate(collection.documents)}
    values = []
    with progress_bar(len(collection), "ranking", " queries", show_progress) as bar:
        for query, score_C in zip(collection.queries, score_BC, strict=True):
            gains = collection.gains[query]
            if query in column_of and query not in gains:
                score_C[column_of[query]] = -np.inf
            gain_R = np.array(list(gains.values()))
            rank_R = ranks(score_C, np.array([column_of[key] for key in gains]), gain_R)
            values.append(
                {
                    "ndcg_at_10": ndcg(rank_R, gain_R, 10),
                    "map": average_precision(rank_R),
                    "mrr_at_10": reciprocal_rank(rank_R, 10),
                    "recall_at_100": float((rank_R <= 100).mean()),
                }
            )
            bar.update()
    return over_queries(values, {"documents": len(column_of)}, SEARCH, seed)


def evaluate_reranking(encode: Encode, reranking: Reranking, seed: int = 0) -> Scores:
    """Rank each query's own candidates by cosine: MAP and MRR, x 100.

        scores = evaluate_reranking(encoder.encode, load_reranking("askubuntu.jsonl"))
        print(scores.map, scores.mrr)

    Equal texts are encoded once. Ties and intervals as in `evaluate_search`.
    """
    texts = list(dict.fromkeys(reranking.texts))
    row_of = {text: row for row, text in enumerate(texts)}
    unit_BD = unit_vectors(encode, texts)
    values = []
    for query, positive, negative in zip(reranking.queries, reranking.positive, reranking.negative, strict=True):
        candidate_CD = unit_BD[[row_of[text] for text in positive + negative]]
        with np.errstate(invalid="ignore"):
            cosine_C = candidate_CD @ unit_BD[row_of[query]]
        rank_R = ranks(cosine_C, np.arange(len(positive)), np.ones(len(positive)))
        values.append({"map": average_precision(rank_R), "mrr": reciprocal_rank(rank_R)})
    candidates = sum(map(len, reranking.positive)) + sum(map(len, reranking.negative))
    return over_queries(values, {"candidates": candidates}, RERANKING, seed)


def unit_vectors(encode: Encode, texts: list[str]) -> np.ndarray:
    """Return the vectors of texts, each divided by its length, float32 [B, D]; some at a time, to bound the memory."""
    vectors = np.asarray(encode(texts))
    unit_BD = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(texts), AT_ONCE):
        unit_BD[start : start + AT_ONCE] = unit(vectors[start : start + AT_ONCE])
    return unit_BD


def ranks(score_C: np.ndarray, right_R: np.ndarray, gain_R: np.ndarray) -> np.ndarray:
    """Return the ranks of the relevant candidates among all, 1 for the first, [R] in the order of ``right_R``.

    score_C: the higher the nearer. A candidate that is not relevant and as near comes before them, and so does one
    whose score is not a number; of relevant ones that are equally near, that of the lower gain.
    """
    right_score_R = np.nan_to_num(score_C[right_R], nan=-np.inf, neginf=-np.inf, posinf=np.inf)
    order_R = np.lexsort((gain_R, -right_score_R))
    wrong_W = np.sort(np.delete(score_C, right_R))  # from low to high, what is not a number last
    before_R = len(wrong_W) - np.searchsorted(wrong_W, right_score_R[order_R] - TIE)
    rank_R = np.empty(len(right_R), dtype=np.int64)
    rank_R[order_R] = 1 + np.arange(len(right_R)) + before_R
    return rank_R


def ndcg(rank_R: np.ndarray, gain_R: np.ndarray, top: int) -> float:
    """Return sum of gain / log2(1 + rank) over the ranks up to ``top``, divided by the best possible one.

    Gains are linear, as in trec_eval and BEIR (Järvelin and Kekäläinen 2002).
    """
    best_R = -np.sort(-gain_R)[:top]
    ideal = (best_R / np.log2(2 + np.arange(len(best_R)))).sum()
    return float((gain_R / np.log2(1 + rank_R))[rank_R <= top].sum() / ideal)


def average_precision(rank_R: np.ndarray) -> float:
    """Return the mean precision at the ranks of the relevant ones."""
    return float((np.arange(1, len(rank_R) + 1) / np.sort(rank_R)).mean())


def reciprocal_rank(rank_R: np.ndarray, top: int | None = None) -> float:
    """Return 1 / the rank of the first relevant one; 0 if that is beyond ``top``."""
    best = int(rank_R.min())
    return 0.0 if top is not None and best > top else 1.0 / best
