"""The rows of an ablation: read and written, and which of them can be compared.

A row holds the commit and hashes of all that decides about its run beside the settings: code, versions, text, labelled
pairs and model. Rows that differ in one of them are refused, since differences between runs are to come from the
settings alone. A run that has only started has a row as well, in runs/ID.json, without scores.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tsdae.ablation.grid import NO_AXES, Arm
from tsdae.config import DataConfig
from tsdae.hub.downloads import MINI, STSB, built_in_model
from tsdae.run.folder import versions
from tsdae.text.corpus import DESCRIPTION
from tsdae.text.reading import files_of, is_pattern
from tsdae.text.saved import is_saved
from tsdae.utils.device import choose_device, choose_precision
from tsdae.utils.files import read_json, sha256_of
from tsdae.utils.imports import NAMING, file_of

ROWS, GRID = "results.jsonl", "grid.json"  # in the folder of an ablation
SHARED = ("code", "versions", "pairs")  # what all rows of a folder must share, those of other grids too
# What may differ between two runs that are compared as the same: where they are written and how they are watched.
NOT_COMPARED = NO_AXES | {"corpus"}  # the corpus is compared by its content
TEXT = [*(setting.name for setting in dataclasses.fields(DataConfig)), "model", "add_tokens"]  # decide about the corpus
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "tokenizer.json")
PACKAGE = Path(__file__).parents[1]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read results.jsonl; ValueError with the number of a line that is no row."""
    path = folder / ROWS
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON; was the file cut off or edited?") from error
        lacking = [name for name in ("id", "arm", "settings", "config", "scores") if name not in row]
        if lacking:
            raise ValueError(
                f"{path}, line {number}: the row lacks {', '.join(lacking)}; was it written by another version?"
            )
        rows.append(row)
    return rows


def write_rows(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Write all of them in the order of their ids; the file is never seen half written."""
    staged = folder / f"{ROWS}.part"
    staged.write_text("".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)), encoding="utf-8")
    os.replace(staged, folder / ROWS)


def finished_rows(folder: Path, arms: list[Arm]) -> dict[str, dict[str, Any]]:
    """Return the rows that are there already, by the id of their run.

    ValueError if they, or a run that was started there, cannot be compared with runs of ``arms`` made now; or if the
    folder holds something else.
    """
    path = folder / ROWS
    rows = {row["id"]: row for row in read_rows(folder)} if path.is_file() else {}
    started = {row["id"]: row for row in map(read_json, sorted((folder / "runs").glob("*.json")))}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not rows and not started and GRID not in names and names - {"resamples", f"{GRID}.part"}:
        raise ValueError(f"--output {folder} is not empty and is not an ablation; choose another folder")
    ours, common = {arm.id: arm for arm in arms}, about(arms[0])
    for name, row in (started | rows).items():
        pairs = [(what, row.get(what), common[what]) for what in SHARED]
        if arm := ours.get(name):
            pairs = [(what, row.get(what), value) for what, value in about(arm).items() if what != "commit"]
            config = config_of(arm)
            pairs += [
                (what, row["config"][what], config.get(what)) for what in row["config"] if what not in NOT_COMPARED
            ]
        for what, then, now in pairs:
            if then != now:
                commits = f" (then at commit {row.get('commit')}, now {common['commit']})" if what == "code" else ""
                raise ValueError(
                    f"{folder}: {name} was made with {what} {then}, now it is {now}{commits}; choose another --output"
                )
    return rows


def config_of(arm: Arm) -> dict[str, Any]:
    """Return the arm's settings as a row holds them."""
    return arm.flat | {"model": arm.configs[1].model or MINI}


def text_of(config: dict[str, Any]) -> list[Any]:
    """Return the settings of a row or an arm that decide about the corpus: where they agree, so does the text."""
    return [config.get(name) for name in TEXT]


def other_text(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str | None:
    """Say why the row cannot be compared with these: what is no file (the hub, a pipe) may change between two runs."""
    if row["corpus_fingerprint"] is None:  # it was not trained
        return None
    for name, other in rows.items():
        same_settings = text_of(row["config"]) == text_of(other["config"])
        if same_settings and other.get("corpus_fingerprint") not in (None, row["corpus_fingerprint"]):
            return f"it was trained on a different text from {name}: has the corpus changed? choose another --output"
    return None


def about(arm: Arm) -> dict[str, Any]:
    """Return what decides about a run beside its settings: code, versions, precision, and hashes of its files."""
    data, method, train = arm.configs
    named = [file_of(str(arm.flat[key])) for key in NAMING if key != "evaluate"]
    return {
        "commit": commit(),
        "code": code_hash(PACKAGE),
        "own_code": {str(path): sha256_of(path) for path in named if path is not None and path.is_file()},
        "versions": versions(),
        "text": STSB.name if data.corpus is None else _hash_of(data.corpus),
        "heldout": None if data.heldout is None else _hash_of(data.heldout),
        "pairs": _hash_of(str(data.evaluate)),
        "weights": _hash_of(str(built_in_model()) if method.model in (None, MINI) else str(method.model)),
        "new_tokens": None if method.add_tokens is None else _hash_of(method.add_tokens),
        "precision": choose_precision(train.precision, choose_device(train.device)),  # what auto is on this machine
    }


@functools.cache
def commit() -> str | None:
    """Return the last commit that changed the package; None where it is not in a repository."""
    command = ["git", "log", "-1", "--format=%H", "--", "."]
    try:
        return subprocess.run(command, cwd=PACKAGE, capture_output=True, check=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def code_hash(package: Path) -> str:
    """Return one SHA-256 over all Python files of a package, with their names; read once, as the code itself is."""
    hashes = [f"{path.relative_to(package).as_posix()} {sha256_of(path)}" for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _hash_of(name: str) -> str:
    """Return the SHA-256 of a prepared corpus, of a model folder's weights, or of the files that a name stands for.

    What is no path stays a name.
    """
    path = Path(name)
    if is_pattern(name) or is_saved(path):
        files = files_of(name)
    elif (path / DESCRIPTION).is_file():
        files = [path / DESCRIPTION]
    elif path.is_dir():
        found = (file for pattern in WEIGHTS for file in path.rglob(pattern))
        files = sorted(file for file in found if "checkpoints" not in file.relative_to(path).parts)
    else:
        files = [path]
    hashes = [_hash_of_file(file.resolve(), file.stat().st_mtime_ns) for file in files if file.is_file()]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest() if hashes else name


@functools.cache
def _hash_of_file(path: Path, modified_ns: int) -> str:
    """Read once for all arms; anew after an edit."""
    return sha256_of(path)
