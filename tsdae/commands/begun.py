"""A corpus in the making: what was done before a stop lies in OUTPUT.part, and the next call goes on from there.

OUTPUT.part/COLUMN.bin    the rows so far
OUTPUT.part/state.json    how many of them count, and what they were made of
OUTPUT.part/whole/        the corpus that is about to become OUTPUT
OUTPUT.part.lock          held by the process that writes there
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsdae.text.building import COLUMNS, Counts, Store
from tsdae.utils.files import locked, read_json, remove, write_json
from tsdae.utils.progress import print_note
from tsdae.utils.signals import Interrupted

SAVE_EVERY = 20  # seconds
STATE, WHOLE = "state.json", "whole"
GOING_ON = "; the same command goes on from there"
OURS = {STATE, f"{STATE}.part", WHOLE, *(f"{name}.bin" for name in COLUMNS)}


@dataclass
class Begun:
    """Its rows, and a state that says how many of them count."""

    folder: Path
    made_of: dict[str, Any]
    store: Store
    counts: Counts
    written: float = field(default_factory=time.monotonic)

    def save(self, counts: Counts) -> None:
        """Remembers, and writes every 20 seconds."""
        self.counts = counts
        if time.monotonic() > self.written + SAVE_EVERY:
            self.write()

    def write(self) -> None:
        self.store.sync()
        write_json(self.folder / STATE, {"made_of": self.made_of, "counts": vars(self.counts)})
        self.written = time.monotonic()


def part_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def lock_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part.lock")


def check_part(output: Path) -> None:
    """ValueError if OUTPUT.part is there and is not ours, so that nothing of the user's is ever replaced."""
    folder = part_of(output)
    others = not folder.is_dir() or {path.name for path in folder.iterdir()} - OURS
    if folder.exists() and others:
        raise ValueError(f"{folder} is where the work lies until it is done, and it is there; move it away")


@contextlib.contextmanager
def unfinished(output: Path, source: str, settings: dict[str, Any], files: Sequence[Path]) -> Iterator[Begun]:
    """What was begun of the corpus ``output`` with the same settings and unchanged files, or a new beginning.

    files: all that decides about the rows beside the settings: texts, held-out sentences, the user's own code.
    After a stop a state that was written stays, as after an error that may pass (network, disk), and what is raised or
    printed says how to go on.
    """
    check_part(output)
    folder = part_of(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is preparing {output}; wait for it, or choose another --output"
    with locked(lock_of(output), busy):
        made_of = {"source": source} | settings
        made_of |= {"files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]}
        with _opened(folder, made_of) as begun:
            yield begun


@contextlib.contextmanager
def _opened(folder: Path, made_of: dict[str, Any]) -> Iterator[Begun]:
    counts, source = Counts(), made_of["source"]
    is_stream = source == "-"
    if (folder / STATE).is_file():
        saved = read_json(folder / STATE)
        if saved.get("made_of") == made_of and not is_stream:
            counts = Counts.read(saved["counts"])
            print_note(f"going on after {counts.texts:,} texts, from {folder}")
        else:
            print_note(f"{folder} was begun with other settings or another text: beginning again")
    if not counts.texts:
        remove(folder)
        folder.mkdir()
    begun = Begun(folder, made_of, Store(folder, counts.rows, counts.tokens), counts)
    finished = False
    try:
        yield begun
        finished = True
    except (KeyboardInterrupt, SystemExit) as stop:
        if not is_stream:
            begun.write()
        number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        going_on = "" if is_stream else GOING_ON
        raise Interrupted(number, f"stopped after {begun.counts.texts:,} texts{going_on}") from stop
    except Exception as error:
        may_pass = isinstance(error, OSError) or isinstance(error.__cause__, OSError) or source.startswith("hub:")
        finished = not may_pass  # else it is wrong in text, code or settings, and the same command would meet it again
        if may_pass and (folder / STATE).is_file() and not is_stream:
            print_note(f"what was done before is kept in {folder}{GOING_ON}")
        raise
    finally:
        begun.store.close()
        if finished or is_stream or not (folder / STATE).is_file():  # without a state there is nothing to go on from
            remove(folder)
