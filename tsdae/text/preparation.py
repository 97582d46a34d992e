"""Text made ready for training: read, some sentences held out, the rest tokenised; on disk where it is asked for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.config import TextConfig
from tsdae.text.building import APART, WORDLESS, Counts, Store, Work, collect, hashes_of
from tsdae.text.cleaning import Cleaning
from tsdae.text.corpus import HELDOUT, Corpus, in_memory
from tsdae.text.formats import TABLES, check_file, suffix_of
from tsdae.text.reading import (
    Texts,
    check_source,
    cleaning_for,
    left_out,
    limit_for,
    load_sentences,
    nothing_left,
    open_texts,
    what_was_read,
)
from tsdae.text.word_boundaries import AUTO, Words
from tsdae.utils import distributed
from tsdae.utils.progress import print_note, progress_bar
from tsdae.utils.rng import keyed

HELDOUT_LARGEST, HELDOUT_SHARE = 1000, 0.1
SHUFFLED = 0x5F1E  # a word in the key that draws an order


def check_text(source: str, text: TextConfig) -> None:
    """ValueError for what can be known to fail before anything is read."""
    check_source(source, text.limit)
    cleaning_of(source, text)
    Words(text.words or AUTO)
    check_heldout(text.heldout)


def cleaning_of(source: str, text: TextConfig) -> Cleaning:
    return cleaning_for(source, text.sentences, text.min_characters, text.max_characters, text.min_letters)


def check_heldout(heldout: str | None) -> None:
    """ValueError unless it is None, a number or a file."""
    if heldout is not None and names_file(heldout):
        check_file(Path(heldout))


def names_file(heldout: str) -> bool:
    return not heldout.isdecimal()


def read_apart(text: TextConfig) -> list[str] | None:
    """The sentences of the file of held-out sentences; None: a number of the text's own are held out."""
    if text.heldout is None or not names_file(text.heldout):
        return None
    column = text.column if suffix_of(Path(text.heldout)) in TABLES else None
    return load_sentences(text.heldout, column, notes=print_note)


def sentences_of(source: str, text: TextConfig, outside: Sequence[Path] = ()) -> Iterator[str]:
    """The sentences of ``source``, cleaned and limited as ``text`` says, without holding more than are drawn.

    Repeated ones too, unless --shuffle draws them. outside: see `files_of`.
    """
    texts, cleaning = open_texts(source, text.column, outside), cleaning_of(source, text)
    chunks = (cleaning(chunk)[0] for chunk in iter(texts.take, []))
    limit = limit_for(source, text.limit)
    if text.shuffle and limit is not None:
        return iter(_drawn(chunks, limit))
    return itertools.islice(itertools.chain.from_iterable(chunks), limit)


def _drawn(chunks: Iterable[list[str]], limit: int) -> list[str]:
    """Those that `divide` draws where none is repeated and no file holds sentences out."""
    drawn: dict[int, str] = {}
    for chunk in chunks:
        drawn.update(zip(keyed(SHUFFLED, hashes_of(chunk)).tolist(), chunk, strict=True))
        if len(drawn) > 2 * limit:
            drawn = dict(sorted(drawn.items())[:limit])
    return [sentence for _, sentence in sorted(drawn.items())[:limit]]


def build_corpora(texts: Texts, source: str, text: TextConfig, tokenizer: Any) -> tuple[Corpus, Corpus | None]:
    """Tokenises what is chosen of the texts, in memory: (to train on, held out or None).

    source: what the texts are called in notes; empty: they are sentences already, and spoken of elsewhere.
    """
    work = Work(tokenizer, text.words or AUTO, cleaning_of(source, text) if source else None)
    store, apart = Store(), read_apart(text)
    counts = gather(texts, source, text, apart, work, store, Counts(), default_workers())
    return divide(Corpus.of(store, counts, work), store.column("hashes"), source, text, apart, work)


