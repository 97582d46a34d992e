"""Several processes that train one model: torchrun starts them, DistributedDataParallel averages their gradients.
In a single process every function here does nothing.

Order and noise are pure functions, so every process draws the batches of all of them and takes its share: what a step
is divided by needs no message, and is the same number everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=2)  # for rank 0, while it evaluates or downloads

Answer = TypeVar("Answer")


def world_size() -> int:
    """Return how many processes train together, as torchrun says in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Return which of the processes on this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """True in the process that prints, evaluates and writes."""
    return rank() == 0


def init_process_group() -> None:
    """Connect the processes, if there are several that are not connected yet."""
    if world_size() > 1 and not dist.is_initialized():
        # Functions there have the group as a default argument; imported later, they would keep it when it is destroyed.
        import torch._dynamo

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)


def destroy_process_group() -> None:
    """End the group and its threads. Call it when nothing else holds the group: no wrapped model, no error's frames.

    A thread of Gloo that lets go of its last tensor while Python shuts down would abort the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(module: nn.Module, device: torch.device, all_used: bool) -> nn.Module:
    """Return ``module`` with gradients averaged over the processes in each backward pass.

    all_used: every parameter gets a gradient in every step; else PyTorch has to look which ones do.
    """
    if world_size() == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    wrapped = module if all_used else _WithUnused(module, device)
    return DistributedDataParallel(wrapped, device_ids=devices, find_unused_parameters=not all_used)


class _WithUnused(nn.Module):
    """A module and one parameter that is never used.

    Where PyTorch has to look for unused parameters and finds none, it warns in every process that looking is slow. What
    an objective of one's own will use in later steps nobody knows, so there is always one to be found.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module, self.unused = module, nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def sync_gradients(wrapped: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Average gradients only in the backward pass of a step's last batch (``now``), where a step has several."""
    if now or not isinstance(wrapped, DistributedDataParallel):
        return contextlib.nullcontext()
    return wrapped.no_sync()


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over all processes, in place and the same bits in each."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def broadcast(value: Tensor) -> Tensor:
    """Return rank 0's ``value`` in all processes, in place."""
    if world_size() > 1:
        dist.broadcast(value, 0)
    return value


def all_gather_rows(rows_BX: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, rank by rank, [G, X], and the place of this process's first one among them.

    Each process must have as many rows. Gradients flow back to the process that a row came from.
    """
    if world_size() == 1:
        return rows_BX, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows_BX.contiguous())), rank() * len(rows_BX)


def any_rank(flag: bool) -> bool:
    """True if ``flag`` is true in any process. All have to call it."""
    return bool(all_reduce_sum(torch.tensor(float(flag))).item())


def broadcast_object(make: Callable[[], Answer]) -> Answer:
    """Call ``make`` in rank 0 only, and return its result in all processes."""
    if world_size() == 1:
        return make()
    answer = [make() if is_rank_zero() else None]
    dist.broadcast_object_list(answer)
    return answer[0]  # type: ignore[return-value]  # None is overwritten


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block in rank 0 before it runs in the other processes: what rank 0 downloads, they find."""
    if world_size() > 1 and not is_rank_zero():
        dist.barrier()
    yield
    if world_size() > 1 and is_rank_zero():
        dist.barrier()


def check_equal(value: str, what: str) -> None:
    """Raise ValueError in every process unless ``value`` is the same in all of them."""
    if world_size() == 1:
        return
    found = [""] * world_size()
    dist.all_gather_object(found, value)
    if differing := [other for other, its_value in enumerate(found) if its_value != found[0]]:
        raise ValueError(f"the processes disagree about {what}: ranks {differing} differ from rank 0")


def check_same_weights(module: nn.Module) -> None:
    """Raise ValueError unless all processes hold the same weights, bit for bit."""
    if world_size() == 1:
        return
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    check_equal(digest.hexdigest(), "the weights")


def check_single_process(command: str) -> None:
    """Raise ValueError under torchrun, for a command that is one process, or starts others by itself."""
    if world_size() > 1:
        raise ValueError(f"tsdae {command} does not run under torchrun; run tsdae {command}")
