"""Ablations: the same training in several settings and with several seeds, one row a run.

Arms share their seeds, and noise and order are pure functions of them (see `noise`), so that differences between arms
are paired. Each run is an ordinary run folder, trained in a process of its own, and goes on where it was stopped.

    FOLDER/grid.json        what was asked for
    FOLDER/code.json        SHA-256 of the code that the runs were made with
    FOLDER/results.jsonl    a row a run: configuration, versions, scores, learning curve
    FOLDER/resamples/       Spearman of 1,000 resamples of the pairs, the same ones for every run
    FOLDER/runs/            the run folders
    FOLDER/report.md, .html tables with intervals and verdicts (see `report`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsdae.ablation.grid import Arm, Configs, arms_of, parse_grid
from tsdae.ablation.report import write_report
from tsdae.ablation.rows import (
    CODE_OF,
    GRID,
    ROWS,
    about,
    code_hashes,
    finished_rows,
    has_begun,
    other_text,
    text_of,
    write_rows,
)
from tsdae.commands.preflight import check
from tsdae.commands.recipes import with_recipe
from tsdae.commands.train import run_training
from tsdae.config import AblationConfig, DataConfig, MethodConfig, TextConfig, TrainConfig
from tsdae.evaluation.sts import correlations, cosines, load_pairs, load_stsb, resampled_correlations
from tsdae.hub.auto_encoder import load_encoder
from tsdae.hub.downloads import MINI
from tsdae.run.folder import holds_run, stored_settings
from tsdae.utils import distributed
from tsdae.utils.device import choose_device, machine_name
from tsdae.utils.files import locked, read_json, remove, write_json
from tsdae.utils.imports import names_function
from tsdae.utils.progress import print_note, progress_bar
from tsdae.utils.signals import Interrupted, when_parent_ends

# Settings of which a value can be found wrong only when a run starts.
TRIED = {setting.name for setting in dataclasses.fields(TextConfig)} | {"corpus", "model", "add_tokens", "noise"}
TRIED |= {"objective", "decoder_layers", "decoder_input_noise", "hold_on", "best", "early_stop"}


def ablate(
    data: DataConfig,
    method: MethodConfig,
    train: TrainConfig,
    config: AblationConfig,
    given: Collection[str] | None = None,
) -> Path:
    """Runs what is missing of the grid; returns the folder with its rows.

    given: as for `recipe.run_training`, so that a run is what train.py makes of its settings; an axis counts as given.
    ValueError, before anything is trained: an axis that is no setting, a value of the wrong type, settings that
    exclude each other, and a folder whose rows were made by other code, versions, text or settings.
    """
    distributed.check_single_process("ablate.py")
    if train.resume or train.overwrite:
        raise ValueError("an ablation goes on by itself where it was stopped; choose another --output to start anew")
    if train.output is None:
        raise ValueError("--output is missing: the folder that takes the runs, the rows and the report")
    folder = Path(train.output)
    threads = train.threads or max(1, (os.cpu_count() or 1) // config.jobs)
    flags = (_labelled(data), method, dataclasses.replace(train, threads=threads, output=None))
    axes = parse_grid(config.grid)
    notes: list[str] = []

    def completed(configs: Configs, by_axes: Collection[str]) -> Configs:
        if given is None:
            return configs
        data, method, train = configs
        method, train, lines = with_recipe(method.model or MINI, method, train, {*given, *by_axes})
        notes.append("; ".join(lines))
        return data, method, train

    arms = list(arms_of(flags, axes, config, completed))
    base = arms[0].configs
    for note in notes[:1]:  # the base's
        print_note(note)
    named: dict[str, Arm] = {}
    for arm in arms:
        check(*arm.configs)
        if named.setdefault(arm.id, arm) is not arm:
            raise ValueError(f"{arm.name} and {named[arm.id].name} would share the file name {arm.id}; rename one")
    lock = _beside(folder, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process makes the runs of {folder}, or measures for them; wait for it, or choose another --output"
    with locked(lock, busy):
        _make(folder, base, axes, arms, config)
    return folder


def _beside(folder: Path, what: str) -> Path:
    """A hidden name beside the folder, the same by whatever name the folder is called."""
    place = folder.resolve()
    return place.with_name(f".{place.name}.{what}")


def _make(folder: Path, base: Configs, axes: dict[str, list[Any]], arms: list[Arm], config: AblationConfig) -> None:
    """The rows that are missing, and the report."""
    done = finished_rows(folder, arms)
    steps: dict[str, int] = {}
    waiting = [arm for arm in arms if arm.id not in done]
    finished = len(arms) - len(waiting)
    at_once = f"{config.jobs} at once, {base[2].threads} threads each"
    print_note(f"{len(arms):,} runs, {finished:,} of them finished, {at_once}")
    for arm in arms:
        print(arm.id + (" (finished)" if arm.id in done else ""))
    if waiting:
        print_note("measuring the time of a run, and trying what can fail at its start")
        seconds, steps = estimate(base, waiting, folder, config.jobs)
        print_note(f"estimated: {seconds / 3600:.1f} hours")
    if config.dry_run:
        return
    (folder / "resamples").mkdir(parents=True, exist_ok=True)
    known = read_json(folder / CODE_OF) if has_begun(folder) else {}  # of other grids' files as well
    write_json(folder / CODE_OF, known | code_hashes(arms))
    grid = {"axes": axes, "base": {name: arms[0].flat[name] for name in axes}, "seeds": config.seeds}
    command = shlex.join(["python", *sys.argv])
    write_json(folder / GRID, grid | {"product": config.product, "command": command})
    failed = _run_all(waiting, steps, folder, config.jobs, done)
    reported = "the report is without them"
    try:
        write_report(folder)
    except ValueError as error:
        if not failed:
            raise
        reported = f"no report: {error}"
    if failed:
        raise ValueError(f"{len(failed)} of {len(waiting)} runs failed ({reported}): " + "; ".join(failed))
    print_note(f"rows: {folder / ROWS}; report: {folder / 'report.md'} and report.html, the same with charts")


def _labelled(data: DataConfig) -> DataConfig:
    """Arms are compared by labelled pairs: STS-B, or a file of the user's."""
    evaluate = data.evaluate or "stsb"
    if evaluate in ("heldout", "none") or names_function(evaluate):
        raise ValueError(f"an ablation compares by labelled pairs: --evaluate stsb or FILE, not {evaluate}")
    return dataclasses.replace(data, evaluate=evaluate)


