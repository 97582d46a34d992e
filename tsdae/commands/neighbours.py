"""Should I trust it? What one model finds beside what another finds; a sheet of pairs from one's own text to score.

# B sentences, D width, Q queries, K neighbours, M models, P pairs
"""

from __future__ import annotations

import csv
import itertools
import re
import shlex
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from tsdae.commands.evaluate import CompareConfig, Encoder, check_writable, load_encoders, note_truncated
from tsdae.config import flag
from tsdae.evaluation.retrieval import nearest
from tsdae.evaluation.sts import unit
from tsdae.text.reading import load_sentences
from tsdae.utils.device import choose_device
from tsdae.utils.progress import print_note
from tsdae.utils.rng import keyed

QUERIES, SAMPLE, PARTNERS, SHUFFLE = 0x9E41, 0x9E42, 0x9E43, 0x9E44  # words in the keys of what is drawn
SAMPLED = 2000  # sentences among which pairs are looked for
NEAR = 3  # neighbours of each of them that become candidates, under each model, and as many drawn at random
CONTESTED = 0.75  # share of the sheet about which the models disagree most
WRAPPED = 3  # lines that a sentence may take beside another


@dataclass(frozen=True)
class SheetConfig:
    """Writes a sheet of sentence pairs to score by hand, for --pairs, and scores nothing."""

    make_pairs: int | None = flag(
        None, "write so many pairs of your own sentences, to score by hand; most where the models disagree"
    )
    corpus: str | None = flag(None, "with --make-pairs: the text, a sentence a line, or a table; see --column")
    column: str | None = flag(None, "with --make-pairs: column of a table that holds the text")
    sheet: str | None = flag(None, "with --make-pairs: file to write, .tsv or .csv")

    def __post_init__(self) -> None:
        if self.make_pairs is None:
            for name in ("corpus", "column", "sheet"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} is for --make-pairs; a sheet that has been filled in goes to --pairs")
            return
        if not 3 <= self.make_pairs <= SAMPLED:
            raise ValueError(f"--make-pairs must lie between 3 and {SAMPLED:,}, got {self.make_pairs}")
        if self.corpus is None:
            raise ValueError("--make-pairs needs --corpus: the text from which the sentences come")
        if self.sheet is None or not self.sheet.endswith((".tsv", ".csv")):
            raise ValueError("--make-pairs needs --sheet: the file to write, whose name ends in .tsv or .csv")


def make_sheet(models: list[str], config: SheetConfig, compare: CompareConfig) -> None:
    """Writes ``config.sheet``: sentence1, sentence2 and an empty score; prints what to do with it.

    ValueError, before anything is downloaded: fewer than two models, settings of a comparison, a sheet that is there
    already, too few sentences. And after it, if the models never disagree.
    """
    for name in ("pairs", "stsb", "split", "json"):
        if getattr(compare, name) is not None:
            raise ValueError(f"--make-pairs writes a sheet and scores nothing: it has no use for --{name}")
    if len(set(models)) < 2:
        raise ValueError("--make-pairs needs two models at least: it looks for pairs about which they disagree")
    path = Path(str(config.sheet))
    check_writable(path, "--sheet")
    if path.exists():
        raise ValueError(f"--sheet {path} is there already, perhaps with scores; choose another name")
    device, count = choose_device(compare.device), config.make_pairs or 0
    sentences = distinct_sentences(str(config.corpus), config.column)
    if len(sentences) < count:
        raise ValueError(f"--make-pairs {count} needs {count} different sentences; there are {len(sentences)}")
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
    command = shlex.join(["python", "scripts/evaluate.py", *models, "--pairs", str(path), *pooling])
    print(
        f"wrote {len(chosen):,} pairs to {path}. Fill in the column score, from 0 (nothing in common) to 5 (the same "
        f"meaning); what stays empty is left out. Then:\n{command}\n"
        "Most pairs are those about which these models disagree: the figures say which is better, not how good it is."
    )


