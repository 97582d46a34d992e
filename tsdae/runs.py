"""The run folder: config.json, metrics.jsonl, the last model and the best one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tsdae.autoencoder import TSDAE
from tsdae.files import write_json

MARKS_OF_A_MODEL = ("model.safetensors", "pytorch_model.bin", "modules.json", "tokenizer.json")
MARKS_OF_A_RUN = ("config.json", "metrics.jsonl", "encoder", "best", "decoder.safetensors", "evaluation.json")


def next_run_folder(parent: str | Path = "runs") -> Path:
    """The first unused of runs/001, runs/002, ... (not created)."""
    parent = Path(parent)
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdigit()] if parent.is_dir() else []
    return parent / f"{max(taken, default=0) + 1:03d}"


def check_output(folder: Path, overwrite: bool) -> None:
    """ValueError if ``folder`` cannot become a run folder; writes nothing."""
    first_there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not first_there.is_dir():
        raise ValueError(f"--output {folder}: {first_there} is a file, not a folder")
    if any((folder / name).exists() for name in MARKS_OF_A_MODEL):
        raise ValueError(f"--output {folder} holds a model, not a run; choose another folder")
    holds = [name for name in MARKS_OF_A_RUN if (folder / name).exists()]
    if holds and not overwrite:
        raise ValueError(
            f"--output {folder} already holds a run ({', '.join(holds)}); choose another folder, or --overwrite it"
        )
    if folder.is_dir() and not holds and any(folder.iterdir()):
        raise ValueError(f"--output {folder} is not empty and holds no run; choose another folder")


class Run:
    """Writes one run's folder. What a reader may open meanwhile is written beside and renamed into place."""

    def __init__(self, folder: str | Path, config: dict[str, Any], overwrite: bool = False) -> None:
        self.folder = Path(folder)
        check_output(self.folder, overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in MARKS_OF_A_RUN:
            _remove(self.folder / name)
        write_json(self.folder / "config.json", config)

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save_last(self, model: TSDAE) -> None:
        """encoder/ and decoder.safetensors."""
        staged = self._stage(model, "last.part")
        for name in ("encoder", "decoder.safetensors"):
            _remove(self.folder / name)
            (staged / name).rename(self.folder / name)
        staged.rmdir()

    def save_best(self, model: TSDAE, measures: dict[str, float]) -> None:
        """best/: encoder/, decoder.safetensors, and measures.json, which says when and why."""
        staged = self._stage(model, "best.part")
        write_json(staged / "measures.json", measures)
        _remove(self.folder / "best")
        staged.rename(self.folder / "best")

    def _stage(self, model: TSDAE, name: str) -> Path:
        staged = self.folder / name
        _remove(staged)
        model.encoder.save_pretrained(staged / "encoder")
        model.save_decoder(staged / "decoder.safetensors")
        return staged


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
