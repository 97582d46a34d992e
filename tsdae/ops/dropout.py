"""Dropout, and what is computed again in the backward pass instead of being kept for it.

PyTorch's dropout on a CPU draws one number at a time on one thread, and a layer has three to six sites. Here an element
takes 16 random bits, and the masks of many sites are drawn at once. On other devices and under torch.compile all is
PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

DRAWN_AT_ONCE = 2**18  # elements: a dozen sites of a small batch
# Of a tensor that is computed again: below, memory is cheaper than time (measured). Such a mask has more elements than
# DRAWN_AT_ONCE, so it is drawn alone, and drawing it again gives the same.
LARGE_BYTES = 6 * 2**20


class Masks:
    """The dropout masks of one batch: 0 with probability p, else 1 / (1 - p)."""

    def __init__(self) -> None:
        self._left: dict[tuple[float, torch.dtype], Tensor] = {}

    def mask(self, like: Tensor, p: float) -> Tensor:
        """A new mask of the shape, type and device of ``like``.

        On CPUs ``p`` becomes the nearest multiple of 1/65,536, for the scale as well.
        """
        if not our_way(like):
            return F.dropout(torch.ones_like(like), p)
        count, kind = like.numel(), (p, like.dtype)
        if count >= DRAWN_AT_ONCE:
            return _draw(count, p, like.dtype).view(like.shape)
        if kind not in self._left or len(self._left[kind]) < count:
            self._left[kind] = _draw(DRAWN_AT_ONCE, p, like.dtype)
        drawn, self._left[kind] = self._left[kind].tensor_split([count])
        return drawn.view(like.shape)


def our_way(tensor: Tensor) -> bool:
    """Whether to do as this file does: on CPUs, but not under torch.compile, which knows PyTorch's own ways better."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _draw(count: int, p: float, dtype: torch.dtype) -> Tensor:
    dropped = min(round(p * 2**16), 2**16 - 1)  # of 65,536 values of 16 bits
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return (bits >= dropped - 2**15).to(dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """PyTorch's dropout; on CPUs with masks of the batch's own."""

    def forward(self, hidden: Tensor, masks: Masks) -> Tensor:  # type: ignore[override]
        if not self.training or self.p == 0.0:
            return hidden
        if not our_way(hidden):
            return super().forward(hidden)
        return computed_again(bytes_of(hidden), lambda hidden: hidden * masks.mask(hidden, self.p), hidden)


def computed_again(largest: int, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """``function(*arguments)``. On a CPU, if a tensor of many bytes comes up in it (``largest``), backward computes it
    again from the arguments, with the same random numbers, and nothing else is kept.
    """
    if not our_way(arguments[0]) or largest < LARGE_BYTES or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


def bytes_of(tensor: Tensor) -> int:
    """``tensor.nbytes``, which torch.compile cannot trace."""
    return tensor.numel() * tensor.element_size()
