"""Barlow Twins (Zbontar et al. 2021, ICML, equation 1) on two noisings of a sentence.

# B sentences, D hidden size
"""

from __future__ import annotations

import torch

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.ops.common import at_least_fp32
from tsdae.packing import Batch


class BarlowTwins:
    """The dimensions of the vectors of two noisings should agree, and not repeat each other:

        J = sum_i (1 - C_ii)^2 + weight sum_{i != j} C_ij^2,    C_ij = correlation over the batch of s_i and s'_j

    No negatives are needed, and no decoder. C is of one batch of one process: give it as many sentences as fit, best
    more than the vector has dimensions. 1e-5 is added to each variance.

    Recipe: weight 0.005 (section 2.2). Ours: batch 64, 3e-5, mean; the paper trains images, in batches of 2,048 with
    LARS. No published score on STS-B for this form.
    """

    views = 2  # noisings of each sentence
    smallest_batch = 2

    def __init__(self, weight: float = 0.005) -> None:
        self.weight = weight

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        vectors = [at_least_fp32(model.encode(view)) for view in batch.views]
        with torch.autocast(vectors[0].device.type, enabled=False):
            first_BD, second_BD = (
                (each_BD - each_BD.mean(0)) / (each_BD.var(0, unbiased=False) + 1e-5).sqrt() for each_BD in vectors
            )
            one_DD = torch.eye(first_BD.shape[1], dtype=first_BD.dtype, device=first_BD.device)
            squared_DD = (first_BD.T @ second_BD / len(first_BD) - one_DD).square()
        diagonal = squared_DD.diagonal().sum()
        loss = diagonal + self.weight * (squared_DD.sum() - diagonal)
        return LossSum(loss * len(batch.target), len(batch.target), "twins")  # a batch weighs as much as its sentences

    def counts(self, batch: Batch) -> Counts:
        return {"twins": len(batch.target)}
