"""Prepare a text for training: read it, hold some sentences out, tokenise."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tsdae.config import TextConfig
from tsdae.text.building import APART, WORDLESS, Rows, Work, collect, hashes_of, within_memory
from tsdae.text.cleaning import Cleaning
from tsdae.text.corpus import HELDOUT, Corpus
from tsdae.text.lines import suffix_of
from tsdae.text.reading import (
    Texts,
    check_source,
    files_of,
    in_words,
    limit_for,
    load_sentences,
    no_sentence,
    open_texts,
    split_for,
    what_was_read,
)
from tsdae.text.tables import TABLES
from tsdae.text.word_boundaries import AUTO, Words
from tsdae.utils import distributed
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note, progress_bar
from tsdae.utils.rng import keyed

LESS = "; `tsdae prepare` needs less memory than training from a text, and --limit takes less of it"
HELDOUT_LARGEST, HELDOUT_SHARE = 1000, 0.1
SHUFFLED = 0x5F1E  # a word in the key that draws an order


def check_text(source: str, text: TextConfig) -> None:
    """Raise ValueError for what can be known to fail before anything is read."""
    check_source(source, text.limit)
    cleaning_of(source, text)
    Words(text.words or AUTO)
    check_heldout(text.heldout)


def cleaning_of(source: str, text: TextConfig) -> Cleaning:
    """Return how the texts of this source are split and filtered."""
    split = split_for(source, text.sentences)
    return Cleaning(split, text.min_characters, text.max_characters, text.min_letters or 0.0)


def check_heldout(heldout: str | None) -> None:
    """Raise ValueError unless ``heldout`` is None, a number, or what `files_of` finds."""
    if names_file(heldout):
        files_of(heldout)


def names_file(heldout: str | None) -> TypeGuard[str]:
    """True if --heldout names a file; it can also be a number of sentences or None."""
    return heldout is not None and not heldout.isdecimal()


def _read_apart(text: TextConfig) -> list[str] | None:
    """Return the sentences of the file named by --heldout; None if a number of the text's own are held out."""
    if not names_file(text.heldout):
        return None
    tables = all(suffix_of(path) in TABLES for path in files_of(text.heldout))
    return load_sentences(text.heldout, text.column if tables else None, notes=print_note)


def sentences_of(source: str, text: TextConfig, outside: Sequence[Path] = ()) -> Iterator[str]:
    """Yield the sentences of ``source``, cleaned and limited as ``text`` says, without holding more than are drawn.

    Repeated ones are yielded too, unless --shuffle draws them. outside: see `files_of`.
    """
    texts, cleaning = open_texts(source, text.column, outside), cleaning_of(source, text)
    chunks = (cleaning(chunk)[0] for chunk in iter(texts.take, []))
    limit = limit_for(source, text.limit)
    if text.shuffle and limit is not None:
        return iter(_drawn(chunks, limit))
    return itertools.islice(itertools.chain.from_iterable(chunks), limit)


def _drawn(chunks: Iterable[list[str]], limit: int) -> list[str]:
    """Return the sentences that `build_corpora` draws if none is repeated and no file holds sentences out."""
    drawn: dict[int, str] = {}
    for chunk in chunks:
        drawn.update(zip(keyed(SHUFFLED, hashes_of(chunk)).tolist(), chunk, strict=True))
        if len(drawn) > 2 * limit:
            drawn = dict(sorted(drawn.items())[:limit])
    return [sentence for _, sentence in sorted(drawn.items())[:limit]]


