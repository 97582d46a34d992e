"""The training loop: one function that reads in the order in which things happen.

# B sentences, T packed tokens
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tsdae import ops
from tsdae.autoencoder import TSDAE
from tsdae.bert import Layer
from tsdae.config import TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.evaluation.validation import BestSoFar, check_name, collapse, shown_names, validate
from tsdae.freezing import freeze
from tsdae.losses import Counts
from tsdae.objectives import MaskedLanguageModel, Objective, tsdae
from tsdae.objectives.interface import build, check_batch_size, check_counts, check_loss, step_counts, views_of
from tsdae.packing import Batch
from tsdae.run.folder import Run, removed_if_unstarted
from tsdae.run.resume import best_metric, open_run, resolved_settings
from tsdae.run.step_metrics import StepMetrics
from tsdae.run.trackers import Trackers
from tsdae.utils import distributed
from tsdae.utils.device import (
    autocast,
    avoid_cudnn_attention,
    choose_device,
    choose_precision,
    compile_parts,
    give_back_freed_memory,
    keep_freed_memory,
    use_deterministic_algorithms,
)
from tsdae.utils.plural import counted
from tsdae.utils.progress import paused, print_note, progress_bar
from tsdae.utils.rng import keyed
from tsdae.utils.signals import Interrupted, catch_signals

SHARED = ("corpus_fingerprint", "heldout_fingerprint", "steps", "sentences_per_step", "precision")  # by all processes
DROPOUT = 0xD809  # a word in the key that sets dropout's draws apart from those of noise and order


def train(
    model: TSDAE,
    dataset: DenoisingDataset,
    config: TrainConfig,
    objective: Objective | type[nn.Module] | None = None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    heldout: DenoisingDataset | None = None,
    settings: dict[str, Any] | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    after_step: Callable[[TSDAE, int], object] | None = None,
    on_row: Callable[[dict[str, Any]], object] | None = None,
    trackers: Trackers | None = None,
) -> TSDAE:
    """Train ``model`` in place and return it.

    >>> model = TSDAE(SentenceEncoder.from_pretrained("mini"))
    >>> dataset = DenoisingDataset(["A man plays a guitar.", "Dogs run."], model.encoder.tokenizer)
    >>> model = train(model, dataset, TrainConfig(steps=2, batch_size=2, device="cpu"))

    objective: ``(model, batch) -> LossSum``, a function, a module (whose parameters are then trained too), or a class
        that is called with the model; None: the paper's, `objectives.tsdae`.
    evaluate: ``encoder -> {metric: value}``, called before the first step, every ``config.eval_every`` steps and
        at the end, in rank 0.
    heldout: sentences that are not trained on; their loss under fixed noise is the metric ``heldout_loss``.
    settings: more for the run folder's config.json; a resumed run must have the same.
    optimizer: makes the optimiser of the model and the objective, in place of `make_optimizer`. The rates of its
        parameter groups keep their ratio to ``config.learning_rate`` under every schedule.
    after_step: called as ``(model, steps_done)`` after each step, for averages of the weights and the like; what its
        ``state_dict`` returns, if it has one, is part of a checkpoint.
    on_row: called in rank 0 with each row of metrics.jsonl, as a dict, also without a run folder.
    trackers: left open for a final table; None: those of ``config.report_to``, closed at the end.
    ``config.output=None`` trains in memory. Raises NonFiniteLoss, naming the step and its sentences, before such a
    step has touched the weights; Interrupted after a signal, when checkpoint and model have been written.
    """
    objective = objective or tsdae
    keep_open, trackers = trackers is not None, trackers or Trackers(config.trackers)
    distributed.init_process_group()
    check_counts(objective, config.accumulate * distributed.world_size())
    check_batch_size(objective, config.batch_size)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        avoid_cudnn_attention()
    use_deterministic_algorithms(config.deterministic, device)
    steps = config.steps_for(len(dataset))

    dtype = torch.float64 if precision == "fp64" else torch.float32
    model.to(device, dtype)
    objective = build(objective, model, config.seed)
    trained = _Trained(model, objective.to(device, dtype) if isinstance(objective, nn.Module) else objective)
    if config.freeze is not None:
        print_note(freeze(model, objective, config.freeze))
    made = optimizer(trained) if optimizer else make_optimizer(trained, config.learning_rate, config.weight_decay)
    ratios = [group["lr"] / config.learning_rate for group in made.param_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    window, best = StepMetrics(device), BestSoFar(best_metric(config, objective, heldout))
    early_stop = BestSoFar(config.early_stop) if config.early_stop is not None else None
    parts: dict[str, Any] = {"trained": trained, "optimizer": made, "scaler": scaler, "window": window, "best": best}
    parts |= {"early_stop": early_stop} if early_stop else {}
    parts |= {"after_step": after_step} if hasattr(after_step, "state_dict") else {}

    views, run, done = views_of(objective), None, 0
    if config.output is not None:
        model.encoder.check_savable()  # before the first step, not after the last
    if config.output is not None or distributed.world_size() > 1:
        settings = resolved_settings(config, device, precision, steps, dataset, heldout, best.name) | (settings or {})
        for name in SHARED:
            distributed.check_equal(str(settings[name]), name)
        if config.output is not None:
            run, done = open_run(Path(config.output), config, settings, parts)
            with removed_if_unstarted(run, lambda: done):
                if run:
                    trackers.start(run.folder, settings, done)
    if config.compile:
        compile_parts([part for part in trained.modules() if isinstance(part, Layer)], device)
    wrapped = distributed.wrap(trained, device, all_used=objective is tsdae)
    stream = dataset.batches(done * config.step_size, config.batch_size, views, config.step_size)
    stopping = done >= steps or (early_stop is not None and early_stop.since >= config.patience)
    signalled = False
    # As many sentences as in training, if they may be compared with each other; else as many as are fast.
    alone = objective is tsdae or isinstance(objective, MaskedLanguageModel)
    heldout_batch = 64 if alone else config.batch_size * distributed.world_size()

    def log(row: dict[str, Any]) -> None:
        if run:
            run.log(row)
        trackers.log(row)
        if on_row and distributed.is_rank_zero():
            on_row(row)

    was_collapsed = done == 0 and config.eval_every > 0  # no warning of what training starts from

    def evaluate_after(step: int, bar: tqdm[Any] | None = None) -> None:
        nonlocal was_collapsed
        give_back_freed_memory()
        if distributed.is_rank_zero():
            with paused(bar, "evaluating"):
                metrics = validate(model, objective, evaluate, heldout, heldout_batch)
            _report(run, log, model, step, metrics, best, early_stop)
            warning = collapse(metrics, len(heldout)) if heldout else None
            if warning and not was_collapsed:
                print_note(warning)
            was_collapsed = warning is not None
            if early_stop and step < config.min_steps:
                early_stop.since = 0
            window.restart_clock()
        trained.train()

    if config.eval_every and done == 0:
        with removed_if_unstarted(run, lambda: done):
            evaluate_after(0)
    trained.train()
    with (
        catch_signals(config.output is not None, several=distributed.world_size() > 1) as caught,
        progress_bar(steps, "training", "step", leave=True, done=done) as bar,
        removed_if_unstarted(run, lambda: done),
    ):
        for step in range(done, done if stopping else steps):
            # batch: those of all processes are drawn, for their counts. Dropout's masks are keyed like the noise.
            torch.manual_seed(int(keyed(config.seed, DROPOUT, step, distributed.rank())[0]))
            batches = [next(stream) for _ in range(config.accumulate * distributed.world_size())]
            counts = step_counts(objective, batches)
            own = [batch.to(device) for batch in batches[distributed.rank() :: distributed.world_size()]]

            # loss, backward
            terms: dict[str, Tensor] = {}
            for batch in own:
                with distributed.sync_gradients(wrapped, now=batch is own[-1]):
                    with autocast(device, precision):
                        loss, logged = wrapped(batch, counts, len(batches))
                    scaler.scale(loss * distributed.world_size()).backward()  # they are averaged, and should be summed
                for name, value in ({"loss": loss} | logged).items():
                    terms[name] = terms.get(name, 0) + value.detach().to(loss.dtype)
            values = distributed.all_reduce_sum(torch.stack(list(terms.values())))
            step_loss, *_ = values

            # clip, step
            scaler.unscale_(made)
            norm = clip_gradients(made, config.clip)
            for group, ratio in zip(made.param_groups, ratios, strict=True):
                group["lr"] = ratio * config.learning_rate_at(step, steps)
            if precision == "fp16":
                scaler.step(made)
                scaler.update()
            else:
                step_if_finite(made, norm + step_loss)
            ops.reclaim_gradients(trained)
            made.zero_grad()
            if after_step:
                after_step(model, step + 1)

            # log
            window.add(dict(zip(terms, values, strict=True)), norm, batches)
            done = step + 1
            bar.update()
            if at_row := done % config.log_every == 0 or done == steps:
                row = window.close(
                    done, fp16=precision == "fp16", name_sentences=lambda s: _sentences(dataset, config, s)
                )
                row |= {"learning_rate": config.learning_rate_at(step, steps)}
                row |= {"epoch": round(done * config.step_size / len(dataset), 4)}
                bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s", refresh=False)
                log({"step": done} | row)

            # evaluate, keep the best
            if config.eval_every and (done % config.eval_every == 0 or done == steps):
                evaluate_after(done, bar)
                if early_stop and (stopping := distributed.any_rank(early_stop.since >= config.patience)):
                    waited = counted(config.patience, "evaluation")
                    print_note(f"stopping early: {early_stop.name} did not improve in {waited}")

            # save
            if at_row or device.type == "cpu" or distributed.world_size() == 1:  # asking the others takes time
                signalled = distributed.any_rank(bool(caught))
            stopping = stopping or done == steps
            due = config.save_every and (done % config.save_every == 0 or stopping)
            if run and (signalled or due):
                run.save_checkpoint(done, {name: part.state_dict() for name, part in parts.items()}, config.keep)
            if signalled or stopping:
                break

        # the last model: still under `catch_signals`, as torchrun's signals do not reach all processes at once
        trained.eval()
        distributed.check_same_weights(trained)
        if run:
            run.save_last(model)
            if stopping:
                run.finish(done)
        if signalled:
            stopped = f"stopped after step {done:,} of {steps:,}; checkpoint and model are in {config.output}"
            raise Interrupted(caught[0] if caught else signal.SIGTERM, stopped)
    if not keep_open:
        trackers.close()
    return model


class _Trained(nn.Module):
    """Model and objective in one, so that all parameters are optimised, averaged over processes and saved together."""

    def __init__(self, model: TSDAE, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, counts: Counts | None, batches: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this batch's share of its step's loss, and of what else is logged: each of several terms, notes.

        counts: of the terms in the whole step; None: the batch is the step. batches: of the step.
        """
        loss_sum = check_loss(self.objective(self.model, batch))
        counts = counts or loss_sum.counts
        share = loss_sum.share_of(counts)
        if not share.requires_grad:
            raise ValueError("the objective's loss has no gradient: it was detached, or computed without gradients")
        logged = {name: value / batches for name, value in loss_sum.notes.items()}
        if len(loss_sum.terms) > 1:
            logged |= {f"{name}_loss": term.total.detach() / counts[name] for name, term in loss_sum.terms.items()}
        return share, logged


