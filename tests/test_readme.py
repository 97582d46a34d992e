"""The Python of the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.mutant_list import MUTANTS
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig, TrainConfig

ROOMS = Path(__file__).parents[1] / "benchmarks" / "rooms.md"
REPORTS = [ROOMS.parent / "ablation" / start / "report.md" for start in ("minilm", "raw")]
README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"<!-- run by tests/test_readme.py -->\n```python\n(.*?)```", README.read_text("utf-8"), re.S)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.encoder().save_pretrained("model")
    Path("my.txt").write_text("\n".join(tiny.SENTENCES * 3))
    return tmp_path


def test_training_in_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    assert '"bert-base-uncased"' in BLOCKS[0]
    exec(BLOCKS[0].replace('"bert-base-uncased"', '"model"'), names)
    assert names["vectors"].shape == (1, 24)
    assert "a man is playing a guitar in the morning." in capsys.readouterr().out


def test_the_readmes_noise_and_objective(here: Path) -> None:
    Path("my_ideas.py").write_text(BLOCKS[1])
    method = MethodConfig(model="model", noise="my_ideas.py:keep_the_beginning", objective="my_ideas.py:with_contrast")
    data = tiny.dataset(noise="my_ideas.py:keep_the_beginning", noise_ratio=0.5)
    assert data.text(7)[0] == "is the house very"
    run = run_training(DataConfig(corpus="my.txt"), method, TrainConfig(steps=3, batch_size=2, output="run"))
    assert (run / "encoder" / "model.safetensors").is_file()


def test_its_files_and_planted_bugs_are_those_that_are_there() -> None:
    text = README.read_text("utf-8") + ROOMS.read_text("utf-8")
    assert f"# plants {len(MUTANTS)} one-line bugs" in text
    named = re.findall(r"^\| `(tsdae/[\w/]+\.py)` \| .* \|$", text, re.M)
    files = {path.relative_to(README.parent).as_posix() for path in (README.parent / "tsdae").rglob("*.py")}
    assert set(named) == {name for name in files if not name.endswith("__init__.py")}
    assert len(named) == len(set(named))


def test_its_ablation_is_the_reports() -> None:
    """Every figure of the README's tables of the ablation stands in the reports that are made from the rows."""
    report = "".join(path.read_text("utf-8") for path in REPORTS)
    section = README.read_text("utf-8").split("## Compare settings\n")[1].split("\n## ")[0]
    cells = [cell.strip() for line in section.splitlines() if line.startswith("| ") for cell in line.split("|")]
    figures = [figure for cell in cells for figure in re.findall(r"[+-]?\d+\.\d\d(?: ± \d+\.\d\d)?|\[.*\]|\d+ %", cell)]
    assert len(figures) > 40
    assert [figure for figure in figures if figure not in report] == []


def test_it_is_short_enough() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 300
