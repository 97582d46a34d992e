"""Compare models on labelled pairs: scores with intervals, and differences from the first model."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from tsdae.commands.encode import check_writable, note_truncated
from tsdae.commands.settings import CompareConfig
from tsdae.evaluation.retrieval import TextPairs, columns_without_score, evaluate_retrieval, load_text_pairs
from tsdae.evaluation.sts import (
    LABELS,
    Figure,
    Pairs,
    Score,
    Scored,
    bracketed,
    check_labels,
    evaluate_sts,
    json_row,
    load_pairs,
    load_stsb,
    table,
)
from tsdae.hub.auto_encoder import Encoder, check_models, load_encoders
from tsdae.utils.device import choose_device
from tsdae.utils.files import write_json
from tsdae.utils.progress import print_note


def compare(models: list[str], config: CompareConfig) -> list[tuple[str, dict[str, Scored]]]:
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
    rows: list[tuple[str, dict[str, Scored]]] = []
    entries = []
    for name, encoder in load_encoders(models, config.pooling, device):
        scores: dict[str, Scored] = {}
        for split, pairs in splits.items():
            print(f"{name} ({encoder.pooling}): {split}, {len(pairs):,} pairs", file=sys.stderr)
            note_truncated(pairs.first + pairs.second, encoder)
            scores[split] = score(encoder, pairs)
        rows.append((f"{name} ({encoder.pooling})", scores))
        entries.append(entry(name, encoder.pooling, scores))
        if len(rows) > 1:
            from_first = {split: json_row(of_split) for split, of_split in differences(scores, rows[0][1]).items()}
            entries[-1]["difference"] = {"from": models[0]} | from_first
    print(table(rows))
    if len(rows) > 1:
        print(difference_table(rows))
    if config.json is not None:
        write_json(Path(config.json), entries)
    return rows


def _splits(config: CompareConfig) -> Mapping[str, Pairs | TextPairs]:
    """The pairs to score, {split: pairs}."""
    if config.pairs is not None:
        if columns := columns_without_score(Path(config.pairs)):
            return {"retrieval": load_text_pairs(Path(config.pairs), columns, print_note)}
        splits = {"pairs": load_pairs(config.pairs, print_note)}
    else:
        wanted = ("dev", "test") if config.split in (None, "both") else (config.split,)
        stsb = load_stsb(config.stsb)
        splits = {name: stsb[name] for name in wanted}
    for pairs in splits.values():
        check_labels(pairs)
    return splits


@overload
def score(encoder: Encoder, pairs: Pairs) -> Score: ...
@overload
def score(encoder: Encoder, pairs: Pairs | TextPairs) -> Scored: ...
def score(encoder: Encoder, pairs: Pairs | TextPairs) -> Scored:
    """Score a model with a progress bar: correlations, or retrieval where the pairs have no scores."""
    encode = functools.partial(encoder.encode, show_progress=True)
    return evaluate_retrieval(encode, pairs) if isinstance(pairs, TextPairs) else evaluate_sts(encode, pairs)


def entry(name: str, pooling: str, scores: Mapping[str, Scored]) -> dict[str, Any]:
    """Return one model's scores for JSON."""
    return {"model": name, "pooling": pooling} | {split: scored.row() for split, scored in scores.items()}


def differences(scores: Mapping[str, Scored], first: Mapping[str, Scored]) -> dict[str, dict[str, Figure]]:
    """Return one model's scores minus another's, {split: {metric: difference}}, of the metrics that are compared."""
    return {
        split: {name: scored.figures()[name].minus(first[split].figures()[name]) for name in scored.compared}
        for split, scored in scores.items()
    }


def difference_table(rows: Sequence[tuple[str, Mapping[str, Scored]]]) -> str:
    """Return how each further model differs from the first: value, interval and a verdict in words."""
    first, scores_of_first = rows[0]
    lines = [f"Difference from {first}; [95 % interval, both models on the same resamples of the pairs]"]
    width = max(len(name) for name, _ in rows[1:])
    for name, scores in rows[1:]:
        for split, of_split in differences(scores, scores_of_first).items():
            for metric, difference in of_split.items():
                value, ends = f"{difference.value:+.2f}", bracketed(difference.ci95, "+")
                lines.append(
                    f"{name:<{width}}  {split} {LABELS[metric]:<10} {value:>7} {ends:>18}  {verdict(difference)}"
                )
    lines.append("(of these trained models; how much results vary over training seeds: `tsdae ablate`)")
    return "\n".join(lines)


def verdict(difference: Figure) -> str:
    """Return what a difference between two models shows: its interval decides."""
    low, high = difference.ci95
    if math.isnan(difference.value):
        return "not defined"
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"
