"""The run folder: config.json, metrics.jsonl, the last model and the best one, and the checkpoints to go on from.

checkpoints/step-00000250/ holds state.pt (tensors and plain values, read with ``weights_only=True``) and its SHA-256.
Whatever a reader may open is written beside and renamed, so a process may die at any moment; checkpoints are synced
first. Where it is `held`, as by the scripts, one process at a time writes there.
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
from tsdae.utils.files import load_plain, locked, read_json, remove, replace_folder, sha256_of, write_json, writing
from tsdae.utils.progress import print_note

MARKS_OF_A_MODEL = ("model.safetensors", "pytorch_model.bin", "modules.json", "tokenizer.json")
MARKS_OF_A_RUN = (
    *("config.json", "metrics.jsonl", "encoder", "best", "decoder.safetensors", "evaluation.json", "curve.png"),
    *("checkpoints", "tensorboard"),
)
# What a process that died while writing leaves behind (see `files.replace_folder`); all else is the user's.
LEFTOVER = re.compile(r"(last|best|step-\d+|(config|evaluation)\.json)\.part|.+\.\d+\.old")
FORMAT = 1  # of a checkpoint; one that is read differently gets another number
STATE, DIGEST = "state.pt", "state.sha256"
LOCK, LOCK_WAIT = ".lock", 10.0  # seconds that a run which was told to stop may take
SPARE_BYTES = 2**24  # of free space that a checkpoint leaves, for the log

# What may differ between a run and what resumes it: where and how it is computed and watched, not what is computed.
FREE = {
    *("corpus", "output", "overwrite", "resume", "threads", "device", "batch_size", "accumulate"),
    *("processes", "eval_every", "save_every", "log_every", "keep", "patience", "tensorboard", "finished"),
}
LENGTH = {"steps", "epochs", "min_steps"}  # free as well, unless the learning rate follows from it


def next_run_folder(parent: str | Path = "runs") -> Path:
    """The first unused of runs/001, runs/002, ... (not created)."""
    parent = Path(parent)
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdigit()] if parent.is_dir() else []
    return parent / f"{max(taken, default=0) + 1:03d}"


def check_output(folder: Path, overwrite: bool = False, resume: bool = False) -> None:
    """ValueError if ``folder`` cannot become a run folder, or does not hold the run to resume; writes nothing."""
    first_there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not first_there.is_dir():
        raise ValueError(f"--output {folder}: {first_there} is a file, not a folder")
    if any((folder / name).exists() for name in MARKS_OF_A_MODEL):
        raise ValueError(f"--output {folder} holds a model, not a run; choose another folder")
    if resume:
        return
    holds = [name for name in MARKS_OF_A_RUN if (folder / name).exists()]
    if holds and not overwrite:
        raise ValueError(
            f"--output {folder} already holds a run ({', '.join(holds)}); --resume it, choose another folder, or "
            "--overwrite it"
        )
    if folder.is_dir() and not holds and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"--output {folder} is not empty and holds no run; choose another folder")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder; no other process trains there meanwhile. ValueError if one does."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training in {folder}; stop it, wait for it, or choose another --output"
    with locked(folder / LOCK, busy, LOCK_WAIT):
        yield


def holds_run(folder: Path) -> bool:
    """Whether a run has begun there."""
    return (folder / "config.json").is_file()


def check_same(then: dict[str, Any], now: dict[str, Any], free: set[str] = FREE) -> None:
    """ValueError that names the first setting by which a resumed run would be another one than it was.

    then, now: settings by name; what only one of them has is not compared.
    """
    free = free | LENGTH if then.get("schedule") == "constant" else free
    for name in sorted(then.keys() & now.keys() - free):
        if then[name] == now[name]:
            continue
        if name.endswith("fingerprint"):
            raise ValueError(
                f"the {name.removesuffix('_fingerprint')} is not the one that the run was started with (other "
                "sentences, another order or another tokenizer); give back the old text, or start a new run"
            )
        shown = "sentences per step" if name == "sentences_per_step" else f"--{name.replace('_', '-')}"
        raise ValueError(
            f"{shown} is {now[name]}, and the run was started with {then[name]}; leave it out, or start a new run"
        )


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_folder: str | Path) -> None:
        self.folder = Path(run_folder) / "checkpoints"

    def save(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Writes one, then removes all but the newest ``keep``.

        OSError if the disk is full; those that were there are whole then.
        """
        self.folder.mkdir(exist_ok=True)
        needed, free = size_of(state) + SPARE_BYTES, shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"the checkpoint of step {step:,} needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free",
                str(self.folder),
            )
        folder = self.folder / f"step-{step:08d}"
        staged = folder.with_name(f"{folder.name}.part")
        remove(staged)
        staged.mkdir()
        try:
            with writing(staged / STATE):
                torch.save({"format": FORMAT, "step": step} | state, staged / STATE)
            (staged / DIGEST).write_text(sha256_of(staged / STATE) + "\n", encoding="ascii")
            for path in (staged / STATE, staged / DIGEST, staged):
                sync(path)
        except OSError:
            remove(staged)
            raise
        replace_folder(staged, folder)
        sync(self.folder)
        for old in self._found()[:-keep]:
            remove(old)

    def newest(self) -> dict[str, Any] | None:
        """The newest whole one, None if there is none; a damaged one is named on stderr."""
        for folder in reversed(self._found()):
            try:
                if (folder / DIGEST).read_text(encoding="ascii").strip() != sha256_of(folder / STATE):
                    raise ValueError("its bytes do not have the SHA-256 that was written with them")
                state = load_plain(folder / STATE)
                if state["format"] != FORMAT:
                    raise ValueError(f"it is of format {state['format']}, and format {FORMAT} is read here")
            except (OSError, ValueError) as error:
                print_note(f"{folder} is damaged and left out: {error}")
                continue
            return dict(state)
        return None

    def remove_after(self, step: int) -> None:
        """Removes those of later steps: they were damaged, and would be taken for the newest again."""
        for folder in self._found():
            if int(folder.name.removeprefix("step-")) > step:
                remove(folder)

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


