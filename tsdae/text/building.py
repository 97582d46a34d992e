"""From texts to tokenised rows, on all cores, without ever holding a text in full: what corpora are made of.

Texts come in chunks; each is cleaned and tokenised by itself, in worker processes where there is much of it, and comes
back as a `Piece` in the order of the text. Repeated sentences are found by a hash of 64 bits, and the rows grow in a
`Store`, in memory or in files. A pair of a store and its `Counts` is all that is needed to go on after a stop.

# B sentences of a piece, T packed tokens, R rows
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsdae.packing import ranges
from tsdae.text.cleaning import Cleaning
from tsdae.text.marks import BEGINS_WORD, SPECIAL, tokenize
from tsdae.text.reading import TEXTS_AT_ONCE, Texts
from tsdae.text.word_boundaries import Figures, Words
from tsdae.utils.signals import when_parent_ends

# The columns of a store: of each token, or of each row.
COLUMNS = {"token_ids": np.int32, "marks": np.uint8, "lengths": np.int64, "hashes": np.uint64}
OF_TOKENS = ("token_ids", "marks")
ALONE = 2**15 // TEXTS_AT_ONCE  # chunks done before worker processes are started, which takes them seconds
FULL, INSERTED_AT_ONCE = 0.7, 2**20  # of `Seen`
REPEATED, WORDLESS, APART = "repeated", "without a word", "held out by a file"


class Piece(NamedTuple):
    """Sentences of one chunk of texts, tokenised; those without a word are left out.

    columns: by the names of ``COLUMNS``. characters_B: of each sentence, without spaces. met: see `words.Words`.
    dropped: how many sentences were left out for which reason. texts: how many the chunk had.
    """

    columns: dict[str, np.ndarray]
    characters_B: np.ndarray
    met: Counter[str]
    dropped: Counter[str]
    texts: int

    def at(self, row_B: np.ndarray) -> Piece:
        """Only these sentences."""
        lengths_B = self.columns["lengths"]
        starts_B = np.cumsum(lengths_B) - lengths_B
        places_T = ranges(starts_B[row_B], lengths_B[row_B])
        columns = {name: column[places_T if name in OF_TOKENS else row_B] for name, column in self.columns.items()}
        return self._replace(columns=columns, characters_B=self.characters_B[row_B])


@dataclass
class Work:
    """What is done to each chunk of texts, in whichever process."""

    tokenizer: Any
    words: str = "auto"
    cleaning: Cleaning | None = None  # None: the texts are sentences as they are

    def __call__(self, texts: Sequence[str]) -> Piece:
        sentences, dropped = self.cleaning(texts) if self.cleaning else (texts, Counter[str]())
        if not sentences:
            none = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
            return Piece(none, np.zeros(0, np.int64), Counter(), dropped, len(texts))
        definition = Words(self.words)
        tokens, marks_T = tokenize(sentences, self.tokenizer, definition)
        begins_T = np.append(0, np.cumsum(marks_T == BEGINS_WORD))
        has_words_B = begins_T[tokens.boundaries[1:]] > begins_T[tokens.boundaries[:-1]]
        columns = {
            "token_ids": tokens.token_ids_T.astype(COLUMNS["token_ids"]),
            "marks": marks_T,
            "lengths": tokens.lengths_B,
            "hashes": hashes_of(sentences),
        }
        characters_B = np.array([len(sentence) - sentence.count(" ") for sentence in sentences], dtype=np.int64)
        piece = Piece(columns, characters_B, +definition.met, dropped, len(texts))
        if has_words_B.all():
            return piece
        dropped[WORDLESS] += int((~has_words_B).sum())
        return piece.at(np.flatnonzero(has_words_B))


def hashes_of(sentences: Sequence[str]) -> np.ndarray:
    """uint64 [B]: the first 64 bits of BLAKE2b. Of 10 million sentences, two agree by chance once in 370,000 times."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8", "replace")).digest()[:8] for text in sentences)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def pieces(texts: Texts, work: Work, workers: int, wanted: Callable[[], int | None] = lambda: None) -> Iterator[Piece]:
    """The chunks of these texts, worked on; the order is that of the text under any number of ``workers``.

    wanted: how many sentences are still needed; no more texts than these are read at once.
    """
    chunks = iter(lambda: texts.take(wanted()), [])
    yield from map(work, itertools.islice(chunks, None if workers == 1 else ALONE))
    following = next(chunks, None)
    if following is None:
        return
    waiting: deque[concurrent.futures.Future[Piece]] = deque()
    # spawn: a process that was forked beside running threads can hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (work.tokenizer, work.words, work.cleaning)
    )
    try:
        while following is not None or waiting:
            while following is not None and len(waiting) < 2 * workers:
                with _without_ctrl_c():  # the processes that it starts are not to end in the midst of their imports
                    waiting.append(pool.submit(_do, following))
                following = next(chunks, None)
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was ended from outside, perhaps for want of memory; scripts/prepare.py --workers 1 needs "
            "the least"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """SIGINT waits until the end; processes started meanwhile never get it. Where there are no such masks: nothing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: Work  # of a worker process


def _start(tokenizer: Any, words: str, cleaning: Cleaning | None) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    when_parent_ends(lambda: os._exit(1))  # a worker whose first process was killed would wait for work for ever
    _work = Work(tokenizer, words, cleaning)


def _do(texts: list[str]) -> Piece:
    return _work(texts)


class Seen:
    """The hashes met so far: a table with open addressing, at most 70 % full: 134 MB for ten million."""

    def __init__(self) -> None:
        self._table = np.zeros(2**16, np.uint64)  # 0: free
        self._count = 0

    def add(self, hash_B: np.ndarray) -> np.ndarray:
        """bool [B]: whether each is met for the first time."""
        value_B = np.maximum(hash_B, 1)
        first_B = np.zeros(len(value_B), dtype=bool)
        values, places = np.unique(value_B, return_index=True)
        size = len(self._table)
        while self._count + len(values) > FULL * size:
            size *= 2
        if size > len(self._table):
            before = self._table[self._table > 0]
            self._table = np.zeros(size, np.uint64)
            for start in range(0, len(before), INSERTED_AT_ONCE):
                self._insert(before[start : start + INSERTED_AT_ONCE])
        first_B[places[self._insert(values)]] = True
        self._count += int(first_B.sum())
        return first_B

    def _insert(self, values: np.ndarray) -> np.ndarray:
        """bool: which of these distinct values were not there."""
        last = np.uint64(len(self._table) - 1)
        new = np.zeros(len(values), dtype=bool)
        left = np.arange(len(values))
        slot = values & last
        while len(left):
            free = self._table[slot] == 0
            self._table[slot[free]] = values[left[free]]  # of several that want one slot, one gets it
            own = self._table[slot] == values[left]
            new[left[own & free]] = True
            left, slot = left[~own], (slot[~own] + np.uint64(1)) & last
        return new


class Store:
    """Rows as they grow: in memory, or in the files COLUMN.bin of a folder.

    rows, tokens: how many of a store on disk count; what stands behind them was written before a stop, and goes.
    """

    def __init__(self, folder: Path | None = None, rows: int = 0, tokens: int = 0) -> None:
        self.rows, self.tokens, self._folder = rows, tokens, folder
        self._files: dict[str, Any] = {name: io.BytesIO() for name in COLUMNS}
        if folder is not None:
            self._files = {name: (folder / f"{name}.bin").open("r+b" if rows else "w+b") for name in COLUMNS}
            for name, file in self._files.items():
                file.truncate(np.dtype(COLUMNS[name]).itemsize * self._size(name))
                file.seek(0, io.SEEK_END)

    def _size(self, name: str) -> int:
        return self.tokens if name in OF_TOKENS else self.rows

    def append(self, piece: Piece) -> None:
        for name, column in piece.columns.items():
            self._files[name].write(np.ascontiguousarray(column, COLUMNS[name]).data)
        self.rows += len(piece.columns["lengths"])
        self.tokens += len(piece.columns["marks"])

    def sync(self) -> None:
        """Everything written is on the disk after this."""
        for file in self._files.values():
            file.flush()
            if self._folder is not None:
                os.fsync(file.fileno())

    def column(self, name: str) -> np.ndarray:
        """All of a column; of a store on disk it is mapped."""
        if self._folder is None:
            return np.frombuffer(self._files[name].getbuffer(), COLUMNS[name])
        self._files[name].flush()
        size = self._size(name)
        return np.asarray(np.memmap(self._folder / f"{name}.bin", COLUMNS[name], "r", shape=(size,)) if size else [])

    def close(self) -> None:
        for file in self._files.values():
            file.close()


@dataclass
class Counts:
    """What was met on the way, in whole numbers: all that has to be known to go on after so many ``texts``.

    rows, tokens: of the store. words, ordinary, characters, unknown: as in `words.Figures`, of the rows of the store.
    """

    texts: int = 0
    rows: int = 0
    tokens: int = 0
    words: int = 0
    ordinary: int = 0
    characters: int = 0
    unknown: int = 0
    met: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Counts:
        """From JSON."""
        return cls(**saved | {"met": Counter(saved["met"]), "dropped": Counter(saved["dropped"])})

    def add(self, piece: Piece, unknown_id: int | None) -> None:
        """A piece that was appended to the store."""
        marks_T, ordinary_T = piece.columns["marks"], piece.columns["marks"] != SPECIAL
        self.texts += piece.texts
        self.rows += len(piece.columns["lengths"])
        self.tokens += len(marks_T)
        self.words += int((marks_T == BEGINS_WORD).sum())
        self.ordinary += int(ordinary_T.sum())
        self.characters += int(piece.characters_B.sum())
        self.unknown += int((ordinary_T & (piece.columns["token_ids"] == unknown_id)).sum())
        self.met += piece.met
        self.dropped += piece.dropped

    @property
    def figures(self) -> Figures:
        return Figures(self.words, self.ordinary, self.characters, self.unknown, dict(self.met))


def collect(
    texts: Texts,
    work: Work,
    store: Store,
    counts: Counts,
    *,
    limit: int | None = None,
    keep_repeated: bool = False,
    apart_hashes: np.ndarray | None = None,
    workers: int = 1,
    after_piece: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Fills the store with the sentences of these texts, from the first text that was not counted yet.

    limit: of rows. keep_repeated: a sentence that was met before is kept. apart_hashes: of sentences that are left out.
    after_piece: called with the counts whenever store and counts belong together; they are a copy, to be kept.
    """
    seen = Seen()
    if store.rows and not keep_repeated:
        seen.add(store.column("hashes"))
    texts.skip(counts.texts)
    counts = copy.deepcopy(counts)
    if apart_hashes is not None:
        apart_hashes = np.unique(apart_hashes)
    for piece in pieces(texts, work, workers, lambda: None if limit is None else limit - store.rows):
        hash_B = piece.columns["hashes"]
        wanted_B = np.ones(len(hash_B), dtype=bool)
        if apart_hashes is not None and len(apart_hashes):
            wanted_B = ~_are_in(hash_B, apart_hashes)
            piece.dropped[APART] += int((~wanted_B).sum())
        if not keep_repeated:
            new_B = seen.add(hash_B)
            piece.dropped[REPEATED] += int((wanted_B & ~new_B).sum())
            wanted_B &= new_B
        rows = np.flatnonzero(wanted_B)
        if limit is not None:
            rows = rows[: limit - store.rows]
        chosen = piece if len(rows) == len(hash_B) else piece.at(rows)
        store.append(chosen)
        counts.add(chosen, work.tokenizer.unk_token_id)
        after_piece(dataclasses.replace(counts, met=counts.met.copy(), dropped=counts.dropped.copy()))
        if store.rows == limit:
            break
    return counts


def _are_in(value_B: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    """bool [B]. np.isin would sort both at every call."""
    place_B = np.minimum(np.searchsorted(sorted_values, value_B), len(sorted_values) - 1)
    return sorted_values[place_B] == value_B
