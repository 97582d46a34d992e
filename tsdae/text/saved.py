"""Folders that `datasets` writes by save_to_disk: which of their files hold the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tsdae.utils.files import read_json

STATE, SPLITS = "state.json", "dataset_dict.json"  # of a Dataset, and of a DatasetDict, which has a folder a split


def is_saved(folder: Path) -> bool:
    """True if ``folder`` is what save_to_disk of a Dataset or a DatasetDict wrote; `files_of_saved` checks the rest."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / "dataset_info.json").is_file())


def files_of_saved(folder: Path) -> list[Path]:
    """Return the Arrow files of a saved Dataset, in order; of a DatasetDict those of its split train or its only one.

    They are read by pyarrow like any other Arrow file: `datasets.load_from_disk` yields the same rows more slowly.
    ValueError if the folder is damaged, or if one of several splits has to be chosen.
    """
    if (folder / SPLITS).is_file():
        splits = _names(read_json(folder / SPLITS).get("splits"), folder, SPLITS)
        if "train" not in splits and len(splits) != 1:
            raise ValueError(
                f"{folder} holds the splits {', '.join(splits) or '(none)'}; give the folder of one of them, such as "
                f"{folder / (splits or ['train'])[0]}"
            )
        folder = folder / ("train" if "train" in splits else splits[0])
        if not (folder / STATE).is_file():
            raise ValueError(f"{folder} is missing or holds no {STATE}; save the dataset again (save_to_disk)")
    files = read_json(folder / STATE).get("_data_files")
    if isinstance(files, list):
        files = [file.get("filename") if isinstance(file, dict) else None for file in files]
    paths = [folder / name for name in _names(files, folder, STATE)]
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} is damaged: {missing[0].name} is missing; save the dataset again (save_to_disk)")
    return paths


def _names(names: Any, folder: Path, file: str) -> list[str]:
    """Return these names of files or folders; ValueError unless each is a plain one, directly below the folder."""
    if not isinstance(names, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{folder} is damaged: {file} does not name what it holds; save the dataset again")
    return names
