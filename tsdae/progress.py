"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, doing: str, unit: str, show: bool = True, leave: bool = False) -> tqdm[Any]:
    """On stderr; where that is no terminal but a log, a new line only every 30 seconds."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    silent = {} if show else {"disable": True}  # not given otherwise: what is given outweighs TQDM_DISABLE
    return tqdm(total=total, desc=doing, unit=unit, mininterval=interval, leave=leave, **silent)
