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
def catch_signals(enabled: bool, several: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second Ctrl-C quits at once.

    A block that ends without `Interrupted` has not heeded them: they are raised again behind it.
    several: of several processes, one hears from another that it has to stop, and may get its own signal later, even
        after the block: once they are `Interrupted`, both signals are ignored until the process ends.
    """
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
    except Interrupted:
        if several:
            before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


def when_parent_ends(end: Callable[[], None]) -> None:
    """Calls ``end`` in a thread if the process that started this one (by `multiprocessing`) ends before it, however."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            end()

    threading.Thread(target=wait, daemon=True).start()
