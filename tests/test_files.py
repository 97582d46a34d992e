"""Locks, also on disks that know none, and files and folders that are replaced whole."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest

from tsdae.utils.files import atomic, locked


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_written_to(number: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS without its lock daemon; what else goes wrong is an error."""
    fcntl = pytest.importorskip("fcntl")

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(number, "the disk says no")

    monkeypatch.setattr(fcntl, "flock", refused)
    with contextlib.suppress(OSError), locked(place / "lock", "busy"):
        (place / "written").touch()
    assert (place / "written").exists()
    number = errno.EIO
    with pytest.raises(OSError, match="the disk says no"), locked(place / "lock", "busy"):
        raise AssertionError("it must not get here")


def test_a_lock_is_let_go_of_by_what_fails_within(place: Path) -> None:
    """Also while the exception is kept, as a notebook keeps the last one."""

    def failing() -> None:
        with locked(place / "lock", "busy", 0.01):
            with pytest.raises(ValueError, match="busy"), locked(place / "lock", "busy"):
                raise AssertionError("it must not get here")
            raise RuntimeError

    with pytest.raises(RuntimeError) as kept:
        failing()
    with locked(place / "lock", "busy", 0.01):
        assert kept.value is not None


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("name", ["file", "folder/file"])
def test_what_is_replaced_is_whole_at_any_moment(name: str, unique: bool, tmp_path: Path) -> None:
    """With what a killed process has left beside it, and after a writer that failed half way."""
    path, written = tmp_path / name.split("/")[0], tmp_path / name

    def write(text: str, fail: bool) -> None:
        with atomic(path, unique) as staged:
            inner = staged / written.relative_to(path)
            inner.parent.mkdir(exist_ok=True)
            inner.write_text(text)
            if fail:
                raise KeyboardInterrupt

    (tmp_path / f"{path.name}.part").mkdir()
    (tmp_path / f"{path.name}.part" / "left").touch()
    for text, fail, found in (("one", False, "one"), ("two", True, "one"), ("three", False, "three")):
        with pytest.raises(KeyboardInterrupt) if fail else contextlib.nullcontext():
            write(text, fail)
        assert written.read_text() == found
        assert len(list(tmp_path.iterdir())) == 1 + unique, "what another process may be writing is left alone"
