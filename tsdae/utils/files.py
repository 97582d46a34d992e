"""Files of models and runs: JSON, tables of named weights, and folders that are replaced whole.

What cannot be used ends in a ValueError that says why.

Weights come from safetensors, or from pytorch_model.bin with ``weights_only=True``; no code of a file is ever run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # what such a disk answers


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file that holds a ``kind``; ValueError that names the file if it is absent, broken or holds another."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (RecursionError, ValueError) as error:  # broken, not UTF-8, or nested too deeply
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected was a {kind.__name__}")
    return content


def first_line(error: Exception) -> str:
    """What an error of another library says, on one line; its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def write_json(path: Path, content: Any) -> None:
    """Written beside and renamed: what stands at ``path`` is always whole."""
    staged = path.with_name(f"{path.name}.part")
    staged.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staged, path)


def replace_folder(staged: Path, path: Path) -> None:
    """Renames ``staged`` (a folder or a file) to ``path``; what stood there goes only when the new one is in place."""
    replaced = path.with_name(f"{path.name}.{os.getpid()}.old")
    try:
        if path.exists():
            path.rename(replaced)
        staged.rename(path)
    finally:
        if replaced.exists() and not path.exists():  # stopped between the two renames
            replaced.rename(path)
        remove(replaced)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: str, wait: float = 0.0) -> Iterator[None]:
    """One process, and one thread of it, at a time; ValueError(``busy``) where another does not end within ``wait``.

    wait: seconds. The file stays behind where it is waited for, so that all wait for the same one.
    A disk that knows no locks is written to without one.
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
    """Writers of other libraries raise their own kinds of errors where a disk is full: here they become OSErrors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"cannot be written: {first_line(error)}", str(path)) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, from safetensors or pytorch_model.bin, whole or in shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            weights: dict[str, Tensor] = {}
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(f"{index} has no weight_map, which says in which file each weight lies")
            for shard in sorted({str(shard) for shard in shards.values()}):
                if Path(shard).name != shard:
                    raise ValueError(f"{index} names {shard!r}, which is not a file of its own folder")
                if not (folder / shard).is_file():
                    raise ValueError(f"{folder} lacks {shard}, one of the files its weights are spread over")
                weights |= _read_weight_file(folder / shard)
            return weights
    raise ValueError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # the reader raises its own kinds; all mean that the file cannot be used
            raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from error
    weights = load_plain(path)
    if not all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()):
        raise ValueError(f"{path} cannot be read as weights: it is not a table of named tensors")
    return weights


def load_plain(path: Path) -> dict[Any, Any]:
    """A table that torch.save wrote, of tensors and plain values and nothing else; ValueError if it is none."""
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to load the file all the same, so it is not passed on
        raise ValueError(
            f"{path} is no plain file of weights; it was not loaded, since loading could run code"
        ) from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} cannot be read as weights: it is not a table of named tensors")
    return dict(table)