def _report(
    run: Run | None,
    log: Callable[[dict[str, Any]], None],
    model: TSDAE,
    done: int,
    metrics: dict[str, float],
    best: BestSoFar,
    early_stop: BestSoFar | None,
) -> None:
    """Print and log what was measured, and keep the best model."""
    if early_stop:
        check_name("--early-stop", early_stop.name, list(metrics))
        early_stop.update(metrics)
    if metrics:
        print_note(f"step {done:,}: " + ", ".join(f"{name} {metrics[name]:.4g}" for name in shown_names([metrics])))
    is_best = best.update(metrics)
    if metrics:
        log({"step": done} | metrics)
    if run and metrics and is_best:
        run.save_best(model, {"step": done} | metrics)


def _sentences(dataset: DenoisingDataset, config: TrainConfig, step: int) -> str:
    """Return the texts of step ``step`` (counted from 1), found again by their place in the keyed order."""
    epoch_B, row_B = dataset.order((step - 1) * config.step_size, config.step_size)
    return "; ".join(
        f"row {row} {dataset.text(row, epoch)[1]!r}"
        for epoch, row in zip(epoch_B.tolist(), row_B.tolist(), strict=True)
    )


def make_optimizer(modules: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return fused AdamW (one pass over the weights), with weight decay on matrices only.

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
    """Scale all gradients down together until their L2 norm is at most ``largest_norm`` (0: not at all).

    Where the optimizer is fused, without a pass of its own over them: it divides them by ``grad_scale`` as it reads
    them. Returns the norm they had, a tensor without axes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = distributed.broadcast(gradient_norm(gradients))  # another number of threads sums in another order
    if largest_norm and (norm.dtype == torch.float64 or not optimizer.defaults.get("fused")):  # grad_scale is fp32
        nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    elif largest_norm:
        scale = ((norm + 1e-6) / largest_norm).clamp(min=1.0)  # 1e-6: as PyTorch's clipping has it
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
    return norm


def step_if_finite(optimizer: torch.optim.Optimizer, loss_and_norm: Tensor) -> None:
    """Make a step, or none if this is not finite. A fused optimizer reads it on the device: nothing waits for it."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~torch.isfinite(loss_and_norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif torch.isfinite(loss_and_norm):
        optimizer.step()


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, a tensor without axes."""
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    # On CPUs a dot product takes a third of the time of PyTorch's norm.
    flat = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([gradient.dot(gradient) for gradient in flat]).sum().sqrt()
