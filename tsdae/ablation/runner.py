"""Ablations: the same training in several settings and with several seeds, one row a run.

Arms share their seeds, and noise and order are pure functions of them (see `noise`), so that differences between arms
are paired. Each run is an ordinary run folder, trained in a process of its own, and resumes where it was stopped.

    FOLDER/grid.json        what was asked for
    FOLDER/results.jsonl    a row a run: configuration, commit, versions, scores, learning curve
    FOLDER/resamples/       Spearman of 1,000 resamples of the pairs, the same ones for every run
    FOLDER/runs/            the run folders, and what each was started with
    FOLDER/report.md, .html tables with intervals and verdicts (see `report`)
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Collection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsdae.ablation.grid import Arm, Configs, arms_of, parse_grid
from tsdae.ablation.processes import last_line, logged, start
from tsdae.ablation.report import write_report
from tsdae.ablation.rows import GRID, ROWS, about, config_of, finished_rows, other_text, text_of, write_rows
from tsdae.ablation.trials import estimate
from tsdae.commands.preflight import check
from tsdae.commands.recipes import cut_in_the_dip, with_recipe
from tsdae.commands.summary import measured
from tsdae.commands.train import run_training
from tsdae.config import AblationConfig, DataConfig, MethodConfig, TrainConfig
from tsdae.evaluation.pairs import load_pairs, load_stsb
from tsdae.evaluation.statistics import RESAMPLES
from tsdae.evaluation.sts import evaluate_sts
from tsdae.hub.auto_encoder import load_encoder
from tsdae.hub.downloads import MINI
from tsdae.hub.model_folder import model_folder, read_sentence_settings
from tsdae.run.folder import holds_run, stored_settings
from tsdae.utils import distributed
from tsdae.utils.device import choose_device, machine_name
from tsdae.utils.files import check_can_write, locked, read_json, remove, write_json
from tsdae.utils.imports import names_function
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note, progress_bar
from tsdae.utils.signals import Interrupted


def ablate(
    data: DataConfig, method: MethodConfig, train: TrainConfig, config: AblationConfig, given: Collection[str]
) -> Path:
    """Run what is missing of the grid, and return the folder with its rows.

    given: as for `run_training`, so that a run is what train.py makes of its settings; an axis counts as given.
    ValueError, before anything is trained: an axis that is no setting, a value of the wrong type, settings that
    exclude each other, and a folder whose rows were made by other code, versions, text or settings.
    """
    distributed.check_single_process("ablate")
    if train.resume or train.overwrite:
        raise ValueError("an ablation resumes automatically, without --resume; to start over, choose another --output")
    if train.output is None:
        raise ValueError("--output is required: the folder for the runs, the rows and the report")
    folder = Path(train.output)
    share = max(1, (os.cpu_count() or 1) // config.jobs)
    threads = train.threads or min(share, torch.get_num_threads())  # of which OMP_NUM_THREADS may allow fewer
    flags = (_labelled(data), method, dataclasses.replace(train, threads=threads, output=None))
    axes = parse_grid(config.grid)
    notes: list[str] = []

    def completed(configs: Configs, by_axes: Collection[str]) -> Configs:
        data, method, train = configs
        method, train, lines = with_recipe(method.model or MINI, method, train, {*given, *by_axes})
        is_raw = read_sentence_settings(model_folder(method.model or MINI)).pooling is None
        few = cut_in_the_dip(method.model or MINI, method, train.steps, train.step_size)
        if few and is_raw and train.epochs is None:
            lines.append(few)
        notes.append("; ".join(lines))
        return data, method, train

    arms = list(arms_of(flags, axes, config, completed))
    for note in notes[:1]:  # the base's
        print_note(note)
    named: dict[str, Arm] = {}
    for arm in arms:
        check(*arm.configs)
        if named.setdefault(arm.id, arm) is not arm:
            raise ValueError(f"{arm.name} and {named[arm.id].name} would share the file name {arm.id}; rename one")
    check_can_write(folder.parent, "--output")
    lock = _beside(folder, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is running or timing the ablation {folder}; wait for it, or choose another --output"
    with locked(lock, busy):
        _make(folder, axes, arms, config)
    return folder


def duration(seconds: float) -> str:
    """Return a time in the unit in which it is easily read."""
    if seconds < 90:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def _beside(folder: Path, what: str) -> Path:
    """Return a hidden name beside the folder, the same by whatever name the folder is called."""
    place = folder.resolve()
    return place.with_name(f".{place.name}.{what}")


def _make(folder: Path, axes: dict[str, list[Any]], arms: list[Arm], config: AblationConfig) -> None:
    """Make the rows that are missing, and the report."""
    done = finished_rows(folder, arms)
    steps: dict[str, int] = {}
    waiting = [arm for arm in arms if arm.id not in done]
    finished = len(arms) - len(waiting)
    at_once = f"{config.jobs} at a time, {counted(arms[0].configs[2].threads or 1, 'thread')} each"
    print_note(f"{counted(len(arms), 'run')}, {finished:,} finished; {at_once}")
    for arm in arms:
        print(arm.id + (" (finished)" if arm.id in done else ""))
    if waiting:
        seconds, steps = estimate(waiting, _beside(folder, "trials"), config.jobs)
        print_note(f"estimated: {duration(seconds)}")
    if config.dry_run:
        return
    (folder / "resamples").mkdir(parents=True, exist_ok=True)
    grid = {"axes": axes, "base": {name: arms[0].flat[name] for name in axes}, "seeds": config.seeds}
    command = shlex.join(["python", *sys.argv])
    write_json(folder / GRID, grid | {"product": config.product, "command": command})
    failed = _run_all(waiting, steps, folder, config.jobs, done)
    reported = "the report leaves them out"
    try:
        write_report(folder)
    except ValueError as error:
        if not failed:
            raise
        reported = f"no report: {error}"
    if failed:
        raise ValueError(f"{len(failed)} of {counted(len(waiting), 'run')} failed ({reported}): " + "; ".join(failed))
    print_note(f"rows: {folder / ROWS}; report: {folder / 'report.md'} and report.html")


def _labelled(data: DataConfig) -> DataConfig:
    """Return it with labelled pairs to compare by: STS-B, or a file of the user's. ValueError for anything else."""
    evaluate = data.evaluate or "stsb"
    if evaluate in ("heldout", "none") or names_function(evaluate):
        raise ValueError(f"an ablation needs labelled pairs: give --evaluate stsb or FILE, not {evaluate}")
    return dataclasses.replace(data, evaluate=evaluate)


