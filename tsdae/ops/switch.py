"""Whether operations run their fast version or the plain one, and what the fast ones of a CPU have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Of a tensor that is computed again: below, memory is cheaper than time (measured). Such a dropout mask has more
# elements than are drawn at once, so it is drawn alone, and drawing it again gives the same.
LARGE_BYTES = 6 * 2**20

_plain = False


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within it every operation of `ops` is its plain version."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def is_plain() -> bool:
    return _plain


def on_cpu(tensor: Tensor) -> bool:
    """True where the fast versions for CPUs run: not under torch.compile, which knows PyTorch's own ways better."""
    return tensor.device.type == "cpu" and not _plain and not torch.compiler.is_compiling()


def computed_again(largest: int, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """``function(*arguments)``. On a CPU, if a tensor of many bytes comes up in it (``largest``), backward computes it
    again from the arguments, with the same random numbers, and nothing else is kept.
    """
    if not on_cpu(arguments[0]) or largest < LARGE_BYTES or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


def bytes_of(tensor: Tensor) -> int:
    """``tensor.nbytes``, which torch.compile cannot trace."""
    return tensor.numel() * tensor.element_size()
