"""Turn texts into tokenised rows, on all cores, without holding a text in full.

A text is read in chunks. Each chunk is cleaned and tokenised on its own, by worker processes if the text is long, and
becomes a `Piece`; pieces come back in the order of the text. `Rows` holds what is kept of them: in memory, or as one
file a piece, and these files are all that is needed to resume after a stop.

# B sentences of a piece, T packed tokens, R rows
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.packing import ranges
from tsdae.text.cleaning import Cleaning
from tsdae.text.marks import BEGINS_WORD, SPECIAL, tokenize
from tsdae.text.reading import TEXTS_AT_ONCE, Texts
from tsdae.text.word_boundaries import WordCounts, Words
from tsdae.utils.signals import when_parent_ends

# The columns of a piece: one value per token, or one per sentence (characters: without spaces).
COLUMNS = {"token_ids": np.int32, "marks": np.uint8, "lengths": np.int32, "characters": np.int32, "hashes": np.uint64}
OF_TOKENS = ("token_ids", "marks")
ALONE = 2**15 // TEXTS_AT_ONCE  # chunks done before worker processes are started, which takes them seconds
RECENT = 2**16  # hashes that `Seen` keeps apart before it merges them
REPEATED, WORDLESS, APART = "repeated", "without a word", "held out by a file"


@dataclass
class Piece:
    """Tokenised sentences of one chunk of texts; those without a word are left out.

    columns: arrays by the names of ``COLUMNS``. texts: number of texts in the chunk. met: see `word_boundaries.Words`.
    dropped: number of sentences left out, by reason.
    """

    columns: dict[str, np.ndarray]
    texts: int
    met: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.columns["lengths"])

    def at(self, row_B: np.ndarray) -> Piece:
        """Return a piece of these sentences only."""
        lengths_B = self.columns["lengths"].astype(np.int64)
        places_T = ranges((np.cumsum(lengths_B) - lengths_B)[row_B], lengths_B[row_B])
        columns = {name: column[places_T if name in OF_TOKENS else row_B] for name, column in self.columns.items()}
        return Piece(columns, self.texts, self.met, self.dropped)

    def save(self, path: Path) -> None:
        """Write a file that is never there in part; its checksums tell if the disk lost some of it later."""
        counts = np.array(json.dumps([self.texts, self.met, self.dropped]))
        arrays: dict[str, Any] = {**self.columns, "counts": counts}
        staged = path.with_suffix(".part")
        with staged.open("wb") as file:
            np.savez(file, **arrays)
        staged.replace(path)

    @classmethod
    def load(cls, path: Path) -> Piece:
        """Read what `save` wrote; OSError if it is damaged."""
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                columns = {name: file[name] for name in COLUMNS}
                texts, met, dropped = json.loads(str(file["counts"]))
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise OSError(f"{path} is damaged: {error}") from error
        return cls(columns, texts, Counter(met), Counter(dropped))


@dataclass
class Work:
    """Clean and tokenise a chunk of texts, in any process: ``Work(tokenizer)(texts)`` is a `Piece`."""

    tokenizer: Any
    words: str = "auto"
    cleaning: Cleaning | None = None  # None: the texts are sentences as they are

    def __call__(self, texts: Sequence[str]) -> Piece:
        sentences, dropped = self.cleaning(texts) if self.cleaning else (texts, Counter[str]())
        if not sentences:
            return Piece({name: np.zeros(0, kind) for name, kind in COLUMNS.items()}, len(texts), dropped=dropped)
        definition = Words(self.words)
        tokens, marks_T = tokenize(sentences, self.tokenizer, definition)
        begins_T = np.append(0, np.cumsum(marks_T == BEGINS_WORD))
        has_words_B = begins_T[tokens.boundaries[1:]] > begins_T[tokens.boundaries[:-1]]
        values = {
            "token_ids": tokens.token_ids_T,
            "marks": marks_T,
            "lengths": tokens.lengths_B,
            "characters": [len(sentence) - sentence.count(" ") for sentence in sentences],
            "hashes": hashes_of(sentences),
        }
        columns = {name: np.asarray(values[name], kind) for name, kind in COLUMNS.items()}
        dropped[WORDLESS] += int((~has_words_B).sum())
        return Piece(columns, len(texts), definition.met, dropped).at(np.flatnonzero(has_words_B))


@contextlib.contextmanager
def within_memory(doing: str, advice: str = "") -> Iterator[None]:
    """Raise OSError, which says what was being done, where memory runs out. advice: appended to the message."""
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:  # of a memory map
            raise
        raise OSError(f"out of memory while {doing}{advice}") from error


def hashes_of(sentences: Sequence[str]) -> np.ndarray:
    """Return the first 64 bits of BLAKE2b, uint64 [B]; two of 10 million sentences collide once in 370,000 times."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8", "replace")).digest()[:8] for text in sentences)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def pieces(texts: Texts, work: Work, workers: int, missing: Callable[[], int | None] = lambda: None) -> Iterator[Piece]:
    """Yield the chunks of these texts, tokenised, in the order of the text under any number of ``workers``.

    missing: returns how many sentences are still needed, see `Texts.take`.
    OSError if a worker process is ended from outside (a `multiprocessing.Pool` would wait for it for ever).
    """
    chunks = iter(lambda: texts.take(missing()), [])
    yield from map(work, itertools.islice(chunks, None if workers == 1 else ALONE))
    following = next(chunks, None)
    if following is None:
        return
    waiting: deque[concurrent.futures.Future[Piece]] = deque()
    # spawn: a process that was forked beside running threads can hang.
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (work,))
    try:
        while following is not None or waiting:
            while following is not None and len(waiting) < 2 * workers:
                with _without_ctrl_c():  # a worker process must not be stopped while it imports
                    waiting.append(pool.submit(_do, following))
                following = next(chunks, None)
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps for want of memory; try tsdae prepare --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold SIGINT back until the end, and for ever from processes started meanwhile; no effect on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: Work  # of a worker process


