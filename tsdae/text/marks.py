"""Tokenise text and mark where words begin.

A fast tokenizer returns the word of each token and its place in the text. A slow one, written in Python, returns
neither, and both are read from its pieces.

# B sentences, T packed tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tsdae.packing import Packed, ranges
from tsdae.text.tokenization import encoded, plain_backend, slowly
from tsdae.text.word_boundaries import AUTO, SLOW, Words

# The kind of a token, one byte per token in a corpus.
INSIDE, BEGINS_WORD, SPECIAL = 0, 1, 2
# Signs of a vocabulary's pieces: ##s continues a word (WordPiece), wal@@ is continued by the next piece (BPE), ▁dog
# begins one (SentencePiece), as does Ġdog, whose letters are bytes (byte-level BPE).
GOES_ON, GONE_ON_WITH, BEGINS, BYTES = "##", "@@", "▁", "Ġ"
READ_FROM_PIECES = (AUTO, "tokens", "characters")  # definitions of words that need no offsets in the text


def tokenize(
    sentences: Sequence[str], tokenizer: Any, words: Words | None = None
) -> tuple[Packed[np.ndarray], np.ndarray]:
    """Return token ids with special tokens, and one mark per token (INSIDE, BEGINS_WORD or SPECIAL), uint8 [T].

    words: definition of words; None: "auto", the tokenizer's own words (its pre-tokenizer's pieces: in BERT's, runs of
    letters and single punctuation marks) and character clusters where a script writes no spaces. A special token that
    the text itself spells out is a word like any other.
    ValueError for a sentence that is not text, with its number; for a definition of words that a slow tokenizer does
    not support; and from the user's segmenter.
    """
    words = words or Words()
    if tokenizer.is_fast:
        encodings = encoded(sentences, plain_backend(tokenizer).encode_batch)
    else:
        encodings = from_pieces(sentences, tokenizer, words)
        sentences = [encoding.text for encoding in encodings]
    tokens = Packed.from_lists([encoding.ids for encoding in encodings])
    # All sentences in one array: a few array operations per sentence took a third of the time of the whole.
    special_T = np.array([mark for encoding in encodings for mark in encoding.special_tokens_mask], dtype=bool)
    if words.name == AUTO:
        word_T = np.array([word for encoding in encodings for word in encoding.word_ids], dtype=np.float64)
        begins_T = np.diff(word_T, prepend=np.nan) != 0  # no word (None) has become nan, which differs from everything
    else:
        begins_T = np.append(False, special_T[:-1])
    cut_B = words.cut(sentences)
    if len(cut_B):
        lengths_B = tokens.lengths_B[cut_B]
        spans_T2 = np.array([span for row in cut_B for span in encodings[row].offsets], dtype=np.int64)
        rows_T = ranges(tokens.boundaries[cut_B], lengths_B)
        begins_T[rows_T] |= words.begin([sentences[row] for row in cut_B], spans_T2, lengths_B)
    begins_T[tokens.boundaries[:-1]] = True
    marks_T = np.where(begins_T, BEGINS_WORD, INSIDE).astype(np.uint8)
    marks_T[special_T] = SPECIAL
    return tokens, marks_T


class PieceEncoding(NamedTuple):
    """Encoding of a sentence with a fast tokenizer's fields, made from the pieces of a slow one; one entry a token.

    word_ids: None for special tokens.
    text: the letters of the pieces, with a space before each word; the offsets are places in it.
    """

    ids: list[int]
    special_tokens_mask: list[int]
    word_ids: list[int | None]
    offsets: list[tuple[int, int]]
    text: str


def from_pieces(sentences: Sequence[str], tokenizer: Any, words: Words) -> list[PieceEncoding]:
    """Return encodings with words by the vocabulary's sign; without a sign each piece and each added token is a word.

    Counts the sentences in ``words.met`` for a note. ValueError for definitions of words that need offsets.
    """
    name = type(tokenizer).__name__
    if words.name not in READ_FROM_PIECES:
        raise ValueError(
            f"words {words.name!r} needs the offset of each token in the text, and {name}, a slow tokenizer, does not "
            f"return it; with this model choose words {', '.join(READ_FROM_PIECES)}"
        )
    sign = _sign(tokenizer)
    if sign == BYTES:
        raise ValueError(f"{name} is a slow byte-level tokenizer without word boundaries; use its fast version")
    words.met[f"{SLOW}{name}"] += len(sentences)
    added = set(tokenizer.added_tokens_encoder)
    return [_encoding(pieces, ids, in_front, sign, added) for pieces, ids, in_front in slowly(sentences, tokenizer)]


def _encoding(pieces: list[str], ids: list[int], in_front: int, sign: str, added: set[str]) -> PieceEncoding:
    word_ids: list[int | None] = []
    offsets: list[tuple[int, int]] = []
    text, words = "", 0
    for k, piece in enumerate(pieces):
        if k == 0 or piece in added or pieces[k - 1] in added or _begins_word(pieces[k - 1], piece, sign):
            words += 1
            text += " "
        start = len(text)
        text += piece if piece in added else _letters(piece, sign)
        word_ids.append(words)
        offsets.append((start, len(text)))
    behind = len(ids) - in_front - len(pieces)
    return PieceEncoding(
        ids,
        [1] * in_front + [0] * len(pieces) + [1] * behind,
        [None] * in_front + word_ids + [None] * behind,
        [(0, 0)] * in_front + offsets + [(0, 0)] * behind,
        text,
    )


def _sign(tokenizer: Any) -> str:
    """Return the sign of most pieces of the vocabulary; empty if none has one."""
    vocabulary = tokenizer.get_vocab()
    counts = {sign: sum(_has(piece, sign) for piece in vocabulary) for sign in (GOES_ON, GONE_ON_WITH, BEGINS, BYTES)}
    sign = max(counts, key=counts.__getitem__)
    return sign if counts[sign] else ""


def _has(piece: str, sign: str) -> bool:
    """True if the piece has the sign; ## and @@ alone are letters of a text."""
    has = piece.endswith(sign) if sign == GONE_ON_WITH else piece.startswith(sign)
    return has and (sign == BEGINS or len(piece) > len(sign))


def _begins_word(before: str, piece: str, sign: str) -> bool:
    if sign == GOES_ON:
        return not _has(piece, sign)
    if sign == GONE_ON_WITH:
        return not _has(before, sign)
    return sign != BEGINS or _has(piece, sign)


def _letters(piece: str, sign: str) -> str:
    return piece.removesuffix(sign) if sign == GONE_ON_WITH else piece.removeprefix(sign)
