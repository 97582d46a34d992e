"""What was tried beside --hold-on and dropped (LOG.md): the paper's loss + W x sum (theta - theta0)^2.

theta0 are the weights of the published model (L2-SP: Li, Grandvalet, Davoine 2018, equation 2).

    python scripts/ablate.py --grid objective=benchmarks/l2_start.py:weight_01,benchmarks/l2_start.py:weight_1 ...
"""

from __future__ import annotations

import functools

import torch

from tsdae import TSDAE, Batch, LossSum, SentenceEncoder
from tsdae.hub.downloads import MINILM
from tsdae.objectives import tsdae


@functools.cache
def start() -> SentenceEncoder:
    """Read from its folder, so that a resumed run holds on to the same weights."""
    return SentenceEncoder.from_pretrained(MINILM.name).requires_grad_(False)


def l2_start(model: TSDAE, batch: Batch, weight: float) -> LossSum:
    begun = dict(start().named_parameters())
    squares = [(value - begun[name]).square().sum() for name, value in model.encoder.named_parameters()]
    return tsdae(model, batch) + weight * LossSum(torch.stack(squares).sum(), 1, "distance")


weight_01 = functools.partial(l2_start, weight=0.1)
weight_1 = functools.partial(l2_start, weight=1.0)
weight_10 = functools.partial(l2_start, weight=10.0)
