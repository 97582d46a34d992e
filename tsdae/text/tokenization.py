"""From text to packed token ids, and which word each token belongs to.

Works on any Hugging Face tokenizer; padding and truncation are ours, so the tokenizer's own are switched off. A fast
tokenizer says which word each token belongs to and where it stands in the text. A slow one, written in Python, says
neither, and both are read from its pieces: see `pieces`.

# B sentences, T packed tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import AddedToken

from tsdae.packing import Packed, ranges
from tsdae.text.pieces import check_text, from_pieces, slow_as_text, slowly
from tsdae.text.word_boundaries import AUTO, Words, writes_no_spaces

# What a token is within its sentence; kept per token in a corpus, one byte each.
INSIDE, BEGINS_WORD, SPECIAL = 0, 1, 2


class Vocabulary(NamedTuple):
    """What a noise may draw from."""

    size: int
    mask_id: int | None
    ordinary_ids: np.ndarray  # every id that is not a special token
    tail: int  # special tokens that close a sentence (1: [SEP]); truncation keeps them


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Reads the vocabulary; ValueError if the tokenizer does not set a sentence between special tokens."""
    marks = tokenize(["a"], tokenizer)[1]
    special = np.flatnonzero(marks == SPECIAL)
    tail = len(marks) - 1 - int(np.flatnonzero(marks != SPECIAL).max(initial=-1))
    if len(special) == 0 or special[0] != 0 or tail == 0:
        raise ValueError(
            "the tokenizer adds no special tokens such as [CLS] and [SEP] around a sentence; TSDAE needs the first to "
            "read the sentence vector from and the last to learn where a sentence ends"
        )
    special_ids = np.asarray(sorted(set(tokenizer.all_special_ids)))
    ids = np.asarray(sorted(tokenizer.get_vocab().values()))
    return Vocabulary(int(ids.max()) + 1, tokenizer.mask_token_id, np.setdiff1d(ids, special_ids), tail)


def add_words(tokenizer: Any, words: Sequence[str]) -> dict[str, list[int]]:
    """Makes one token of each of these words; returns the pieces that each new one was cut into before.

    A new token is found only as a whole word; one that begins or ends in a script that writes no spaces is found
    anywhere. By a slow tokenizer it is found only between spaces, and only as it is written here. In XLM-RoBERTa's a
    punctuation mark behind it begins with the sign of a space, as it does behind <mask>.

    Words that are one token already are left out, and all but the first of those that are one to the tokenizer, such as
    Covid and covid where it lowers text. ValueError for what is no single word, or has no piece that the vocabulary
    knows.
    """
    pieces: dict[str, list[int]] = {}
    normal = _normalizer_of(tokenizer)
    taken = {normal(word) for word in tokenizer.get_added_vocab()}
    for word in dict.fromkeys(words):
        if not word or any(letter.isspace() for letter in word):
            raise ValueError(f"a new token must be one word, without spaces, got {word!r}")
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]  # as within a text
        without_space = [piece for piece in ids if tokenizer.decode([piece]).strip()]  # SentencePiece may cut it off
        known = [piece for piece in without_space if piece != tokenizer.unk_token_id]
        if not known:
            raise ValueError(f"the new token {word!r} has no piece that this vocabulary knows")
        is_one = len(without_space if writes_no_spaces(word[0]) else ids) == 1
        if not is_one and normal(word) not in taken:
            pieces[word] = known
            taken.add(normal(word))
    # A slow tokenizer that lowers text would lower a normalized token, and then no longer know the word by its name.
    form = {"normalized": tokenizer.is_fast, "lstrip": bool(_sign_of_a_space(tokenizer))}
    stands_alone = {word: not (writes_no_spaces(word[0]) or writes_no_spaces(word[-1])) for word in pieces}
    tokenizer.add_tokens([AddedToken(word, single_word=alone, **form) for word, alone in stands_alone.items()])
    return pieces


def _normalizer_of(tokenizer: Any) -> Callable[[str], str]:
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return normalizer.normalize_str if normalizer is not None else str


