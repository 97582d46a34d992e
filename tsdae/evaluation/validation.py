"""Validation metrics: what is measured while a model is trained, by which the best one is kept and a run is ended.

The metrics without labels are taken on held-out text, under one fixed noise whatever the run's own is.
benchmarks/label_free.md compares them with STS-B. Reconstruction and the retrieval of noisy sentences are what TSDAE is
trained for: good values there are no evidence of good embeddings.

# B sentences, D hidden size
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae.autoencoder import TSDAE
from tsdae.dataset import DenoisingDataset
from tsdae.objectives import Objective, tsdae
from tsdae.objectives.interface import views_of
from tsdae.packing import Batch
from tsdae.utils.checks import suggestion

SENTENCES = 1000  # of the held-out ones that label-free metrics read, the first of the keyed order
RECONSTRUCTION = ("reconstruction_loss", "perplexity")
GEOMETRY = ("noisy_retrieval", "alignment", "uniformity", "effective_rank", "mean_cosine")
LOWER_IS_BETTER = {"perplexity", "alignment", "uniformity", "mean_cosine"}  # and every *loss
COLLAPSED = 0.99  # mean cosine above which all sentences have nearly the same vector
AGAINST_COLLAPSE = "try a lower learning rate, larger batches or another objective"
LABELLED = ("stsb_dev", "pairs")  # metrics that are taken with labels


@torch.no_grad()
def validate(
    model: TSDAE,
    objective: Objective,
    evaluate: Callable[[Any], dict[str, float]] | None,
    heldout: DenoisingDataset | None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Return all validation metrics of the model as it is, without dropout or autocast.

    evaluate: as in `train`. heldout: sentences that are not trained on; None: only what ``evaluate`` returns.
    """
    model.eval()
    if isinstance(objective, nn.Module):
        objective.eval()
    device = next(model.parameters()).device
    metrics: dict[str, float] = {}
    if heldout is not None:
        totals: dict[str, list[float]] = {}  # of each term: sum, count, weight
        for start in range(0, len(heldout), batch_size):
            epoch_B, row_B = heldout.order(start, min(batch_size, len(heldout) - start))
            terms = objective(model, heldout.batch(epoch_B, row_B, views_of(objective)).to(device)).terms
            for name, term in terms.items():
                total = totals.setdefault(name, [0.0, 0.0, float(term.weight)])
                total[0] += float(term.total)
                total[1] += term.count
        metrics["heldout_loss"] = sum(weight * total / count for total, count, weight in totals.values())
        if len(totals) > 1:
            metrics |= {f"heldout_{name}_loss": total / count for name, (total, count, _) in totals.items()}
        if len(heldout) > 1:
            fixed = with_fixed_noise(heldout)
            is_known = objective is tsdae and fixed is heldout and len(heldout) <= SENTENCES
            known_loss = metrics["heldout_loss"] if is_known else None
            metrics |= label_free(model, fixed, "reconstruction" in totals, known_loss)
    if evaluate is not None:
        metrics |= evaluate(model.encoder)
    return metrics


def with_fixed_noise(heldout: DenoisingDataset) -> DenoisingDataset:
    """Return the held-out sentences under the paper's noise and seed 0, so that runs of other settings can be compared.

    The same dataset again, if it is that already.
    """
    fixed = DenoisingDataset(heldout.corpus, heldout.tokenizer, "delete", 0.6, 0, heldout.max_length)
    same = all(getattr(heldout, name) == getattr(fixed, name) for name in ("noise", "noise_ratio", "seed"))
    return heldout if same else fixed


