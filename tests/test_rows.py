"""Which rows of an ablation may stand together: whatever decides about a run beside its settings is compared."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tsdae.ablation.grid import Arm
from tsdae.ablation.rows import CODE_OF, GRID, ROWS, about, code_hashes, finished_rows, other_text, write_rows
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


def test_a_splitter_of_ones_own_is_code(arm: Arm, place: Path) -> None:
    before = code_hashes([arm])
    (place / "parts.py").write_text(CODE.replace("[text]", "[text, text]"))
    after = code_hashes([arm])
    assert {name for name in before if before[name] != after[name]} == {"parts.py"}


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
    row = {"id": arm.id, "arm": arm.name, "settings": {}, "config": arm.flat, "scores": {}, "corpus_fingerprint": "a"}
    write_rows(made, {arm.id: row | about(arm)})
    write_json(made / CODE_OF, code_hashes([arm]))
    return made


def test_rows_of_the_same_code_and_versions_stay(arm: Arm, folder: Path) -> None:
    assert list(finished_rows(folder, [arm])) == [arm.id]


@pytest.mark.parametrize("changed", ["tsdae/noise.py", "parts.py"])
@pytest.mark.parametrize("begun", ["a row", "a run"])
def test_other_code_is_named(changed: str, begun: str, arm: Arm, folder: Path) -> None:
    """Also where no run has ended yet: a run that goes on would be of both."""
    if begun == "a run":
        (folder / ROWS).unlink()
        write_json(folder / GRID, {})
        assert finished_rows(folder, [arm]) == {}
        (folder / "runs" / "base,seed=0").mkdir(parents=True)
        (folder / "runs" / "base,seed=0" / "config.json").touch()
    write_json(folder / CODE_OF, code_hashes([arm]) | {changed: "another"})
    with pytest.raises(ValueError, match=f"{changed} is not the code that"):
        finished_rows(folder, [arm])


def test_a_file_that_the_package_had_or_lacked_is_other_code(arm: Arm, folder: Path) -> None:
    for changed in ({"tsdae/gone.py": "?"}, {}):
        hashes = code_hashes([arm])
        write_json(folder / CODE_OF, hashes | changed if changed else dict(list(hashes.items())[1:]))
        with pytest.raises(ValueError, match="is not the code that"):
            finished_rows(folder, [arm])


def test_other_versions_are_named(arm: Arm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsdae.ablation.rows.versions", lambda: {"torch": "0.1"})
    with pytest.raises(ValueError, match=r"holds other versions .*now {'torch': '0.1'}"):
        finished_rows(folder, [arm])


def test_a_text_that_changed_between_two_runs_is_noticed() -> None:
    """The hub's, or a pipe's: there is no file to compare, so what was read is."""
    config = {"corpus": "hub:some/text", "limit": 1000, "noise_ratio": 0.6}
    first, second = ({"config": config, "corpus_fingerprint": name} for name in ("a", "b"))
    assert "another text than base: has the corpus changed?" in str(other_text(second, {"base": first}))
    assert other_text(first | {"config": config | {"noise_ratio": 0.3}}, {"base": first}) is None
    assert other_text(second | {"config": config | {"limit": 10}}, {"base": first}) is None
    untrained = first | {"corpus_fingerprint": None}
    assert other_text(untrained, {"base": first}) is other_text(first, {"untrained": untrained}) is None
