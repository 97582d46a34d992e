"""Notes and progress bars, on stderr, from rank 0 only."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from tsdae.utils import distributed

_about: list[str] = []  # what the bars that are made now are about


@contextlib.contextmanager
def bars_about(what: str) -> Iterator[None]:
    """Let the bars made in this block say what they are about: "encoding STS-B dev"."""
    _about.append(what)
    try:
        yield
    finally:
        _about.pop()


@contextlib.contextmanager
def paused(bar: tqdm[Any] | None, doing: str) -> Iterator[None]:
    """Let a bar say what is done meanwhile, and leave that time out of its rate."""
    if bar is None or bar.disable:
        yield
        return
    usual, started = bar.desc.removesuffix(": "), time.time()
    bar.set_description(doing)
    try:
        yield
    finally:
        away = time.time() - started
        bar.start_t, bar.last_print_t = bar.start_t + away, bar.last_print_t + away
        bar.set_description(usual)


def print_note(line: str) -> None:
    """Print one line to stderr, above the progress bar if there is one; results go to stdout."""
    if distributed.is_rank_zero():
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def progress_bar(
    total: int,
    doing: str,
    unit: str,
    show: bool = True,
    leave: bool = False,
    done: int = 0,
    scaled: bool = False,
    delay: float = 0.0,
) -> tqdm[Any]:
    """Return a bar that is updated five times a second; if stderr is a log, only every 30 seconds.

    done: steps done before. scaled: show thousands and millions. delay: seconds before the bar is shown.
    """
    interval = 0.2 if sys.stderr.isatty() else 30.0
    # Absent otherwise, since an argument outweighs TQDM_DISABLE.
    silent = {} if show and distributed.is_rank_zero() else {"disable": True}
    settings = {
        "total": total,
        "initial": done,
        "desc": " ".join([doing, *_about[-1:]]),
        "unit": unit,
        "unit_scale": scaled,
        "delay": delay,
    }
    return tqdm(**settings, mininterval=interval, leave=leave, **silent)