def _run_all(
    waiting: list[Arm], steps: dict[str, int], folder: Path, jobs: int, done: dict[str, dict[str, Any]]
) -> list[str]:
    """Train and score; write the rows as they come. Return a line for each run that failed.

    steps: of each run, by its id, for the progress bar.
    """
    running: dict[str, tuple[Arm, BaseProcess]] = {}
    failed: list[str] = []
    left = list(waiting)
    with progress_bar(sum(steps.values()), "all runs", "step", leave=True) as bar:
        try:
            while left or running:
                while left and len(running) < jobs:
                    arm = left.pop(0)
                    running[arm.id] = (arm, start(_run_arm, arm, about(arm), folder))
                time.sleep(0.5)
                for arm, process in list(running.values()):
                    if process.is_alive():
                        continue
                    del running[arm.id]
                    if process.exitcode:
                        failed.append(f"{arm.id} ({last_line(folder / 'runs' / f'{arm.id}.log')})")
                        continue
                    row = read_json(folder / "runs" / f"{arm.id}.json")
                    if line := other_text(row, done):
                        same = [other for other in left if text_of(other.flat) == text_of(arm.flat)]
                        left = [other for other in left if other not in same]
                        failed.append(f"{arm.id} ({line}; not started, with the same text: {len(same)} more)")
                        continue
                    done[arm.id] = row
                    write_rows(folder, done)
                ended = sum(steps[name] for name in steps.keys() & done.keys())
                bar.update(ended + sum(_made(folder, arm) for arm, _ in running.values()) - bar.n)
                bar.set_postfix_str(f"{counted(len(done), 'run')} finished", refresh=False)
        except BaseException as stop:
            for _, process in running.values():
                process.terminate()  # the run writes a checkpoint first
            for _, process in running.values():
                process.join()
            note = "stopped; the same command resumes all runs"
            if isinstance(stop, KeyboardInterrupt):
                raise Interrupted(signal.SIGINT, note) from stop
            print_note(note)
            raise
    return failed


