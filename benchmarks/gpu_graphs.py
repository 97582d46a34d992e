"""Batches of 8 on a GPU: filled up to few shapes (`buckets.py`), and whole steps captured as CUDA graphs.

A trial that says whether capture pays and where it fails; `tsdae.train` does not use it.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.buckets import Bucket, bucket_of, fill, mean_without_filler
from tsdae import TSDAE, Batch, DenoisingDataset
from tsdae.training import clip_gradients, make_optimizer, step_if_finite

STEP = 32  # rows between two buckets
WARM = 3  # steps before a capture: what allocates and chooses kernels has to be over


class Steps:
    """Training steps on filled batches, in bf16, with the paper's clipping and AdamW."""

    def __init__(self, model: TSDAE, device: torch.device, learning_rate: float = 3e-5) -> None:
        self.model, self.device = model.to(device).train(), device
        self.optimizer = make_optimizer(self.model, learning_rate, 0.0)
        for group in self.optimizer.param_groups:
            group["capturable"] = device.type == "cuda"

    def step(self, filled: Batch) -> Tensor:
        """Return the loss, a tensor without axes on the device; nothing here waits for it."""
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            hidden_TD = self.model.decode(filled.target, self.model.encode(filled.noisy))
            predicted = filled.target.without_first()
            loss = mean_without_filler(self.model.token_loss(hidden_TD, predicted.token_ids_T), predicted)
        loss.backward()
        loss = loss.detach()
        step_if_finite(self.optimizer, clip_gradients(self.optimizer, 1.0) + loss)
        self.optimizer.zero_grad()
        return loss


class Captured:
    """The same steps, each shape captured when it comes for the first time and replayed afterwards.

    On a CPU a replay is the step itself, on the same buffers.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.replays: dict[Bucket, tuple[Batch, Callable[[], Tensor]]] = {}
        self.pool: Any = None

    def step(self, filled: Batch, bucket: Bucket) -> Tensor:
        if bucket not in self.replays:
            read = copy.deepcopy(filled.to(self.steps.device))
            self.replays[bucket] = read, self._capture(read)
        read, replay = self.replays[bucket]
        for there, here in zip(tensors_of(read), tensors_of(filled), strict=True):
            there.copy_(here, non_blocking=True)
        return replay()

    def _capture(self, read: Batch) -> Callable[[], Tensor]:
        if self.steps.device.type != "cuda":
            return lambda: self.steps.step(read)
        before = [tensor.clone() for tensor in self._state()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self.steps.step(read)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(self._state(), before, strict=False):
            tensor.copy_(value)
        for tensor in self._state()[len(before) :]:  # what the optimiser has made since
            tensor.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = self.steps.step(read)
        self.pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return loss.clone()

        return replay

    def _state(self) -> list[Tensor]:
        """Weights, then the optimiser's state: all that a step changes."""
        state = [value for each in self.steps.optimizer.state.values() for value in each.values()]
        return [parameter.detach() for parameter in self.steps.model.parameters()] + state


def tensors_of(batch: Batch) -> list[Tensor]:
    return [tensor for packed in (batch.noisy, batch.target) for tensor in (packed.token_ids_T, packed.boundaries)]


def compare_and_time(
    model: TSDAE, dataset: DenoisingDataset, device: torch.device, wait: Callable[[], None], count: int, run: int
) -> dict[str, Any]:
    """Losses of captured steps beside those of the same ones uncaptured, without dropout; then seconds of both.

    count: steps that are timed. run: steps of the run whose shapes are counted.
    """
    longest, filler_id = dataset.max_length, dataset.tokenizer.pad_token_id
    batches = list(islice(dataset.batches(0, 8), max(run, count)))
    shapes = Counter(bucket_of(batch, STEP, longest) for batch in batches)
    filled = [
        (fill(batch, bucket, filler_id), bucket)
        for batch in batches[:count]
        for bucket in (bucket_of(batch, STEP, longest),)
    ]
    found: dict[str, Any] = {
        "shapes": {"of a run": len(shapes), "steps": len(batches), "of the commonest": shapes.most_common(1)[0][1]},
        "filler": sum(sum(bucket[:2]) for _, bucket in filled)
        / sum(batch.noisy.token_count + batch.target.token_count for batch in batches[:count]) - 1,
    }  # fmt: skip
    still = copy.deepcopy(model)
    for part in still.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for layer in (*still.encoder.bert.layers, *still.crosses):
        attention = getattr(layer, "attention", layer)
        attention.attention_dropout = 0.0
    few = filled[: min(12, count)]
    plain, captured = Steps(copy.deepcopy(still), device, 1e-3), Captured(Steps(still, device, 1e-3))
    losses = [(float(plain.step(batch.to(device))), float(captured.step(batch, bucket))) for batch, bucket in few]
    found["losses, uncaptured and captured"] = losses
    fall = losses[0][0] - losses[-1][0]
    if not max(abs(first - second) for first, second in losses) <= 0.1 * fall:  # bf16; kernels may sum in another order
        raise AssertionError(f"captured steps have other losses: {found}")

    eager, replayed = Steps(copy.deepcopy(model), device), Captured(Steps(model, device))
    for batch, bucket in filled:  # every shape is captured, before any is timed
        replayed.step(batch, bucket)
    found["seconds of 12,500 steps"] = {
        "filled, uncaptured": 12_500 * _seconds(lambda pair: eager.step(pair[0].to(device)), filled, wait),
        "filled, captured": 12_500 * _seconds(lambda pair: replayed.step(*pair), filled, wait),
    }
    return found


def _seconds(step: Callable[[Any], object], filled: Sequence[Any], wait: Callable[[], None]) -> float:
    """Seconds of a step: the median of five blocks, the device waited for at both ends of each."""
    size, seconds = max(1, len(filled) // 5), []
    for first in range(0, size * min(5, len(filled)), size):
        wait()
        since = time.perf_counter()
        for pair in filled[first : first + size]:
            step(pair)
        wait()
        seconds.append((time.perf_counter() - since) / size)
    return median(seconds)
