"""The training loop: one function that reads in the order in which things happen.

# B sentences, T packed tokens
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsdae import ops
from tsdae.autoencoder import TSDAE
from tsdae.bert import Layer
from tsdae.config import TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.evaluation.validation import BestSoFar, check_names, collapse, validate
from tsdae.losses import Counts
from tsdae.objectives import MaskedLanguageModel, Objective, tsdae
from tsdae.objectives.interface import build, check_batch_size, check_counts, check_loss, step_counts, views_of
from tsdae.optimisation import clip_gradients, make_optimizer, step_if_finite
from tsdae.packing import Batch
from tsdae.run.folder import Checkpoints, Run, check_same, holds_run, stored_settings
from tsdae.run.step_metrics import StepMetrics
from tsdae.utils import distributed
from tsdae.utils.device import (
    autocast_dtype,
    avoid_cudnn_attention,
    choose_device,
    choose_precision,
    compile_parts,
    give_back_freed_memory,
    keep_freed_memory,
)
from tsdae.utils.progress import print_note, progress_bar
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
) -> TSDAE:
    """Train ``model`` in place and return it.

    >>> model = TSDAE(SentenceEncoder.from_pretrained("mini"))
    >>> dataset = DenoisingDataset(["A man plays a guitar.", "Dogs run."], model.encoder.tokenizer)
    >>> model = train(model, dataset, TrainConfig(steps=2, batch_size=2, device="cpu"))

    objective: ``(model, batch) -> LossSum``, a function, a module (whose parameters are then trained too), or a class
        that is called with the model; None: the paper's, `objectives.tsdae`.
    evaluate: ``encoder -> {measure: value}``, called before the first step, every ``config.eval_every`` steps and
        at the end, in the first of several processes.
    heldout: sentences that are not trained on; their loss under fixed noise is the measure ``heldout_loss``.
    settings: more of what belongs into the run folder's config.json; a resumed run must have the same.
    ``config.output=None`` trains in memory. Raises NonFiniteLoss, naming the step and its sentences, before such a
    step has touched the weights; Interrupted after a signal, when checkpoint and model have been written.
    """
    objective = objective or tsdae
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
    torch.use_deterministic_algorithms(config.deterministic)
    steps = config.steps_for(len(dataset))

    dtype = torch.float64 if precision == "fp64" else torch.float32
    model.to(device, dtype)
    objective = build(objective, model, config.seed)
    trained = _Trained(model, objective.to(device, dtype) if isinstance(objective, nn.Module) else objective)
    optimizer = make_optimizer(trained, config.learning_rate, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    window, best = StepMetrics(device), BestSoFar(best_measure(config, objective, heldout))
    early_stop = BestSoFar(config.early_stop) if config.early_stop is not None else None
    parts: dict[str, Any] = {"trained": trained, "optimizer": optimizer, "scaler": scaler}
    parts |= {"window": window, "best": best} | ({"early_stop": early_stop} if early_stop else {})

    run, done = None, 0
    if config.output is not None or distributed.world_size() > 1:
        settings = _resolved(config, device, precision, steps, dataset, heldout, best.name) | (settings or {})
        for name in SHARED:
            distributed.check_equal(str(settings[name]), name)
        if config.output is not None:
            run, done = _open_run(Path(config.output), config, settings, parts)
    if config.compile:
        compile_parts([part for part in trained.modules() if isinstance(part, Layer)], device)
    wrapped = distributed.wrap(trained, device, all_used=objective is tsdae)
    stream = dataset.batches(done * config.step_size, config.batch_size, views_of(objective))
    stopping = done >= steps or (early_stop is not None and early_stop.since >= config.patience)
    signalled = False
    # As many sentences as in training, if they may be compared with each other; else as many as are fast.
    alone = objective is tsdae or isinstance(objective, MaskedLanguageModel)
    heldout_batch = 64 if alone else config.batch_size * distributed.world_size()

    def evaluate_after(step: int) -> None:
        give_back_freed_memory()
        if distributed.is_rank_zero():
            measures = validate(model, objective, evaluate, heldout, heldout_batch)
            _report(run, model, step, measures, best, early_stop)
            if early_stop and step < config.min_steps:
                early_stop.since = 0
            window.restart_clock()
        trained.train()

    if config.eval_every and done == 0:
        evaluate_after(0)
    trained.train()
    with (
        catch_signals(config.output is not None, several=distributed.world_size() > 1) as caught,
        progress_bar(steps, "training", "step", leave=True, done=done) as bar,
    ):
        for step in range(done, done if stopping else steps):
            # batch: those of all processes are drawn, for their counts. Dropout's masks are keyed like the noise.
            torch.manual_seed(int(keyed(config.seed, DROPOUT, step, distributed.rank())[0]))
            batches = [next(stream) for _ in range(config.accumulate * distributed.world_size())]
            counts = step_counts(objective, batches)
            own = [batch.to(device) for batch in batches[distributed.rank() :: distributed.world_size()]]

            # loss, backward
            step_loss = torch.zeros((), device=device)
            for batch in own:
                with distributed.sync_gradients(wrapped, now=batch is own[-1]):
                    with torch.autocast(device.type, autocast_dtype(precision), enabled=precision in ("bf16", "fp16")):
                        loss = wrapped(batch, counts)
                    scaler.scale(loss * distributed.world_size()).backward()  # they are averaged, and should be summed
                step_loss += loss.detach()
            distributed.all_reduce_sum(step_loss)

            # clip, step
            scaler.unscale_(optimizer)
            norm = clip_gradients(optimizer, config.clip)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step, steps)
            if precision == "fp16":
                scaler.step(optimizer)
                scaler.update()
            else:
                step_if_finite(optimizer, norm + step_loss)
            ops.reclaim_gradients(trained)
            optimizer.zero_grad()

            # log
            window.add(step_loss, norm, batches)
            done = step + 1
            bar.update()
            if at_row := done % config.log_every == 0 or done == steps:
                row = window.close(
                    done, fp16=precision == "fp16", name_sentences=lambda s: _sentences(dataset, config, s)
                )
                row |= {"learning_rate": config.learning_rate_at(step, steps)}
                row |= {"epoch": round(done * config.step_size / len(dataset), 4)}
                bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s", refresh=False)
                if run:
                    run.log({"step": done} | row)

            # evaluate, keep the best
            if config.eval_every and (done % config.eval_every == 0 or done == steps):
                evaluate_after(done)
                if early_stop and (stopping := distributed.any_rank(early_stop.since >= config.patience)):
                    print_note(f"stopping early: {early_stop.name} was not better in {config.patience} evaluations")

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
    return model


def best_measure(config: TrainConfig, objective: Objective, heldout: DenoisingDataset | None) -> str:
    """The measure that chooses best/: the named one, that of the run to resume, or what fits the objective.

    The loss of TSDAE goes on falling while vectors get worse; the retrieval of a sentence by its noisy version then
    falls too. Over the runs of benchmarks/best_measure.md it lost the fewest points.
    """
    if config.best is not None:
        return config.best
    if config.resume and holds_run(Path(str(config.output))):
        return str(stored_settings(Path(str(config.output))).get("best"))
    retrieves = heldout is not None and len(heldout) > 1 and not isinstance(objective, MaskedLanguageModel)
    return "noisy_retrieval" if retrieves else "heldout_loss"


class _Trained(nn.Module):
    """Model and objective in one, so that all parameters are optimised, averaged over processes and saved together."""

    def __init__(self, model: TSDAE, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, counts: Counts | None) -> Tensor:
        """Return this batch's share of its step's loss, whose terms have these counts (None: the batch is the step)."""
        loss_sum = check_loss(self.objective(self.model, batch))
        share = loss_sum.share_of(counts or loss_sum.counts)
        if not share.requires_grad:
            raise ValueError("the objective's loss has no gradient: it was detached, or computed without gradients")
        return share


def _resolved(
    config: TrainConfig,
    device: torch.device,
    precision: str,
    steps: int,
    dataset: DenoisingDataset,
    heldout: DenoisingDataset | None,
    best: str,
) -> dict[str, Any]:
    """Return what config.json says: the settings, what `auto` has picked, and what was trained on."""
    return dataclasses.asdict(config) | {
        "best": best,
        "precision": precision,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "steps": steps,
        "training_sentences": len(dataset),
        "sentences_per_step": config.step_size,
        "noise_ratio": dataset.noise_ratio,
        "max_length": dataset.max_length,
        "corpus_fingerprint": dataset.corpus.fingerprint(),
        "heldout_fingerprint": heldout.corpus.fingerprint() if heldout else None,
    }


def _open_run(
    folder: Path, config: TrainConfig, settings: dict[str, Any], parts: dict[str, Any]
) -> tuple[Run | None, int]:
    """Return the run folder, in rank 0 only, and the steps done; the parts get their state."""
    saved = None
    resume = config.resume and holds_run(folder)
    if resume:
        stored = stored_settings(folder)
        check_same(stored, settings)
        saved = Checkpoints(folder).newest()
        if saved is None and "finished" in stored:
            raise ValueError(f"{folder} is finished and holds no whole checkpoint to go on from")
    done = saved["step"] if saved else 0
    distributed.check_equal(str(done), "the newest checkpoint; the run folder has to lie on a disk that all share")
    if saved:
        check_same(saved["settings"], settings)
        if done > settings["steps"]:
            raise ValueError(f"--steps {settings['steps']:,}: the run has made {done:,} steps already")
        try:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError) as error:  # PyTorch's own words fill pages
            raise ValueError(f"the model or objective is not the one that {folder} was started with") from error
    if not distributed.is_rank_zero():
        return None, done
    run = Run(folder, settings, config.overwrite, resume)
    print_note(f"run folder {folder}; if it is stopped, go on with --resume --output {folder}")
    if resume:
        print_note(f"going on after step {done:,}" if done else "no whole checkpoint yet: going on from the start")
        run.rewind(saved)
    if config.tensorboard:
        run.log_to_tensorboard(done)
    return run, done


def _report(
    run: Run | None,
    model: TSDAE,
    done: int,
    measures: dict[str, float],
    best: BestSoFar,
    early_stop: BestSoFar | None,
) -> None:
    """Print and log what was measured, and keep the best model."""
    if early_stop:
        check_names({"--early-stop": early_stop.name}, list(measures))
        early_stop.update(measures)
    if measures:
        print_note(f"step {done:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in measures.items()))
        if collapsed := collapse(measures):
            print_note(collapsed)
    is_best = best.update(measures)
    if run and measures:
        run.log({"step": done} | measures)
        if is_best:
            run.save_best(model, {"step": done} | measures)


def _sentences(dataset: DenoisingDataset, config: TrainConfig, step: int) -> str:
    """Return the texts of step ``step`` (counted from 1), found again by their place in the keyed order."""
    epoch_B, row_B = dataset.order((step - 1) * config.step_size, config.step_size)
    return "; ".join(
        f"row {row} {dataset.text(row, epoch)[1]!r}"
        for epoch, row in zip(epoch_B.tolist(), row_B.tolist(), strict=True)
    )