def _run_arm(arm: Arm, about_it: dict[str, Any], folder: Path) -> None:
    """Make one run, its scores, its row, in a process of its own. What it prints goes to runs/ID.log.

    about_it: what a row holds beside settings and results. It is written before the run starts, so that a run which is
    stopped does not resume with other code or text.
    """
    place = folder / "runs" / arm.id
    place.parent.mkdir(exist_ok=True)
    written = place.with_name(f"{arm.id}.json")
    # Without the first process nobody would wait for it, and the same command would start it a second time.
    with logged(place.with_name(f"{arm.id}.log"), "a", lambda: os.kill(os.getpid(), signal.SIGTERM)):
        row = {"id": arm.id, "arm": arm.name, "settings": arm.settings, "seed": arm.seed, "config": config_of(arm)}
        row |= about_it
        if not (written.is_file() and "scores" in read_json(written)):  # else: stopped before the row was in the table
            write_json(written, row)
            write_json(written, row | _results(arm, folder, place))
        remove(place / "checkpoints")
        remove(place / "best")


def _results(arm: Arm, folder: Path, place: Path) -> dict[str, Any]:
    data, method, train = arm.configs
    started = time.perf_counter()
    curve: list[dict[str, Any]] = []
    stored: dict[str, Any] = {}
    model = method.model or MINI
    if arm.seed is not None:
        resume = holds_run(place)
        if not (resume and "finished" in stored_settings(place)):  # else: stopped before its scores were written
            run_training(data, method, dataclasses.replace(train, output=str(place), resume=resume), table=False)
        stored, model = stored_settings(place), str(place)
        curve = measured(place)
    seconds = time.perf_counter() - started
    scores, resamples = scored(model, data, sorted({"cls", "mean", method.pooling}), train.device)
    np.save(folder / "resamples" / f"{arm.id}.npy", resamples)
    return {
        "steps": stored.get("finished", 0),
        "seconds": round(seconds, 1),
        "machine": machine_name(),
        "corpus_fingerprint": stored.get("corpus_fingerprint"),
        "scores": scores,
        "curve": curve,
        "resamples": f"resamples/{arm.id}.npy",
    }


def scored(model: str, data: DataConfig, poolings: list[str], device: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return scores on dev and test (or on the user's pairs) by pooling, and resamples [poolings, splits, S]."""
    pairs = load_stsb() if data.evaluate == "stsb" else {"dev": load_pairs(str(data.evaluate))}
    splits = [split for split in ("dev", "test") if split in pairs]
    scores: dict[str, Any] = {pooling: {} for pooling in poolings}
    resamples = np.full((len(poolings), len(splits), RESAMPLES), np.nan, dtype=np.float32)
    for place, pooling in enumerate(poolings):
        encoder = load_encoder(model, pooling, choose_device(device))
        for column, split in enumerate(splits):
            found = evaluate_sts(encoder, pairs[split])
            scores[pooling][split] = {name: round(value, 4) for name, value in found.values.items()}
            resamples[place, column] = found.values_S.get("spearman", np.nan)
    return scores, resamples


def _made(folder: Path, arm: Arm) -> int:
    """Return the steps that a running arm has logged."""
    line = last_line(folder / "runs" / arm.id / "metrics.jsonl")
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # nothing yet, or half a line
        return 0
