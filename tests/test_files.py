"""Locks: who holds one, when it is let go of, and disks that know none."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest

from tsdae.utils.files import locked


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
