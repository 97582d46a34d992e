"""The second half of a feed-forward block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tsdae.ops.switch import bytes_of, computed_again


def gelu_linear(expanded_TF: Tensor, contract: nn.Linear) -> Tensor:
    """``contract(gelu(expanded_TF))``, GELU by erf. Of a large batch the fast version keeps only its input."""
    return computed_again(bytes_of(expanded_TF), lambda wide_TF: contract(F.gelu(wide_TF)), expanded_TF)
