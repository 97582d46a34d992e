"""Processes of their own for the runs of an ablation: what one leaves in memory or settings does not reach the next."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tsdae.utils.signals import Interrupted, when_parent_ends


def start(target: Any, *arguments: Any) -> BaseProcess:
    """Start a process that calls ``target``; where the system can fork, PyTorch is imported once for all of them."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["tsdae.ablation.runner"])
    process: BaseProcess = context.Process(target=target, args=arguments)
    process.start()
    return process


@contextlib.contextmanager
def logged(log: Path, mode: str, when_left_alone: Callable[[], None]) -> Iterator[None]:
    """In such a process: write all that it prints to ``log``, an error as the last line, and exit with 1 after one.

    when_left_alone: called if the first process has ended, however: nobody would wait for this one.
    """
    with log.open(mode, encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        when_parent_ends(when_left_alone)
        tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
        try:
            yield
        except Interrupted as stop:
            sys.exit(128 + stop.signal)
        except (ValueError, OSError, RuntimeError) as error:
            print(" ".join(str(error).split()), flush=True)
            sys.exit(1)


def last_line(path: Path) -> str:
    """Return the last line of a file that has text in it; "" if there is none."""
    if not path.is_file():
        return ""
    lines = path.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