class Run:
    """Writes one run's folder; ``resume`` goes on in it."""

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
        self._board: Any = None

    def go_on(self, state: dict[str, Any] | None) -> None:
        """Takes back what was written after the checkpoint ``state``; without one, everything."""
        step, length = (state["step"], state["metrics_bytes"]) if state else (0, 0)
        self.checkpoints.remove_after(step)
        metrics = self.folder / "metrics.jsonl"
        if metrics.is_file() and metrics.stat().st_size >= length:
            os.truncate(metrics, length)
        elif length:
            print_note(f"{metrics} has lost rows of the steps before {step:,}")
            if metrics.is_file():  # perhaps in the middle of one
                os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        if state is None:
            remove(self.folder / "best")
        elif state["versions"] != versions():
            changed = (f"{name} {old} -> {versions().get(name)}" for name, old in state["versions"].items())
            print_note(f"other versions than before, so not bit for bit the same: {', '.join(changed)}")

    def watch(self, after: int) -> None:
        """Sends each row of the log to TensorBoard too, which forgets what it knows of steps above ``after``."""
        self._board = summary_writer()(str(self.folder / "tensorboard"), purge_step=after + 1)

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board:
            for name, value in row.items():
                self._board.add_scalar(name, value, row["step"])
            self._board.flush()

    def save_checkpoint(self, step: int, state: dict[str, Any], keep: int) -> None:
        """``state`` with what a resumed run has to compare and to undo."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.is_file():
            sync(metrics)
        length = metrics.stat().st_size if metrics.is_file() else 0
        about = {"settings": self.settings, "versions": versions(), "metrics_bytes": length}
        self.checkpoints.save(step, state | about, keep)

    def save_last(self, model: TSDAE) -> None:
        """encoder/ and decoder.safetensors."""
        staged = self._stage(model, "last.part")
        for name in ("encoder", "decoder.safetensors"):
            replace_folder(staged / name, self.folder / name)
        staged.rmdir()

    def save_best(self, model: TSDAE, measures: dict[str, float]) -> None:
        """best/: encoder/, decoder.safetensors, and measures.json, which says when and why."""
        staged = self._stage(model, "best.part")
        write_json(staged / "measures.json", measures)
        replace_folder(staged, self.folder / "best")

    def finish(self, step: int) -> None:
        """Says in config.json that the run has ended, and after which step."""
        self.settings = self.settings | {"finished": step}
        write_json(self.folder / "config.json", self.settings)

    def _stage(self, model: TSDAE, name: str) -> Path:
        staged = self.folder / name
        remove(staged)
        with writing(staged):
            model.encoder.save_pretrained(staged / "encoder")
            model.save_decoder(staged / "decoder.safetensors")
        return staged


def stored_settings(folder: Path) -> dict[str, Any]:
    """config.json of a run folder."""
    settings: dict[str, Any] = read_json(folder / "config.json")
    if "learning_rate" not in settings:
        raise ValueError(f"{folder / 'config.json'} is not of a run; --resume needs --output RUN")
    for name in ("finished", "processes", "sentences_per_step"):
        if not isinstance(settings.get(name, 1), int):
            raise ValueError(f"{folder / 'config.json'}: {name} cannot be {settings[name]!r}; was the file edited?")
    return settings


def summary_writer() -> Callable[..., Any]:
    """TensorBoard's writer; ValueError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError('--tensorboard needs its package: python -m pip install -e ".[tensorboard]"') from error
    writer: Callable[..., Any] = SummaryWriter
    return writer


def versions() -> dict[str, str]:
    """Of what decides about the last bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def size_of(state: Any) -> int:
    """Bytes of all tensors in nested tables and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(size_of(value) for value in state.values())
    return sum(size_of(value) for value in state) if isinstance(state, (list, tuple)) else 0


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
