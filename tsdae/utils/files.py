"""Read and write files of models and runs: JSON, named weights, files and folders that are replaced atomically.

A file that cannot be used ends in a ValueError that says why. No code of a file is ever run: weights come from
safetensors, or from pytorch_model.bin with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # what such a disk answers


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file, a ``kind``; ValueError if the file is absent, broken or holds another one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (RecursionError, ValueError) as error:  # broken, not UTF-8, or nested too deeply
        check_is_no_pointer(path)
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not a {kind.__name__}")
    return content


def check_is_no_pointer(path: Path) -> None:
    """Raise ValueError for a Git LFS pointer: three lines that a clone without ``git lfs`` has in place of a file."""
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs.github.com/spec/"):
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself; in its clone run: git lfs pull")


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the error's type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    with atomic(path) as staged:
        staged.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic(path: Path, unique: bool = False) -> Iterator[Path]:
    """Give the block a path beside ``path`` to write a file or a folder at; rename it to ``path`` when the block ends.

    If the block fails, ``path`` stays as it was and what was written is removed.
    unique: another process may write ``path`` at the same time (no `locked`): the name holds the process's id.

    >>> with atomic(Path("scores.json")) as staged:
    ...     staged.write_text("{}")
    """
    staged = path.with_name(f"{path.name}.{os.getpid()}.part" if unique else f"{path.name}.part")
    remove(staged)  # of a process that was killed
    try:
        yield staged
        replace_folder(staged, path) if staged.is_dir() else os.replace(staged, path)
    finally:
        remove(staged)


def replace_folder(staged: Path, path: Path) -> None:
    """Rename a folder to ``path``; what was there is removed only when the new one is in place."""
    replaced = path.with_name(f"{path.name}.{os.getpid()}.old")
    try:
        if path.exists():
            path.rename(replaced)
        staged.rename(path)
    finally:
        if replaced.exists() and not path.exists():  # stopped between the two renames
            replaced.rename(path)
        remove(replaced)


def check_can_write(folder: Path, what: str, hint: str = "") -> None:
    """Raise ValueError if no file can be made in a folder, or in the first one above it where it is not there yet.

    what: names it in the message, such as --output. hint: appended to the message.
    """
    first_there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not first_there.is_dir():
        raise ValueError(f"{what} {folder}: {first_there} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=first_there):  # rights alone do not tell: the disk may be mounted for reading
            pass
    except OSError as error:
        raise ValueError(f"{what} {folder}: {first_there} cannot be written to ({error.strerror}){hint}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file; ValueError(``busy``) if another process or thread still holds it after ``wait`` seconds.

    With ``wait`` the file is kept afterwards, so that all wait for the same one. A disk that knows no locks is written
    to without one.
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=wait)
    except Timeout as error:
        raise ValueError(busy) from error
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    try:
        yield
    finally:
        if not wait:
            with contextlib.suppress(OSError):  # Windows removes it when it is released
                path.unlink()
        held.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors that writers of other libraries raise on a full disk, each its own kind, into OSErrors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"cannot be written: {first_line(error)}", str(path)) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a folder by name, from safetensors or pytorch_model.bin, whole or in shards."""
    return {name: weight for path in weight_files(folder) for name, weight in _read_weight_file(path).items()}


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights; ValueError if one is absent or no more than a Git LFS pointer."""
    paths = _weight_files(folder)
    for path in paths:
        check_is_no_pointer(path)
    return paths


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(f"{index} has no weight_map, which says in which file each weight is")
            names = sorted({str(shard) for shard in shards.values()})
            for shard in names:
                if Path(shard).name != shard or not shard.isprintable() or len(shard) > 255:
                    raise ValueError(f"{index} names {shard[:80]!r}, which is not a file of this folder")
                if not (folder / shard).is_file():
                    raise ValueError(f"{folder} lacks {shard[:80]!r}, which {index.name} names")
            return [folder / shard for shard in names]
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds only an adapter (adapter_config.json), without the model that it changes; merge the two "
            "with peft (merge_and_unload, then save_pretrained), and give that folder"
        )
    raise ValueError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # the reader raises its own kinds; all mean that the file cannot be used
            raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from error
    weights = load_plain(path)
    if not all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()):
        raise ValueError(f"{path} cannot be read as weights: it is not a dict of named tensors")
    return weights


def load_plain(path: Path) -> dict[Any, Any]:
    """Return a dict of tensors and plain values that torch.save wrote; ValueError if the file is anything else."""
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to load the file all the same, so it is not passed on
        raise ValueError(f"{path} holds more than weights; it was not loaded, since loading could run code") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} cannot be read as weights: it is not a dict of named tensors")
    return dict(table)
