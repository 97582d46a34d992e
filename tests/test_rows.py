"""Which rows of an ablation may stand together: whatever decides about a run beside its settings is compared."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from tsdae.ablation.grid import Arm
from tsdae.ablation.rows import (
    GRID,
    ROWS,
    about,
    code_hash,
    commit,
    config_of,
    finished_rows,
    other_text,
    write_rows,
)
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.utils.files import write_json

CODE = "def parts(text):\n    return [text]\n"


@pytest.fixture
def arm(place: Path) -> Arm:
    (place / "texts").mkdir()
    (place / "text.txt").rename(place / "texts" / "a.txt")
    (place / "apart.txt").write_text("a dog\n")
    (place / "parts.py").write_text(CODE)
    (place / "model").rename(place / "renamed")
    (place / "checkpoints").mkdir()
    (place / "renamed").rename(place / "checkpoints" / "model")
    data = DataConfig(corpus="texts/*.txt", heldout="apart.txt", sentences="parts.py:parts", evaluate="pairs.tsv")
    return Arm({}, 0, (data, MethodConfig(model="checkpoints/model"), TrainConfig(device="cpu")))


@pytest.mark.parametrize(
    ("edited", "what"),
    [
        ("texts/a.txt", "text"),
        ("texts/new.txt", "text"),
        ("apart.txt", "heldout"),
        ("pairs.tsv", "pairs"),
        ("checkpoints/model/model.safetensors", "weights"),
        ("parts.py", "own_code"),
    ],
)
def test_every_file_that_decides_is_compared(arm: Arm, place: Path, edited: str, what: str) -> None:
    before = about(arm)
    with (place / edited).open("ab") as file:
        file.write(b"more\n")
    later = (place / edited).stat().st_mtime_ns + 10**9
    os.utime(place / edited, ns=(later, later))  # the clock of some file systems is coarse
    after = about(arm)
    assert {name for name in before if before[name] != after[name]} == {what}


def test_auto_is_compared_by_what_it_was(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    data, method, train = arm.configs
    for auto, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("tsdae.utils.device.cpu_multiplies_bf16", lambda auto=auto: auto)
        assert about(arm)["precision"] == precision
    chosen = dataclasses.replace(arm, configs=(data, method, dataclasses.replace(train, precision="fp64")))
    assert about(chosen)["precision"] == "fp64"


@pytest.fixture
def folder(arm: Arm, place: Path) -> Path:
    """An ablation with the row of that arm."""
    made = place / "ablation"
    made.mkdir()
    write_rows(made, {arm.id: row_of(arm)})
    return made


def row_of(arm: Arm, **changes: Any) -> dict[str, Any]:
    row = {"id": arm.id, "arm": arm.name, "settings": {}, "config": config_of(arm), "scores": {}}
    return row | about(arm) | changes


def test_rows_of_the_same_code_and_versions_stay(arm: Arm, folder: Path) -> None:
    assert list(finished_rows(folder, [arm])) == [arm.id]


@pytest.mark.parametrize("started", [False, True], ids=["a row", "a run"])
@pytest.mark.parametrize("grid", ["of this grid", "of another grid"])
@pytest.mark.parametrize(
    ("what", "value"),
    [("code", "another"), ("versions", {"torch": "0.1"}), ("pairs", "others"), ("own_code", {}), ("text", "other")],
)
def test_what_was_made_with_something_else_is_named(
    what: str, value: Any, grid: str, started: bool, arm: Arm, folder: Path
) -> None:
    """Also where no run has ended yet: a run that goes on would be of both."""
    row = row_of(arm, **{what: value}, commit="c0ffee")
    if grid == "of another grid":
        row["id"] = "another"
    if started:
        (folder / ROWS).unlink()
        write_json(folder / GRID, {})
        assert finished_rows(folder, [arm]) == {}
        (folder / "runs").mkdir()
        write_json(folder / "runs" / f"{row['id']}.json", row)
    else:
        write_rows(folder, {row["id"]: row})
    if grid == "of another grid" and what in ("own_code", "text"):  # it may have its own, and stays
        assert list(finished_rows(folder, [arm])) == ([] if started else ["another"])
        return
    commits = rf" \(then at commit c0ffee, now {commit()}\)" if what == "code" else ""
    message = rf"{row['id']} was made with {what} {value}, now it is .*{commits}; choose another --output"
    with pytest.raises(ValueError, match=message):
        finished_rows(folder, [arm])


def test_other_settings_are_named_but_not_where_a_run_is_written_or_watched(arm: Arm, folder: Path) -> None:
    moved = {"corpus": "moved/*.txt", "log_every": 7, "output": "elsewhere"}
    write_rows(folder, {arm.id: row_of(arm, config=config_of(arm) | moved)})
    assert list(finished_rows(folder, [arm])) == [arm.id]
    write_rows(folder, {arm.id: row_of(arm, config=config_of(arm) | moved | {"steps": 3})})
    with pytest.raises(ValueError, match="ablation: base,seed=0 was made with steps 3, now it is 1000; choose another"):
        finished_rows(folder, [arm])


def test_the_code_is_every_file_of_the_package(tmp_path: Path) -> None:
    """Those of folders in folders too, and their names."""
    inner = tmp_path / "package" / "noises" / "keyed.py"
    inner.parent.mkdir(parents=True)
    seen = set()
    for text in ("a = 1\n", "a = 2\n"):
        inner.write_text(text)
        seen.add(code_hash.__wrapped__(tmp_path / "package"))
    inner.rename(inner.with_name("other.py"))
    assert len({*seen, code_hash.__wrapped__(tmp_path / "package")}) == 3


def test_a_text_that_changed_between_two_runs_is_noticed() -> None:
    """The hub's, or a pipe's: there is no file to compare, so what was read is."""
    config = {"corpus": "hub:some/text", "limit": 1000, "noise_ratio": 0.6}
    first, second = ({"config": config, "corpus_fingerprint": name} for name in ("a", "b"))
    assert "a different text from base: has the corpus changed?" in str(other_text(second, {"base": first}))
    assert other_text(first | {"config": config | {"noise_ratio": 0.3}}, {"base": first}) is None
    assert other_text(second | {"config": config | {"limit": 10}}, {"base": first}) is None
    untrained = first | {"corpus_fingerprint": None}
    assert other_text(untrained, {"base": first}) is other_text(first, {"untrained": untrained}) is None
