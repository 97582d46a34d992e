"""Several sentences laid end to end, without padding.

A padded batch of 64 short sentences is mostly padding, and every layer but attention works row by row. So a batch
is kept *packed*: one row per real token, and the boundaries of the sentences. Only attention and pooling look at
the boundaries; they pad, work, and unpad through `Layout`.

# B sentences, T packed tokens, L padded length (the longest sentence), X any further axes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Packed(Generic[Array]):
    """Token ids of B sentences laid end to end: numpy arrays where text is noised, tensors where models run.

    >>> packed = Packed.from_lists([[2, 10, 11, 3], [2, 12, 3]])
    >>> packed.token_ids_T.tolist(), packed.boundaries.tolist(), packed.longest
    ([2, 10, 11, 3, 2, 12, 3], [0, 4, 7], 4)

    token_ids_T: int64, the ids of all sentences, special tokens included.
    boundaries: int64 [B + 1]; sentence b is ``token_ids_T[boundaries[b]:boundaries[b + 1]]``.
    longest: length of the longest sentence, known on the host, so that no layer has to ask the device for it.
    """

    token_ids_T: Array
    boundaries: Array
    longest: int

    @staticmethod
    def from_lists(sentences: Sequence[Sequence[int] | np.ndarray]) -> Packed[np.ndarray]:
        """Pack B >= 1 lists of token ids; ValueError if there are none, or one of them is empty."""
        lengths = [len(sentence) for sentence in sentences]
        if not lengths or min(lengths) == 0:
            raise ValueError("a packed batch needs at least one sentence, and each at least one token")
        token_ids_T = np.concatenate([np.asarray(sentence, dtype=np.int64) for sentence in sentences])
        return Packed.from_lengths(token_ids_T, np.asarray(lengths, dtype=np.int64))

    @staticmethod
    def from_lengths(token_ids_T: np.ndarray, lengths_B: np.ndarray) -> Packed[np.ndarray]:
        """Pack ids that are end to end already; lengths_B: tokens of each sentence."""
        boundaries = np.zeros(len(lengths_B) + 1, dtype=np.int64)
        np.cumsum(lengths_B, out=boundaries[1:])
        return Packed(token_ids_T, boundaries, int(lengths_B.max()))

    def to(self, device: torch.device | str) -> Packed[Tensor]:
        """Return the same sentences as tensors on ``device``."""
        token_ids_T, boundaries = torch.as_tensor(self.token_ids_T), torch.as_tensor(self.boundaries)
        beside = copies_run_beside(device) and token_ids_T.device.type == "cpu"
        if beside:
            token_ids_T, boundaries = token_ids_T.pin_memory(), boundaries.pin_memory()
        token_ids_T, boundaries = (part.to(device, non_blocking=beside) for part in (token_ids_T, boundaries))
        return Packed(token_ids_T, boundaries, self.longest)

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    @property
    def token_count(self) -> int:
        """Return T, known on the host."""
        return len(self.token_ids_T)

    @property
    def lengths_B(self) -> Array:
        """Return the number of tokens of each sentence, [B]."""
        return self.boundaries[1:] - self.boundaries[:-1]

    def sentences(self) -> Iterator[list[int]]:
        """Yield the token ids of each sentence."""
        for start, end in zip(self.boundaries[:-1].tolist(), self.boundaries[1:].tolist(), strict=True):
            yield self.token_ids_T[start:end].tolist()

    def split(self: Packed[np.ndarray], size: int) -> Iterator[Packed[np.ndarray]]:
        """Yield the sentences in groups of ``size``, the last one perhaps smaller; nothing is copied."""
        longest_G = np.maximum.reduceat(self.lengths_B, np.arange(0, len(self), size)).tolist()
        for group, longest in enumerate(longest_G):
            boundaries = self.boundaries[group * size : (group + 1) * size + 1]
            yield Packed(self.token_ids_T[boundaries[0] : boundaries[-1]], boundaries - boundaries[0], longest)

    def without_last(self: Packed[Tensor]) -> Packed[Tensor]:
        """Return what a decoder reads: every sentence without its last token, after which nothing is to predict."""
        return self._drop_one_token(first_kept=0)

    def without_first(self: Packed[Tensor]) -> Packed[Tensor]:
        """Return what a decoder has to predict: every sentence without its first token, row for row `without_last`."""
        return self._drop_one_token(first_kept=1)

    def _drop_one_token(self: Packed[Tensor], first_kept: int) -> Packed[Tensor]:
        device = self.boundaries.device
        boundaries = self.boundaries - torch.arange(len(self) + 1, device=device)  # earlier sentences lost one each
        shorter = Layout(boundaries, self.token_count - len(self), self.longest - 1)
        rows_T = torch.arange(shorter.token_count, device=device) + shorter.sentence_T + first_kept
        return Packed(self.token_ids_T.index_select(0, rows_T), boundaries, shorter.longest)


def copies_run_beside(device: torch.device | str) -> bool:
    """True if a copy from page-locked memory runs beside what the device is doing; from other memory it must not."""
    return torch.device(device).type == "cuda"


class Batch(NamedTuple):
    """What a training step reads: B noisy sentences for the encoder, the same B clean ones for the decoder.

    >>> tokenizer = SentenceEncoder.from_pretrained("mini").tokenizer
    >>> Batch.from_texts(["man guitar"], ["A man plays a guitar."], tokenizer).reconstructed
    7

    more_views: further noisings of the same sentences, for an objective that asks for them by its ``views``.
    """

    noisy: Packed[Tensor]
    target: Packed[Tensor]
    more_views: tuple[Packed[Tensor], ...] = ()

    @property
    def views(self) -> tuple[Packed[Tensor], ...]:
        """Return all noisings of these sentences, the first of them ``noisy``."""
        return (self.noisy, *self.more_views)

    @property
    def reconstructed(self) -> int:
        """Return the number of tokens that the decoder has to predict: all but the first of each sentence."""
        return self.target.token_count - len(self.target)

    @classmethod
    def from_texts(
        cls, noisy: Sequence[str], target: Sequence[str], tokenizer: Any, max_length: int | None = None
    ) -> Batch:
        """Make a batch from pairs of texts that were noised elsewhere; longer ones are cut to ``max_length`` tokens."""
        from tsdae.text.tokenization import token_ids

        if len(noisy) != len(target):
            raise ValueError(f"{len(noisy)} noisy sentences for {len(target)} clean ones")
        first, clean = (token_ids(texts, tokenizer, max_length).to("cpu") for texts in (noisy, target))
        return cls(first, clean)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.noisy.to(device), self.target.to(device), tuple(view.to(device) for view in self.more_views))


class Layout:
    """The sentence and place of each packed row, and the way to the padded tensor [B, L, X] and back.

    Built once a batch and handed to every layer. Nothing in it waits for the device.

    >>> layout = Layout.of(Packed.from_lists([[2, 10, 3], [2, 3]]).to("cpu"))
    >>> layout.pad(torch.ones(5)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]

    batch: B. longest: L. sentence_T, position_T: the sentence of each row, and its place in it from 0.
    rows: of a packed tensor, T, or more by a few spare ones after those of the tokens (see `ops.layout_of`). They are
        dropped where sentences are padded or pooled, and no loss sees them.
    is_full: all sentences are equally long, so that nothing has to be padded.
    cache: what operations compute once for all layers (see `ops`).
    """

    def __init__(self, boundaries: Tensor, token_count: int, longest: int, rows: int | None = None) -> None:
        self.boundaries, self.token_count, self.longest = boundaries, token_count, longest
        self.rows = token_count if rows is None else rows
        self.batch = len(boundaries) - 1
        self.lengths_B = boundaries[1:] - boundaries[:-1]
        sentences = torch.arange(self.batch, device=boundaries.device)
        sentence_T = torch.repeat_interleave(sentences, self.lengths_B, output_size=token_count)
        position_T = torch.arange(token_count, device=boundaries.device) - boundaries.index_select(0, sentence_T)
        self.sentence_T, self.position_T = self.with_spare_rows(sentence_T), self.with_spare_rows(position_T)
        self.cache: dict[str, Any] = {}
        self.is_full = token_count == self.rows == self.batch * self.longest

    @classmethod
    def of(cls, packed: Packed[Tensor]) -> Layout:
        """Return the layout without spare rows, one row a token."""
        return cls(packed.boundaries, packed.token_count, packed.longest)

    def with_spare_rows(self, values_T: Tensor) -> Tensor:
        """Append a zero for each row that is no token."""
        return F.pad(values_T, (0, self.rows - self.token_count)) if self.rows > self.token_count else values_T

    def tokens(self, rows_TX: Tensor) -> Tensor:
        """Drop the rows that are no tokens."""
        return rows_TX.narrow(0, 0, self.token_count)

    def first(self, rows_TX: Tensor) -> Tensor:
        """Return the first row of each sentence, [B, X]."""
        return rows_TX.index_select(0, self.boundaries[:-1])

    @cached_property
    def slot_T(self) -> Tensor:
        """Return the row of each token in the padded tensor, flattened to [B * L, X]."""
        return self.sentence_T * self.longest + self.position_T

    @cached_property
    def real_BL(self) -> Tensor:
        """Return bool, True where the padded tensor holds a token."""
        return torch.arange(self.longest, device=self.boundaries.device) < self.lengths_B[:, None]

    @cached_property
    def earlier_LL(self) -> Tensor:
        """Return bool, True where a token (row) may attend to one (column): to itself and those before it."""
        return torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.boundaries.device).tril()

    @cached_property
    def causal_bias_LL(self) -> Tensor:
        """Return what a causal mask adds to the scores: 0 where attention is allowed, else -inf."""
        return _bias(self.earlier_LL)

    @cached_property
    def padding_bias_BL(self) -> Tensor:
        """Return what the padding adds to the scores: 0 for tokens, else -inf."""
        return _bias(self.real_BL)

    def pad(self, rows_TX: Tensor) -> Tensor:
        """Return [T, X] as [B, L, X]; the padding is zero."""
        if self.is_full:
            return rows_TX.reshape(self.batch, self.longest, *rows_TX.shape[1:])
        flat = rows_TX.new_zeros(self.batch * self.longest, *rows_TX.shape[1:])
        flat = flat.index_copy(0, self.tokens(self.slot_T), self.tokens(rows_TX))
        return flat.view(self.batch, self.longest, *rows_TX.shape[1:])

    def unpad(self, rows_BLX: Tensor) -> Tensor:
        """Return [B, L, X] as [T, X]; the padding is dropped."""
        flat = rows_BLX.reshape(self.batch * self.longest, *rows_BLX.shape[2:])
        # index_select, not flat[slot_T]: the backward of advanced indexing is not reproducible on threaded CPUs.
        return flat if self.is_full else flat.index_select(0, self.slot_T)


def _bias(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return ``concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])``, without the loop."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - (ends - lengths), lengths)
    return cast(np.ndarray, np.arange(len(shift)) + shift)
