"""Which rows of an ablation may stand together: whatever decides about a run beside its settings is compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tsdae.grid import Arm
from tsdae.results import about, code_hashes
from tsdae.settings import DataConfig, MethodConfig
from tsdae.training import TrainConfig

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
        monkeypatch.setattr("tsdae.device.cpu_multiplies_bf16", lambda auto=auto: auto)
        assert about(arm)["precision"] == precision
    chosen = dataclasses.replace(arm, configs=(data, method, dataclasses.replace(train, precision="fp64")))
    assert about(chosen)["precision"] == "fp64"
