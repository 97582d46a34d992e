"""Ctrl-C and SIGTERM: a step is finished and written first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from tsdae.progress import print_note


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
        print_note("stopping after this step; once more to quit at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
