"""The run folder: config.json, metrics.jsonl, the last model and the best one, and the checkpoints to resume from.

checkpoints/step-00000250/ holds state.pt (tensors and plain values, read with ``weights_only=True``) and its SHA-256.
Everything but the log is written by `files.atomic`, so a process may die at any moment; checkpoints are synced first.
While the folder is `locked_run`, as by the scripts, one process at a time writes there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tsdae.autoencoder import TSDAE
from tsdae.run.step_metrics import NonFiniteLoss
from tsdae.run.trackers import ID_FILE
from tsdae.utils.files import (
    atomic,
    check_can_write,
    load_plain,
    locked,
    read_json,
    remove,
    sha256_of,
    write_json,
    writing,
)
from tsdae.utils.progress import print_note

MARKS_OF_A_MODEL = ("model.safetensors", "pytorch_model.bin", "modules.json", "tokenizer.json")
MARKS_OF_A_RUN = (
    *("config.json", "metrics.jsonl", "encoder", "best", "decoder.safetensors", "evaluation.json", "curve.png"),
    *("checkpoints", "tensorboard", "wandb", ID_FILE),
)
# What a process that died while writing leaves behind (see `files.atomic`); all else is the user's.
LEFTOVER = re.compile(
    r"(last|best|encoder|decoder\.safetensors|step-\d+|(config|evaluation|trackers)\.json)(\.part|\.\d+\.old)"
)
FORMAT = 1  # of a checkpoint; one that is read differently gets another number
STATE, DIGEST = "state.pt", "state.sha256"
LOCK, LOCK_WAIT = ".lock", 10.0  # seconds that a run which was told to stop may take
SPARE_BYTES = 2**24  # of free space that a checkpoint leaves, for the log

# Settings that may differ when a run is resumed: where and how it is computed and logged, not what is computed.
FREE = {
    *("corpus", "output", "overwrite", "resume", "threads", "device", "batch_size", "accumulate"),
    *("processes", "eval_every", "save_every", "log_every", "keep", "patience", "report_to", "tensorboard"),
    "finished",
}
FREE_IF_CONSTANT = {"steps", "epochs", "min_steps"}  # the learning rate of other schedules follows from them


def next_run_folder(parent: str | Path = "runs") -> Path:
    """Return the first unused of runs/001, runs/002, ... without creating it."""
    parent = Path(parent)
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdigit()] if parent.is_dir() else []
    return parent / f"{max(taken, default=0) + 1:03d}"


def newest_run(parent: str | Path = "runs") -> Path:
    """Return the last of runs/001, runs/002, ... that has an encoder; ValueError if there is none."""
    runs = [path.parent for path in Path(parent).glob("*/encoder") if path.parent.name.isdigit()]
    if not runs:
        raise ValueError(f"there is no run in {parent}/; name a run folder, or train one: tsdae train")
    return max(runs, key=lambda run: int(run.name))


def check_output(folder: Path, overwrite: bool = False, resume: bool = False) -> None:
    """Raise ValueError if ``folder`` can neither become a run folder nor hold the run to resume. Leaves nothing."""
    check_can_write(folder, "--output")
    if any((folder / name).exists() for name in MARKS_OF_A_MODEL):
        raise ValueError(f"--output {folder} holds a model, not a run; choose another folder")
    if resume:
        return
    holds = [name for name in MARKS_OF_A_RUN if (folder / name).exists()]
    if holds and not overwrite:
        held = ", ".join(holds)
        raise ValueError(
            f"--output {folder} already holds a run ({held}); --resume it, --overwrite it, or choose another"
        )
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not holds and any(name != LOCK and not LEFTOVER.fullmatch(name) for name in names):
        raise ValueError(f"--output {folder} is not empty and is not a run; choose another folder")


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Create the folder and keep other processes from training there. ValueError if one does."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training in {folder}; stop it, wait for it, or choose another --output"
    with locked(folder / LOCK, busy, LOCK_WAIT):
        yield


def holds_run(folder: Path) -> bool:
    """True if a run was started in the folder."""
    return (folder / "config.json").is_file()


def check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError for the first setting that must not change when a run is resumed, and does.

    then, now: settings by name; what only one of them has is not compared.
    """
    free = FREE | FREE_IF_CONSTANT if then.get("schedule") == "constant" else FREE
    for name in sorted(then.keys() & now.keys() - free):
        if then[name] == now[name]:
            continue
        if name.endswith("fingerprint"):
            raise ValueError(
                f"the {name.removesuffix('_fingerprint')} is not the one that the run was started with (other "
                "sentences, another order or another tokenizer); use the same text, or start a new run"
            )
        shown = (
            "sentences per step (--batch-size x --accumulate x processes)"
            if name == "sentences_per_step"
            else f"--{name.replace('_', '-')}"
        )
        raise ValueError(
            f"{shown} is {now[name]}, and the run was started with {then[name]}; leave it out, or start a new run"
        )


