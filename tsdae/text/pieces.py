"""Slow tokenizers, written in Python, which tell neither words nor places in the text: both are read from their pieces.

# B sentences, T packed tokens
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tsdae.text.word_boundaries import AUTO, SLOW, Words

# How the pieces of a vocabulary say what a word is: ##s goes on (WordPiece), wal@@ is gone on with (BPE), ▁dog begins
# (SentencePiece), as does Ġdog, whose letters are bytes (byte-level BPE).
GOES_ON, GONE_ON_WITH, BEGINS, BYTES = "##", "@@", "▁", "Ġ"
READ_FROM_PIECES = (AUTO, "tokens", "characters")  # definitions of words that need no place in the text


class PieceEncoding(NamedTuple):
    """What a fast tokenizer's encoding of a sentence holds, made from the pieces of a slow one; one entry a token.

    word_ids: None for special tokens.
    text: what the offsets count in: the letters of the pieces, with a space before each word.
    """

    ids: list[int]
    special_tokens_mask: list[int]
    word_ids: list[int | None]
    offsets: list[tuple[int, int]]
    text: str


def slowly(sentences: Sequence[str], tokenizer: Any) -> Iterator[tuple[list[str], list[int], int]]:
    """Of each sentence: its pieces, its ids with special tokens, and how many of these stand in front."""
    check_text(sentences)
    in_front = tokenizer.build_inputs_with_special_tokens([-1]).index(-1)  # no token has this id
    for sentence in sentences:
        pieces = tokenizer.tokenize(sentence)  # read back from ids, unknown pieces would have lost their letters
        yield pieces, tokenizer.build_inputs_with_special_tokens(tokenizer.convert_tokens_to_ids(pieces)), in_front


def from_pieces(sentences: Sequence[str], tokenizer: Any, words: Words) -> list[PieceEncoding]:
    """Words as the vocabulary's own sign says; without such a sign each piece is one, as is each token that was added.

    Counts the sentences in ``words.met``, so that the user is told. ValueError for words that pieces do not tell.
    """
    name = type(tokenizer).__name__
    if words.name not in READ_FROM_PIECES:
        raise ValueError(
            f"words {words.name!r} needs to know where each token stands in the text, and {name}, a slow tokenizer, "
            f"does not say it; with this model there are words {', '.join(READ_FROM_PIECES)}"
        )
    sign = _sign(tokenizer)
    if sign == BYTES:
        raise ValueError(f"{name} is a slow tokenizer of bytes, which says nothing of words; take its fast version")
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
    """The sign that more pieces of the vocabulary have than any other; empty if none has one."""
    vocabulary = tokenizer.get_vocab()
    counts = {sign: sum(_has(piece, sign) for piece in vocabulary) for sign in (GOES_ON, GONE_ON_WITH, BEGINS, BYTES)}
    sign = max(counts, key=counts.__getitem__)
    return sign if counts[sign] else ""


def _has(piece: str, sign: str) -> bool:
    """Whether it has the sign; ## and @@ alone are letters of a text."""
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


def slow_as_text(tokenizer: Any) -> str:
    """All that makes the ids of a slow tokenizer, without paths and whatever else changes when it is saved."""
    arguments = inspect.signature(type(tokenizer).__init__).parameters
    settings = {
        name: value for name, value in tokenizer.init_kwargs.items() if name in arguments and not name.endswith("_file")
    }
    models = [getattr(part, "sp_model", None) for part in (tokenizer, getattr(tokenizer, "subword_tokenizer", None))]
    ranks = getattr(tokenizer, "bpe_ranks", {})
    return json.dumps(
        {
            "class": type(tokenizer).__name__,
            "settings": settings,
            "vocabulary": tokenizer.get_vocab(),
            "added": {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()},
            "around": tokenizer.build_inputs_with_special_tokens([]),
            "merges": sorted(ranks, key=ranks.__getitem__),
            "models": [model.serialized_model_proto().hex() for model in models if model is not None],
        },
        sort_keys=True,
        default=str,  # a special token among the settings: its text
    )


def check_text(sentences: Sequence[str]) -> None:
    """ValueError, with its number, for a sentence that is no text, or holds half of a surrogate pair."""
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise ValueError(f"sentence {number} is {type(sentence).__name__}, not text: {sentence!r}")
        if sentence.encode("utf-8", "replace").decode() != sentence:
            raise ValueError(
                f"sentence {number} holds half of a surrogate pair (a cut-off emoji), which is no text: "
                f"{sentence[:80]!r}"
            )
