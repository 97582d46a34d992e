"""Show the nearest neighbours of queries in a text under two models, side by side.

# B sentences, D hidden size, Q queries, K neighbours
"""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

import numpy as np

from tsdae.commands.encode import note_truncated
from tsdae.commands.settings import NeighboursConfig
from tsdae.evaluation.retrieval import nearest
from tsdae.evaluation.sts import unit
from tsdae.hub.auto_encoder import Encoder, load_encoders
from tsdae.text.reading import load_sentences
from tsdae.utils.device import choose_device
from tsdae.utils.plural import counted
from tsdae.utils.progress import bars_about, print_note
from tsdae.utils.rng import keyed

QUERIES = 0x9E41  # a word in the key of the queries that are drawn
FEWEST_DIGITS, MOST_DIGITS = 3, 6  # decimals of a cosine; float32 has no more
LINES = 3  # that a sentence may take


def show_neighbours(before: str, after: str, config: NeighboursConfig) -> None:
    """Print each query's nearest sentences under both models side by side, and how many the two share.

    A sentence that occurs several times is one, and a query is not its own neighbour. ValueError, before anything is
    downloaded, if there are too few sentences.
    """
    device = choose_device(config.device)
    sentences = distinct_sentences(config.corpus, config.column, config.limit)
    size, count = len(sentences), config.neighbours
    if size <= count:
        raise ValueError(f"--neighbours {count} needs at least {count + 1} different sentences; the text has {size}")
    queries = [" ".join(text.split()) for text in config.query or []]
    queries = queries or [sentences[row] for row in drawn(size, config.queries or 10, QUERIES)]
    texts = list(dict.fromkeys(sentences + queries))
    row_of = {text: row for row, text in enumerate(texts)}
    query_Q = np.array([row_of[text] for text in queries])
    own_Q = np.where(query_Q < size, query_Q, -1)
    names, found = [], []
    for name, encoder in load_encoders([before, after], config.pooling, device):
        unit_BD = unit_vectors(name, encoder, texts)
        names.append(f"{name} ({encoder.pooling})")
        found.append(nearest(unit_BD[query_Q], unit_BD[:size], own_Q, count))
    decimals = [digits_of(cosine_QK) for _, cosine_QK in found]
    for name, digits in zip(names, decimals, strict=True):
        if digits > FEWEST_DIGITS:
            print_note(f"{name}: all cosines are nearly equal, as usual for a raw model; showing {digits} digits")
    columns = shutil.get_terminal_size().columns
    print(beside(names, columns))
    shared = 0
    for q, query in enumerate(queries):
        print("\n" + "\n".join(wrapped(f"{q + 1}. {query}", columns)))
        both = set(found[0][0][q]) & set(found[1][0][q])
        shared += len(both)
        for k in range(count):
            cells = [
                f"{cosine_QK[q, k]:.{digits}f}{'=' if row_QK[q, k] in both else ' '} {texts[row_QK[q, k]]}"
                for (row_QK, cosine_QK), digits in zip(found, decimals, strict=True)
            ]
            print(beside(cells, columns))
    print(
        f"\nOf {count} neighbours the models share {shared / len(queries):.1f} on average (marked =); "
        f"{counted(len(queries), 'query', 'queries')}, {counted(size, 'different sentence')}"
    )


def digits_of(cosine_QK: np.ndarray) -> int:
    """Return the decimals that tell a query's neighbours apart, at the median query, and from a cosine of 1."""
    differences = [np.median(1.0 - cosine_QK[:, -1])]
    if cosine_QK.shape[1] > 1:
        differences.append(np.median(cosine_QK[:, 0] - cosine_QK[:, -1]))
    return int(np.clip(np.ceil(-np.log10(max(min(differences), 1e-9))), FEWEST_DIGITS, MOST_DIGITS))


def distinct_sentences(
    corpus: str, column: str | None, limit: int | None = None, split: str | None = None
) -> list[str]:
    """Read the sentences of a text, each once; line breaks, tabs and runs of blanks within become one blank.

    split: how documents are split, see `load_sentences`.
    """
    sentences = load_sentences(corpus, column, limit, split, notes=print_note)
    return list(dict.fromkeys(" ".join(sentence.split()) for sentence in sentences))


def drawn(size: int, count: int, key: int) -> np.ndarray:
    """Draw ``count`` of ``size`` rows (or all), in the order of a keyed hash: the same ones every time."""
    return np.argsort(keyed(key, np.arange(size)), kind="stable")[:count]


def unit_vectors(name: str, encoder: Encoder, sentences: list[str]) -> np.ndarray:
    """Embed sentences: float32 [B, D], each of length 1. ValueError if the model's vectors are not finite."""
    print_note(f"{name} ({encoder.pooling}): {counted(len(sentences), 'sentence')}")
    note_truncated(sentences, encoder)
    with bars_about(name):
        unit_BD = unit(encoder.encode(sentences, show_progress=True)).astype(np.float32)
    if not np.isfinite(unit_BD).all():
        raise ValueError(f"the vectors of {name} have NaN or infinite values")
    return unit_BD


# ---------------------------------------------------------------------------------------------------------------
# Two columns of a terminal


def beside(texts: Sequence[str], columns: int) -> str:
    """Set two texts side by side, each wrapped. columns: of the terminal; 40 are taken at least."""
    each = (max(columns, 40) - 3) // 2
    lines = itertools.zip_longest(*(wrapped(text, each) for text in texts), fillvalue="")
    return "\n".join(f"{left}{' ' * (each - display_width(left))} | {right}".rstrip() for left, right in lines)


def wrapped(text: str, columns: int) -> list[str]:
    """Wrap a text into at most 3 lines, the last cut with an ellipsis; what would steer a terminal is blanked."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)
    columns = columns // 2 if any(map(_is_wide, text)) else columns
    return textwrap.wrap(text, columns, max_lines=LINES, placeholder=" …", subsequent_indent=" " * 7)


def display_width(text: str) -> int:
    """Return the columns that a text takes: marks on other letters take none, Chinese characters two."""
    return sum(2 if _is_wide(letter) else unicodedata.category(letter) not in ("Mn", "Me", "Cf") for letter in text)


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"