# ---------------------------------------------------------------------------------------------------------------
# The runs


def _run_all(
    waiting: list[Arm], steps: dict[str, int], folder: Path, jobs: int, done: dict[str, dict[str, Any]]
) -> list[str]:
    """Trains and scores; writes the rows as they come. Returns a line for each run that failed.

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
                    running[arm.id] = (arm, _start(_run_arm, arm, folder))
                time.sleep(0.5)
                for arm, process in list(running.values()):
                    if process.is_alive():
                        continue
                    del running[arm.id]
                    if process.exitcode:
                        failed.append(f"{arm.id} ({_last_line(folder / 'runs' / f'{arm.id}.log')})")
                        continue
                    row = read_json(folder / "runs" / f"{arm.id}.json")
                    if line := other_text(row, done):
                        same = [other for other in left if text_of(other.flat) == text_of(arm.flat)]
                        left = [other for other in left if other not in same]
                        failed.append(f"{arm.id} ({line}; {len(same)} more of that text were not begun)")
                        continue
                    done[arm.id] = row
                    write_rows(folder, done)
                ended = sum(steps[name] for name in steps.keys() & done.keys())
                bar.update(ended + sum(_made(folder, arm) for arm, _ in running.values()) - bar.n)
                bar.set_postfix_str(f"{len(done)} runs finished", refresh=False)
        except BaseException as stop:
            for _, process in running.values():
                process.terminate()  # the run writes a checkpoint first
            for _, process in running.values():
                process.join()
            note = "stopped, each run after its step; the same command goes on"
            if isinstance(stop, KeyboardInterrupt):
                raise Interrupted(signal.SIGINT, note) from stop
            print_note(note)
            raise
    return failed


def _start(target: Any, *arguments: Any) -> BaseProcess:
    """A process of its own: what one run leaves behind in memory or settings does not reach the next."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["tsdae.ablation.runner"])
    process: BaseProcess = context.Process(target=target, args=arguments)
    process.start()
    return process


