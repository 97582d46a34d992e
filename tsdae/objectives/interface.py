"""What training asks of an objective, and the checks of one that a user has written.

# B sentences, D hidden size
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.objectives import Objective
from tsdae.packing import Batch
from tsdae.utils.device import autocast
from tsdae.utils.imports import made_from


def build(objective: Any, model: TSDAE, seed: int = 0) -> Objective:
    """Return the objective itself, or what a class, or the function ``build`` of an object, makes from the model.

    ``class Mine: def __init__(self, model)``. Its random weights are drawn from ``seed``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built: Objective = made_from(objective, model, "objective")
    return built


def views_of(objective: Objective) -> int:
    """Return how many noisings of each sentence it reads: its attribute ``views``, else one."""
    views: int = getattr(objective, "views", 1)
    return views


def try_out(objective: Objective, model: TSDAE, batch: Batch, precision: str = "fp32") -> LossSum:
    """Return the loss of one batch, and leave no gradient; ValueError if it cannot be trained on.

    It must be a `LossSum` whose gradient reaches the encoder, and the objective's ``counts``, if it has any, must be
    those of the loss. A module is tried as a copy: it may keep a queue, or count its calls; it has all its parameters
    before its first call, since the optimiser is given those alone. A note says if the sentence vectors get no
    gradient: under tying the decoder's own reaches the encoder all the same.
    precision: of the training; "bf16" and "fp16" compute the loss under autocast, as training does.
    """
    from tsdae.utils.progress import print_note

    vectors: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda module, read, vector_BD: vectors.append(vector_BD))
    tried = copy.deepcopy(objective)
    device, dtype = next((each.device, each.dtype) for each in model.parameters())
    if isinstance(tried, nn.Module):
        tried.to(device, dtype)
    try:
        with autocast(device, precision):
            loss = check_loss(tried(model, batch.to(device)))
    finally:
        hook.remove()
    if late := sorted(_parameters(tried) - _parameters(objective)):
        raise ValueError(
            f"the objective created the parameters {', '.join(late)} in its first call, too late to be trained; create "
            "them in the __init__(self, model) of a class"
        )
    for vector_BD in vectors:
        if vector_BD.requires_grad:
            vector_BD.retain_grad()
    total = loss.mean
    if total.requires_grad:
        total.backward()
    if vectors and all(vector_BD.grad is None for vector_BD in vectors):
        print_note("the objective gives no gradient to the vectors of model.encode; are they detached on purpose?")
    reached = [parameter for parameter in model.encoder.parameters() if parameter.grad is not None]
    model.zero_grad()
    if not reached:
        raise ValueError(
            "the objective's loss has no gradient for the encoder: something was detached, computed without gradients, "
            "or does not depend on model.encode"
        )
    counted = getattr(objective, "counts", lambda batch: loss.counts)(batch)
    if dict(counted) != loss.counts:
        raise ValueError(
            f"the objective's counts(batch) returns {dict(counted)}, but its loss has the counts {loss.counts}"
        )
    return loss


def _parameters(objective: Objective) -> set[str]:
    return {name for name, _ in objective.named_parameters()} if isinstance(objective, nn.Module) else set()


def check_loss(loss: object) -> LossSum:
    """Return what an objective has returned; ValueError if it is no LossSum."""
    if not isinstance(loss, LossSum):
        raise ValueError(f"the objective must return a LossSum, it returned {type(loss).__name__}")
    return loss


def check_counts(objective: Any, batches: int) -> None:
    """Raise ValueError if a step of so many batches cannot be normalised by this objective."""
    if batches > 1 and not hasattr(objective, "counts"):
        raise ValueError(
            "with --accumulate above 1, or several processes, an objective needs an attribute "
            "`counts`, a function batch -> {term: count}: a step is normalised before its first backward"
        )


def check_batch_size(objective: Any, size: int, name: str = "the objective") -> None:
    """Raise ValueError if a batch has fewer sentences than ``objective.smallest_batch``."""
    smallest: int = getattr(objective, "smallest_batch", 1)
    if size < smallest:
        raise ValueError(f"{name} compares the sentences of a batch: --batch-size must be at least {smallest}")


def step_counts(objective: Objective, batches: list[Batch]) -> Counts | None:
    """Return the counts of a whole step; None: of one batch only, whose loss has them."""
    check_counts(objective, len(batches))
    counts_of = getattr(objective, "counts", None)
    if counts_of is None:
        return None
    totals: dict[str, int] = {}
    for batch in batches:
        for name, count in counts_of(batch).items():
            totals[name] = totals.get(name, 0) + count
    return totals
