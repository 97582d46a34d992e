"""Compare models on labelled pairs: scores with intervals, and differences from the first model."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsdae.commands.encode import check_writable, note_truncated
from tsdae.commands.settings import CompareConfig
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
from tsdae.evaluation.scores import Scores, table
from tsdae.evaluation.sts import evaluate_sts
from tsdae.hub.auto_encoder import Encoder, check_models, load_encoders
from tsdae.utils.device import choose_device
from tsdae.utils.files import write_json
from tsdae.utils.progress import print_note


def compare(models: list[str], config: CompareConfig) -> list[tuple[str, dict[str, Scores]]]:
    """Print a table row per model and the differences from the first; write the scores to ``config.json``.

    Returns [(name, {split: scores})]. ValueError for what cannot be scored, before anything is downloaded if possible.
    """
    if config.json is not None:
        check_writable(Path(config.json), "--json")
    device = choose_device(config.device)
    # What can be known to fail comes first: the user's own files, then names, then what is downloaded.
    splits = _splits(config) if config.pairs or config.stsb else None
    check_models(models)
    splits = splits or _splits(config)
    rows: list[tuple[str, dict[str, Scores]]] = []
    entries = []
    for name, encoder in load_encoders(models, config.pooling, device):
        scores: dict[str, Scores] = {}
        for split, pairs in splits.items():
            print(f"{name} ({encoder.pooling}): {split}, {len(pairs):,} pairs", file=sys.stderr)
            note_truncated(pairs.first + pairs.second, encoder)
            scores[split] = score(encoder, pairs)
        rows.append((f"{name} ({encoder.pooling})", scores))
        entries.append(entry(name, encoder.pooling, scores))
        if len(rows) > 1:
            from_first = {split: scores[split].minus(rows[0][1][split]).row() for split in scores}
            entries[-1]["difference"] = {"from": models[0]} | from_first
    print(table(rows, differences=True))
    if config.json is not None:
        write_json(Path(config.json), entries)
    return rows


def _splits(config: CompareConfig) -> Mapping[str, Pairs | TextPairs]:
    """Load the pairs to score, {split: pairs}."""
    if config.pairs is not None:
        if columns := columns_without_score(Path(config.pairs), config.columns):
            return {"retrieval": load_text_pairs(Path(config.pairs), columns, print_note)}
        splits = {"pairs": load_pairs(config.pairs, print_note)}
    else:
        stsb, split = load_stsb(config.stsb), config.split or "both"
        splits = {name: stsb[name] for name in (("dev", "test") if split == "both" else (split,))}
    for pairs in splits.values():
        check_labels(pairs)
    return splits


def score(encoder: Encoder, pairs: Pairs | TextPairs) -> Scores:
    """Score a model with a progress bar: correlations, or retrieval where the pairs have no scores."""
    encode = functools.partial(encoder.encode, show_progress=True)
    return evaluate_retrieval(encode, pairs) if isinstance(pairs, TextPairs) else evaluate_sts(encode, pairs)


def entry(name: str, pooling: str, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return one model's scores for JSON."""
    return {"model": name, "pooling": pooling} | {split: of_split.row() for split, of_split in scores.items()}
