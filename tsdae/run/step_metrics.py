"""Losses and gradient norms since the last row of the log: kept on the device, fetched once.

# B sentences, T packed tokens
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tsdae.packing import Batch

FP16_BAD_STEPS = 20  # skipped steps in a row after which fp16 training is given up


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is not finite; no weight was changed by it."""


class StepMetrics:
    """The steps since the last row of metrics.jsonl; saved with checkpoints, which may fall between two rows.

    >>> metrics = StepMetrics(torch.device("cpu"))
    >>> metrics.add({"loss": loss}, gradient_norm, batches)
    >>> row = metrics.close(step, fp16=False, name_sentences=str)
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._since = device, time.perf_counter()
        self._losses: list[Tensor] = []
        self._others: list[dict[str, Tensor]] = []  # terms and notes of the objective
        self._norms: list[Tensor] = []
        self._tokens, self._skipped, self._skipped_in_row = 0, 0, 0

    def add(self, terms: dict[str, Tensor], norm: Tensor, batches: list[Batch]) -> None:
        """Add a step. terms: its ``loss``, and what else is logged of it, by name."""
        self._losses.append(terms["loss"])
        self._others.append({name: value for name, value in terms.items() if name != "loss"})
        self._norms.append(norm.detach())
        self._tokens += sum(part.token_count for batch in batches for part in (*batch.views, batch.target))

    def restart_clock(self) -> None:
        """Leave the time of an evaluation, and the steps before it, out of the speed."""
        self._tokens, self._since = 0, time.perf_counter()

    def close(self, done: int, fp16: bool, name_sentences: Callable[[int], str]) -> dict[str, float]:
        """Return the row of the steps up to ``done``, and start the next one. Raises NonFiniteLoss.

        name_sentences: step -> its sentences, for the error.
        """
        losses, norms = torch.stack([torch.stack(self._losses), torch.stack(self._norms).to(self._losses[0])]).tolist()
        first = done - len(losses) + 1
        finite = [math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(losses, norms, strict=True)]
        for number, is_finite in enumerate(finite, start=first):
            self._skipped_in_row = 0 if is_finite else self._skipped_in_row + 1
            self._skipped += not is_finite
            if not is_finite and not fp16:
                loss, norm = losses[number - first], norms[number - first]
                raise NonFiniteLoss(
                    f"the loss or gradient of step {number:,} is not finite (loss {loss}, norm {norm}); the weights "
                    f"were not updated; try a lower --learning-rate, or look at its sentences: {name_sentences(number)}"
                )
            if self._skipped_in_row >= FP16_BAD_STEPS:
                raise NonFiniteLoss(
                    f"{FP16_BAD_STEPS} fp16 steps in a row overflowed, the last of them step {number:,}; "
                    "use --precision bf16 or fp32"
                )
        good = [loss for loss, is_finite in zip(losses, finite, strict=True) if is_finite]
        row = {
            "loss": sum(good) / len(good) if good else math.nan,
            "gradient_norm": norms[-1],
            "tokens_per_second": self._tokens / max(time.perf_counter() - self._since, 1e-9),
        }
        for name in dict.fromkeys(name for others in self._others for name in others):
            values = [others[name] for others in self._others if name in others]
            row[name] = float(torch.stack(values).nanmean())
        if fp16:
            row["skipped_steps"] = self._skipped
        self._losses, self._others, self._norms = [], [], []
        self._tokens, self._since = 0, time.perf_counter()
        return row

    def state_dict(self) -> dict[str, Any]:
        counts = {"skipped": self._skipped, "skipped_in_row": self._skipped_in_row}
        return {"losses": self._losses, "others": self._others, "norms": self._norms} | counts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses, self._norms = ([x.to(self._device) for x in state[name]] for name in ("losses", "norms"))
        others = state.get("others", [{}] * len(self._losses))  # older versions logged the loss alone
        self._others = [{name: value.to(self._device) for name, value in step.items()} for step in others]
        self._skipped, self._skipped_in_row = state["skipped"], state["skipped_in_row"]