class Checkpoints:
    """The checkpoints of one run folder.

    >>> checkpoints = Checkpoints("runs/001")
    >>> checkpoints.save(250, {"optimizer": optimizer.state_dict()}, keep=2)
    >>> checkpoints.newest()["step"]
    250
    """

    def __init__(self, run_folder: str | Path) -> None:
        self.folder = Path(run_folder) / "checkpoints"

    def save(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint, then remove all but the newest ``keep``.

        OSError if the disk is full; the earlier ones are whole then.
        """
        self.folder.mkdir(exist_ok=True)
        needed, free = size_of(state) + SPARE_BYTES, shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"the checkpoint of step {step:,} needs {needed / 1e6:,.0f} MB, and only {free / 1e6:,.0f} MB are free",
                str(self.folder),
            )
        folder = self.folder / f"step-{step:08d}"
        with atomic(folder) as staged:
            staged.mkdir()
            with writing(staged / STATE):
                torch.save({"format": FORMAT, "step": step} | state, staged / STATE)
            (staged / DIGEST).write_text(sha256_of(staged / STATE) + "\n", encoding="ascii")
            for path in (staged / STATE, staged / DIGEST, staged):
                sync(path)
        sync(self.folder)
        for old in self._found()[:-keep]:
            remove(old)

    def newest(self) -> dict[str, Any] | None:
        """Return the newest complete checkpoint, or None; name damaged ones on stderr."""
        for folder in reversed(self._found()):
            try:
                if (folder / DIGEST).read_text(encoding="ascii").strip() != sha256_of(folder / STATE):
                    raise ValueError(f"{STATE} does not have the SHA-256 in {DIGEST}")
                state = load_plain(folder / STATE)
                if state["format"] != FORMAT:
                    raise ValueError(f"its format is {state['format']}, and this version reads {FORMAT}")
            except (OSError, ValueError) as error:
                print_note(f"{folder} is damaged and not used: {error}")
                continue
            return state
        return None

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: they were damaged, and would be tried first again."""
        for folder in self._found():
            if int(folder.name.removeprefix("step-")) > step:
                remove(folder)

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


class Run:
    """Writes one run's folder; with ``resume``, the folder of a run that was stopped.

    >>> run = Run("runs/001", settings={"seed": 0})
    >>> run.log({"step": 10, "loss": 3.2})
    >>> run.save_last(model)
    """

    def __init__(
        self, folder: str | Path, settings: dict[str, Any], overwrite: bool = False, resume: bool = False
    ) -> None:
        self.folder = Path(folder)
        check_output(self.folder, overwrite, resume)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.checkpoints = Checkpoints(self.folder)
        for path in [*self.folder.glob("*"), *self.checkpoints.folder.glob("*")]:
            if LEFTOVER.fullmatch(path.name):
                remove(path)
        if not resume:
            for name in MARKS_OF_A_RUN:
                remove(self.folder / name)
        write_json(self.folder / "config.json", settings)

    def rewind(self, state: dict[str, Any] | None) -> None:
        """Remove what was written after the checkpoint ``state``; without one, everything."""
        step, length = (state["step"], state["metrics_bytes"]) if state else (0, 0)
        self.checkpoints.remove_after(step)
        metrics = self.folder / "metrics.jsonl"
        if metrics.is_file() and metrics.stat().st_size >= length:
            os.truncate(metrics, length)
        elif length:
            print_note(f"{metrics} has lost rows of the steps before {step:,}")
            if metrics.is_file():  # it may end in the middle of one
                os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        if state is None:
            remove(self.folder / "best")
        elif state["versions"] != versions():
            changed = (f"{name} {old} -> {versions().get(name)}" for name, old in state["versions"].items())
            print_note(f"versions changed, so results may differ in the last bits: {', '.join(changed)}")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save_checkpoint(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Save ``state`` with what a resumed run has to compare and to remove."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.is_file():
            sync(metrics)
        length = metrics.stat().st_size if metrics.is_file() else 0
        about = {"settings": self.settings, "versions": versions(), "metrics_bytes": length}
        self.checkpoints.save(step, state | about, keep)

    def save_last(self, model: TSDAE) -> None:
        """Write encoder/ and decoder.safetensors."""
        with atomic(self.folder / "encoder") as encoder, atomic(self.folder / "decoder.safetensors") as decoder:
            _save_model(model, encoder, decoder)

    def save_best(self, model: TSDAE, metrics: dict[str, float]) -> None:
        """Write best/: encoder/, decoder.safetensors, and measures.json with the step and its metrics."""
        with atomic(self.folder / "best") as staged:
            _save_model(model, staged / "encoder", staged / "decoder.safetensors")
            write_json(staged / "measures.json", metrics)

    def finish(self, step: int) -> None:
        """Note in config.json that the run has ended, and after which step."""
        self.settings = self.settings | {"finished": step}
        write_json(self.folder / "config.json", self.settings)


@contextlib.contextmanager
def removed_if_unstarted(run: Run | None, steps_done: Callable[[], int]) -> Iterator[None]:
    """If code or settings end the block before a step was made, remove the run: the same command can start it again."""
    try:
        yield
    except (OSError, NonFiniteLoss):
        raise
    except Exception:
        if run and steps_done() == 0:
            for name in MARKS_OF_A_RUN:
                remove(run.folder / name)
        raise


def _save_model(model: TSDAE, encoder: Path, decoder: Path) -> None:
    with writing(encoder):
        model.encoder.save_pretrained(encoder)
        model.save_decoder(decoder)


def stored_settings(folder: Path) -> dict[str, Any]:
    """Return config.json of a run folder; ValueError if it is not a run's."""
    settings: dict[str, Any] = read_json(folder / "config.json")
    if "learning_rate" not in settings:
        raise ValueError(f"{folder / 'config.json'} is not of a training run; --resume needs --output RUN")
    for name in ("finished", "processes", "sentences_per_step"):
        if not isinstance(settings.get(name, 1), int):
            raise ValueError(f"{folder / 'config.json'}: {name} cannot be {settings[name]!r}; was the file edited?")
    return settings


def versions() -> dict[str, str]:
    """Return the versions that decide about the last bits of a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {name: str(version) for name, version in found.items()}


def size_of(state: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(size_of(value) for value in state.values())
    return sum(size_of(value) for value in state) if isinstance(state, (list, tuple)) else 0


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
