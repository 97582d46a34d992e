"""Spare rows: a batch is made a little longer, so that its lengths recur.

oneDNN, which multiplies bfloat16 matrices on CPUs, compiles a kernel for each new shape, and a packed batch has a new
length at nearly every step (a third of its time, measured).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsdae.ops.switch import is_plain
from tsdae.packing import Layout, Packed


def layout_of(packed: Packed[Tensor]) -> Layout:
    """The layout of a model's input, with spare rows where they pay."""
    if not new_lengths_cost(packed.boundaries.device):
        return Layout.of(packed)
    return Layout(
        packed.boundaries, packed.token_count, few_lengths(packed.longest), rows=few_lengths(packed.token_count)
    )


def few_lengths(length: int) -> int:
    """``length`` rounded up to a multiple of 8, or of 1/16 to 1/32 of itself where that is more."""
    step = max(8, 2 ** (length.bit_length() - 5))
    return -(-length // step) * step


def new_lengths_cost(device: torch.device) -> bool:
    return device.type == "cpu" and torch.is_autocast_enabled("cpu") and not is_plain()
