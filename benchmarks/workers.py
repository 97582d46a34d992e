"""One process a side, so that neither's allocator, threads or settings touch the other's; only one works at a time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

SideName = Literal["ours", "reference"]


class WorkerFailed(RuntimeError):
    """A side's process raised or ended; the message holds its traceback."""


MEMORY_STEPS = 2  # whose peak is measured: only the second has the optimiser's state from its beginning


class Worker:
    """A fresh Python that holds one side: ``call(name, ...)`` runs that method of its `Side` and waits for the answer.

    While one side works the other is blocked on its pipe.
    """

    def __init__(self, side: SideName, threads: int, device: str = "cpu") -> None:
        os.environ["TQDM_DISABLE"] = "1"  # inherited: a side's own progress bars would only be in the way
        context = multiprocessing.get_context("spawn")
        self.side = side
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, side, threads, device), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """WorkerFailed, with the worker's own traceback, if the method raises."""
        self._pipe.send((name, arguments, named))
        try:
            raised, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise WorkerFailed(
                f"the process of {self.side!r} ended in {name} with exit code {self._process.exitcode}; -9 is what a "
                "system out of memory leaves"
            ) from None
        if raised:
            raise WorkerFailed(f"{self.side}, in {name}:\n{answer}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()  # which ends the worker's loop
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()


def _serve(pipe: Connection, side: SideName, threads: int, device: str) -> None:
    """The loop of the worker's process."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # every model is a folder: nothing may wait for a network
    made: Any = None
    while True:
        try:
            name, arguments, named = pipe.recv()
        except EOFError:
            return
        try:
            made = made or importlib.import_module(f"benchmarks.{side}").Side(threads, device)
            pipe.send((False, getattr(made, name)(*arguments, **named)))
        except Exception:
            pipe.send((True, traceback.format_exc()))


def memory_of_process(field: str, process: int | str = "self") -> int:
    """A line of /proc/PROCESS/status in bytes: VmHWM (largest resident size so far), VmRSS, RssAnon.

    Not ru_maxrss: a child process starts with its parent's.
    """
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{process}/status has no {field}")


class PeakOf:
    """The largest value that a line of /proc/self/status takes within the block, looked at every 5 ms."""

    def __init__(self, field: str) -> None:
        self.field, self.largest = field, 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.largest = max(self.largest, memory_of_process(self.field))

    def __enter__(self) -> PeakOf:
        self._watcher.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._watcher.join()
        self.largest = max(self.largest, memory_of_process(self.field))
