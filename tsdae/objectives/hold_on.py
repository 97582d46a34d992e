"""Adapting a finished sentence model without losing what it knows.

# B sentences, D hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tsdae.autoencoder import TSDAE
from tsdae.encoder import SentenceEncoder
from tsdae.losses import Counts, LossSum
from tsdae.packing import Batch


class HoldOn:
    """The paper's objective, and similarity distillation from the finished sentence model that training started from:

        J + weight x mean over pairs i != j of a batch of (cos(s_i, s_j) - cos(s0_i, s0_j))^2

    s0 is the vector that the model at the start gave the same noisy sentence. What alike sentences are is kept (as in
    similarity-preserving distillation: Tung and Mori 2019, section 3), not the vectors themselves: they may turn, be of
    another pooling, and serve the decoder.

    start: that model, read by its own pooling, the one with which it was good; it is not trained.
    weight: of the term, above 0. A batch of one sentence has no pairs and no such term.
    """

    smallest_batch = 2

    def __init__(self, start: SentenceEncoder, weight: float) -> None:
        self.start = start.eval().requires_grad_(False)
        self.weight = weight

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        sentence_BD = model.encode(batch.noisy)
        loss = model.reconstruction_loss(batch.target, sentence_BD)
        if len(batch.target) == 1:
            return loss
        with torch.no_grad():
            start_BD = self.start.to(sentence_BD.device)(batch.noisy)
        difference_BB = _cosines(sentence_BD) - _cosines(start_BD)  # 0 on the diagonal
        held = LossSum(difference_BB.square().sum(), difference_BB.numel() - len(difference_BB), "holding_on")
        return loss + self.weight * held

    def counts(self, batch: Batch) -> Counts:
        size = len(batch.target)
        return {"reconstruction": batch.reconstructed} | ({"holding_on": size * (size - 1)} if size > 1 else {})


def _cosines(sentence_BD: Tensor) -> Tensor:
    unit_BD = F.normalize(sentence_BD, dim=1)
    with torch.autocast(unit_BD.device.type, enabled=False):  # two similarities may differ by less than bf16 shows
        return unit_BD @ unit_BD.T
