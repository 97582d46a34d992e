"""Tokenised sentences, in memory or in a folder of three memory-mapped arrays and corpus.json: what training reads.

# R corpus rows, B sentences of a batch, T packed tokens
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.packing import Packed, ranges
from tsdae.text.building import OF_TOKENS, WORDLESS, Rows, Work
from tsdae.text.marks import BEGINS_WORD, SPECIAL
from tsdae.text.tokenization import fingerprint_of, texts_of
from tsdae.text.word_boundaries import WordCounts, notes
from tsdae.utils.files import atomic, check_can_write, read_json, write_json

CHUNK = 2048  # sentences tokenised in one call
STRETCH = 2**20  # rows whose lengths are computed at a time
FORMAT = 1  # of the folder; raise it when older code cannot read a new folder
DESCRIPTION, HELDOUT = "corpus.json", "heldout"  # in the folder, beside the arrays
REPORT = "report.json"  # what of the text was kept, beside them where tsdae prepare made the folder
TYPES = {"token_ids": np.int32, "marks": np.uint8, "boundaries": np.int64}  # the arrays, NAME.npy each
FILES = {DESCRIPTION, HELDOUT, REPORT, *(f"{name}.npy" for name in TYPES)}  # all that the folder of a corpus holds


def new_array(name: str, size: int, folder: Path | None) -> np.ndarray:
    """Return one of the arrays, to be filled: in memory, or a memory-mapped file; OSError if the disk is full."""
    if folder is None:
        return np.empty(size, TYPES[name])
    path = folder / f"{name}.npy"
    array = np.lib.format.open_memmap(path, "w+", TYPES[name], (size,))
    if hasattr(os, "posix_fallocate"):  # else a full disk ends the process by SIGBUS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@dataclass(frozen=True)
class Corpus:
    """R tokenised sentences, end to end in three arrays.

    token_ids: int32, special tokens included, untruncated (truncation comes after the noise).
    marks: uint8, the kind of each token: `marks.INSIDE`, ``BEGINS_WORD`` or ``SPECIAL``.
    boundaries: int64 [R + 1].
    without_words: number of sentences left out because they tokenise to nothing.
    tokenizer: `tokenization.fingerprint_of` the tokenizer that made the ids; empty if not known.
    words: definition of words behind the marks, one of `word_boundaries.CHOICES` or module:function.
    counts: words, tokens and characters of the text; None in a folder of an early version.
    made_from: text, model and settings, kept in corpus.json.
    stored_fingerprint: of a corpus on disk, computed when it was written.

    >>> tokenizer = SentenceEncoder.from_pretrained("mini").tokenizer
    >>> corpus = Corpus.build(["A man plays the guitar.", "A dog runs."], tokenizer)
    >>> corpus.write("corpus")
    >>> len(Corpus.open("corpus"))
    2
    """

    token_ids: np.ndarray
    marks: np.ndarray
    boundaries: np.ndarray
    without_words: int = 0
    tokenizer: str = ""
    words: str = "auto"
    counts: WordCounts | None = None
    made_from: dict[str, Any] = field(default_factory=dict)
    stored_fingerprint: str | None = None

    @classmethod
    def build(cls, sentences: Iterable[str], tokenizer: Any, words: str = "auto") -> Corpus:
        """Tokenise sentences in memory; ValueError if none has a word, or for a segmenter ``words`` that fails.

        sentences: a list, a column of a table or a generator, see `tokenization.texts_of`.
        """
        sentences = texts_of(sentences)
        work, rows = Work(tokenizer, words), Rows(tokenizer.unk_token_id)
        for start in range(0, len(sentences), CHUNK):
            rows.append(work(sentences[start : start + CHUNK]))
        return cls.of(rows, work)

    @classmethod
    def of(cls, rows: Rows, work: Work, row_K: np.ndarray | None = None, folder: Path | None = None) -> Corpus:
        """Return a corpus of the K different rows ``row_K`` in this order; None: all rows.

        folder: takes the arrays as memory-mapped files; None: they are in memory. ValueError if there are no rows.
        """
        rows.check()
        if row_K is None:
            row_K = np.arange(len(rows))
        boundaries = new_array("boundaries", len(row_K) + 1, folder)
        boundaries[0] = 0
        np.cumsum(rows.lengths[row_K], out=boundaries[1:])
        columns = {name: new_array(name, int(boundaries[-1]), folder) for name in OF_TOKENS}
        place_R = np.full(len(rows), -1)  # of each row in the corpus; -1: left out
        place_R[row_K] = np.arange(len(row_K))
        first = 0
        for piece in rows:  # its rows are copied to their places, one piece in memory at a time
            place_B = place_R[first : first + len(piece)]
            first += len(piece)
            chosen = piece.at(np.flatnonzero(place_B >= 0))
            places_T = ranges(boundaries[place_B[place_B >= 0]], chosen.columns["lengths"])
            for name, column in columns.items():
                column[places_T] = chosen.columns[name]
        arrays = columns["token_ids"], columns["marks"], boundaries
        return cls(*arrays, rows.dropped[WORDLESS], fingerprint_of(work.tokenizer), work.words, rows.counts)

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Map a folder that `write` wrote, without reading its tokens.

        ValueError if it is no such folder, has another format, or if a file does not fit corpus.json.
        """
        folder = Path(folder)
        if not is_corpus(folder):
            raise ValueError(f"{folder} is not a prepared corpus: it has no {DESCRIPTION}")
        says = read_json(folder / DESCRIPTION)
        if says.get("format") != FORMAT:
            raise ValueError(
                f"{folder} is a corpus of format {says.get('format')}, and only format {FORMAT} can be read; "
                "prepare it again with tsdae prepare"
            )
        try:
            rows, tokens = says["rows"], says["tokens"]
            sizes = {"token_ids": tokens, "marks": tokens, "boundaries": rows + 1}
            token_ids, marks, boundaries = (_mapped(folder, name, size) for name, size in sizes.items())
            if boundaries[0] != 0 or boundaries[-1] != tokens:
                raise ValueError(f"boundaries.npy does not run from 0 to {tokens}")
            if (boundaries[1:] <= boundaries[:-1]).any():
                raise ValueError("boundaries.npy does not increase from sentence to sentence")
            if not isinstance(says["made_from"], dict):
                raise ValueError(f"made_from of {DESCRIPTION} is not a JSON object")
            counts = says.get("figures")  # their name in the file
            return cls(
                token_ids,
                marks,
                boundaries,
                says["without_words"],
                says["tokenizer"],
                says.get("words", "auto"),  # an earlier version had no other
                None if counts is None else WordCounts.checked(counts),
                says["made_from"],
                says["fingerprint"],
            )
        except KeyError as error:
            raise ValueError(f"{folder} is damaged: {DESCRIPTION} does not say {error}; prepare it again") from error
        except (ValueError, TypeError, OSError) as error:  # TypeError: text for a number in corpus.json
            raise ValueError(f"{folder} is damaged: {error}; prepare it again") from error

    def write(self, folder: str | Path, heldout: Corpus | None = None, overwrite: bool = False) -> None:
        """Write a folder that `open` maps, with the held-out sentences as a second corpus in its folder heldout.

        It is written under another name and renamed, so that ``folder`` is always complete.
        ValueError if ``folder`` holds anything else, or a corpus and ``overwrite`` is False.
        """
        folder = Path(folder)
        check_corpus_output(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic(folder, unique=True) as staged:
            self.save(staged)
            if heldout is not None:
                dataclasses.replace(heldout, made_from=self.made_from).save(staged / HELDOUT)

    def save(self, folder: Path) -> None:
        """Write arrays and corpus.json into a new folder; `write` does it so that it is never there in part."""
        folder.mkdir()
        for name in TYPES:
            np.save(folder / f"{name}.npy", getattr(self, name))
        self.describe(folder)

    def describe(self, folder: Path) -> None:
        """Write corpus.json beside the arrays."""
        says = {
            "format": FORMAT,
            "rows": len(self),
            "tokens": len(self.token_ids),
            "without_words": self.without_words,
            "fingerprint": self.fingerprint(),
            "tokenizer": self.tokenizer,
            "words": self.words,
            "figures": self.counts and self.counts._asdict(),
            "made_from": self.made_from,
        }
        write_json(folder / DESCRIPTION, says)

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sentence, special ones included, [R]."""
        return np.diff(self.boundaries)

    def longer_than(self, length: int) -> int:
        """Return the number of sentences of more tokens than ``length``, without holding all lengths in memory."""
        stretches = (self.boundaries[start : start + STRETCH + 1] for start in range(0, len(self), STRETCH))
        return sum(int((np.diff(boundaries) > length).sum()) for boundaries in stretches)

    def rows(self, row_B: np.ndarray) -> tuple[Packed[np.ndarray], np.ndarray]:
        """Return the sentences of these rows, and word_T: the number of each token's word in the batch, -1: special."""
        starts_B, ends_B = self.boundaries[row_B], self.boundaries[row_B + 1]
        lengths_B = ends_B - starts_B
        places_T = ranges(starts_B, lengths_B)
        marks_T = self.marks[places_T]
        word_T = np.cumsum(marks_T == BEGINS_WORD) - 1
        word_T[marks_T == SPECIAL] = -1
        return Packed.from_lengths(self.token_ids[places_T].astype(np.int64), lengths_B), word_T

    def fingerprint(self) -> str:
        """Return SHA-256 over ids, marks and boundaries: equal only for equal text, order and tokenizer."""
        if self.stored_fingerprint is not None:
            return self.stored_fingerprint
        digest = hashlib.sha256()
        for array in (self.token_ids, self.marks, self.boundaries):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """Return lines for the user: the definition of words, and how many sentences have none."""
        lines = notes(self.words, self.counts) if self.counts else []
        if self.without_words:
            lines.append(f"sentences left out, as they tokenise to nothing: {self.without_words:,}")
        return lines

    def check_words(self, words: str | None) -> None:
        """Raise ValueError if the marks were made by another definition of words than this one; None: any."""
        if words not in (None, self.words):
            raise ValueError(
                f"this corpus was made with words {self.words!r}, not {words!r}; words are found when a text is "
                f"tokenised: make it again with words {words!r}, or use {self.words!r}"
            )

    def check_tokenizer(self, tokenizer: Any, asked: str = "the model") -> None:
        """Raise ValueError, with the model of the corpus, if the ids were made by another tokenizer than this one.

        asked: name of the tokenizer's model in the message (see `model_in_words`).
        """
        if self.tokenizer and self.tokenizer != fingerprint_of(tokenizer):
            made = self.made_from
            made_for = f" for {model_in_words(made['model'], made.get('add_tokens'))}" if "model" in made else ""
            raise ValueError(
                f"this corpus was prepared{made_for}, and {asked} has another tokenizer; use the model it was "
                "prepared for, or prepare the text again (tsdae prepare --model)"
            )


def model_in_words(model: str, add_tokens: str | None) -> str:
    """Return the name of a tokenizer in messages: its model, and the file of words added to its tokens."""
    return f"{model} with --add-tokens {add_tokens}" if add_tokens else model


def is_corpus(folder: Path) -> bool:
    """True if the folder has a corpus.json; `Corpus.open` checks the rest."""
    return (folder / DESCRIPTION).is_file()


def check_corpus_output(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if `Corpus.write` may not write there."""
    check_can_write(folder, "--output")
    check_can_write(folder.parent, "--output")
    if folder.exists() and not is_corpus(folder):
        raise ValueError(f"--output {folder} exists and is not a prepared corpus; choose another folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.exists() else []
    if others:
        raise ValueError(f"--output {folder} holds more than a corpus ({', '.join(others)}); choose another folder")
    if folder.exists() and not overwrite:
        raise ValueError(f"--output {folder} already holds a corpus; choose another folder, or --overwrite it")


def _mapped(folder: Path, name: str, size: int) -> np.ndarray:
    """Return the array NAME.npy of ``size`` values, memory-mapped."""
    array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")  # np.load would open other kinds of files too
    expected = np.dtype(TYPES[name])
    if array.dtype != expected or array.shape != (size,):
        raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}, expected was {expected} ({size},)")
    return np.asarray(array)  # a plain array on the same pages: what is read from a numpy.memmap is one as well
