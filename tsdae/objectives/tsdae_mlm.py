"""The sum of TSDAE's loss and that of masked-language modelling."""

from __future__ import annotations

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.objectives.mlm import MaskedLanguageModel
from tsdae.packing import Batch


class TSDAEAndMLM:
    """J of the paper, and that of masked-language modelling on the clean sentences, weighed alike.

    Recipe: that of TSDAE. No published score.
    """

    def __init__(self, ratio: float = 0.15) -> None:
        self.mlm = MaskedLanguageModel(ratio)

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        return model(batch) + self.mlm(model, batch)

    def counts(self, batch: Batch) -> Counts:
        return {"reconstruction": batch.reconstructed, **self.mlm.counts(batch)}
