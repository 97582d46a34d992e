"""Leave parameters out of training, by patterns of their names."""

from __future__ import annotations

import difflib
import fnmatch

from torch import nn

from tsdae.autoencoder import TSDAE
from tsdae.objectives import Objective


def freeze(model: TSDAE, objective: Objective, patterns: str) -> str:
    """Take the parameters whose names match one of the patterns out of training; return a line that counts them.

    They get no gradient and no optimiser state.

    patterns: as of a shell, separated by commas. The names are those of ``model.named_parameters()``, and those of an
        objective that is a module, after "objective.".
    ValueError if a pattern matches no name, or if nothing is left to train. It holds until ``requires_grad_(True)``.

    >>> freeze(model, tsdae, "encoder.bert.embeddings.*,*.bias")
    """
    named = dict(model.named_parameters())
    if isinstance(objective, nn.Module):
        named |= {f"objective.{name}": weight for name, weight in objective.named_parameters()}
    frozen: set[str] = set()
    for pattern in patterns.split(","):
        matching = fnmatch.filter(named, pattern.strip())
        if not matching:
            near = difflib.get_close_matches(pattern.strip(), named, n=1) or list(named)[:1]
            raise ValueError(f"--freeze {pattern.strip()!r} matches no parameter; a name is, for example, {near[0]}")
        frozen |= set(matching)
    left = [weight for name, weight in named.items() if name not in frozen and weight.requires_grad]
    if not left:
        raise ValueError(f"--freeze {patterns!r} matches all {len(named)} parameters; nothing is left to train")
    for name in frozen:
        named[name].requires_grad_(False)
    trained, total = (sum(weight.numel() for weight in weights) for weights in (left, named.values()))
    return f"--freeze: {trained:,} of {total:,} parameters are trained, {len(frozen)} of {len(named)} tensors frozen"
