"""Resume a run from the command line: merge its settings with those given now, and say what to type."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.objectives import MaskedLanguageModel, Objective
from tsdae.run.folder import FREE, Checkpoints, Run, check_output, check_same, holds_run, stored_settings
from tsdae.utils import distributed
from tsdae.utils.imports import NAMING, names_function
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note

NEWER = ("recipe", "min_steps", "freeze", "report_to")  # settings that a run of an older version does not name
Config = TypeVar("Config", DataConfig, MethodConfig, TrainConfig)


def resumed(
    data: DataConfig, method: MethodConfig, config: TrainConfig, given: set[str]
) -> tuple[DataConfig, MethodConfig, TrainConfig]:
    """Return the three configurations; with --resume, those of the run in --output with what is ``given`` now.

    given: names of the flags on the command line. ValueError if one of them must not change when a run is resumed.
    Code that the run's folder names (noise, objective, evaluate, words, sentences) is run only if the user names it
    again: the folder may be a stranger's.
    """
    if not config.resume:
        return data, method, config
    check_one_length(given)
    folder = Path(str(config.output))
    check_output(folder, resume=True)
    if not holds_run(folder):
        if given <= {"resume", "output"}:
            raise ValueError(f"--resume: {folder} holds no run; to start one, give its settings as well")
        return data, method, config
    stored = stored_settings(folder)
    hints = get_type_hints(DataConfig) | get_type_hints(MethodConfig) | get_type_hints(TrainConfig)
    for name, hint in hints.items():
        if name in stored and not fits(stored[name], hint):
            raise ValueError(f"{folder / 'config.json'}: {name} cannot be {stored[name]!r}; was the file edited?")
    filled = dataclasses.asdict(data) | dataclasses.asdict(method) | dataclasses.asdict(config)
    now = {name: value for name, value in filled.items() if name in given and (value != "auto" or name in FREE)}
    check_same(stored, now)
    for name in NAMING:
        if name not in now and _is_code(name, stored.get(name)):
            unasked = f"the run's --{name} is code of your own, which is not run unasked"
            raise ValueError(f"{unasked}; give --{name} {shlex.quote(stored[name])}")
    merged = {name: filled[name] for name in NEWER} | stored
    if "steps" in now:
        merged |= {"epochs": None, "min_steps": 0}
    try:
        if not {"batch_size", "accumulate"} & now.keys():
            size, count = split_step(stored["sentences_per_step"], stored["batch_size"], distributed.world_size())
            merged |= {"batch_size": size, "accumulate": count}
            if distributed.world_size() != stored["processes"]:
                change = f"{counted(distributed.world_size(), 'process', 'processes')} instead of {stored['processes']}"
                print_note(f"{change}: continuing with --batch-size {size} --accumulate {count} in each process")
        merged |= now
        step_size = merged["batch_size"] * merged["accumulate"] * distributed.world_size()
        check_same(stored, {"sentences_per_step": step_size})
        return _filled(data, merged), _filled(method, merged), _filled(config, merged)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} lacks {error}; was it written by another version?") from error


def check_one_length(given: Collection[str]) -> None:
    """Raise ValueError if the user has given two lengths of a run."""
    if {"steps", "epochs"} <= set(given):
        raise ValueError("--steps and --epochs are both lengths of a run; give only one of them")


def open_run(
    folder: Path, config: TrainConfig, settings: dict[str, Any], parts: dict[str, Any]
) -> tuple[Run | None, int]:
    """Return the run folder, in rank 0 only, and the steps done, with their state loaded into ``parts``.

    parts: what a checkpoint holds, by name. ValueError if the run cannot be resumed with these settings.
    """
    saved = None
    resume = config.resume and holds_run(folder)
    if resume:
        stored = stored_settings(folder)
        check_same(stored, settings)
        saved = Checkpoints(folder).newest()
        if saved is None and "finished" in stored:
            raise ValueError(f"{folder} is finished and holds no complete checkpoint to resume from")
    done = saved["step"] if saved else 0
    distributed.check_equal(
        str(done), "the newest checkpoint; the run folder must be on a disk that all processes share"
    )
    if saved:
        check_same(saved["settings"], settings)
        if done > settings["steps"]:
            raise ValueError(
                f"--steps {settings['steps']:,}: the run has made {counted(done, 'step')} already; give a larger number"
            )
        try:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError) as error:  # PyTorch's own words fill pages
            raise ValueError(f"the model or objective is not the one that {folder} was started with") from error
    if not distributed.is_rank_zero():
        return None, done
    run = Run(folder, settings, config.overwrite, resume)
    print_note(f"run folder {folder}")
    if resume:
        print_note(f"resuming after step {done:,}" if done else "no complete checkpoint yet: starting from step 0")
        run.rewind(saved)
    return run, done


def resolved_settings(
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


def best_metric(config: TrainConfig, objective: Objective, heldout: DenoisingDataset | None) -> str:
    """Return the metric that selects best/: the named one, that of the run to resume, or what fits the objective.

    The loss of TSDAE keeps falling while vectors get worse; the retrieval of a sentence by its noisy version then
    falls too.
    """
    if config.best is not None:
        return config.best
    if config.resume and holds_run(Path(str(config.output))):
        return str(stored_settings(Path(str(config.output))).get("best"))
    retrieves = heldout is not None and len(heldout) > 1 and not isinstance(objective, MaskedLanguageModel)
    return "noisy_retrieval" if retrieves else "heldout_loss"


def split_step(sentences: int, largest: int, processes: int) -> tuple[int, int]:
    """Return batch size and accumulation for each process, so that a step keeps its number of sentences.

    sentences: of a step, over all processes. largest: the batch size that must not be exceeded.

    >>> split_step(24, largest=8, processes=2)
    (6, 2)
    """
    each, rest = divmod(sentences, processes)
    if rest:
        raise ValueError(
            f"{processes} processes cannot share the run's {counted(sentences, 'sentence')} per step equally"
        )
    size = max(size for size in range(1, min(largest, each) + 1) if each % size == 0)
    return size, each // size


def _is_code(name: str, value: Any) -> bool:
    """True if a setting that may name a function does so."""
    if not isinstance(value, str):
        return False
    if name == "evaluate":  # only here may a file's name have a colon: a stranger may bring a file evil.py:run
        return names_function(value)
    return ":" in value and not (name == "sentences" and value.split(":")[0] == "icu")  # icu:LANGUAGE is built in


def fits(value: Any, hint: Any) -> bool:
    """True if a value read from JSON is of a field's type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(one, *get_args(hint)) for one in value)
    if get_args(hint):
        return any(fits(value, kind) for kind in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _filled(config: Config, settings: dict[str, Any]) -> Config:
    """Return ``config`` with all its fields taken from ``settings``."""
    return dataclasses.replace(config, **{field.name: settings[field.name] for field in dataclasses.fields(config)})


def finished_line(data: DataConfig, config: TrainConfig) -> str | None:
    """Return the line to print if the run to resume has nothing left to do; None if it has."""
    folder = Path(str(config.output))
    stored = stored_settings(folder) if holds_run(folder) else {}
    lengths = ("steps", "epochs", "min_steps", "patience")
    if "finished" not in stored or any(stored.get(name, 0) != getattr(config, name) for name in lengths):
        return None
    has_table = (folder / "evaluation.json").is_file()
    wants_table = data.evaluate not in ("heldout", "none") and (data.evaluate or data.corpus is None)
    if wants_table and not has_table and (folder / "checkpoints").is_dir():
        return None
    return f"{folder} is finished: {counted(stored['finished'], 'step')}. Its encoder is {folder / 'encoder'}"


def resume_command(data: DataConfig, method: MethodConfig, output: str) -> str:
    """Return the command that resumes a run which was stopped."""
    start = ["tsdae"]
    if distributed.world_size() > 1:
        each = os.environ.get("LOCAL_WORLD_SIZE", str(distributed.world_size()))
        start = ["torchrun", "--nproc-per-node", each, "-m", "tsdae"]
    settings = dataclasses.asdict(data) | dataclasses.asdict(method)
    named = [name for name in NAMING if settings[name] and names_function(settings[name])]
    code = [part for name in named for part in (f"--{name}", settings[name])]
    return shlex.join([*start, "train", "--resume", "--output", output, *code])