def _start(work: Work) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    when_parent_ends(lambda: os._exit(1))  # else a worker would wait for ever if the main process is killed
    _work = work


def _do(texts: list[str]) -> Piece:
    return _work(texts)


class Seen:
    """A set of 64-bit hashes, as two sorted arrays; a Python set would need 80 bytes a hash instead of 8."""

    def __init__(self) -> None:
        self._all = self._recent = np.zeros(0, np.uint64)

    def add(self, hash_B: np.ndarray) -> np.ndarray:
        """Add hashes; return bool [B], True where one is met for the first time."""
        values, places = np.unique(hash_B, return_index=True)
        new = ~(are_in(values, self._all) | are_in(values, self._recent))
        self._recent = np.sort(np.append(self._recent, values[new]))
        if len(self._recent) >= RECENT:
            self._all = np.append(self._all, self._recent)
            self._all.sort(kind="stable")  # merges two sorted arrays in linear time
            self._recent = self._recent[:0]
        first_B = np.zeros(len(hash_B), dtype=bool)
        first_B[places[new]] = True
        return first_B


def are_in(values: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    """Return bool, True where a value is among the sorted ones; `np.isin` would sort them at every call."""
    return np.searchsorted(sorted_values, values, "right") > np.searchsorted(sorted_values, values, "left")


class Rows:
    """R rows as they grow, and what was counted on the way.

    unknown_id: the tokenizer's unknown token, or None. folder: takes one file a piece, and those that are there already
    are the first rows; None: the pieces stay in memory.
    texts: number of texts read so far. dropped: number of sentences left out, by reason.
    """

    def __init__(self, unknown_id: int | None = None, folder: Path | None = None) -> None:
        self.texts = self.words = self.tokens = self.characters = self.unknown = 0
        self.met, self.dropped = Counter[str](), Counter[str]()
        self._lengths: list[np.ndarray] = []
        self._unknown_id, self._folder = unknown_id, folder
        self._pieces: list[Piece] = []
        self._count = 0
        if folder is not None:
            with contextlib.suppress(OSError):  # no such file: it was the last; damaged: it is made again
                for number in itertools.count():
                    self._add(Piece.load(self._path(number)))
            for path in sorted(folder.glob("*.npz"))[len(self._lengths) :]:
                path.unlink()

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:08}.npz"

    def append(self, piece: Piece) -> None:
        """Add a piece; on disk as soon as this returns."""
        if self._folder is not None:
            piece.save(self._path(len(self._lengths)))
        else:
            self._pieces.append(piece)
        self._add(piece)

    def _add(self, piece: Piece) -> None:
        ids_T, marks_T = piece.columns["token_ids"], piece.columns["marks"]
        self._lengths.append(piece.columns["lengths"])
        self._count += len(piece)
        self.texts += piece.texts
        self.words += int((marks_T == BEGINS_WORD).sum())
        self.tokens += int((marks_T != SPECIAL).sum())
        self.characters += int(piece.columns["characters"].sum())
        self.unknown += int(((marks_T != SPECIAL) & (ids_T == self._unknown_id)).sum())
        self.met += piece.met
        self.dropped += piece.dropped

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Piece]:
        if self._folder is None:
            return iter(self._pieces)
        return (Piece.load(self._path(number)) for number in range(len(self._lengths)))

    def check(self) -> None:
        """Raise ValueError if there are none."""
        if not self._count:
            raise ValueError(f"none of the {self.texts:,} sentences that were read has a word")

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each row, int32 [R]."""
        return np.concatenate([np.zeros(0, np.int32), *self._lengths])

    @property
    def hashes(self) -> np.ndarray:
        """Return the hash of each row's text, uint64 [R]; of rows on disk it is read from there."""
        return np.concatenate([np.zeros(0, np.uint64), *(piece.columns["hashes"] for piece in self)])

    @property
    def counts(self) -> WordCounts:
        """Return the counts of all rows."""
        return WordCounts(self.words, self.tokens, self.characters, self.unknown, dict(self.met))


def collect(
    texts: Texts,
    work: Work,
    rows: Rows,
    *,
    limit: int | None = None,
    keep_repeated: bool = False,
    apart_hashes: np.ndarray | None = None,
    workers: int = 1,
) -> Iterator[Rows]:
    """Append to ``rows`` what is kept of the texts, from the first text not in them; yield after each chunk.

    limit: most rows. keep_repeated: keep a sentence that was met before. apart_hashes: of sentences to leave out.
    """
    seen, apart = Seen(), np.sort(apart_hashes if apart_hashes is not None else np.zeros(0, np.uint64))
    if not keep_repeated:
        seen.add(rows.hashes)
    texts.skip(rows.texts)
    for piece in pieces(texts, work, workers, lambda: None if limit is None else limit - len(rows)):
        hash_B = piece.columns["hashes"]
        apart_B = are_in(hash_B, apart)
        kept_B = ~apart_B & (True if keep_repeated else seen.add(hash_B))
        piece.dropped[APART] += int(apart_B.sum())
        piece.dropped[REPEATED] += int((~apart_B & ~kept_B).sum())
        rows.append(piece.at(np.flatnonzero(kept_B)[: None if limit is None else limit - len(rows)]))
        yield rows
        if len(rows) == limit:
            return
