"""The switch between fast and plain operations, and what the fast ones of a CPU have in common:

Spare rows. oneDNN, which multiplies bfloat16 matrices on CPUs, compiles a kernel for each new shape, and a packed batch
has a new length at nearly every step (a third of its time, measured). So a batch is made a little longer there.

Computing again. A large tensor that is easily computed from another one is not kept for the backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tsdae.packing import Layout, Packed

# Of a tensor that is computed again: below, memory is cheaper than time (measured). Such a dropout mask has more
# elements than are drawn at once, so it is drawn alone, and drawing it again gives the same.
LARGE_BYTES = 6 * 2**20

_plain = False


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Run the plain version of every operation of `ops` within this context."""
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
    """Return ``function(*arguments)``. On a CPU, if its largest tensor has many bytes (``largest``), only the arguments
    are kept: backward computes it again from them, with the same random numbers.
    """
    if not on_cpu(arguments[0]) or largest < LARGE_BYTES or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32, or in fp64 if it is that: what a softmax or a correlation is computed in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def bytes_of(tensor: Tensor) -> int:
    """Return ``tensor.nbytes``, which torch.compile cannot trace."""
    return tensor.numel() * tensor.element_size()


def gelu_linear(expanded_TF: Tensor, contract: nn.Linear) -> Tensor:
    """Return ``contract(gelu(expanded_TF))``, GELU by erf. Of a large batch the fast version keeps only its input."""
    return computed_again(bytes_of(expanded_TF), lambda wide_TF: contract(F.gelu(wide_TF)), expanded_TF)


def layout_of(packed: Packed[Tensor]) -> Layout:
    """Return the layout of a model's input, with spare rows where they pay."""
    if not new_lengths_cost(packed.boundaries.device):
        return Layout.of(packed)
    return Layout(
        packed.boundaries, packed.token_count, few_lengths(packed.longest), rows=few_lengths(packed.token_count)
    )


def few_lengths(length: int) -> int:
    """Return ``length`` rounded up to a multiple of 8, or of 1/16 to 1/32 of itself where that is more."""
    step = max(8, 2 ** (length.bit_length() - 5))
    return -(-length // step) * step


def new_lengths_cost(device: torch.device) -> bool:
    """True where oneDNN compiles a kernel for each new length."""
    return device.type == "cpu" and torch.is_autocast_enabled("cpu") and not is_plain()
