"""The training loop: one function that reads in the order in which things happen.

# B sentences, T packed tokens
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tsdae.autoencoder import TSDAE
from tsdae.bert import Layer
from tsdae.dataset import Batch, DenoisingDataset
from tsdae.device import autocast_dtype, choose_device, choose_precision, compile_parts, keep_freed_memory
from tsdae.objectives import Objective, check_counts, step_counts, tsdae
from tsdae.optimisation import clip_gradients, make_optimizer
from tsdae.progress import progress_bar
from tsdae.runs import Run
from tsdae.tied import WordEmbeddings

FP16_BAD_STEPS = 20  # skipped steps in a row after which fp16 training is given up


def flag(default: Any, text: str) -> Any:
    """A field of a configuration whose ``text`` is the help of its command-line flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the recipe of the paper on the sample run."""

    steps: int = flag(1000, "optimiser steps")
    epochs: float | None = flag(None, "passes over the corpus, instead of --steps")
    batch_size: int = flag(8, "sentences in a batch (paper: 8)")
    accumulate: int = flag(1, "batches in one optimiser step, normalised by their tokens")
    learning_rate: float = flag(3e-5, "AdamW's learning rate (paper: 3e-5)")
    schedule: Literal["constant", "linear"] = flag("constant", "learning rate over time; linear falls to 0")
    warmup_steps: int = flag(0, "steps over which the learning rate rises from 0")
    weight_decay: float = flag(0.0, "of matrices, not of biases and layer norms")
    clip: float = flag(1.0, "largest gradient norm; 0: no clipping")
    seed: int = flag(0, "of noise, order, new weights and dropout")
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = flag("auto", "of the forward and backward pass")
    device: str = flag("auto", "auto, cuda, cpu or mps")
    threads: int | None = flag(None, "CPU threads; default: PyTorch's choice")
    deterministic: bool = flag(False, "only algorithms that repeat bit for bit")
    compile: bool = flag(False, "torch.compile of the layers: a minute to compile, and slower on CPUs")
    output: str | None = flag(None, "run folder; default: the next number under runs/")
    overwrite: bool = flag(False, "replace the run that --output holds")
    eval_every: int = flag(250, "steps between evaluations; 0: only the final table")
    log_every: int = flag(10, "steps between rows of metrics.jsonl, at most 50")
    best: str = flag("heldout_loss", "measure by which best/ is chosen; *_loss: the lower the better")

    def __post_init__(self) -> None:
        at_least = {"steps": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0, "eval_every": 0, "seed": 0}
        for name, smallest in at_least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, got {getattr(self, name)}")
        for name in ("weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"--epochs must be positive, got {self.epochs}")
        if not 1 <= self.log_every <= 50:
            raise ValueError(f"--log-every must lie between 1 and 50, got {self.log_every}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")
        for name, allowed in (
            ("schedule", ("constant", "linear")),
            ("precision", ("auto", "fp64", "fp32", "bf16", "fp16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def steps_for(self, rows: int) -> int:
        """Optimiser steps: --steps, or as many as --epochs need on ``rows`` sentences."""
        if self.epochs is None:
            return self.steps
        return max(1, math.ceil(self.epochs * rows / (self.batch_size * self.accumulate)))

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "linear":
            return self.learning_rate * (steps - step) / max(1, steps - self.warmup_steps)
        return self.learning_rate


class NonFiniteLoss(RuntimeError):
    """A loss or gradient that is not a number; the weights have not seen it."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; the step was finished and the model written. ``signal``: which."""

    def __init__(self, signal_number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signal = signal_number


def train(
    model: TSDAE,
    dataset: DenoisingDataset,
    config: TrainConfig,
    objective: Objective | None = None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    heldout: DenoisingDataset | None = None,
    settings: dict[str, Any] | None = None,
) -> TSDAE:
    """Trains ``model`` in place and returns it.

    objective: ``(model, batch) -> LossSum``, a function or a module (whose parameters are then trained too); None: the
        paper's, `objectives.tsdae`.
    evaluate: ``encoder -> {measure: value}``, called every ``config.eval_every`` steps and at the end.
    heldout: sentences that are not trained on; their loss under fixed noise is the measure ``heldout_loss``.
    settings: more of what belongs into the run folder's config.json.
    ``config.output=None`` trains in memory. Raises NonFiniteLoss, naming the step and its sentences, before such a
    step has touched the weights; Interrupted after a signal, when the model has been written.
    """
    objective = objective or tsdae
    check_counts(objective, config.accumulate)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.use_deterministic_algorithms(config.deterministic)
    torch.manual_seed(config.seed)  # of dropout, the one random choice that is not keyed
    steps = config.steps_for(len(dataset))

    model.to(device=device, dtype=torch.float64 if precision == "fp64" else torch.float32)
    modules = nn.ModuleList([model] + ([objective.to(device)] if isinstance(objective, nn.Module) else []))
    optimizer = make_optimizer(modules, config.learning_rate, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if config.compile:
        compile_parts([part for part in modules.modules() if isinstance(part, Layer)], device)
    word_matrices = [part for part in modules.modules() if isinstance(part, WordEmbeddings)]

    run = None
    if config.output is not None:
        chosen = dataclasses.asdict(config) | {"precision": precision, "device": device.type, "steps": steps}
        run = Run(config.output, chosen | (settings or {}), config.overwrite)
    window = Window(device)
    stream = dataset.batches(0, config.batch_size)
    best: float | None = None
    modules.train()
    with (
        _catch_signals(run is not None) as caught,
        progress_bar(steps, "training", "step", leave=True) as bar,
    ):
        for step in range(steps):
            # batch
            batches = [next(stream).to(device) for _ in range(config.accumulate)]
            counts = step_counts(objective, batches)

            # loss, backward
            step_loss = torch.zeros((), device=device)
            for batch in batches:
                with torch.autocast(device.type, autocast_dtype(precision), enabled=precision in ("bf16", "fp16")):
                    loss_sum = objective(model, batch)
                    loss = loss_sum.share_of(counts or loss_sum.counts)
                scaler.scale(loss).backward()
                step_loss += loss.detach()

            # clip, step. A fused optimizer reads found_inf on the device and leaves the weights as they are if it is 1.
            scaler.unscale_(optimizer)
            norm = clip_gradients(optimizer, config.clip)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step, steps)
            if precision == "fp16":
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.found_inf = (~torch.isfinite(norm + step_loss)).float()  # type: ignore[attr-defined]
                optimizer.step()
            for words in word_matrices:
                words.reclaim_gradient()
            optimizer.zero_grad()

            # log
            window.add(step_loss, norm, batches)
            done = step + 1
            bar.update()
            if done % config.log_every == 0 or done == steps or caught:
                row = window.close(
                    done, fp16=precision == "fp16", name_sentences=lambda s: _sentences(dataset, config, s)
                )
                row |= {"learning_rate": config.learning_rate_at(step, steps)}
                row |= {"epoch": round(done * config.accumulate * config.batch_size / len(dataset), 4)}
                bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s", refresh=False)
                if run:
                    run.log({"step": done} | row)

            # evaluate, keep the best
            if (config.eval_every and (done % config.eval_every == 0 or done == steps)) and not caught:
                measures = measure(model, objective, evaluate, heldout)
                window.restart_clock()
                modules.train()
                if measures:
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
                    tqdm.write(f"step {done:,}: {shown}", file=sys.stderr)
                if run and measures:
                    run.log({"step": done} | measures)
                    if config.best in measures and _is_better(config.best, measures[config.best], best):
                        best = measures[config.best]
                        run.save_best(model, {"step": done} | measures)
            if caught:
                break
    modules.eval()
    if run:
        run.save_last(model)
    if caught:
        where = f"the model so far is in {config.output}"
        raise Interrupted(caught[0], f"stopped after step {done:,} of {steps:,}; {where}")
    return model


@torch.no_grad()
def measure(
    model: TSDAE,
    objective: Objective,
    evaluate: Callable[[Any], dict[str, float]] | None,
    heldout: DenoisingDataset | None,
    batch_size: int = 64,
) -> dict[str, float]:
    """All measures of the model as it is, without dropout or autocast; leaves the random state as it was."""
    model.eval()
    if isinstance(objective, nn.Module):
        objective.eval()
    device = next(model.parameters()).device
    measures: dict[str, float] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if heldout is not None:
            totals: dict[str, list[float]] = {}
            for start in range(0, len(heldout), batch_size):
                epoch_B, row_B = heldout.order(start, min(batch_size, len(heldout) - start))
                terms = objective(model, heldout.batch(epoch_B, row_B).to(device)).terms
                for name, term in terms.items():
                    total = totals.setdefault(name, [0.0, 0.0, term.weight])
                    total[0] += float(term.total)
                    total[1] += term.count
            measures["heldout_loss"] = sum(weight * total / count for total, count, weight in totals.values())
        if evaluate is not None:
            measures |= evaluate(model.encoder)
    return measures


class Window:
    """What happened since the last log: kept on the device, fetched once."""

    def __init__(self, device: torch.device) -> None:
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._tokens, self._since = 0, time.perf_counter()
        self._skipped, self._skipped_in_row = 0, 0

    def add(self, loss: Tensor, norm: Tensor, batches: list[Batch]) -> None:
        self._losses.append(loss)
        self._norms.append(norm.detach())
        self._tokens += sum(batch.noisy.token_count + batch.target.token_count for batch in batches)

    def restart_clock(self) -> None:
        """Leaves the time that an evaluation took out of the speed."""
        self._since = time.perf_counter()

    def close(self, done: int, fp16: bool, name_sentences: Callable[[int], str]) -> dict[str, float]:
        """Fetches the window, which ends with step ``done``, and starts the next. Raises NonFiniteLoss."""
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
                    f"were not touched by it. Its sentences: {name_sentences(number)}"
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
        if fp16:
            row["skipped_steps"] = self._skipped
        self._losses, self._norms, self._tokens, self._since = [], [], 0, time.perf_counter()
        return row


def _sentences(dataset: DenoisingDataset, config: TrainConfig, step: int) -> str:
    """The texts of step ``step`` (counted from 1), found again by their place in the keyed order."""
    size = config.accumulate * config.batch_size
    epoch_B, row_B = dataset.order((step - 1) * size, size)
    return "; ".join(
        f"row {row} {dataset.text(row, epoch)[1]!r}"
        for epoch, row in zip(epoch_B.tolist(), row_B.tolist(), strict=True)
    )


def _is_better(name: str, value: float, best: float | None) -> bool:
    if math.isnan(value):
        return False
    return best is None or (value < best if name.endswith("loss") else value > best)


@contextlib.contextmanager
def _catch_signals(enabled: bool) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is finished and written first; a second Ctrl-C quits at once."""
    caught: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("stopping after this step; once more to quit at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