def build_corpora(
    texts: Texts,
    source: str,
    text: TextConfig,
    tokenizer: Any,
    rows: Rows | None = None,
    folder: Path | None = None,
    workers: int | None = None,
) -> tuple[Corpus, Corpus | None]:
    """Clean, choose and tokenise texts as ``text`` says; return (corpus to train on, held-out corpus or None).

    source: name of the texts in notes; empty: they are sentences already, and no note is printed.
    rows: takes what is kept, and may hold the first rows already; None: in memory. folder: takes the arrays to train
    on, see `Corpus.of`. workers: number of processes; None: one for each core.
    """
    work = Work(tokenizer, text.words or AUTO, cleaning_of(source, text) if source else None)
    less = LESS if rows is None else ""
    rows = Rows(tokenizer.unk_token_id) if rows is None else rows
    apart = _read_apart(text)
    limit, size = limit_for(source, text.limit), texts.meter.size
    with (
        within_memory("the text was read and tokenised", less),
        progress_bar(size, "preparing", "B" if size else " sentences", scaled=True, delay=1) as bar,
    ):
        for _ in collect(
            texts,
            work,
            rows,
            limit=None if text.shuffle else limit,
            keep_repeated=text.keep_repeated,
            apart_hashes=hashes_of(apart) if apart else None,
            workers=workers or default_workers(),
        ):
            bar.set_postfix_str(f"{counted(len(rows), 'sentence')}", refresh=False)
            bar.update((texts.meter.done if size else len(rows)) - bar.n)
    if not len(rows) and not rows.dropped[WORDLESS]:
        if rows.dropped[APART]:
            raise ValueError(f"all sentences of the corpus are held out ({in_words(rows.dropped)})")
        raise no_sentence(source, rows.dropped)
    rows.check()
    if source:
        print_note(what_was_read(source, len(rows), limit, rows.dropped, texts.meter.column))

    with within_memory("the rows were divided into those to train on and those held out", less):
        return _divided(rows, work, text, limit, apart, folder)


def _divided(
    rows: Rows, work: Work, text: TextConfig, limit: int | None, apart: list[str] | None, folder: Path | None
) -> tuple[Corpus, Corpus | None]:
    """Draw, hold out and order the rows as ``text`` says. apart: sentences of the file that --heldout names."""
    hash_R, order = rows.hashes, None
    if text.shuffle:
        keys = (hash_R, np.arange(len(rows))) if text.keep_repeated else (hash_R,)  # equal ones are not neighbours
        order = np.argsort(keyed(SHUFFLED, *keys), kind="stable")[:limit]
        hash_R = hash_R[order]
    heldout = None
    if apart is not None:
        training = np.arange(len(hash_R))
        try:
            heldout = Corpus.build(apart, work.tokenizer, work.words)
        except ValueError as error:
            raise ValueError(f"--heldout {text.heldout}: {error}") from error
    else:
        training, held_out = split_heldout(hash_R, None if text.heldout is None else int(text.heldout))
        if len(held_out):
            heldout = Corpus.of(rows, work, held_out if order is None else order[held_out])
    return Corpus.of(rows, work, training if order is None else order[training], folder), heldout


def default_workers() -> int:
    """Return the number of cores of this process: those of the machine, shared among the processes of a run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // distributed.world_size())


def split_heldout(hash_R: np.ndarray, wanted: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (training, held-out) rows, chosen by the hashes of the text, so that equal sentences stay on one side.

    wanted: number of distinct sentences to hold out, those of the smallest hashes, each once; None: 1,000 or 10 % of
    all, whichever is less. ValueError if nothing is left to train on.
    """
    distinct = np.sort(hash_R)  # np.unique without an index is a table of its own, five times as large
    distinct = distinct[np.append(True, distinct[1:] != distinct[:-1])]
    if wanted is None:
        wanted = min(HELDOUT_LARGEST, int(HELDOUT_SHARE * len(distinct)))
    if wanted >= len(distinct):
        raise ValueError(f"--heldout {wanted} leaves none of the {len(distinct)} distinct sentences to train on")
    border = distinct[wanted]
    held_out = np.flatnonzero(hash_R < border)
    each_once = held_out[np.unique(hash_R[held_out], return_index=True)[1]]
    return np.flatnonzero(hash_R >= border), each_once


def open_prepared(folder: str | Path) -> tuple[Corpus, Corpus | None]:
    """Map what tsdae prepare wrote: (corpus to train on, held-out corpus or None)."""
    corpus = Corpus.open(folder)
    held_out = corpus.made_from.get("heldout_sentences", 0)
    heldout = Corpus.open(Path(folder) / HELDOUT) if held_out else None
    if heldout is not None and len(heldout) != held_out:
        raise ValueError(
            f"{folder} is damaged: {HELDOUT}/ holds {counted(len(heldout), 'sentence')} instead of {held_out:,}; "
            "prepare it again"
        )
    return corpus, heldout