def choose_pairs(unit_MBD: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Pairs of sentences worth scoring, [count, 2] rows, in an order that says nothing.

    unit_MBD: each model's unit vectors of the same sentences, at least as many as pairs are asked for. Candidates are
    the nearest neighbours under each model, and random pairs, and each model ranks all of them by cosine. For three
    quarters of the pairs the models take turns: each names the pair that it ranks farthest above another model's rank,
    with no sentence that has been named before where that can be had. (By turns, since a poor model sees likeness
    everywhere: most pairs of the greatest disagreement would be unlike, and equal scores rank nothing.) The rest are
    spread evenly over the mean rank. ValueError if the ranks never differ.
    """
    row_B = np.arange(len(unit_MBD[0]))
    near = [nearest(unit_BD, unit_BD, row_B, NEAR)[0] for unit_BD in unit_MBD]
    random = keyed(PARTNERS, row_B[:, None], np.arange(NEAR * len(near))) % np.uint64(len(row_B))
    partner_BK = np.concatenate([*near, random.astype(np.int64)], axis=1)
    pair_P2 = np.stack([np.repeat(row_B, partner_BK.shape[1]), partner_BK.ravel()], axis=1)
    pair_P2 = np.unique(np.sort(pair_P2[pair_P2[:, 0] != pair_P2[:, 1]], axis=1), axis=0)
    rank_MP = np.stack([rankdata(np.einsum("pd,pd->p", *unit_BD[pair_P2.T])) for unit_BD in unit_MBD])
    above_MP = rank_MP - rank_MP.min(axis=0)
    if not above_MP.any():
        raise ValueError("the models order all pairs alike, so that no score could tell them apart")
    fresh: list[int] = []
    again: list[int] = []
    seen: set[int] = set()
    in_turn = np.argsort(-above_MP, axis=1, kind="stable").T.ravel()
    for place in dict.fromkeys(in_turn.tolist()):
        ends = set(pair_P2[place].tolist())
        if ends & seen:
            again.append(place)
        else:
            fresh.append(place)
            seen |= ends
    contested = (fresh + again)[: round(CONTESTED * count)]
    by_rank = np.argsort(rank_MP.mean(axis=0), kind="stable")
    others = by_rank[~np.isin(by_rank, contested)]
    spread = others[np.linspace(0, len(others) - 1, count - len(contested)).astype(int)]
    chosen = np.concatenate([contested, spread])
    return pair_P2[chosen[drawn(count, count, SHUFFLE)]]


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """What to look for in which text."""

    corpus: str = field(metadata={"help": "text file (a sentence a line), jsonl, csv, tsv, parquet, - or hub:NAME"})
    column: str | None = flag(None, "column of a table that holds the text")
    limit: int | None = flag(None, "stop after so many sentences")
    queries: int | None = flag(None, "sentences of the text whose neighbours are shown; default: 10")
    query: list[str] | None = field(
        default=None, metadata={"help": "texts of your own whose neighbours are shown, each in quotes"}
    )
    neighbours: int = flag(3, "shown for each query")
    pooling: Literal["cls", "mean", "max"] | None = flag(None, "for both models; default: what each folder says")
    device: str = flag("auto", "auto, cuda, cpu or mps")

    def __post_init__(self) -> None:
        if self.query is not None and self.queries is not None:
            raise ValueError("--queries draws sentences and --query gives them; choose one")
        if self.query is not None and not all(text.strip() for text in self.query):
            raise ValueError("--query holds an empty text")
        for name, value in (("queries", self.queries), ("neighbours", self.neighbours)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")


def show_neighbours(before: str, after: str, config: NeighboursConfig) -> None:
    """Prints each query's nearest sentences under both models side by side, and how many the two share.

    A sentence that occurs several times is one, and a query is not its own neighbour. ValueError, before anything is
    downloaded, if there are too few sentences.
    """
    device = choose_device(config.device)
    sentences = distinct_sentences(config.corpus, config.column, config.limit)
    size, count = len(sentences), config.neighbours
    if size <= count:
        raise ValueError(f"--neighbours {count} needs {count + 1} different sentences at least; there are {size}")
    queries = [" ".join(text.split()) for text in config.query or []]
    queries = queries or [sentences[row] for row in drawn(size, config.queries or 10, QUERIES)]
    texts = list(dict.fromkeys(sentences + queries))
    row_of = {text: row for row, text in enumerate(texts)}
    query_Q = np.array([row_of[text] for text in queries])
    heads, found = [], []
    for name, encoder in load_encoders([before, after], config.pooling, device):
        unit_BD = unit_vectors(name, encoder, texts)
        heads.append(f"{name} ({encoder.pooling})")
        found.append(nearest(unit_BD[query_Q], unit_BD[:size], np.where(query_Q < size, query_Q, -1), count))
    width = shutil.get_terminal_size().columns
    print(beside(heads, width))
    shared = 0
    for q, query in enumerate(queries):
        print("\n" + "\n".join(wrapped(f"{q + 1}. {query}", width)))
        both = set(found[0][0][q]) & set(found[1][0][q])
        shared += len(both)
        for k in range(count):
            cells = [
                f"{cosine_QK[q, k]:.3f}{'=' if row_QK[q, k] in both else ' '} {texts[row_QK[q, k]]}"
                for row_QK, cosine_QK in found
            ]
            print(beside(cells, width))
    print(
        f"\nOf {count} neighbours the models share {shared / len(queries):.1f} on average (marked =); "
        f"{len(queries):,} queries, {size:,} different sentences"
    )


def beside(texts: Sequence[str], width: int) -> str:
    """Two texts in columns, each wrapped. width: columns of the terminal; 40 are taken at least."""
    column = (max(width, 40) - 3) // 2
    lines = itertools.zip_longest(*(wrapped(text, column) for text in texts), fillvalue="")
    return "\n".join(f"{left}{' ' * (column - display_width(left))} | {right}".rstrip() for left, right in lines)


def wrapped(text: str, width: int) -> list[str]:
    """At most 3 lines of ``width`` columns, the last cut with an ellipsis; what would steer a terminal is blanked."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)  # two columns each
    width = width // 2 if wide else width
    return textwrap.wrap(text, width, max_lines=WRAPPED, placeholder=" …", subsequent_indent=" " * 7)


def display_width(text: str) -> int:
    """Columns that a text takes in a terminal: marks on other letters take none, Chinese characters two."""
    return sum(
        2
        if unicodedata.east_asian_width(character) in "WF"
        else unicodedata.category(character) not in ("Mn", "Me", "Cf")
        for character in text
    )


# ---------------------------------------------------------------------------------------------------------------
# What both need


def distinct_sentences(corpus: str, column: str | None, limit: int | None = None) -> list[str]:
    """Those of a text, each once; line breaks, tabs and runs of blanks within become one blank."""
    sentences = load_sentences(corpus, column, limit, notes=print_note)
    return list(dict.fromkeys(" ".join(sentence.split()) for sentence in sentences))


def drawn(size: int, count: int, key: int) -> np.ndarray:
    """``count`` of ``size`` rows (or all), in the order of a keyed hash: the same ones every time."""
    return np.argsort(keyed(key, np.arange(size)), kind="stable")[:count]


def unit_vectors(name: str, encoder: Encoder, sentences: list[str]) -> np.ndarray:
    """float32 [B, D], each of length 1. ValueError if the model gives vectors that are not finite."""
    print_note(f"{name} ({encoder.pooling}): {len(sentences):,} sentences")
    note_truncated(sentences, encoder)
    unit_BD = unit(encoder.encode(sentences, show_progress=True)).astype(np.float32)
    if not np.isfinite(unit_BD).all():
        raise ValueError(f"{name} gives vectors that are not finite")
    return unit_BD
