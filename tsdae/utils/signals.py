"""Handle Ctrl-C and SIGTERM: the current step is finished and the model written first."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator

from tsdae.utils.progress import print_note


class Interrupted(BaseException):
    """Raised after SIGINT or SIGTERM (``signal``), when the step is finished and the model written."""

    def __init__(self, signal_number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signal = signal_number


@contextlib.contextmanager
def catch_signals(enabled: bool, several: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second Ctrl-C quits at once.

    If the block ends without `Interrupted`, the first one caught is raised again after it.
    several: there are several processes, so this one may learn from another that it has to stop, and get its own signal
        later, even after the block: after `Interrupted` both signals are ignored until the process ends.
    """
    caught: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(RuntimeError):  # stderr is being written to in this very moment
            print_note("stopping after this step; press Ctrl-C again to quit at once")

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
    """Call ``end`` in a thread if the process that started this one by `multiprocessing` ends first, for any reason."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            end()

    threading.Thread(target=wait, daemon=True).start()
