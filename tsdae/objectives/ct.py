"""Contrastive tension with in-batch negatives (Carlsson et al. 2021, ICLR): two encoders agree on a sentence."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.objectives.simcse import in_batch_loss
from tsdae.packing import Batch


class ContrastiveTension(nn.Module):
    """Two encoders start from the same weights; the vectors of one sentence should have the larger dot product.

        J = - 1/2 sum_i (log softmax_j(a s_i . s'_j)_i + log softmax_j(a s'_i . s_j)_i)

    s is of the encoder that is kept, s' of a second copy; the scale a starts at 1. Copy and scale are trained too, and
    thrown away. The paper draws 7 negatives for each pair and uses a binary loss; here all other sentences of the
    batch, over all processes, are negatives, as in sentence-transformers' ContrastiveTensionLossInBatchNegatives.

    Recipe: batch 128, 5e-5, mean. STS-B by the documentation of sentence-transformers, a million sentences of
    Wikipedia: 78.5 with in-batch negatives, 75.7 with the paper's loss (its script trains distilbert-base-uncased).
    With --accumulate a micro-batch sees only its own negatives.
    """

    smallest_batch = 2

    def __init__(self, model: TSDAE) -> None:
        super().__init__()
        self.second = copy.deepcopy(model.encoder)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        first_BD, second_BD, scale = model.encode(batch.target), self.second(batch.target), self.log_scale.exp()
        loss_B = in_batch_loss(first_BD, second_BD, scale, self.training)
        loss_B = 0.5 * (loss_B + in_batch_loss(second_BD, first_BD, scale, self.training))
        return LossSum(loss_B.sum(), len(loss_B), "tension")

    def counts(self, batch: Batch) -> Counts:
        return {"tension": len(batch.target)}
