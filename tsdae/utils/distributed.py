"""Several processes that train one model on PyTorch's own engine: torchrun starts them, DistributedDataParallel
averages their gradients. In a single process every function here does nothing.

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
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

LONGEST_WAIT = timedelta(hours=2)  # for the first process, while it evaluates or downloads

Answer = TypeVar("Answer")


def count() -> int:
    """How many processes train together; torchrun says so in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def number_here() -> int:
    """Which of those on this machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that prints, evaluates and writes."""
    return number() == 0


def join() -> None:
    """Meets the other processes; at once if there are none, or if they have met before."""
    if count() > 1 and not distributed.is_initialized():
        # Functions there have the group as a default argument; imported later, they would keep it beyond `leave`.
        import torch._dynamo

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=LONGEST_WAIT)


def leave() -> None:
    """Ends what `join` began, and its threads, once nothing else holds the group: no wrapped model, no error's frames.

    A thread of Gloo that lets go of its last tensor while Python shuts down would abort the process.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


def wrap(module: nn.Module, device: torch.device, all_used: bool) -> nn.Module:
    """``module`` with gradients averaged over the processes in each backward pass; itself if there is one process.

    all_used: every parameter gets a gradient in every step; else PyTorch has to look which ones do.
    """
    if count() == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=not all_used,
    )


def averaged(wrapped: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Where a step has several batches: only the backward pass of the last one (``now``) talks to the others."""
    if now or not isinstance(wrapped, DistributedDataParallel):
        return contextlib.nullcontext()
    return wrapped.no_sync()


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, in place, the same bits in each."""
    if count() > 1:
        distributed.all_reduce(value)
    return value


def of_first(value: Tensor) -> Tensor:
    """The first process's ``value`` in all of them, in place."""
    if count() > 1:
        distributed.broadcast(value, 0)
    return value


def all_gather_rows(rows_BX: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, rank by rank, [G, X], and the place of this process's first one among them.

    Each process must have as many rows. Gradients flow back to the process that a row came from.
    """
    if count() == 1:
        return rows_BX, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows_BX.contiguous())), number() * len(rows_BX)


def any_of_them(flag: bool) -> bool:
    """Whether ``flag`` is true in any process. All have to call it."""
    return bool(summed(torch.tensor(float(flag))).item()) if count() > 1 else flag


def from_first(make: Callable[[], Answer]) -> Answer:
    """What ``make`` returns in the first process; it is called nowhere else."""
    if count() == 1:
        return make()
    answer = [make() if is_first() else None]
    distributed.broadcast_object_list(answer)
    return answer[0]  # type: ignore[return-value]  # None is overwritten


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block before the others do: what it downloads, they find."""
    if count() > 1 and not is_first():
        distributed.barrier()
    yield
    if count() > 1 and is_first():
        distributed.barrier()


def check_equal(value: str, what: str) -> None:
    """RuntimeError in every process unless ``value`` is the same in all of them."""
    if count() == 1:
        return
    digest = torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
    found = [torch.empty_like(digest) for _ in range(count())]
    distributed.all_gather(found, digest)
    differing = [place for place, other in enumerate(found) if not torch.equal(other, found[0])]
    if differing:
        raise RuntimeError(f"the processes disagree about {what}: {differing} have another than process 0")


def check_alone(script: str) -> None:
    """ValueError under torchrun, for a script that is one process, or starts others by itself."""
    if count() > 1:
        raise ValueError(f"{script} is not for torchrun: call it as python scripts/{script}")


def check_agreement(module: nn.Module) -> None:
    """RuntimeError unless all processes hold the same weights, bit for bit."""
    if count() == 1:
        return
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    check_equal(digest.hexdigest(), "the weights")
