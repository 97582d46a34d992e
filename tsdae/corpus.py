"""Sentences, tokenised once: what training reads, without touching text again.

# R corpus rows, B sentences of a batch, T packed tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from tsdae.packing import Packed, ranges
from tsdae.tokenization import BEGINS_WORD, SPECIAL, tokenize

CHUNK = 2048  # sentences tokenised in one call


@dataclass(frozen=True)
class Corpus:
    """R tokenised sentences end to end.

    token_ids: int32, special tokens included, untruncated (truncation comes after the noise).
    marks: uint8, what each token is: `tokenization.INSIDE`, ``BEGINS_WORD`` or ``SPECIAL``.
    boundaries: int64 [R + 1].
    without_words: how many sentences were left out because they tokenise to nothing.
    """

    token_ids: np.ndarray
    marks: np.ndarray
    boundaries: np.ndarray
    without_words: int = 0

    @classmethod
    def build(cls, sentences: Sequence[str], tokenizer: Any, show_progress: bool = False) -> Corpus:
        """Tokenises; ValueError if nothing is left."""
        ids: list[np.ndarray] = []
        marks: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        without_words = 0
        bar = tqdm(total=len(sentences), desc="tokenising", unit=" sentences", disable=not show_progress, leave=False)
        with bar:
            for start in range(0, len(sentences), CHUNK):
                chunk = sentences[start : start + CHUNK]
                tokens, marks_T = tokenize(chunk, tokenizer)
                words_B = np.add.reduceat(marks_T == BEGINS_WORD, tokens.boundaries[:-1], dtype=np.int64)
                kept_B = np.flatnonzero(words_B)
                rows_T = ranges(tokens.boundaries[:-1][kept_B], tokens.lengths_B[kept_B])
                ids.append(tokens.token_ids_T[rows_T].astype(np.int32))
                marks.append(marks_T[rows_T])
                lengths.append(tokens.lengths_B[kept_B])
                without_words += len(chunk) - len(kept_B)
                bar.update(len(chunk))
        boundaries = np.concatenate([[0], np.cumsum(np.concatenate(lengths or [np.zeros(0, np.int64)]))])
        if len(boundaries) == 1:
            raise ValueError(f"no sentence with a word in it among the {len(sentences)} of the corpus")
        return cls(np.concatenate(ids), np.concatenate(marks), boundaries.astype(np.int64), without_words)

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, special ones included, [R]."""
        return np.diff(self.boundaries)

    def rows(self, row_B: np.ndarray) -> tuple[Packed[np.ndarray], np.ndarray]:
        """The sentences of these rows, and word_T: the word of each token, counted through the batch, -1 if special."""
        starts_B, ends_B = self.boundaries[row_B], self.boundaries[row_B + 1]
        lengths_B = ends_B - starts_B
        places_T = ranges(starts_B, lengths_B)
        marks_T = self.marks[places_T]
        word_T = np.cumsum(marks_T == BEGINS_WORD) - 1
        word_T[marks_T == SPECIAL] = -1
        return Packed.from_lengths(self.token_ids[places_T].astype(np.int64), lengths_B), word_T

    def fingerprint(self) -> str:
        """SHA-256 over ids, marks and boundaries: equal only for the same text in the same order and tokenizer."""
        digest = hashlib.sha256()
        for array in (self.token_ids, self.marks, self.boundaries):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
