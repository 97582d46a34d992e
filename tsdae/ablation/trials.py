"""How long an ablation will take, from 20 timed steps of each size class, before hours are spent.

The same short runs try what can only fail when a run starts: a column that is not there, an objective that breaks.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tsdae.ablation.grid import Arm, Configs
from tsdae.ablation.processes import last_line, logged, start
from tsdae.commands.train import run_training
from tsdae.config import TextConfig
from tsdae.run.folder import stored_settings
from tsdae.utils.files import remove
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note, progress_bar

# Runs that differ in one of these are of two size classes: their steps cost another time, or they can fail by
# themselves when they start.
CLASS = {setting.name for setting in dataclasses.fields(TextConfig)} | {"corpus", "model", "add_tokens", "noise"}
CLASS |= {"objective", "decoder_layers", "decoder_input_noise", "hold_on", "best", "early_stop"}
CLASS |= {"batch_size", "accumulate", "max_length", "precision", "compile", "deterministic", "tie"}
WARM, TIMED = 2, 20  # steps before the clock starts, and while it runs
LINES = 1 + WARM + TIMED + 1  # of a trial's log: the evaluation before the first step, each step, the last evaluation
POLL = 0.01  # seconds between two looks at the log


class Trial(NamedTuple):
    """What a short run shows: seconds of its start, of a step and of an evaluation; how many sentences it trains on."""

    start: float
    step: float
    evaluation: float
    sentences: int


def estimate(waiting: list[Arm], trials: Path, jobs: int) -> tuple[float, dict[str, int]]:
    """Return the seconds of all runs, and the steps of each by its id; ValueError if one of them cannot be run.

    trials: a folder for the short runs, which is removed. As many of them run at once as will later.
    """
    classes: dict[str, Arm] = {}
    for arm in sorted(waiting, key=lambda arm: arm.seed is None):  # the untrained model is tried as the base
        classes.setdefault(size_class(arm), arm)
    pending, tried = list(classes.values()), dict[str, Trial]()
    rounds = range(0, len(pending), jobs)
    short = f"{counted(len(pending), 'short run')} of {WARM + TIMED} steps"
    print_note(f"estimating the time, and testing that each run can start: {short}")
    try:
        with progress_bar(len(rounds) * jobs * LINES, "short runs", "step") as bar:
            for first in rounds:
                at_once = pending[first : first + jobs]
                full = [at_once[k % len(at_once)] for k in range(jobs)]  # so that the machine is as busy as it will be
                found = try_out(full, trials, bar.update)
                tried |= {size_class(arm): trial for arm, trial in zip(full, found, strict=True)}
    finally:
        remove(trials)
    seconds, steps = 0.0, {}
    for arm in waiting:
        train, trial = arm.configs[2], tried[size_class(arm)]
        steps[arm.id] = 0 if arm.seed is None else train.steps_for(trial.sentences)
        evaluations = steps[arm.id] / train.eval_every if train.eval_every else 0.0
        seconds += trial.start + trial.step * steps[arm.id] + trial.evaluation * (evaluations + 2)  # 2: at the end
    return seconds / jobs, steps


def size_class(arm: Arm) -> str:
    """Return the same for arms of which one is tried for all."""
    return str(sorted((name, str(value)) for name, value in arm.settings.items() if name in CLASS))


def try_out(arms: list[Arm], trials: Path, on_lines: Callable[[int], object] = lambda lines: None) -> list[Trial]:
    """Run all of these at once for a few steps; ValueError if one cannot be run.

    on_lines: is called with the number of new lines in their logs.
    """
    remove(trials)
    trials.mkdir(parents=True)
    started = time.perf_counter()
    places = [trials / str(number) for number in range(len(arms))]
    processes = [start(_trial, arm.configs, place) for arm, place in zip(arms, places, strict=True)]
    seen: list[list[float]] = [[] for _ in arms]  # of each, when its lines came into the log
    try:
        alive = True
        while alive:
            time.sleep(POLL)
            alive = any([process.is_alive() for process in processes])
            for place, times in zip(places, seen, strict=True):
                log = place / "metrics.jsonl"
                lines = log.read_bytes().count(b"\n") if log.is_file() else 0
                on_lines(lines - len(times))
                times += [time.perf_counter() - started] * (lines - len(times))
    except BaseException:
        for process in processes:
            process.kill()
            process.join()
        raise
    for arm, place, process in zip(arms, places, processes, strict=True):
        process.join()
        if process.exitcode:
            raise ValueError(f"a short run of {arm.name} failed: {last_line(place.with_suffix('.log'))}")
    return [
        Trial(
            start=max(0.0, times[0] - (times[-1] - times[-2])),
            step=(times[-2] - times[WARM]) / TIMED,
            evaluation=times[-1] - times[-2],
            sentences=stored_settings(place)["training_sentences"],
        )
        for place, times in zip(places, seen, strict=True)
    ]


def _trial(configs: Configs, place: Path) -> None:
    data, method, train = configs
    short = dataclasses.replace(train, output=str(place), steps=WARM + TIMED, epochs=None, warmup_steps=0)
    short = dataclasses.replace(short, save_every=0, log_every=1, eval_every=WARM + TIMED)
    short = dataclasses.replace(short, report_to=None, tensorboard=False)
    with logged(place.with_suffix(".log"), "w", lambda: os._exit(1)):
        run_training(data, method, short, table=False)
