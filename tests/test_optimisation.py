"""Clipping without a pass of its own, against PyTorch's clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests import tiny
from tests.tolerances import FLOAT32, FLOAT64
from tsdae.training import clip_gradients, make_optimizer, step_if_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [0.0, 0.5, 1e6], ids=["off", "clips", "does not clip"])
@pytest.mark.parametrize("fused", [True, False])
def test_clipping_is_pytorchs(dtype: torch.dtype, largest: float, fused: bool) -> None:
    """fused: False is what mps gets."""
    ours, tolerance = tiny.model(dtype=dtype), FLOAT64 if dtype == torch.float64 else FLOAT32
    theirs = copy.deepcopy(ours)
    optimizers = [make_optimizer(model, 1e-2, 0.0) for model in (ours, theirs)]
    if not fused:
        optimizers[0] = torch.optim.AdamW(optimizers[0].param_groups, lr=1e-2, fused=False)
    for _ in range(3):
        for model in (ours, theirs):
            model(tiny.batch()).mean.backward()
        norm = clip_gradients(optimizers[0], largest)
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), largest or float("inf"))
        assert_close(norm, expected, **tolerance)
        assert norm > 0.5, "nothing would be clipped"
        step_if_finite(optimizers[0], norm)
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    for (name, parameter), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if not name.endswith("project.bias"):  # whose part for the keys has a gradient of nothing but rounding
            assert_close(parameter, expected, **(tolerance if dtype == torch.float64 else {"rtol": 0, "atol": 1e-4}))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_is_not_made(fused: bool) -> None:
    model = tiny.model(dtype=torch.float32)
    optimizer = make_optimizer(model, 1e-2, 0.0)
    assert optimizer.defaults["fused"], "the premise"
    if not fused:
        optimizer = torch.optim.AdamW(optimizer.param_groups, lr=1e-2, fused=False)
    before = copy.deepcopy(model.state_dict())
    for loss in (float("nan"), 1.0):
        model(tiny.batch()).mean.backward()
        step_if_finite(optimizer, clip_gradients(optimizer, 1.0) + loss)
        optimizer.zero_grad()
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert bool(changed) == (loss == 1.0)
