"""The rows of an ablation: read and written, and which of them may stand beside each other.

A row is kept only beside rows of the same code, versions, text, labelled pairs and model, since differences between
them are to come from the settings alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tsdae.ablation.grid import NO_AXES, Arm
from tsdae.config import DataConfig
from tsdae.hub.downloads import MINI, STSB, built_in_model
from tsdae.run.folder import versions
from tsdae.text.corpus import DESCRIPTION
from tsdae.text.reading import files_of, is_pattern
from tsdae.utils.device import choose_device, choose_precision
from tsdae.utils.files import read_json, sha256_of
from tsdae.utils.imports import NAMING, file_of

ROWS, CODE_OF, GRID = "results.jsonl", "code.json", "grid.json"  # in the folder of an ablation
# What may differ between two runs that are compared as the same: where they are written and how they are watched.
BESIDE = NO_AXES | {"corpus"}  # the corpus is compared by its content
TEXT = [*(setting.name for setting in dataclasses.fields(DataConfig)), "model", "add_tokens"]  # decide about the corpus
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "tokenizer.json")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """results.jsonl; ValueError with the number of a line that is no row."""
    path = folder / ROWS
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON; was the file cut off or edited?") from error
        lacking = [name for name in ("id", "arm", "settings", "config", "scores") if name not in row]
        if lacking:
            raise ValueError(f"{path}, line {number}: a row without {', '.join(lacking)}; is it of another version?")
        rows.append(row)
    return rows


def write_rows(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """All of them, in the order of their ids; the file is never seen half written."""
    staged = folder / f"{ROWS}.part"
    staged.write_text("".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)), encoding="utf-8")
    os.replace(staged, folder / ROWS)


def has_begun(folder: Path) -> bool:
    """Whether an ablation has made a row there, or begun a run."""
    has_run = (folder / CODE_OF).is_file() and any((folder / "runs").glob("*/config.json"))
    return (folder / ROWS).is_file() or has_run


def finished_rows(folder: Path, arms: list[Arm]) -> dict[str, dict[str, Any]]:
    """The rows that are there already, by the id of their run; ValueError if new ones cannot stand beside them."""
    path = folder / ROWS
    if not has_begun(folder):
        if folder.is_dir() and any(folder.iterdir()) and not (folder / GRID).is_file():
            raise ValueError(f"--output {folder} is not empty and holds no ablation; choose another folder")
        return {}
    rows = {row["id"]: row for row in read_rows(folder)} if path.is_file() else {}
    stored, now = read_json(folder / CODE_OF), code_hashes(arms)
    # A file that only one of two grids names has no part in the other's rows.
    changed = [name for name in sorted(stored.keys() & now.keys()) if stored[name] != now[name]]
    changed += [name for name in sorted(stored.keys() ^ now.keys()) if name.startswith("tsdae/")]
    if changed:
        made = path if rows else folder
        raise ValueError(
            f"{changed[0]} is not the code that {made} was made with, so its runs cannot be compared with new ones; "
            "restore the file, or choose another --output"
        )
    base = about(arms[0])
    for name, row in rows.items():
        if row.get("versions") != base["versions"]:
            raise ValueError(
                f"{path} holds other versions ({row.get('versions')}, now {base['versions']}); choose another --output"
            )
        if row.get("pairs") != base["pairs"]:
            raise ValueError(f"{path}: {name} was scored on other pairs; choose another --output")
    for arm in arms:
        if arm.id in rows:
            _check_row(rows[arm.id], arm, path)
    return rows


def _check_row(row: dict[str, Any], arm: Arm, path: Path) -> None:
    """ValueError if the row was made with other settings, text or model than the arm has."""
    for what, value in about(arm).items():
        if row.get(what) != value:
            raise ValueError(
                f"{path}: {arm.id} has other {what} ({row.get(what)}, now {value}); choose another --output"
            )
    for key, value in row["config"].items():
        if key not in BESIDE and arm.flat.get(key) != value and not (key == "model" and arm.flat[key] is None):
            raise ValueError(
                f"{path}: {arm.id} was made with {key} {value}, now it is {arm.flat.get(key)}; choose another --output"
            )


def text_of(config: dict[str, Any]) -> list[Any]:
    """Of a row's or an arm's settings those that decide about the corpus: where they are the same, so is the text."""
    return [config.get(name) for name in TEXT]


def other_text(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str | None:
    """Why the row cannot stand beside these: what is no file (the hub, a pipe) may have changed between two runs."""
    if row["corpus_fingerprint"] is None:  # it was not trained
        return None
    for name, other in rows.items():
        same_settings = text_of(row["config"]) == text_of(other["config"])
        if same_settings and other.get("corpus_fingerprint") not in (None, row["corpus_fingerprint"]):
            return f"it was trained on another text than {name}: has the corpus changed? choose another --output"
    return None


def about(arm: Arm) -> dict[str, Any]:
    """What a row must share with others beside settings: versions, precision, and hashes of every file but code."""
    data, method, train = arm.configs
    return {
        "versions": versions(),
        "text": STSB.name if data.corpus is None else _hash_of(data.corpus),
        "heldout": None if data.heldout is None else _hash_of(data.heldout),
        "pairs": _hash_of(str(data.evaluate)),
        "weights": _hash_of(str(built_in_model()) if method.model in (None, MINI) else str(method.model)),
        "new_tokens": None if method.add_tokens is None else _hash_of(method.add_tokens),
        "precision": choose_precision(train.precision, choose_device(train.device)),  # what auto is on this machine
    }


def _hash_of(name: str) -> str:
    """SHA-256 of a file, of a prepared corpus, of a model folder's weights, or of the files that a pattern stands for.

    What is no path stays a name.
    """
    path = Path(name)
    if is_pattern(name):
        hashes = " ".join(_hash_of(str(file)) for file in files_of(name))
        return hashlib.sha256(hashes.encode()).hexdigest()
    if (path / DESCRIPTION).is_file():
        return _hash_of(str(path / DESCRIPTION))
    if path.is_dir():
        files = sorted(
            file
            for pattern in WEIGHTS
            for file in path.rglob(pattern)
            if "checkpoints" not in file.relative_to(path).parts
        )
        return " ".join(_hash_of(str(file))[:16] for file in files)
    return _hash_of_file(path.resolve(), path.stat().st_mtime_ns) if path.is_file() else name


@functools.cache
def _hash_of_file(path: Path, modified_ns: int) -> str:
    """Read once for all arms; anew after an edit."""
    return sha256_of(path)


def code_hashes(arms: list[Arm]) -> dict[str, str]:
    """SHA-256 of every file that decides about a run: the package, and the user's own noise, objective, segmenter."""
    package = Path(__file__).parents[1]
    hashes = {path.relative_to(package.parent).as_posix(): sha256_of(path) for path in sorted(package.rglob("*.py"))}
    for name in dict.fromkeys(str(arm.flat[key]) for arm in arms for key in NAMING if key != "evaluate"):
        path = file_of(name)
        if path is not None and path.is_file():
            hashes[str(path)] = sha256_of(path)
    return hashes
