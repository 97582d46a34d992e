"""What is minimised. An objective is a function ``(model, batch) -> LossSum``; change the loss here.

    def mine(model, batch):
        sentence_BD = model.encode(batch.noisy)
        return model.reconstruction_loss(batch.target, sentence_BD)

It may be a `torch.nn.Module`, whose parameters are trained too; one that needs the model's sizes is given as a class,
which is called with the model. Optional attributes:

    views            how many noisings of each sentence it reads (``batch.views``); 1
    counts           ``batch -> {term: count}``, what each term is divided by, known before the first forward pass;
                     needed where a step has several batches or processes
    smallest_batch   sentences that a batch must have; 1

# B sentences, D hidden size
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.objectives.bag_of_words import BagOfWords
from tsdae.objectives.barlow_twins import BarlowTwins
from tsdae.objectives.ct import ContrastiveTension
from tsdae.objectives.hold_on import HoldOn
from tsdae.objectives.mlm import MaskedLanguageModel, TSDAEAndMLM
from tsdae.objectives.retromae import RetroMAE
from tsdae.objectives.simcse import SimCSE
from tsdae.packing import Batch

__all__ = [
    "OBJECTIVES",
    "BagOfWords",
    "BarlowTwins",
    "ContrastiveTension",
    "HoldOn",
    "MaskedLanguageModel",
    "Objective",
    "RetroMAE",
    "SimCSE",
    "TSDAEAndMLM",
    "tsdae",
]


Objective = Callable[[TSDAE, Batch], LossSum]


def tsdae(model: TSDAE, batch: Batch) -> LossSum:
    """Return the paper's loss, - sum_t log p(x_t | x_<t, s) over the tokens of the clean sentences: `TSDAE.forward`.

    Recipe: batch 8, 3e-5, CLS (section 4). bert-base on STS-B dev: 73 in Briggs' article (Pinecone).
    """
    return model(batch)


def _counts(batch: Batch) -> Counts:
    return {"reconstruction": batch.reconstructed}


tsdae.counts = _counts  # type: ignore[attr-defined]  # functions carry attributes, their type does not

# By the name that --objective takes; a class is called with the model.
OBJECTIVES: dict[str, Any] = {
    "tsdae": tsdae,
    "mlm": MaskedLanguageModel(),
    "simcse": SimCSE,
    "ct": ContrastiveTension,
    "bag_of_words": BagOfWords(),
    "retromae": RetroMAE,
    "barlow_twins": BarlowTwins(),
    "tsdae_mlm": TSDAEAndMLM(),
}
