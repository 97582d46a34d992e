"""Two runs of the same settings, compared in all that a run leaves behind; an objective that overflows."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tsdae.autoencoder import TSDAE
from tsdae.losses import LossSum
from tsdae.objectives import tsdae
from tsdae.packing import Batch
from tsdae.run.folder import Checkpoints

CLOCK = "tokens_per_second"  # of all that is logged, what depends on the time of day


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock, as far as it is written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [{name: value for name, value in json.loads(line).items() if name != CLOCK} for line in lines]


def assert_same_run(first: Path, second: Path, best: bool = True) -> None:
    """Bit for bit: weights, optimiser state, metrics, and the best model unless none was chosen."""
    assert rows(first) == rows(second)
    names = ["encoder/model.safetensors", "decoder.safetensors"] + ["best/encoder/model.safetensors"] * best
    for name in names:
        weights = load_file(first / name)
        assert_equal(weights, load_file(second / name), name)
        assert any(weight.abs().max() > 0 for weight in weights.values())
        assert (first / name).read_bytes() == (second / name).read_bytes()
    if best:
        measures = [json.loads((folder / "best" / "measures.json").read_text()) for folder in (first, second)]
        assert measures[0] == measures[1]
    assert_equal(state(first), state(second), "checkpoint")


def state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint, without the folder's name and the digits of the clock."""
    found = Checkpoints(folder).newest()
    assert found is not None
    return {name: value for name, value in found.items() if name not in ("settings", "metrics_bytes")}


def assert_equal(first: Any, second: Any, where: str) -> None:
    """Nested tables, lists and tensors, bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            assert_equal(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}[{place}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def threads_of_gloo() -> list[str]:
    """The names of this process's threads that send and receive, without those that are ending: Linux lists a thread
    for a moment after it was joined.
    """

    def names() -> list[str]:
        found = []
        for name in Path("/proc/self/task").glob("*/comm"):
            with contextlib.suppress(OSError):  # it has ended since
                found.append(name.read_text().strip())
        return [name for name in found if "gloo" in name]

    wait_until(lambda: not names(), 2.0)
    return names()


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether it has become true in that time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


class Overflows(nn.Module):
    """The paper's objective, in the given steps so large that fp16 gradients are infinite."""

    seen: Tensor

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        self.seen += 1
        return (1e30 if int(self.seen) in self.steps else 1.0) * tsdae(model, batch)
