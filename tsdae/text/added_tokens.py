"""Add words of a domain to a tokenizer as tokens of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import AddedToken

from tsdae.text.tokenization import sign_of_a_space
from tsdae.text.word_boundaries import writes_no_spaces


def add_words(tokenizer: Any, words: Sequence[str]) -> dict[str, list[int]]:
    """Make one token of each of these words; return the pieces that each new one was split into before.

    A new token is found only as a whole word; one that begins or ends in a script that writes no spaces is found
    anywhere. By a slow tokenizer it is found only between spaces, and only as it is written here. In XLM-RoBERTa's a
    punctuation mark behind it begins with the sign of a space, as it does behind <mask>.

    Words that are one token already are left out, as are words equal to the tokenizer after the first (Covid and covid
    where it lowers text). ValueError for a word with white space, or of unknown pieces only.

        pieces = add_words(tokenizer, ["enalapril"])
        tokenizer.tokenize("5 mg enalapril")  # ["5", "mg", "enalapril"]
        tokenizer.convert_ids_to_tokens(pieces["enalapril"])  # the pieces of it before
    """
    pieces: dict[str, list[int]] = {}
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    normal: Callable[[str], str] = normalizer.normalize_str if normalizer is not None else str
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
    form = {"normalized": tokenizer.is_fast, "lstrip": bool(sign_of_a_space(tokenizer))}
    stands_alone = {word: not (writes_no_spaces(word[0]) or writes_no_spaces(word[-1])) for word in pieces}
    tokenizer.add_tokens([AddedToken(word, single_word=alone, **form) for word, alone in stands_alone.items()])
    return pieces
