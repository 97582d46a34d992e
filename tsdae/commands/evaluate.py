"""Compare models on pairs, search or re-ranking: scores with intervals, and differences from the first model."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.commands.encode import check_writable, note_truncated
from tsdae.commands.settings import CompareConfig
from tsdae.evaluation.beir import Collection, Reranking, load_beir, load_reranking
from tsdae.evaluation.pairs import (
    Pairs,
    TextPairs,
    check_labels,
    columns_without_score,
    load_pairs,
    load_stsb,
    load_text_pairs,
)
from tsdae.evaluation.retrieval import evaluate_retrieval
from tsdae.evaluation.scores import Scores, mean_of, table
from tsdae.evaluation.search import MissingBM25, evaluate_bm25, evaluate_reranking, evaluate_search
from tsdae.evaluation.sts import Encode, evaluate_sts
from tsdae.evaluation.whitening import Whitening
from tsdae.hub.auto_encoder import Encoder, check_models, load_encoders
from tsdae.text.reading import load_sentences
from tsdae.utils.device import choose_device
from tsdae.utils.files import write_json
from tsdae.utils.progress import print_note

Judged = TextPairs | Collection | Reranking


def compare(models: list[str], config: CompareConfig) -> list[tuple[str, dict[str, Scores]]]:
    """Print a table row per model and the differences from the first; write the scores to ``config.json``.

    Returns [(name, {split: scores})]. ValueError for what cannot be scored, before anything is downloaded if possible.
    """
    if config.json is not None:
        check_writable(Path(config.json), "--json")
    device = choose_device(config.device)
    # What can be known to fail comes first: the user's own files, then names, then what is downloaded.
    own = config.pairs or config.retrieval or config.rerank or config.stsb
    splits = _splits(config) if own else None
    text = load_sentences(config.whiten, notes=print_note) if config.whiten else None
    check_models(models)
    splits = splits or _splits(config)
    rows: list[tuple[str, dict[str, Scores]]] = []
    entries: list[dict[str, Any]] = []

    def add(name: str, how: str | None, scores: dict[str, Scores]) -> None:
        if len(splits) > 1 and config.pairs:
            scores |= {"mean": mean_of(list(scores.values()))}
        rows.append((f"{name} ({how})" if how else name, scores))
        entries.append(entry(name, how, scores))
        if len(rows) > 1:
            from_first = {split: scores[split].minus(rows[0][1][split]).row() for split in scores}
            entries[-1]["difference"] = {"from": models[0]} | from_first

    for name, encoder in load_encoders(models, config.pooling, device):
        for data in splits.values():
            note_truncated(_texts(data), encoder)
        for how, encode in _ways(encoder, text):
            scores = {}
            for split, data in splits.items():
                what = "pairs" if isinstance(data, TextPairs) else "queries"
                print(f"{name} ({how}): {split}, {len(data):,} {what}", file=sys.stderr)
                scores[split] = _score(encode, data)
            add(name, how, scores)
    for split, data in splits.items():
        if isinstance(data, Collection):
            try:
                add("BM25", None, {split: evaluate_bm25(data, show_progress=True)})
            except MissingBM25 as missing:
                print_note(str(missing))
    print(table([(name, _compared(scores)) for name, scores in rows], differences=True))
    if config.json is not None:
        write_json(Path(config.json), entries)
    return rows


def _splits(config: CompareConfig) -> Mapping[str, Judged]:
    """Load what is scored, {split: pairs or queries}."""
    if config.retrieval is not None:
        return {"retrieval": load_beir(config.retrieval, print_note)}
    if config.rerank is not None:
        return {"rerank": load_reranking(config.rerank, print_note)}
    splits: dict[str, TextPairs]
    if config.pairs is not None:
        splits = _pairs(config.pairs, config.columns)
    else:
        stsb, split = load_stsb(config.stsb), config.split or "both"
        splits = {name: stsb[name] for name in (("dev", "test") if split == "both" else (split,))}
    for pairs in splits.values():
        if isinstance(pairs, Pairs):
            check_labels(pairs)
    return splits


def _pairs(files: list[str], columns: list[str] | None) -> dict[str, TextPairs]:
    """Load a file of pairs, {"pairs": pairs}; or several with scores, {name of the file: pairs}."""
    if len(files) == 1:
        if texts := columns_without_score(Path(files[0]), columns):
            return {"retrieval": load_text_pairs(Path(files[0]), texts, print_note)}
        return {"pairs": load_pairs(files[0], print_note)}
    splits: dict[str, TextPairs] = {}
    for file in files:
        name = Path(file).name.partition(".")[0]
        if name in splits or name == "mean":
            raise ValueError(f"--pairs {file}: another file is also called {name} in the table; rename one of the two")
        splits[name] = load_pairs(file, print_note)
    return splits


def _texts(data: Judged) -> list[str]:
    return data.first + data.second if isinstance(data, TextPairs) else data.texts


def _ways(encoder: Encoder, text: list[str] | None) -> Iterator[tuple[str, Encode]]:
    """Yield the model as it is and, if there is a text to fit it on, with whitened vectors; each with its name."""
    encode = functools.partial(encoder.encode, show_progress=True)
    if text is None:
        yield encoder.pooling, encode
        return
    known: dict[tuple[str, ...], np.ndarray] = {}

    def once(sentences: list[str]) -> np.ndarray:
        key = tuple(sentences)
        if key not in known:
            known[key] = encode(sentences)
        return known[key]

    whitening = Whitening(encode(text))
    print_note(f"whitening: {len(text):,} sentences span {whitening.axes} of {len(whitening.mean_D)} dimensions")
    yield encoder.pooling, once
    yield f"{encoder.pooling}, whitened", lambda sentences: whitening(once(sentences))


def _compared(scores: dict[str, Scores]) -> dict[str, Scores]:
    """Return what the table shows: of several files one column each, so that it fits a screen."""
    return {split: of_split.by_compared() for split, of_split in scores.items()} if "mean" in scores else scores


def _score(encode: Encode, data: Judged) -> Scores:
    if isinstance(data, Collection):
        return evaluate_search(encode, data, show_progress=True)
    if isinstance(data, Reranking):
        return evaluate_reranking(encode, data)
    return evaluate_sts(encode, data) if isinstance(data, Pairs) else evaluate_retrieval(encode, data)


def entry(name: str, pooling: str | None, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return one model's scores for JSON."""
    return {"model": name, "pooling": pooling} | {split: of_split.row() for split, of_split in scores.items()}
