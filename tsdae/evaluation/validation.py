"""What is measured while a model is trained, and what follows from it: the best model so far, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tsdae.autoencoder import TSDAE
from tsdae.dataset import DenoisingDataset
from tsdae.evaluation.probes import PROBED, THE_LOWER_THE_BETTER, label_free, probe_of
from tsdae.objectives import Objective, tsdae
from tsdae.objectives.interface import views_of


@torch.no_grad()
def measure(
    model: TSDAE,
    objective: Objective,
    evaluate: Callable[[Any], dict[str, float]] | None,
    heldout: DenoisingDataset | None,
    batch_size: int = 64,
) -> dict[str, float]:
    """All measures of the model as it is, without dropout or autocast."""
    model.eval()
    if isinstance(objective, nn.Module):
        objective.eval()
    device = next(model.parameters()).device
    measures: dict[str, float] = {}
    if heldout is not None:
        totals: dict[str, list[float]] = {}
        for start in range(0, len(heldout), batch_size):
            epoch_B, row_B = heldout.order(start, min(batch_size, len(heldout) - start))
            terms = objective(model, heldout.batch(epoch_B, row_B, views_of(objective)).to(device)).terms
            for name, term in terms.items():
                total = totals.setdefault(name, [0.0, 0.0, float(term.weight)])
                total[0] += float(term.total)
                total[1] += term.count
        measures["heldout_loss"] = sum(weight * total / count for total, count, weight in totals.values())
        if len(totals) > 1:
            measures |= {f"heldout_{name}_loss": total / count for name, (total, count, _) in totals.items()}
        if len(heldout) > 1:
            probe = probe_of(heldout)
            is_known = objective is tsdae and probe is heldout and len(heldout) <= PROBED
            known_loss = measures["heldout_loss"] if is_known else None
            measures |= label_free(model, probe, "reconstruction" in totals, known_loss)
    if evaluate is not None:
        measures |= evaluate(model.encoder)
    return measures


def lower_is_better(name: str) -> bool:
    """Of losses, and of some of the measures without labels."""
    return name.endswith("loss") or name in THE_LOWER_THE_BETTER


def collapse(measures: dict[str, float]) -> str | None:
    """Return a warning if all sentences get nearly the same vector, or vectors along one line."""
    cosine, rank = measures.get("mean_cosine", 0.0), measures.get("effective_rank", math.inf)
    if cosine <= 0.99 and rank >= 2:
        return None
    return (
        f"WARNING: the vectors of different sentences are nearly the same (mean_cosine {cosine:.4g}, effective_rank "
        f"{rank:.4g}): the representation has collapsed; "
        "try a lower --learning-rate, a larger --batch-size or another objective"
    )


class BestSoFar:
    """The best value of one measure, and how many evaluations there were since; of some, the lower is the better."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: float | None = None
        self.since = 0

    def update(self, measures: dict[str, float]) -> bool:
        """Whether the measure is better than ever before; NaN never is."""
        value = measures.get(self.name, math.nan)
        lower = lower_is_better(self.name)
        better = not math.isnan(value) and (self.value is None or (value < self.value if lower else value > self.value))
        self.value, self.since = (value, 0) if better else (self.value, self.since + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.since = state["value"], state["since"]


def check_names(wanted: dict[str, str | None], measured: list[str]) -> None:
    """ValueError if a flag names a measure that is not taken. wanted: {flag: name of the measure}."""
    for flag, name in wanted.items():
        if name is not None and name not in measured:
            raise ValueError(f"{flag} {name} is not measured; there are {', '.join(measured) or 'no measures'}")
