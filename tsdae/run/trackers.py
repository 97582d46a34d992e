"""--report-to: the settings, log and final table of a run in TensorBoard, Weights & Biases or Trackio as well.

The id by which W&B and Trackio know a run is drawn once and kept in its folder, so a resumed run continues its curves.
Rows that a killed run makes again hold the same values: TensorBoard drops the old ones, W&B the new ones, Trackio keeps
both.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsdae.utils.files import first_line, read_json, write_json
from tsdae.utils.markdown import markdown_table

ID_FILE = "trackers.json"
NEEDED = {  # of each tracker's package: a module, and what is called in it
    "tensorboard": ("torch.utils.tensorboard", "SummaryWriter"),
    "wandb": ("wandb", "init"),
    "trackio": ("trackio", "init"),
}


class TensorBoard:
    """Event files in RUN/tensorboard. Another tracker is a class with these methods, and named wherever this one is.

    folder: the run's. settings: its config.json. after: steps done; later ones that the tracker has are made again.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        self.writer = needed("tensorboard")(str(folder / "tensorboard"), purge_step=after + 1)
        self.writer.add_text("settings", markdown_table(("setting", "value"), list(settings.items())), after)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.writer.add_text("evaluation", markdown_table(columns, rows), step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of the project $WANDB_PROJECT, default tsdae; its local files are in RUN/wandb. See also $WANDB_MODE."""

    def __init__(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        known_as = {"project": os.environ.get("WANDB_PROJECT", "tsdae"), "id": _id_of(folder), "name": str(folder)}
        init, failed = needed("wandb"), importlib.import_module("wandb").Error
        try:  # create_new: beside a run that another call in this process may have left open
            changes = {"resume": "allow", "allow_val_change": True, "reinit": "create_new"}
            self.run = init(**known_as, dir=str(folder), config=settings, **changes)
        except failed as error:  # no login, no network
            raise ValueError(f"--report-to wandb: {first_line(error)}; WANDB_MODE=offline needs neither") from error

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.run.step:  # it takes no earlier ones, and warns
            self.run.log(values, step=step)

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.run.log({"evaluation": importlib.import_module("wandb").Table(columns, rows)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of the project $TRACKIO_PROJECT, default tsdae, in $TRACKIO_DIR; ``trackio show`` opens it."""

    def __init__(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        project, name = os.environ.get("TRACKIO_PROJECT", "tsdae"), f"{folder.name}-{_id_of(folder)}"
        self.run = needed("trackio")(project, name=name, config=settings, resume="allow", embed=False)

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.run.log({"evaluation": importlib.import_module("trackio").Table(columns, rows)}, step=step)

    def close(self) -> None:
        self.run.finish()


Tracker = TensorBoard | Wandb | Trackio
KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


class Trackers:
    """The trackers of one run.

    >>> trackers = Trackers(["tensorboard"])
    >>> trackers.start(Path("runs/001"), {"seed": 0})
    >>> trackers.log({"step": 10, "loss": 3.2})
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.step, self.started = names, 0, list[Tracker]()

    def start(self, folder: Path, settings: dict[str, Any], after: int = 0) -> None:
        """Start them, or continue after so many steps; ValueError for one that is not installed or not reached."""
        self.step = after
        for name in self.names:
            self.started.append(KINDS[name](folder, settings, after))

    def log(self, row: dict[str, Any]) -> None:
        """Send a row of metrics.jsonl, its names under train/ or eval/: a term of the loss may be a metric as well."""
        self.step, kind = row["step"], "train" if "loss" in row else "eval"
        values = {f"{kind}/{name}": value for name, value in row.items() if name != "step"}
        for tracker in self.started:
            tracker.log(values, self.step)

    def table(self, entries: Sequence[dict[str, Any]]) -> None:
        """Send entries such as {"model": name, "test": {"spearman": 71.2}}, all with the same names."""
        rows = [_flat(entry) for entry in entries]
        for tracker in self.started:
            tracker.table(list(rows[0]), [list(row.values()) for row in rows], self.step)

    def close(self) -> None:
        """Wait until all is sent."""
        while self.started:
            self.started.pop().close()


def needed(name: str) -> Any:
    """Return what is called of a tracker's package; ValueError, with the extra, if it is not installed."""
    module, attribute = NEEDED[name]
    try:
        return getattr(importlib.import_module(module), attribute)  # W&B's own folder wandb/ has none
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--report-to {name} needs its package: python -m pip install {name}") from error


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """Return one level of names, "test spearman"; an interval as text."""
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        flat |= {f"{name} {metric}": one for metric, one in value.items()} if isinstance(value, dict) else {name: value}
    return {name: str(value) if isinstance(value, list) else value for name, value in flat.items()}


def _id_of(folder: Path) -> str:
    """Return the run's id, drawn when it is first asked for."""
    if not (folder / ID_FILE).is_file():
        write_json(folder / ID_FILE, {"id": secrets.token_hex(4)})
    return str(read_json(folder / ID_FILE)["id"])
