"""--report-to: three trackers as they are installed, without a network; what they hold is what the run folder holds."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.runs import CLOCK, rows
from tests.scripts import Run
from tsdae.config import TrainConfig
from tsdae.run import trackers
from tsdae.run.trackers import Trackers
from tsdae.training import train

FLAGS = "--corpus text.txt --model model --device cpu --precision fp32 --heldout 2 --batch-size 2 --evaluate pairs.tsv"
FLAGS += " --eval-every 4 --save-every 3 --log-every 5 --output run"
Held = tuple[dict[tuple[str, int], float], str, str]  # {(metric, step): value}, and settings and table as text


def of_tensorboard(place: Path) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "run" / "tensorboard"))
    events.Reload()
    values = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    assert len(values) == sum(len(events.Scalars(name)) for name in events.Tags()["scalars"]), "a step is held twice"
    settings, table = (events.Tensors(f"{name}/text_summary") for name in ("settings", "evaluation"))
    return values, *(text[-1].tensor_proto.string_val[0].decode() for text in (settings, table))


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, start, parts = path.read_bytes(), 7, b""
    while start + 7 <= len(data):
        if 2**15 - start % 2**15 < 7:  # no room for a head at the end of a block
            start += 2**15 - start % 2**15
            continue
        length, kind = int.from_bytes(data[start + 4 : start + 6], "little"), data[start + 6]
        parts += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def of_wandb(place: Path) -> Held:
    found = [record for path in sorted((place / "run").glob("wandb/offline-*/*.wandb")) for record in records(path)]
    assert len({record.run.run_id for record in found if record.HasField("run")}) == 1, "one run, one curve"
    items = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    values = {(name, row["_step"]): value for row in items for name, value in row.items() if name[0] != "_"}
    config = {item.key: item.value_json for record in found for item in record.run.config.update}
    table = next((place / "run").glob("wandb/latest-run/files/media/table/*.json")).read_text("utf-8")
    return {key: value for key, value in values.items() if key[0] != "evaluation"}, str(config), table


def of_trackio(place: Path) -> Held:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("tsdae")
    logs = SQLiteStorage.get_logs("tsdae", run)
    values = {(name, row["step"]): value for row in logs for name, value in row.items()}
    held = {key: value for key, value in values.items() if key[0] not in ("step", "timestamp", "evaluation")}
    table = next(row["evaluation"] for row in reversed(logs) if "evaluation" in row)
    return held, str(SQLiteStorage.get_run_config("tsdae", run)), str(table)


@pytest.fixture
def offline(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, no settings of the user; Trackio reads its folder when it is first imported."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("TRACKIO_DIR", str(place / "trackio"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    return place


def test_every_tracker_holds_the_run_also_after_a_kill(run: Run, offline: Path) -> None:
    """Metrics, settings, the final table; the steps after the last checkpoint are made again, in the same curve."""
    first = run("train", f"{FLAGS} --steps 7 --report-to tensorboard wandb trackio")
    assert first.code == 0, first.err
    shutil.rmtree(offline / "run" / "checkpoints" / "step-00000007")
    settings = offline / "run" / "config.json"
    settings.write_text(settings.read_text().replace('"finished": 7', '"steps": 7'))
    assert run("train", "--resume --output run --steps 14").code == 0
    logged = {
        (f"{'train' if 'loss' in row else 'eval'}/{name}", row["step"]): value
        for row in rows(offline / "run")
        for name, value in row.items()
        if name != "step"
    }
    assert ("train/reconstruction_loss", 14) in logged, "the premise: names that a step's two rows share"
    assert {step for _, step in logged} == {0, 4, 5, 7, 8, 10, 12, 14} - {7}
    final = json.loads((offline / "run" / "evaluation.json").read_text())
    for read in (of_tensorboard, of_wandb, of_trackio):
        values, text, table = read(offline)
        assert read is not of_tensorboard or 7 not in {step for _, step in values}, "dropped, as it is made again"
        values = {key: value for key, value in values.items() if CLOCK not in key[0] and key[1] != 7}
        assert values == pytest.approx(logged, rel=1e-6), read
        assert "learning_rate" in text, read
        assert "text.txt" in text, read
        for entry in final:
            assert entry["model"] in table, read
            assert str(entry["pairs"]["spearman"]) in table, read


def test_another_run_in_the_folder_is_another_curve(run: Run, offline: Path) -> None:
    flags = f"{FLAGS} --steps 1 --evaluate none --report-to trackio"
    assert run("train", flags).code == 0
    first = (offline / "run" / "trackers.json").read_text()
    assert run("train", f"{flags} --overwrite").code == 0
    assert (offline / "run" / "trackers.json").read_text() != first


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing(name: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    result = run("train", f"{FLAGS} --report-to {name}")
    assert result.code == 2
    assert f"--report-to {name} needs its package: python -m pip install {name}" in result.err
    assert result.err.count("\n") == 1
    assert not (place / "run").exists()


def test_a_folder_of_results_called_wandb_is_not_the_package(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(place), *(path for path in sys.path if "packages" not in path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"python -m pip install wandb$"):
        trackers.needed("wandb")
    sys.modules.pop("wandb", None)  # the folder; not by monkeypatch, which would put it back


def test_wandb_without_a_login_is_one_line_and_leaves_no_run(
    run: Run, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refused(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(wandb, "init", refused)
    result = run("train", f"{FLAGS} --steps 1 --report-to wandb")
    assert result.code == 2
    assert result.err.splitlines()[-1] == (
        "tsdae train: error: --report-to wandb: No API key configured. Use `wandb login` to log in.; "
        "WANDB_MODE=offline needs neither"
    )
    assert not (offline / "run" / "config.json").exists()


class Kept:
    """A tracker that notes what it is told."""

    def __init__(self, folder: Path, settings: dict[str, Any], after: int) -> None:
        self.started, self.told, self.closed = (folder.name, settings["seed"], after), list[Any](), False
        MADE.append(self)

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def table(self, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.told.append((step, columns, rows))

    def close(self) -> None:
        self.closed = True


MADE: list[Kept] = []


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    monkeypatch.setattr(trackers, "KINDS", dict.fromkeys(trackers.KINDS, Kept))
    MADE.clear()
    return MADE


@pytest.mark.parametrize("own", [True, False])
def test_in_python_they_are_closed_unless_they_are_given(own: bool, tmp_path: Path, kept: list[Kept]) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 2, "device": "cpu", "precision": "fp32", "log_every": 1}
    config = TrainConfig(**settings, seed=3, output=str(tmp_path / "run"), report_to=["wandb"])
    given = None if own else Trackers(config.trackers)
    train(tiny.model(dtype=torch.float32), tiny.dataset(), config, trackers=given)
    (tracker,) = kept
    assert tracker.started == ("run", 3, 0)
    assert [step for step, _ in tracker.told] == [1, 2]
    assert tracker.closed is own
    if given:
        given.table([{"model": "mini", "test": {"spearman": 3.0, "ci95": [1, 2]}}])
        given.close()
        assert tracker.told[-1] == (2, ["model", "test spearman", "test ci95"], [["mini", 3.0, "[1, 2]"]])
        assert tracker.closed


def test_the_settings_of_a_run_hold_until_none_are_asked_for(run: Run, place: Path, kept: list[Kept]) -> None:
    assert run("train", f"{FLAGS} --steps 2 --report-to wandb --tensorboard").code == 0
    assert run("train", "--resume --output run --steps 3").code == 0
    assert [tracker.started[2] for tracker in kept] == [0, 0, 2, 2]
    assert all(tracker.closed for tracker in kept)
    assert run("train", "--resume --output run --steps 4 --report-to none").code == 0
    assert len(kept) == 4


def test_names() -> None:
    assert TrainConfig(report_to=["wandb", "tensorboard"], tensorboard=True).trackers == ["wandb", "tensorboard"]
    assert TrainConfig(tensorboard=True).trackers == ["tensorboard"]
    assert TrainConfig(report_to=["none"], tensorboard=True).trackers == TrainConfig().trackers == []
    wrong: list[tuple[Any, str]] = [("wandb", "must be a list, got 'wandb'"), (["wandb", "mlflow"], "got 'mlflow'")]
    for value, message in wrong:
        with pytest.raises(ValueError, match=f"--report-to .*{message}"):
            TrainConfig(report_to=value)
