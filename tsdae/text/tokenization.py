"""Turn text into packed token ids with any Hugging Face tokenizer, fast or slow.

The tokenizer's own padding and truncation are switched off. `marks.tokenize` also returns where words begin.

# B sentences, T packed tokens
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from tsdae.packing import Packed, ranges

AT_ONCE = 1024  # texts: an encoding of the tokenizer takes 200 bytes a token, and 50,000 documents 3.5 GB


class Vocabulary(NamedTuple):
    """Ids that a noise may draw from."""

    size: int
    mask_id: int | None
    ordinary_ids: np.ndarray  # every id that is not a special token
    tail: int  # special tokens that close a sentence (1: [SEP]); truncation keeps them
    front: int = 1  # special tokens before a sentence (1: [CLS]); truncation keeps them
    cut_left: bool = False  # truncation_side of the tokenizer: long sentences lose their beginning, not their end


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary; ValueError if the tokenizer does not put a sentence between special tokens."""
    if not hasattr(tokenizer, "is_fast"):
        kind = type(tokenizer).__name__
        raise ValueError(f"the tokenizer is a {kind}; give one of Hugging Face, such as encoder.tokenizer")
    if tokenizer.is_fast:
        is_text = [not special for special in plain_backend(tokenizer).encode("a").special_tokens_mask]
    else:
        ((pieces, ids, in_front),) = slowly(["a"], tokenizer)
        is_text = [in_front <= place < in_front + len(pieces) for place in range(len(ids))]
    # A tokenizer may make nothing of "a".
    front, tail = (is_text.index(True), is_text[::-1].index(True)) if any(is_text) else (1, len(is_text))
    if front == 0 or tail == 0:
        raise ValueError(
            "the tokenizer adds no special tokens such as [CLS] and [SEP] around a sentence; TSDAE needs the first for "
            "the sentence vector and the last to learn where a sentence ends"
        )
    all_ids = np.array(list(tokenizer.get_vocab().values()))
    ordinary_ids = np.setdiff1d(all_ids, tokenizer.all_special_ids)
    cut_left = tokenizer.truncation_side == "left"
    return Vocabulary(int(all_ids.max()) + 1, tokenizer.mask_token_id, ordinary_ids, tail, front, cut_left)


def token_ids(sentences: Sequence[str], tokenizer: Any, max_length: int | None = None) -> Packed[np.ndarray]:
    """Return token ids with special tokens, truncated to ``max_length`` tokens; None: not truncated.

    ValueError, with its number, for a sentence that is not text.
    """
    if tokenizer.is_fast:
        backend = plain_backend(tokenizer)

        def ids_of(texts: list[str]) -> list[np.ndarray]:
            parts = (texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE))
            return [np.asarray(one.ids, np.int64) for part in parts for one in backend.encode_batch_fast(part)]

        tokens = Packed.from_lists(encoded(sentences, ids_of))
    else:
        tokens = Packed.from_lists([ids for _, ids, _ in slowly(sentences, tokenizer)])
    if max_length is None or tokens.longest <= max_length:
        return tokens
    return truncate(tokens, max_length, vocabulary_of(tokenizer))


def encoded(sentences: Sequence[str], encode_batch: Callable[[list[str]], list[Any]]) -> list[Any]:
    """Return a fast tokenizer's encodings; ValueError for a sentence that is not text."""
    try:
        return encode_batch(list(sentences))
    except TypeError:
        check_text(sentences)
        raise


def plain_backend(tokenizer: Any) -> Any:
    """Return the tokenizer's backend with padding and truncation off; any call of the tokenizer may set them."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return backend


def truncate(tokens: Packed[np.ndarray], max_length: int, vocabulary: Vocabulary) -> Packed[np.ndarray]:
    """Truncate sentences to ``max_length`` tokens, on the tokenizer's side; the special tokens at both ends stay."""
    if tokens.longest <= max_length:
        return tokens
    lengths_B = np.minimum(tokens.lengths_B, max_length)
    starts_B, ends_B = tokens.boundaries[:-1], tokens.boundaries[1:]
    rows_T = ranges(ends_B - lengths_B if vocabulary.cut_left else starts_B, lengths_B)
    cut_B = np.flatnonzero(tokens.lengths_B > max_length)
    new_ends = np.cumsum(lengths_B)[cut_B]
    for back in range(1, vocabulary.tail + 1):
        rows_T[new_ends - back] = ends_B[cut_B] - back
    for place in range(vocabulary.front):
        rows_T[new_ends - max_length + place] = starts_B[cut_B] + place
    return Packed.from_lengths(tokens.token_ids_T[rows_T], lengths_B)