def _sign_of_a_space(tokenizer: Any) -> str:
    """How a token shows that it carries the space before it, as in RoBERTa and XLM-R; empty where none does.

    An added token has to take its space as well, or the space stays behind as a token.
    """
    splitter = tokenizer.backend_tokenizer.pre_tokenizer if tokenizer.is_fast else None
    return "" if splitter is None else splitter.pre_tokenize_str("a b")[-1][0].removesuffix("b")


def decoded(ids: Sequence[int], tokenizer: Any, skip_special_tokens: bool = True) -> str:
    """The text of these tokens, with the spaces that added tokens have taken (see `add_words`)."""
    if skip_special_tokens:
        special = set(tokenizer.all_special_ids)
        ids = [number for number in ids if number not in special]
    sign = _sign_of_a_space(tokenizer)
    space = tokenizer.backend_tokenizer.token_to_id(sign) if sign else None
    if space is not None:
        took = {number for number, token in tokenizer.added_tokens_decoder.items() if token.lstrip}
        spaced = [[space, number] if number in took and place else [number] for place, number in enumerate(ids)]
        ids = [number for part in spaced for number in part]
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def fingerprint_of(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer as it would be written: vocabulary, normalizer and all else that makes its ids.

    Of a slow one it covers the class, its arguments, the vocabulary, the added tokens and the merges or the
    SentencePiece model, but not what it calls outside of itself, such as a dictionary of Japanese.
    """
    written = _plain_backend(tokenizer).to_str() if tokenizer.is_fast else slow_as_text(tokenizer)
    return hashlib.sha256(written.encode()).hexdigest()


def tokenize(
    sentences: Sequence[str], tokenizer: Any, words: Words | None = None
) -> tuple[Packed[np.ndarray], np.ndarray]:
    """Token ids with special tokens, and one mark per token (INSIDE, BEGINS_WORD or SPECIAL).

    words: what a word is; None: "auto", the tokenizer's own words (its pre-tokenizer's pieces: in BERT's, runs of
    letters and single punctuation marks) and character clusters where a script writes no spaces. A special token that
    the text itself spells out is a word like any other.
    ValueError, with its number, for a sentence that is no text; for a definition of words that a slow tokenizer cannot
    serve; and from the user's segmenter.
    """
    words = words or Words()
    if tokenizer.is_fast:
        encodings = _encoded(sentences, _plain_backend(tokenizer).encode_batch)
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


def token_ids(sentences: Sequence[str], tokenizer: Any, max_length: int | None = None) -> Packed[np.ndarray]:
    """Token ids with special tokens, truncated to ``max_length``: what an encoder reads.

    ValueError, with its number, for a sentence that is no text.
    """
    if tokenizer.is_fast:
        encodings = _encoded(sentences, _plain_backend(tokenizer).encode_batch_fast)
        tokens = Packed.from_lists([encoding.ids for encoding in encodings])
    else:
        tokens = Packed.from_lists([ids for _, ids, _ in slowly(sentences, tokenizer)])
    if max_length is None or tokens.longest <= max_length:
        return tokens
    return truncate(tokens, max_length, vocabulary_of(tokenizer).tail)


def _encoded(sentences: Sequence[str], encode_batch: Callable[[list[str]], list[Any]]) -> list[Any]:
    try:
        return encode_batch(list(sentences))
    except TypeError:
        check_text(sentences)
        raise


def _plain_backend(tokenizer: Any) -> Any:
    """The tokenizer's engine without padding and truncation, which every call of the tokenizer may leave behind."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return backend


def truncate(tokens: Packed[np.ndarray], max_length: int, tail: int) -> Packed[np.ndarray]:
    """Cuts longer sentences to ``max_length`` tokens; the closing special tokens (``tail`` of them) stay the last."""
    if tokens.longest <= max_length:
        return tokens
    lengths_B = np.minimum(tokens.lengths_B, max_length)
    rows_T = ranges(tokens.boundaries[:-1], lengths_B)
    cut_B = np.flatnonzero(tokens.lengths_B > max_length)
    new_ends, old_ends = np.cumsum(lengths_B)[cut_B], tokens.boundaries[1:][cut_B]
    for back in range(1, tail + 1):
        rows_T[new_ends - back] = old_ends - back
    return Packed.from_lengths(tokens.token_ids_T[rows_T], lengths_B)
