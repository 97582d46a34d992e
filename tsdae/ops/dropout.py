"""Dropout. PyTorch's draws one number at a time on one thread of a CPU, and a layer has three to six sites; the fast
version takes 16 random bits an element, and draws the masks of many sites of a batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tsdae.ops.common import bytes_of, computed_again, on_cpu
from tsdae.packing import Layout

DRAWN_AT_ONCE = 2**18  # elements: a dozen sites of a small batch


def dropout(hidden: Tensor, p: float, training: bool, layout: Layout) -> Tensor:
    """Return each element as 0 with probability ``p``, else divided by 1 - p; in evaluation as it is.

    layout: of the batch, which keeps the masks that are drawn but not used yet.
    """
    if not training or p == 0.0:
        return hidden
    if not on_cpu(hidden):
        return F.dropout(hidden, p)
    return computed_again(bytes_of(hidden), lambda hidden: hidden * dropout_mask(hidden, p, layout), hidden)


def dropout_mask(like: Tensor, p: float, layout: Layout) -> Tensor:
    """Return a new mask of the shape, type and device of ``like``: 0 with probability ``p``, else 1 / (1 - p).

    The fast version takes the multiple of 1/65,536 that is nearest to ``p``, for the scale as well.
    """
    if not on_cpu(like):
        return F.dropout(torch.ones_like(like), p)
    count, key = like.numel(), f"masks of {p} in {like.dtype}"
    if count >= DRAWN_AT_ONCE:
        return _draw(count, p, like.dtype).view(like.shape)
    if key not in layout.cache or len(layout.cache[key]) < count:
        layout.cache[key] = _draw(DRAWN_AT_ONCE, p, like.dtype)
    drawn, layout.cache[key] = layout.cache[key].tensor_split([count])
    return drawn.view(like.shape)


def _draw(count: int, p: float, dtype: torch.dtype) -> Tensor:
    dropped = min(round(p * 2**16), 2**16 - 1)  # of 65,536 values of 16 bits
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return (bits >= dropped - 2**15).to(dtype).mul_(2**16 / (2**16 - dropped))