def decoded(ids: Sequence[int], tokenizer: Any, skip_special_tokens: bool = True) -> str:
    """Return the text of these tokens, with the spaces that added tokens include (see `add_words`)."""
    if skip_special_tokens:
        special = set(tokenizer.all_special_ids)
        ids = [number for number in ids if number not in special]
    sign = sign_of_a_space(tokenizer)
    space = tokenizer.backend_tokenizer.token_to_id(sign) if sign else None
    if space is not None:
        took = {number for number, token in tokenizer.added_tokens_decoder.items() if token.lstrip}
        spaced = [[space, number] if number in took and place else [number] for place, number in enumerate(ids)]
        ids = [number for part in spaced for number in part]
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def sign_of_a_space(tokenizer: Any) -> str:
    """Return the sign of a token that includes the space before it, as in RoBERTa and XLM-R; empty if none does.

    An added token has to include its space as well, or the space becomes a token.
    """
    splitter = tokenizer.backend_tokenizer.pre_tokenizer if tokenizer.is_fast else None
    return "" if splitter is None else splitter.pre_tokenize_str("a b")[-1][0].removesuffix("b")


def fingerprint_of(tokenizer: Any) -> str:
    """Return SHA-256 of the tokenizer as it would be saved: vocabulary, normalizer and all else that makes its ids.

    For a slow one it covers class, arguments, vocabulary, added tokens and merges or SentencePiece model, but not what
    it calls outside itself, such as a Japanese dictionary.
    """
    written = plain_backend(tokenizer).to_str() if tokenizer.is_fast else slow_as_text(tokenizer)
    return hashlib.sha256(written.encode()).hexdigest()


def texts_of(sentences: Any, name: str = "sentences", column: str | None = None) -> Sequence[str]:
    """Return what a user gives as sentences as a sequence of texts.

    column: of a whole table (a `datasets.Dataset`, a DataFrame, a dictionary of columns); None: it is no table.

    Lists and tuples are returned as they are; a pandas Series, an array, a column of a `datasets.Dataset` and a
    generator become lists. ValueError for one text, a whole table, what has no order, and for an item that is no text.

    >>> texts_of(text.upper() for text in ("a", "b"))
    ['A', 'B']
    """
    kind, ndim = type(sentences).__name__, getattr(sentences, "ndim", 1)
    if isinstance(sentences, str | bytes):
        raise ValueError(f"{name} is one string; give a list of sentences, or read a file with load_sentences")
    if hasattr(sentences, "column_names") or hasattr(sentences, "columns") or isinstance(sentences, Mapping):
        columns = getattr(sentences, "column_names", None) or getattr(sentences, "columns", sentences)
        names = [str(column) for column in columns] if isinstance(columns, Iterable) else ["text"]
        shown = ", ".join(names) or "nothing in it"
        if column is None:
            raise ValueError(f"{name} is a {kind} with {shown}; give its column of texts, such as {name}{names[:1]}")
        if column not in names:
            raise ValueError(f"{name} is a {kind} without a column {column!r}; its columns are {shown}")
        return texts_of(sentences[column], f"{name}[{column!r}]")
    if column is not None:
        raise ValueError(f"column {column!r} is for a table, and {name} is a {kind}; leave it out")
    if isinstance(sentences, Set) or not isinstance(sentences, Iterable):
        raise ValueError(f"{name} is a {kind}; give a list of texts, in an order that stays")
    if not isinstance(sentences, list | tuple):
        if ndim != 1:
            raise ValueError(f"{name} is a {kind} of {ndim} dimensions; give one of texts, such as a column")
        to_list = getattr(sentences, "tolist", None) or getattr(sentences, "to_pylist", None)
        # A column of a Dataset is a hundred times as fast in a slice as one by one.
        sentences = to_list() if to_list else list(sentences[:] if isinstance(sentences, Sequence) else sentences)
    if not all(isinstance(sentence, str) for sentence in sentences):
        check_text(sentences)
    return sentences


# ---------------------------------------------------------------------------------------------------------------
# Slow tokenizers, written in Python


def slowly(sentences: Sequence[str], tokenizer: Any) -> Iterator[tuple[list[str], list[int], int]]:
    """Yield for each sentence: pieces, ids with special tokens, and the number of special tokens in front."""
    check_text(sentences)
    in_front = tokenizer.build_inputs_with_special_tokens([-1]).index(-1)  # no token has this id
    for sentence in sentences:
        pieces = tokenizer.tokenize(sentence)  # read back from ids, unknown pieces would have lost their letters
        yield pieces, tokenizer.build_inputs_with_special_tokens(tokenizer.convert_tokens_to_ids(pieces)), in_front


def slow_as_text(tokenizer: Any) -> str:
    """Return all that makes the ids of a slow tokenizer as JSON, without what changes when it is saved (paths)."""
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
    """Raise ValueError, with its number, for a sentence that is not text, or holds half of a surrogate pair."""
    for number, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise ValueError(f"sentence {number} is {type(sentence).__name__}, not text: {sentence!r}")
        if sentence.encode("utf-8", "replace").decode() != sentence:
            raise ValueError(
                f"sentence {number} holds half of a surrogate pair (a cut-off emoji), which is no text: "
                f"{sentence[:80]!r}"
            )
