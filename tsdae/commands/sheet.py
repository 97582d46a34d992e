"""Write a sheet of sentence pairs from one's own text to score by hand: those about which models disagree.

# B sentences, D hidden size, M models, K neighbours, P pairs
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tsdae.commands.encode import check_writable
from tsdae.commands.neighbours import distinct_sentences, drawn, unit_vectors
from tsdae.commands.settings import SAMPLED, CompareConfig, SheetConfig
from tsdae.evaluation.retrieval import nearest
from tsdae.hub.auto_encoder import load_encoders
from tsdae.utils.device import choose_device
from tsdae.utils.rng import keyed

SAMPLE, PARTNERS, SHUFFLE = 0x9E42, 0x9E43, 0x9E44  # words in the keys of what is drawn
NEAR = 3  # neighbours of a sentence under each model that become its partners, and as many drawn at random
CONTESTED = 0.75  # share of the sheet about which the models disagree most


def make_sheet(models: list[str], config: SheetConfig, compare: CompareConfig) -> None:
    """Write ``config.sheet``: sentence1, sentence2 and an empty score; print what to do with it.

    ValueError, before anything is downloaded: fewer than two models, settings of a comparison, a sheet that is there
    already, too few sentences. And after it, if the models never disagree.
    """
    for name in ("pairs", "columns", "retrieval", "rerank", "whiten", "stsb", "split", "json"):
        if getattr(compare, name) is not None:
            raise ValueError(f"--make-pairs writes a sheet and evaluates nothing; it cannot be used with --{name}")
    if len(set(models)) < 2:
        raise ValueError("--make-pairs needs at least two different models: it samples pairs on which they disagree")
    path = Path(str(config.sheet))
    check_writable(path, "--sheet")
    if path.exists():
        raise ValueError(f"--sheet {path} exists, perhaps with scores; choose another name")
    device, count = choose_device(compare.device), config.make_pairs or 0
    sentences = distinct_sentences(str(config.corpus), config.column)
    if len(sentences) < count:
        raise ValueError(f"--make-pairs {count} needs {count} different sentences; the text has {len(sentences)}")
    sentences = [sentences[row] for row in drawn(len(sentences), SAMPLED, SAMPLE)]
    encoders = load_encoders(models, compare.pooling, device)
    chosen = choose_pairs([unit_vectors(*named, sentences) for named in encoders], count)
    # A .csv is for spreadsheets, which take its letters for Latin ones unless it begins with this mark.
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    encoding, style = ("utf-8", tabs) if path.suffix == ".tsv" else ("utf-8-sig", {})
    with path.open("x", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator="\n", **style)
        writer.writerow(["sentence1", "sentence2", "score"])
        writer.writerows([sentences[first], sentences[second], ""] for first, second in chosen)
    pooling = ["--pooling", compare.pooling] if compare.pooling else []
    command = shlex.join(["tsdae", "evaluate", *models, "--pairs", str(path), *pooling])
    print(
        f"wrote {len(chosen):,} pairs to {path}. Fill in the column score, from 0 (nothing in common) to 5 (the same "
        f"meaning); rows without a score are skipped. Then:\n{command}\n"
        "Most pairs are those on which these models disagree: the result tells which model is better, not how good it "
        "is."
    )


def choose_pairs(unit_MBD: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Choose pairs of sentences worth scoring, [count, 2] rows, in an order that says nothing.

    unit_MBD: each model's unit vectors of the same sentences, at least as many as pairs are asked for.
    Each model ranks all candidates by cosine. For three quarters of the pairs the models take turns: each names the
    pair that it ranks farthest above another model's rank, with no sentence that has been named before where that can
    be had. (By turns, since a poor model sees likeness everywhere: most pairs of the greatest disagreement would be
    unlike, and equal scores rank nothing.) The rest are spread evenly over the mean rank.
    ValueError if the ranks never differ.
    """
    pair_P2 = _candidates(unit_MBD)
    rank_MP = np.stack([rankdata(np.einsum("pd,pd->p", *unit_BD[pair_P2.T])) for unit_BD in unit_MBD])
    above_MP = rank_MP - rank_MP.min(axis=0)
    if not above_MP.any():
        raise ValueError("the models rank all pairs alike, so scores could not tell them apart")
    fresh: list[int] = []
    again: list[int] = []
    named: set[int] = set()
    in_turn = np.argsort(-above_MP, axis=1, kind="stable").T.ravel()
    for place in dict.fromkeys(in_turn.tolist()):
        ends = set(pair_P2[place].tolist())
        if ends & named:
            again.append(place)
        else:
            fresh.append(place)
            named |= ends
    contested = (fresh + again)[: round(CONTESTED * count)]
    by_rank = np.argsort(rank_MP.mean(axis=0), kind="stable")
    others = by_rank[~np.isin(by_rank, contested)]
    spread = others[np.linspace(0, len(others) - 1, count - len(contested)).astype(int)]
    chosen = np.concatenate([contested, spread])
    return pair_P2[chosen[drawn(count, count, SHUFFLE)]]


def _candidates(unit_MBD: Sequence[np.ndarray]) -> np.ndarray:
    """Pair each sentence with its nearest neighbours under each model, and with random ones: [P, 2], each pair once."""
    row_B = np.arange(len(unit_MBD[0]))
    near = [nearest(unit_BD, unit_BD, row_B, NEAR)[0] for unit_BD in unit_MBD]
    random = keyed(PARTNERS, row_B[:, None], np.arange(NEAR * len(near))) % np.uint64(len(row_B))
    partner_BK = np.concatenate([*near, random.astype(np.int64)], axis=1)
    pair_P2 = np.stack([np.repeat(row_B, partner_BK.shape[1]), partner_BK.ravel()], axis=1)
    return np.unique(np.sort(pair_P2[pair_P2[:, 0] != pair_P2[:, 1]], axis=1), axis=0)
