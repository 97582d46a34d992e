"""A loss is kept as a sum and a count until the whole optimiser step is known.

The gradient is then normalised once, by the counts of all micro-batches and processes, and does not depend on how the
step was split. (The mean of the micro-batches' means errs by tens of per cent: short batches would weigh as much as
long ones.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Counts = Mapping[str, int]  # of a batch or a step: {term: tokens, pairs, ...}
COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "epoch", "tokens_per_second", "skipped_steps")


@dataclass(frozen=True)
class Term:
    """One named part of a loss: its weight x total / count enters the step's loss. A weight may be learned."""

    total: Tensor
    count: int
    weight: float | Tensor


class LossSum:
    """A sum of losses and how many there are: ``LossSum(loss_T.sum(), len(loss_T))``.

    Objectives with several terms are written as they are on paper; each term is divided by its own count, so give them
    different names:

    >>> LossSum(torch.tensor(12.0), 8) + 0.1 * LossSum(torch.tensor(3.0), 2, "contrast")
    LossSum(reconstruction 12 / 8 + 0.1 * contrast 3 / 2)
    """

    def __init__(self, total: Tensor, count: int | Tensor, name: str = "reconstruction") -> None:
        if total.dim() != 0:
            raise ValueError(
                f"the loss {name!r} must be a sum, a tensor without axes; it has shape {tuple(total.shape)}"
            )
        count = int(count)  # of a mask it may be a tensor: mask.sum()
        if count < 1:
            raise ValueError(f"the loss {name!r} has a count of {count}; it must be at least 1")
        self.terms: dict[str, Term] = {name: Term(total, count, 1.0)}
        self.notes: dict[str, Tensor] = {}

    def note(self, name: str, value: float | Tensor) -> LossSum:
        """Log a value of one's own beside the loss, averaged over the batches of a row; return this loss.

        Give it in every batch. In metrics.jsonl it is called ``name``; ValueError if that is a column already.
        """
        if name in COLUMNS:
            raise ValueError(f"note({name!r}): metrics.jsonl has a column of this name; choose another")
        total = next(iter(self.terms.values())).total
        if isinstance(value, (int, float)):
            value = total.new_full((), value)  # made there: a copy would wait for the device
        mean = torch.as_tensor(value, device=total.device).detach().float().mean()
        return _of_terms(self.terms, self.notes | {name: mean})

    def __add__(self, other: LossSum) -> LossSum:
        both = self.terms.keys() & other.terms.keys()
        if both:
            raise ValueError(f"two terms are both called {', '.join(sorted(both))}; name them: LossSum(..., name=...)")
        return _of_terms(self.terms | other.terms, self.notes | other.notes)

    def __rmul__(self, factor: float | Tensor) -> LossSum:
        terms = {name: replace(term, weight=factor * term.weight) for name, term in self.terms.items()}
        return _of_terms(terms, self.notes)

    __mul__ = __rmul__

    def __repr__(self) -> str:
        terms = []
        for name, term in self.terms.items():
            weight, total = float(term.weight), float(term.total.detach())
            terms.append(f"{f'{weight:g} * ' if weight != 1 else ''}{name} {total:g} / {term.count}")
        return f"LossSum({' + '.join(terms)})"

    @property
    def counts(self) -> dict[str, int]:
        """Return {term: count}, what each term's sum is divided by."""
        return {name: term.count for name, term in self.terms.items()}

    @property
    def mean(self) -> Tensor:
        """Return the loss of this batch alone."""
        return self.share_of(self.counts)

    def share_of(self, step_counts: Counts) -> Tensor:
        """Return this batch's share of the step's loss: sum over terms of weight x total / count of the whole step."""
        shares = [term.weight * term.total / step_counts[name] for name, term in self.terms.items()]
        return torch.stack(shares).sum()


def _of_terms(terms: dict[str, Term], notes: dict[str, Tensor]) -> LossSum:
    loss = LossSum.__new__(LossSum)
    loss.terms, loss.notes = terms, notes
    return loss