def _run_arm(arm: Arm, folder: Path) -> None:
    """In a process of its own: one run, its scores, its row. What it says goes to runs/ID.log."""
    place = folder / "runs" / arm.id
    place.parent.mkdir(exist_ok=True)
    # Without the first process nobody would wait for it, and the same command would begin it a second time.
    with _apart(place.with_name(f"{arm.id}.log"), "a", lambda: os.kill(os.getpid(), signal.SIGTERM)):
        _row(arm, folder, place)


@contextlib.contextmanager
def _apart(log: Path, mode: str, when_left_alone: Callable[[], None]) -> Iterator[None]:
    """What a process of its own says goes to ``log``, an error as its last line; ends it with the first process."""
    with log.open(mode, encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        when_parent_ends(when_left_alone)
        try:
            yield
        except Interrupted as stop:
            sys.exit(128 + stop.signal)
        except (ValueError, OSError, RuntimeError) as error:
            print(" ".join(str(error).split()), flush=True)
            sys.exit(1)


def _row(arm: Arm, folder: Path, place: Path) -> None:
    data, method, train = arm.configs
    started = time.perf_counter()
    curve: list[dict[str, Any]] = []
    stored: dict[str, Any] = {}
    model = method.model or MINI
    if arm.seed is not None:
        run_training(data, method, dataclasses.replace(train, output=str(place), resume=holds_run(place)), table=False)
        stored, model = stored_settings(place), str(place)
        rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        curve = [row for row in rows if "loss" not in row]
    seconds = time.perf_counter() - started
    scores, resamples = scored(model, data, sorted({"cls", "mean", method.pooling}), train.device)
    np.save(folder / "resamples" / f"{arm.id}.npy", resamples)
    row = {
        "id": arm.id,
        "arm": arm.name,
        "settings": arm.settings,
        "seed": arm.seed,
        "steps": stored.get("steps", 0),
        "seconds": round(seconds, 1),
        "config": {name: value for name, value in (arm.flat | {"model": method.model or MINI}).items()},
        **about(arm),
        "machine": machine_name(),
        "corpus_fingerprint": stored.get("corpus_fingerprint"),
        "scores": scores,
        "curve": curve,
        "resamples": f"resamples/{arm.id}.npy",
    }
    write_json(place.with_name(f"{arm.id}.json"), row)
    remove(place / "checkpoints")
    remove(place / "best")


def scored(model: str, data: DataConfig, poolings: list[str], device: str) -> tuple[dict[str, Any], np.ndarray]:
    """Scores on dev and test (or on the user's pairs) under each pooling, and the resamples, [poolings, splits, S]."""
    pairs = load_stsb() if data.evaluate == "stsb" else {"dev": load_pairs(str(data.evaluate))}
    splits = [split for split in ("dev", "test") if split in pairs]
    scores: dict[str, Any] = {}
    resamples = []
    for pooling in poolings:
        encoder = load_encoder(model, pooling, choose_device(device))
        scores[pooling] = {}
        for split in splits:
            cosines_B = cosines(encoder.encode, pairs[split])
            spearman, pearson = (float(value[0]) for value in correlations(cosines_B[None], pairs[split].scores[None]))
            scores[pooling][split] = {"spearman": round(spearman, 4), "pearson": round(pearson, 4)}
            resamples.append(resampled_correlations(cosines_B, pairs[split].scores)[0])
    shape = (len(poolings), len(splits), -1)
    return scores, np.asarray(resamples, dtype=np.float32).reshape(shape)


def _made(folder: Path, arm: Arm) -> int:
    """Steps that a running arm has logged."""
    line = _last_line(folder / "runs" / arm.id / "metrics.jsonl")
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # nothing yet, or half a line
        return 0


def _last_line(path: Path) -> str:
    if not path.is_file():
        return ""
    lines = path.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def estimate(base: Configs, waiting: list[Arm], folder: Path, jobs: int) -> tuple[float, dict[str, int]]:
    """The seconds of all, and the steps of each run by its id; ValueError if one of them cannot be run.

    From three short runs of the base, as many at once as will be: a start, ten steps more, an evaluation more. A step
    is taken to cost as much as its sentences; that a setting makes it dearer otherwise is not known.
    """
    trials = _beside(folder, "trials")
    sentences: dict[str, int] = {}  # that a run trains on, where the setting that decides about it was tried
    taken = []
    try:
        for steps, eval_every in ((2, 0), (12, 0), (2, 2)):
            of_base = _tried({f"the base ({job})": base for job in range(jobs)}, trials, steps, eval_every)
            taken.append(max(trial.seconds for trial in of_base))
        # Each value of them, before hours are spent on others.
        some = iter({_of_trial(arm): arm for arm in waiting if TRIED & arm.settings.keys()}.values())
        while at_once := list(itertools.islice(some, jobs)):
            evaluated = int(any(arm.configs[2].early_stop for arm in at_once))
            found = _tried({arm.name: arm.configs for arm in at_once}, trials, 1, evaluated)
            sentences |= {_of_trial(arm): trial.sentences for arm, trial in zip(at_once, found, strict=True)}
    finally:
        remove(trials)
    start, longer, with_evaluation = taken
    sentence = max(0.0, longer - start) / (10 * base[2].step_size)
    evaluation = max(0.0, with_evaluation - start)
    total, steps_of = 0.0, {}
    for arm in waiting:
        train = arm.configs[2]
        rows = sentences.get(_of_trial(arm), of_base[0].sentences)
        steps_of[arm.id] = 0 if arm.seed is None else train.steps_for(rows)
        evaluations = steps_of[arm.id] / train.eval_every if train.eval_every else 0.0
        total += start + sentence * train.step_size * steps_of[arm.id]
        total += evaluation * (evaluations + 2)  # 2: the scores at the end
    return total / jobs, steps_of


def _of_trial(arm: Arm) -> str:
    """Arms of which this is the same are tried together."""
    return str(sorted((name, str(value)) for name, value in arm.settings.items() if name in TRIED))


class Trial(NamedTuple):
    """How long it took, and how many sentences it had to train on."""

    seconds: float
    sentences: int


def _tried(each: dict[str, Configs], trials: Path, steps: int, eval_every: int) -> list[Trial]:
    """All of these at once, for ``steps`` steps; ValueError if one cannot be run."""
    processes = {}
    for number, (name, (data, method, train)) in enumerate(each.items()):
        place = trials / str(number)
        remove(place)
        stop = train.early_stop if eval_every else None
        short = dataclasses.replace(train, output=str(place), steps=steps, epochs=None, warmup_steps=0, save_every=0)
        short = dataclasses.replace(short, early_stop=stop, eval_every=eval_every)
        processes[name] = (_start(_trial, (data, method, short), place), place)
    try:
        for process, _ in processes.values():
            process.join()  # all of them, before a failed one has their folders removed
    except BaseException:
        for process, _ in processes.values():
            process.kill()
            process.join()
        raise
    for name, (process, place) in processes.items():
        if process.exitcode:
            raise ValueError(f"a trial of {name} failed: {_last_line(place.with_suffix('.log'))}")
    return [Trial(**read_json(place.with_suffix(".json"))) for _, place in processes.values()]


def _trial(configs: Configs, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with _apart(place.with_suffix(".log"), "w", lambda: os._exit(1)):
        run_training(*configs, table=False)
    trial = Trial(time.perf_counter() - started, stored_settings(place)["training_sentences"])
    write_json(place.with_suffix(".json"), trial._asdict())
