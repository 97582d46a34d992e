"""What a run tells the user on its way: notes and progress bars, on stderr, from the first of several processes."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from tsdae.utils import distributed


def print_note(line: str) -> None:
    """One line, above the progress bar where there is one; results go to stdout, notes to stderr."""
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
    """Where stderr is no terminal but a log, a new line only every 30 seconds.

    done: what was done before. scaled: in thousands and millions. delay: seconds before it shows at all.
    """
    interval = 0.2 if sys.stderr.isatty() else 30.0
    # Not given otherwise: what is given outweighs TQDM_DISABLE.
    silent = {} if show and distributed.is_rank_zero() else {"disable": True}
    settings = {"total": total, "initial": done, "desc": doing, "unit": unit, "unit_scale": scaled, "delay": delay}
    return tqdm(**settings, mininterval=interval, leave=leave, **silent)