@torch.no_grad()
def label_free(
    model: TSDAE, heldout: DenoisingDataset, reconstructs: bool = True, known_loss: float | None = None
) -> dict[str, float]:
    """Return the metrics without labels, of a model in evaluation mode on the first 1,000 of two sentences or more.

    reconstructs: False if the decoder has not been trained; its loss says nothing then and is left out.
    known_loss: the reconstruction loss, if it has been computed already.

    reconstruction_loss  - log p per target token (paper, section 3); perplexity is its exponential
    noisy_retrieval      of 100 noisy sentences, how many have their clean one as the nearest of all (accuracy@1)
    alignment            mean squared distance of noisy and clean vector, normalised (Wang and Isola 2020, section 4.1)
    uniformity           log mean exp(- 2 squared distance) over pairs of clean vectors, normalised (the same)
    effective_rank       exp(entropy of the shares of the singular values), of centred vectors (Roy and Vetterli 2007)
    mean_cosine          over pairs of clean sentences; near 1 where all vectors have collapsed into one direction
    """
    metrics: dict[str, float] = {}
    noisy, clean = [], []
    total, count = 0.0, 0
    for batch in _batches(heldout, next(model.parameters()).device):
        noisy.append(model.encode(batch.noisy))
        clean.append(model.encode(batch.target))
        if reconstructs and known_loss is None:
            term = tsdae(model, batch).terms["reconstruction"]
            total, count = total + float(term.total), count + term.count
    if reconstructs:
        loss = total / count if known_loss is None else known_loss
        metrics |= {"reconstruction_loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return metrics | geometry(torch.cat(noisy), torch.cat(clean))


def geometry(noisy_BD: Tensor, clean_BD: Tensor) -> dict[str, float]:
    """Return the metrics that need nothing but vectors, of B >= 2 sentences; see `label_free`."""
    noisy_BD, clean_BD = noisy_BD.cpu(), clean_BD.cpu()  # mps has no float64
    centred_BD = (clean_BD - clean_BD.mean(0)).double()
    noisy_BD, clean_BD = F.normalize(noisy_BD.double(), dim=1), F.normalize(clean_BD.double(), dim=1)
    size = len(clean_BD)
    cosine_BB = clean_BD @ clean_BD.T
    different_BB = ~torch.eye(size, dtype=torch.bool)
    pairs = cosine_BB[different_BB]
    found_B = (noisy_BD @ clean_BD.T).argmax(1) == torch.arange(size)
    # Of unit vectors a and b the squared distance is |a - b|^2 = 2 - 2 a.b.
    return {
        "noisy_retrieval": 100.0 * float(found_B.double().mean()),
        "alignment": float((2.0 - 2.0 * (noisy_BD * clean_BD).sum(1)).mean()),
        "uniformity": float(torch.exp(-2.0 * (2.0 - 2.0 * pairs)).mean().log()),
        "effective_rank": effective_rank(torch.linalg.svdvals(centred_BD)),
        "mean_cosine": float(pairs.mean()),
    }


def effective_rank(singular_values: Tensor) -> float:
    """Return exp of the entropy of the singular values' shares of their sum; 0 if all are 0."""
    total = singular_values.sum()
    return float(torch.special.entr(singular_values / total).sum().exp()) if total > 0 else 0.0


def _batches(heldout: DenoisingDataset, device: torch.device, batch_size: int = 64) -> Iterator[Batch]:
    """Yield the first sentences, those of similar length together."""
    epoch_B, row_B = heldout.order(0, min(SENTENCES, len(heldout)))
    lengths_B = heldout.corpus.boundaries[row_B + 1] - heldout.corpus.boundaries[row_B]
    by_length = np.argsort(lengths_B, kind="stable")
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        yield heldout.batch(epoch_B[rows], row_B[rows]).to(device)


def labelled(metrics: dict[str, Any]) -> str | None:
    """Return the name of the metric of an evaluation that used labels; None without one."""
    return next((name for name in LABELLED if name in metrics), None)


def shown_names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the names of the first row's metrics, one of two that are the same number: TSDAE's own held-out loss."""
    same = all(row.get("heldout_loss") == row.get("reconstruction_loss") for row in rows)
    return [name for name in rows[0] if not (same and name == "reconstruction_loss")]


def lower_is_better(name: str) -> bool:
    """True of losses, and of some of the metrics without labels."""
    return name.endswith("loss") or name in LOWER_IS_BETTER


def check_name(flag: str, name: str | None, measured: list[str]) -> None:
    """Raise ValueError if the metric that a flag names is not measured."""
    if name is not None and name not in measured:
        choose = suggestion(name, measured) if measured else "it has no metrics: see --heldout and --evaluate"
        raise ValueError(f"{flag} {name} is not measured in this run; {choose}")


def collapse(metrics: dict[str, float], sentences: int) -> str | None:
    """Return a warning if all sentences get nearly the same vector, or vectors along one line.

    sentences: how many were measured. Of a few, centred vectors span few dimensions whatever the model: no verdict.
    """
    cosine, rank = metrics.get("mean_cosine", 0.0), metrics.get("effective_rank", math.inf)
    if cosine > COLLAPSED:
        what = f"are nearly the same (mean_cosine {cosine:.4g})"
    elif rank < 2 and sentences >= 8:
        what = f"lie nearly along one line (effective_rank {rank:.4g})"
    else:
        return None
    return f"WARNING: the vectors of different sentences {what}: the representation has collapsed; {AGAINST_COLLAPSE}"


class BestSoFar:
    """The best value of one metric, and how many evaluations there were since; of some, lower is better.

    best = BestSoFar("noisy_retrieval")
    best.update({"noisy_retrieval": 61.0})   # True
    best.update({"noisy_retrieval": 59.5})   # False; best.since is 1
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: float | None = None
        self.since = 0

    def update(self, metrics: dict[str, float]) -> bool:
        """True if the metric is better than ever before; NaN never is."""
        value = metrics.get(self.name, math.nan)
        lower = lower_is_better(self.name)
        better = not math.isnan(value) and (self.value is None or (value < self.value if lower else value > self.value))
        self.value, self.since = (value, 0) if better else (self.value, self.since + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.since = state["value"], state["since"]
