"""The optimiser, and the norm that gradients are clipped by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsdae.utils import distributed


def make_optimizer(modules: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW (one pass over the weights); weight decay on matrices only.

    Not fused on mps, where PyTorch's passes over grad_scale and found_inf (pytorch#186360).
    """
    matrices = [p for p in modules.parameters() if p.dim() > 1]
    vectors = [p for p in modules.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=matrices[0].device.type != "mps")


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, largest_norm: float) -> Tensor:
    """Scales all gradients down together until their L2 norm is at most ``largest_norm`` (0: not at all).

    Where the optimizer is fused, without a pass of its own over them: it divides them by ``grad_scale`` as it reads
    them. Returns the norm they had, a tensor without axes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = distributed.broadcast(gradient_norm(gradients))  # another number of threads sums in another order
    if largest_norm and (norm.dtype == torch.float64 or not optimizer.defaults["fused"]):  # grad_scale is fp32
        nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    elif largest_norm:
        scale = ((norm + 1e-6) / largest_norm).clamp(min=1.0)  # 1e-6: as PyTorch's clipping has it
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
    return norm


def step_if_finite(optimizer: torch.optim.Optimizer, loss_and_norm: Tensor) -> None:
    """A step, or none at all if this is not finite. A fused optimizer reads it on the device: nothing waits for it."""
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~torch.isfinite(loss_and_norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif torch.isfinite(loss_and_norm):
        optimizer.step()


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, a tensor without axes."""
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    # On CPUs a dot product takes a third of the time of PyTorch's norm.
    flat = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([gradient.dot(gradient) for gradient in flat]).sum().sqrt()
