"""What is minimised. An objective is a function ``(model, batch) -> LossSum``; change the loss here.

A loss is kept as a sum and a count until the whole optimiser step is known: the gradient is then normalised once, by
the target tokens of all micro-batches, and does not depend on how the step was split. (The mean of the micro-batches'
means errs by tens of per cent, since short batches weigh as much as long ones.)

# B sentences, T packed tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsdae.dataset import Batch

if TYPE_CHECKING:
    from tsdae.autoencoder import TSDAE

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Term:
    """One named part of a loss: its weight x total / count enters the step's loss."""

    total: Tensor
    count: int
    weight: float


class LossSum:
    """A sum of losses and how many there are: ``LossSum(loss_T.sum(), len(loss_T))``.

    Objectives with several parts are written as they are on paper, ``reconstruction + 0.1 * contrast``; each part
    is normalised by its own count, so give them different names.
    """

    def __init__(self, total: Tensor, count: int, name: str = "reconstruction") -> None:
        if total.dim() != 0:
            raise ValueError(
                f"the loss {name!r} must be a sum, a tensor without axes; it has shape {tuple(total.shape)}"
            )
        if count < 1:
            raise ValueError(f"the loss {name!r} has a count of {count}; it must be at least 1")
        self.terms: dict[str, Term] = {name: Term(total, count, 1.0)}

    def __add__(self, other: LossSum) -> LossSum:
        both = self.terms.keys() & other.terms.keys()
        if both:
            raise ValueError(f"two terms are both called {', '.join(sorted(both))}; name them: LossSum(..., name=...)")
        return _of_terms(self.terms | other.terms)

    def __rmul__(self, factor: float) -> LossSum:
        return _of_terms({name: replace(term, weight=factor * term.weight) for name, term in self.terms.items()})

    __mul__ = __rmul__

    @property
    def counts(self) -> dict[str, int]:
        return {name: term.count for name, term in self.terms.items()}

    @property
    def mean(self) -> Tensor:
        """The loss of this batch alone."""
        return self.share_of(self.counts)

    def share_of(self, step_counts: Counts) -> Tensor:
        """This batch's share of the step's loss: sum over terms of weight x total / count over the whole step."""
        shares = [term.weight * term.total / step_counts[name] for name, term in self.terms.items()]
        return torch.stack(shares).sum()


def _of_terms(terms: dict[str, Term]) -> LossSum:
    loss = LossSum.__new__(LossSum)
    loss.terms = terms
    return loss


Objective = Callable[["TSDAE", Batch], LossSum]


def tsdae(model: TSDAE, batch: Batch) -> LossSum:
    """The paper's objective: - sum_t log p(x_t | x_<t, s), over the tokens of the clean sentences."""
    sentence_BD = model.encode(batch.noisy)
    hidden_TD = model.decode(batch.target, sentence_BD)
    loss_T = model.token_loss(hidden_TD, batch.target.without_first().token_ids_T)
    return LossSum(loss_T.sum(), len(loss_T))


def _tsdae_counts(batch: Batch) -> Counts:
    return {"reconstruction": batch.target.token_count - len(batch.target)}


# An objective whose counts follow from the batch says so before forward; needed where a step has several batches.
tsdae.counts = _tsdae_counts  # type: ignore[attr-defined]  # functions carry attributes, their type does not


def check_counts(objective: Objective, batches: int) -> None:
    """ValueError if a step of so many batches cannot be normalised by this objective."""
    if batches > 1 and not hasattr(objective, "counts"):
        raise ValueError(
            "with --accumulate above 1, or several processes, an objective needs a function "
            "`counts(batch) -> {term: count}` as its attribute: what a step is divided by must be known before its "
            "first backward"
        )


def step_counts(objective: Objective, batches: list[Batch]) -> Counts | None:
    """The counts of a whole step. None: one batch only, whose own counts are the step's."""
    check_counts(objective, len(batches))
    counts_of = getattr(objective, "counts", None)
    if counts_of is None:
        return None
    totals: dict[str, int] = {}
    for batch in batches:
        for name, count in counts_of(batch).items():
            totals[name] = totals.get(name, 0) + count
    return totals
