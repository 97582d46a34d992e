"""What can be known without labels: measures on held-out text, under one fixed noise whatever the run's own is.

They are watched during training (`measures`), may choose best/ or end a run, and are compared with STS-B in
benchmarks/ablation. Reconstruction and the retrieval of noisy sentences are what TSDAE is trained for: good figures
there are no evidence of good embeddings.

# B sentences, D width
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsdae.autoencoder import TSDAE
from tsdae.dataset import DenoisingDataset
from tsdae.objectives import tsdae
from tsdae.packing import Batch

PROBED = 1000  # held-out sentences, the first of the keyed order
RECONSTRUCTION = ("reconstruction_loss", "perplexity")
GEOMETRY = ("noisy_retrieval", "alignment", "uniformity", "effective_rank", "mean_cosine")
THE_LOWER_THE_BETTER = {"perplexity", "alignment", "uniformity", "mean_cosine"}  # and every *loss


def probe_of(heldout: DenoisingDataset) -> DenoisingDataset:
    """The held-out sentences under the paper's noise and seed 0, so that runs of other settings can be compared.

    The same dataset again, if it is that already.
    """
    probe = DenoisingDataset(heldout.corpus, heldout.tokenizer, "delete", 0.6, 0, heldout.max_length)
    same = all(getattr(heldout, name) == getattr(probe, name) for name in ("noise", "noise_ratio", "seed"))
    return heldout if same else probe


@torch.no_grad()
def label_free(
    model: TSDAE, probe: DenoisingDataset, reconstructs: bool = True, known_loss: float | None = None
) -> dict[str, float]:
    """The measures of ``model``, in evaluation mode, on the first 1,000 sentences of ``probe``, which has two at least.

    reconstructs: whether the decoder has been trained; if not, its loss says nothing and is left out.
    known_loss: the reconstruction loss, if it has been computed already.

    reconstruction_loss  - log p per target token (paper, section 3); perplexity is its exponential
    noisy_retrieval      of 100 noisy sentences, how many have their clean one as the nearest of all (accuracy@1)
    alignment            mean squared distance of noisy and clean vector, normalised (Wang and Isola 2020, section 4.1)
    uniformity           log mean exp(- 2 squared distance) over pairs of clean vectors, normalised (the same)
    effective_rank       exp(entropy of the shares of the singular values), of centred vectors (Roy and Vetterli 2007)
    mean_cosine          over pairs of clean sentences; near 1 where all vectors have collapsed into one direction
    """
    measures: dict[str, float] = {}
    noisy, clean = [], []
    total, count = 0.0, 0
    for batch in _batches(probe, next(model.parameters()).device):
        noisy.append(model.encode(batch.noisy))
        clean.append(model.encode(batch.target))
        if reconstructs and known_loss is None:
            term = tsdae(model, batch).terms["reconstruction"]
            total, count = total + float(term.total), count + term.count
    if reconstructs:
        loss = total / count if known_loss is None else known_loss
        measures |= {"reconstruction_loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return measures | geometry(torch.cat(noisy), torch.cat(clean))


def geometry(noisy_BD: Tensor, clean_BD: Tensor) -> dict[str, float]:
    """The measures that need nothing but vectors, of B >= 2 sentences; see `label_free`."""
    noisy_BD, clean_BD = noisy_BD.cpu(), clean_BD.cpu()  # mps has no float64
    centred_BD = (clean_BD - clean_BD.mean(0)).double()
    noisy_BD, clean_BD = F.normalize(noisy_BD.double(), dim=1), F.normalize(clean_BD.double(), dim=1)
    size = len(clean_BD)
    cosine_BB = clean_BD @ clean_BD.T
    different_BB = ~torch.eye(size, dtype=torch.bool, device=clean_BD.device)
    pairs = cosine_BB[different_BB]
    found_B = (noisy_BD @ clean_BD.T).argmax(1) == torch.arange(size, device=clean_BD.device)
    # Unit vectors a and b lie |a - b|^2 = 2 - 2 a.b apart.
    return {
        "noisy_retrieval": 100.0 * float(found_B.double().mean()),
        "alignment": float((2.0 - 2.0 * (noisy_BD * clean_BD).sum(1)).mean()),
        "uniformity": float(torch.exp(-2.0 * (2.0 - 2.0 * pairs)).mean().log()),
        "effective_rank": effective_rank(torch.linalg.svdvals(centred_BD)),
        "mean_cosine": float(pairs.mean()),
    }


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the singular values' shares of their sum; 0 if all are 0."""
    total = singular_values.sum()
    if not total > 0:
        return 0.0
    share = singular_values / total
    return float(torch.special.entr(share).sum().exp())


def _batches(probe: DenoisingDataset, device: torch.device, batch_size: int = 64) -> Iterator[Batch]:
    """The probed sentences, those of like length together."""
    epoch_B, row_B = probe.order(0, min(PROBED, len(probe)))
    lengths_B = probe.corpus.boundaries[row_B + 1] - probe.corpus.boundaries[row_B]
    by_length = np.argsort(lengths_B, kind="stable")
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        yield probe.batch(epoch_B[rows], row_B[rows]).to(device)
