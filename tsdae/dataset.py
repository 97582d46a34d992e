"""From corpus rows to batches of (noisy, clean) pairs, and the endless order in which they come.

# R corpus rows, B sentences, T packed tokens
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsdae.noise import NOISES, Draw, Noise
from tsdae.packing import Batch, Packed
from tsdae.text.corpus import Corpus
from tsdae.text.tokenization import Vocabulary, decoded, texts_of, truncate, vocabulary_of
from tsdae.text.word_boundaries import AUTO, Words
from tsdae.utils.checks import check_range, suggestion
from tsdae.utils.imports import check_arguments, made_from, named_function
from tsdae.utils.plural import counted
from tsdae.utils.rng import keyed, permuted

NOISED_AT_ONCE = 1024  # sentences
TOKENS_AT_ONCE = 2**20  # but no more tokens than these, unless one batch has more: lines may be a megabyte long
ORDER = 0x0DE2  # a part of the key: the order has draws of its own, apart from those of the noise


class Pair(NamedTuple):
    """One training example as lists of token ids, special tokens included."""

    noisy_ids: list[int]
    target_ids: list[int]


class DenoisingDataset:
    """Pairs of a noisy and a clean sentence; the noise is drawn anew in each epoch, as a pure function of its keys.

    >>> tokenizer = SentenceEncoder.from_pretrained("mini").tokenizer
    >>> DenoisingDataset(["A man plays a guitar."], tokenizer, seed=4).text(0)
    ('man plays', 'a man plays a guitar.')

    sentences: strings (a list, a column of a table, a generator), a whole table with ``column``, or a `Corpus` made of
        them with the same tokenizer, in memory or on disk (`Corpus.open`).
    tokenizer: a Hugging Face tokenizer, fast or slow.
    noise: "delete" (the paper's), "mask", "replace", "swap", "insert", "module:function", or a function (see `noise`);
        a class, or an object with ``build``, is called with this dataset and returns the function.
    noise_ratio: share of words to change, in [0, 1); the paper's best is 0.6.
    seed: key of noise and order.
    max_length: longest sentence in tokens, special ones included; cut after the noise. The paper's code uses 75.
    words: what a word is: "auto" (the tokenizer's own words; in scripts written without spaces, character clusters),
        "tokens", "characters", "whitespace", or "module:function", a segmenter ``str -> list[str]`` (see `words`).
        None: "auto", or what a `Corpus` was made with; another than that is an error.
    column: name of the column of texts, where sentences is a table: a `datasets.Dataset`, a DataFrame, a dictionary.

    ``ds[(epoch, row)]``, or ``ds[row]`` for epoch 0, is a `Pair`. It serves a ``torch.utils.data.DataLoader`` with
    ``collate_fn=ds.collate``; `train` takes `batches`.
    """

    def __init__(
        self,
        sentences: Iterable[Any] | Corpus,
        tokenizer: Any,
        noise: str | Noise | type = "delete",
        noise_ratio: float = 0.6,
        seed: int = 0,
        max_length: int = 75,
        words: str | None = None,
        column: str | None = None,
    ) -> None:
        check_range("noise_ratio", noise_ratio, "[0, 1)", "0.6 changes 60 % of the words")
        check_lengths_and_words(max_length, None if isinstance(sentences, Corpus) else words)
        found = find_noise(noise) if isinstance(noise, str) else noise
        self.vocabulary: Vocabulary = vocabulary_of(tokenizer)
        if found is NOISES["mask"] and self.vocabulary.mask_id is None:
            raise ValueError("noise 'mask' needs a mask token, and the tokenizer has none")
        if not isinstance(sentences, Corpus):
            sentences = Corpus.build(texts_of(sentences, column=column), tokenizer, words or AUTO)
        elif column is not None:
            raise ValueError(f"column {column!r} is for a table, and a Corpus has none; leave it out")
        self.corpus = sentences
        self.corpus.check_words(words)
        self.corpus.check_tokenizer(tokenizer)
        self.tokenizer, self.noise_ratio, self.seed, self.max_length = tokenizer, noise_ratio, seed, max_length
        self.noise: Noise = made_from(found, self, "noise")
        if self.noise not in NOISES.values():
            check_arguments(self.noise, "noise", "the noise")

    def __len__(self) -> int:
        return len(self.corpus)

    def __repr__(self) -> str:
        noise = getattr(self.noise, "__name__", self.noise)
        return f"DenoisingDataset({counted(len(self), 'sentence')}, noise {noise} {self.noise_ratio}, seed {self.seed})"

    @property
    def truncated(self) -> int:
        """Return how many sentences are longer than ``max_length`` and will be cut."""
        return self.corpus.longer_than(self.max_length)

    def noised(
        self, epoch_B: np.ndarray, row_B: np.ndarray, view: int = 0, step_B: np.ndarray | None = None
    ) -> tuple[Packed[np.ndarray], Packed[np.ndarray]]:
        """Return the noisy and the clean sentences of these rows, in a few array operations for the whole batch.

        view: which of several noisings, each with draws of its own. step_B: optimiser steps done at each row; None: 0.
        """
        vocabulary, max_length = self.vocabulary, self.max_length
        clean, word_T = self.corpus.rows(row_B)
        draw = Draw(self.seed, epoch_B, row_B, clean, word_T, view, step_B)
        noisy = self.noise(clean, word_T, draw, self.noise_ratio, vocabulary)
        if self.noise not in NOISES.values():
            check_noise(noisy, clean, vocabulary)
        return truncate(noisy, max_length, vocabulary), truncate(clean, max_length, vocabulary)

    def batch(self, epoch_B: np.ndarray, row_B: np.ndarray, views: int = 1) -> Batch:
        """Return the `Batch` of these rows, on the CPU, with so many noisings of each."""
        return next(self._batches_of(epoch_B, row_B, len(row_B), views))

    def _batches_of(
        self, epoch_B: np.ndarray, row_B: np.ndarray, batch_size: int, views: int, step_B: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Noise these rows all at once, and yield them in batches of ``batch_size``."""
        noisy, target = self.noised(epoch_B, row_B, 0, step_B)
        more = [self.noised(epoch_B, row_B, view, step_B)[0] for view in range(1, views)]
        for parts in zip(*(packed.split(batch_size) for packed in (noisy, target, *more)), strict=True):
            first, clean, *others = (part.to("cpu") for part in parts)
            yield Batch(first, clean, tuple(others))

    def batches(self, position: int, batch_size: int, views: int = 1, step_size: int | None = None) -> Iterator[Batch]:
        """Yield the endless stream of batches, on the CPU, from ``position`` of the order on.

        step_size: sentences of an optimiser step, by which a noise is told the step of each; None: a batch is a step.

        Many are noised at once: for a batch of 8 the array operations take as long as for a hundred of them.
        """
        at_once = max(1, NOISED_AT_ONCE // batch_size) * batch_size
        while True:
            epoch_B, row_B = self.order(position, at_once)
            tokens_so_far_B = np.cumsum(self.corpus.boundaries[row_B + 1] - self.corpus.boundaries[row_B])
            fitting = int(np.searchsorted(tokens_so_far_B, TOKENS_AT_ONCE, side="right"))
            count = max(1, fitting // batch_size) * batch_size
            step_B = np.arange(position, position + count) // (step_size or batch_size)
            yield from self._batches_of(epoch_B[:count], row_B[:count], batch_size, views, step_B)
            position += count

    def order(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epoch_B, row_B) of the next ``count`` places of the endless stream that starts at ``position``.

        Place p is row ``permutation(epoch = p // R)[p % R]``: so there is no partial batch at the end of an epoch,
        and a run's place in the data is one integer.
        """
        epoch_B, place_B = np.divmod(np.arange(position, position + count), len(self))
        return epoch_B, permuted(place_B, len(self), keyed(self.seed, ORDER, epoch_B))

    def __getitem__(self, index: int | tuple[int, int]) -> Pair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> list[Pair]:
        pairs = [index if isinstance(index, tuple) else (0, index) for index in indices]
        epoch_B, row_B = np.array(pairs, dtype=np.int64).T
        if row_B.min() < -len(self) or row_B.max() >= len(self):
            wrong = row_B.min() if row_B.min() < 0 else row_B.max()
            raise IndexError(f"row {wrong} is out of range: the dataset has {len(self)} rows")
        noisy, target = self.noised(epoch_B, row_B % len(self))
        return [Pair(*ids) for ids in zip(noisy.sentences(), target.sentences(), strict=True)]

    def collate(self, pairs: Sequence[Pair]) -> Batch:
        """Pack pairs into a `Batch`; for a DataLoader."""
        noisy, target = (Packed.from_lists(lists).to("cpu") for lists in zip(*pairs, strict=True))
        return Batch(noisy, target)

    def text(self, row: int, epoch: int = 0) -> tuple[str, str]:
        """Return the noisy and the clean sentence as text."""
        noisy, target = (decoded(ids, self.tokenizer) for ids in self[(epoch, row)])
        return noisy, target


def check_lengths_and_words(max_length: int, words: str | None) -> None:
    """Raise ValueError for a ``max_length`` that holds no sentence, or a definition of words that does not exist.

    words: None: not asked for.
    """
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 (one token between two special ones), got {max_length}")
    if words is not None:
        Words(words)


def find_noise(name: str) -> Noise:
    """Return a noise by its name, or a user's function by ``module:function``; ValueError if there is none."""
    if name in NOISES:
        return NOISES[name]
    if ":" not in name:
        raise ValueError(f"unknown noise {name!r}; {suggestion(name, NOISES, 'or module:function')}")
    return named_function(name, "noise")


def check_noise(noisy: object, clean: Packed[np.ndarray], vocabulary: Vocabulary) -> None:
    """Raise ValueError if a user's noise did not return a sound batch; called for each, so that none is trained on."""
    if not isinstance(noisy, Packed):
        raise ValueError(f"the noise must return a Packed, it returned {type(noisy).__name__}")
    if len(noisy) != len(clean) or noisy.lengths_B.min() < 1 or noisy.boundaries[-1] != noisy.token_count:
        raise ValueError("the noise must return as many sentences as it was given, and none of them empty")
    if noisy.boundaries[0] != 0 or noisy.longest != noisy.lengths_B.max():
        raise ValueError(
            "the noise returned a Packed whose boundaries do not start at 0, or whose longest is not the length of its "
            "longest sentence; use Packed.from_lengths"
        )
    if noisy.token_ids_T.min() < 0 or noisy.token_ids_T.max() >= vocabulary.size:
        raise ValueError(f"the noise returned token ids outside [0, {vocabulary.size})")
