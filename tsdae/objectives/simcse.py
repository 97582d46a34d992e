"""SimCSE, unsupervised (Gao, Yao, Chen 2021, EMNLP, section 3): dropout is the only noise.

# B sentences, G sentences of all processes, D width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae.autoencoder import TSDAE
from tsdae.bert import initialise
from tsdae.losses import Counts, LossSum
from tsdae.packing import Batch
from tsdae.utils.distributed import all_gather_rows


class SimCSE(nn.Module):
    """Which second encoding belongs to which first?

        J = - sum_i log softmax_j(cos(h_i, h'_j) / temperature)_i,    h = tanh(W s + b)

    h and h' come from the same clean sentence, encoded twice under other dropout masks; the other sentences of the
    batch, over all processes, are the negatives. The head is for training only, no part of the encoder (section 6.3).
    In evaluation there is no dropout: the loss then only tells how far apart sentences are.

    Recipe: batch 64, 3e-5, CLS. bert-base on a million sentences of Wikipedia, STS-B test: 76.85 published.
    With --accumulate a micro-batch sees only its own negatives.
    """

    smallest_batch = 2

    def __init__(self, model: TSDAE, temperature: float = 0.05, seed: int = 0) -> None:
        super().__init__()
        width = model.encoder.bert.config.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        initialise(self.head, model.encoder.bert.config.initializer_range, seed)
        self.temperature = temperature

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        first_BD, second_BD = (self.head(model.encode(batch.target)) for _ in range(2))
        with torch.autocast(first_BD.device.type, enabled=False):  # cosines near 1 are equal in bfloat16
            wide = torch.promote_types(first_BD.dtype, torch.float32)
            first_BD, second_BD = (F.normalize(each.to(wide), dim=1) for each in (first_BD, second_BD))
            loss_B = pick_own(first_BD, second_BD, 1 / self.temperature, self.training)
        return LossSum(loss_B.sum(), len(loss_B), "contrast")

    def counts(self, batch: Batch) -> Counts:
        return {"contrast": len(batch.target)}


def pick_own(query_BD: Tensor, key_BD: Tensor, scale: float, gather: bool) -> Tensor:
    """Return - log softmax_j(scale q_i . k_j)_i over the keys of this process, or with ``gather`` of all: loss_B."""
    key_GD, own = all_gather_rows(key_BD) if gather else (key_BD, 0)  # in evaluation the others are not there
    own_B = torch.arange(own, own + len(query_BD), device=query_BD.device)
    return F.cross_entropy(scale * query_BD @ key_GD.T, own_B, reduction="none")