def default_workers() -> int:
    """The cores that this process may use, shared with the other processes of a run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // distributed.world_size())


def gather(
    texts: Texts,
    source: str,
    text: TextConfig,
    apart: list[str] | None,
    work: Work,
    store: Store,
    counts: Counts,
    workers: int,
    save: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Fills the store with what is kept of the texts, with a bar, and a note on what was left out."""
    limit = limit_for(source, text.limit)
    size = texts.meter.size
    bar = progress_bar(size, "preparing", "B" if size else " sentences", scaled=True, delay=1)

    def after_piece(counts: Counts) -> None:
        bar.set_postfix_str(f"{counts.rows:,} sentences", refresh=False)
        bar.update((texts.meter.done if size else counts.rows) - bar.n)
        save(counts)

    with bar:
        counts = collect(
            texts,
            work,
            store,
            counts,
            limit=None if text.shuffle else limit,
            keep_repeated=text.keep_repeated,
            apart_hashes=hashes_of(apart) if apart else None,
            workers=workers,
            after_piece=after_piece,
        )
    if not store.rows and not counts.dropped[WORDLESS]:
        if counts.dropped[APART]:
            raise ValueError(f"all sentences of the corpus are held out ({left_out(counts.dropped)})")
        raise nothing_left(source, counts.dropped)
    if source:
        print_note(what_was_read(source, store.rows, limit, counts.dropped))
    return counts


def divide(
    whole: Corpus,
    hash_R: np.ndarray,
    source: str,
    text: TextConfig,
    apart: list[str] | None,
    work: Work,
    new: Callable[[str, int], np.ndarray] = in_memory,
) -> tuple[Corpus, Corpus | None]:
    """(to train on, held out or None). new: makes the arrays of the first."""
    rows = None
    if text.shuffle:
        keys = (hash_R, np.arange(len(hash_R))) if text.keep_repeated else (hash_R,)  # equal ones are not neighbours
        rows = np.argsort(keyed(SHUFFLED, *keys), kind="stable")[: limit_for(source, text.limit)]
        hash_R = hash_R[rows]
    heldout: Corpus | None
    if apart is not None:
        training = np.arange(len(hash_R))
        try:
            heldout = Corpus.build(apart, work.tokenizer, work.words)
        except ValueError as error:
            raise ValueError(f"--heldout {text.heldout}: {error}") from error
    else:
        training, held_out = split_heldout(hash_R, None if text.heldout is None else int(text.heldout))
        heldout = whole.take(held_out if rows is None else rows[held_out]) if len(held_out) else None
    return whole.take(training if rows is None else rows[training], new), heldout


def split_heldout(hash_R: np.ndarray, wanted: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) rows, chosen by the hashes of the text, so that equal sentences stay on one side.

    wanted: how many distinct sentences are held out, those of the smallest hashes, each once; None: 1,000 or 10 % of
    them, whichever is less.
    """
    distinct = np.sort(hash_R)  # np.unique without an index is a table of its own, five times as large
    distinct = distinct[np.append(True, distinct[1:] != distinct[:-1])]
    if wanted is None:
        wanted = min(HELDOUT_LARGEST, int(HELDOUT_SHARE * len(distinct)))
    if wanted >= len(distinct):
        raise ValueError(f"--heldout {wanted} leaves nothing of {len(distinct)} distinct sentences to train on")
    border = distinct[wanted]
    held_out = np.flatnonzero(hash_R < border)
    each_once = held_out[np.unique(hash_R[held_out], return_index=True)[1]]
    return np.flatnonzero(hash_R >= border), each_once


def open_prepared(folder: str | Path) -> tuple[Corpus, Corpus | None]:
    """What `prepare` wrote: (to train on, held out or None), mapped."""
    corpus = Corpus.open(folder)
    held_out = corpus.made_from.get("heldout_sentences", 0)
    heldout = Corpus.open(Path(folder) / HELDOUT) if held_out else None
    if heldout is not None and len(heldout) != held_out:
        raise ValueError(
            f"{folder} is damaged: {HELDOUT}/ holds {len(heldout):,} sentences, and {held_out:,} were held out; "
            "prepare it again"
        )
    return corpus, heldout
