"""What is minimised. An objective is a function ``(model, batch) -> LossSum``; change the loss here.

    def mine(model, batch):
        sentence_BD = model.encode(batch.noisy)
        return model.reconstruction_loss(batch.target, sentence_BD)

It may be a `torch.nn.Module`, whose parameters are trained too. Its attribute ``views`` is how many noisings of each
sentence it reads (``batch.views``; 1 by default). Its attribute ``counts``, ``batch -> {term: count}``, tells what each
term is divided by before the first forward pass; it is needed where a step has several batches or processes.

# B sentences, D width
"""

from __future__ import annotations

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.objectives.hold_on import HoldOn
from tsdae.objectives.interface import Objective, check_counts, check_loss, step_counts, try_out, views_of
from tsdae.objectives.mlm import MaskedLanguageModel
from tsdae.packing import Batch

__all__ = [
    "HoldOn",
    "MaskedLanguageModel",
    "Objective",
    "check_counts",
    "check_loss",
    "step_counts",
    "try_out",
    "tsdae",
    "views_of",
]


def tsdae(model: TSDAE, batch: Batch) -> LossSum:
    """Return the paper's loss, - sum_t log p(x_t | x_<t, s) over the tokens of the clean sentences (`TSDAE.forward`)."""
    return model(batch)


def _counts(batch: Batch) -> Counts:
    return {"reconstruction": batch.reconstructed}


tsdae.counts = _counts  # type: ignore[attr-defined]  # functions carry attributes, their type does not
