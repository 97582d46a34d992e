"""Notes and progress bars, on stderr, from rank 0 only."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from tsdae.utils import distributed


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
    settings = {"total": total, "initial": done, "desc": doing, "unit": unit, "unit_scale": scaled, "delay": delay}
    return tqdm(**settings, mininterval=interval, leave=leave, **silent)
