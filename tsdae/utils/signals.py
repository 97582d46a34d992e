"""Ctrl-C and SIGTERM: a step is finished and written first."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator

from tsdae.utils.progress import print_note


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; the step was finished and the model written. ``signal``: which."""

    def __init__(self, signal_number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signal = signal_number


@contextlib.contextmanager
def catch_signals(enabled: bool) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second Ctrl-C quits at once."""
    caught: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(RuntimeError):  # stderr is being written to in this very moment
            print_note("stopping after this step; Ctrl-C once more quits at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def when_parent_ends(end: Callable[[], None]) -> None:
    """Calls ``end`` in a thread if the process that started this one (by `multiprocessing`) ends before it, however."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            end()

    threading.Thread(target=wait, daemon=True).start()
