"""The report of an ablation whose rows are made up, so that every figure in it is known."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from benchmarks import label_free
from tests.scripts import Run
from tsdae.ablation import render
from tsdae.ablation.report import make_report, write_report

BASE = {"model": "m", "corpus": "my.txt", "limit": None, "pooling": "cls", "objective": "tsdae", "batch_size": 8}
BASE |= {"min_letters": None, "accumulate": 2, "threads": 1, "noise": "delete", "noise_ratio": 0.6, "steps": 20}
# dev of cls and mean for three seeds; test is 5 lower, but for the arm that is best there and only there
ARMS: dict[str, tuple[dict[str, Any], list[float], list[float]]] = {
    "untrained": ({}, [70.0], [78.0]),
    "base": ({}, [74.0, 75.0, 76.0], [60.0, 61.0, 62.0]),
    "noise_ratio=0.3": ({"noise_ratio": 0.3}, [76.0, 77.1, 78.0], [60.0, 60.0, 60.0]),
    "noise_ratio=0.9": ({"noise_ratio": 0.9}, [74.5, 74.0, 76.5], [60.0, 60.0, 60.0]),
    "objective=mlm": ({"objective": "mlm"}, [50.0, 51.0, 52.0], [70.0, 71.0, 72.0]),
}
AXES = {"noise_ratio": [0.3, 0.6, 0.9], "objective": ["tsdae", "mlm"]}


SVG = render._svg


def drawn_alone(chart: render.LineChart | render.DifferenceChart) -> str:
    """In place of a picture, which takes longer than a report."""
    chart.draw(Figure().add_subplot())
    return ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(render, "_svg", drawn_alone)
    rows = []
    (tmp_path / "resamples").mkdir()
    for name, (settings, cls, mean) in ARMS.items():
        for seed in [None] if name == "untrained" else [0, 1, 2]:
            scores = {"cls": cls[seed or 0], "mean": mean[seed or 0]}
            test_bonus = {"noise_ratio=0.9": 9.0}.get(name, 0.0) - 5.0
            splits = {p: {"dev": {"spearman": x}, "test": {"spearman": x + test_bonus}} for p, x in scores.items()}
            last = cls[seed or 0]
            curve = [{"step": step, "stsb_dev": last - 20 + step, "alignment": last / step} for step in (10, 20)]
            made = f"{name},{seed}"
            offsets = 0.5 * np.linspace(-1, 1, 1000) * (1 + len(name) / 100)
            values = [[x + offsets, x + test_bonus + offsets] for x in scores.values()]
            np.save(tmp_path / "resamples" / f"{made}.npy", np.array(values, dtype=np.float32))
            rows.append(
                {"id": made, "arm": name, "settings": settings, "seed": seed, "steps": 20, "seconds": 60.0}
                | {"config": BASE | settings, "versions": {"torch": "2"}, "text": "ab", "machine": "a box"}
                | {"corpus_fingerprint": "cd", "scores": splits, "curve": curve if seed is not None else []}
                | {"resamples": f"resamples/{made}.npy"}
            )
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = {"axes": AXES, "seeds": 3, "product": False, "command": "python scripts/ablate.py --grid ..."}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    return tmp_path


def table(text: str, title: str) -> dict[str, list[str]]:
    """The rows of a section's table by their first cell."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}


def test_every_cell_is_what_the_rows_say(folder: Path) -> None:
    text = make_report(folder)["report.md"]
    rows = table(text, "noise_ratio")
    assert list(rows) == ["0.3", "0.6 (base) (published best)", "0.9"]
    assert rows["0.6 (base) (published best)"][:2] == ["75.00 ± 1.00", "70.00 ± 1.00"]
    difference = ttest_rel(ARMS["noise_ratio=0.3"][1], ARMS["base"][1])
    interval = difference.confidence_interval(0.95)
    assert rows["0.3"][2:5] == ["+2.03", "better", f"[{interval.low:+.2f}, {interval.high:+.2f}]"]
    assert rows["0.9"][2:4] == ["+0.00", "below seed noise"]
    assert "16 on my.txt; seeds 0, 1, 2, 12 runs, together 0.2 hours on a box" in text
    assert "only show if it is about 2.5 standard deviations of the paired differences" in text


def test_a_baseline_stands_with_its_better_pooling_on_dev(folder: Path) -> None:
    text = make_report(folder)["report.md"]
    rows = table(text, "objective")
    assert list(rows) == ["tsdae (base)", "mlm (judged by mean)"]
    assert rows["mlm (judged by mean)"][:3] == ["71.00 ± 1.00", "66.00 ± 1.00", "-4.00"]
    rows = table(text, "Does training help?")
    assert rows["base (cls) against the untrained model's cls vector"][2] == "+5.00"
    assert rows["base (cls) against the untrained model's better one, mean"][2] == "-3.00"


def test_dev_chooses_and_test_only_confirms(folder: Path) -> None:
    """Another arm is the best on test; it is not the one that is reported."""
    text = make_report(folder)["report.md"]
    rows = table(text, "The setting that dev chooses")
    assert list(rows) == [
        "noise_ratio=0.3 against the base",
        "noise_ratio=0.3 against untrained, cls",
        "noise_ratio=0.3 against untrained, mean",
    ]
    assert rows["noise_ratio=0.3 against untrained, mean"][0] == "-0.97"


def test_runs_in_one_only_are_left_out_of_a_difference(folder: Path) -> None:
    """Paired means by the same seeds: an arm that lacks seed 0 is compared on the others."""
    path = folder / "results.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"noise_ratio=0.3,0"' not in line]
    path.write_text("\n".join(lines))
    assert table(make_report(folder)["report.md"], "noise_ratio")["0.3"][2] == "+2.05"


def test_rows_of_other_grids_are_not_shown(folder: Path) -> None:
    """They are kept, and an arm with two settings must not stand under one of them."""
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines if '"noise_ratio=0.3,' in line]
    for row in rows:
        row |= {
            "id": row["id"] + ",tie",
            "arm": "noise_ratio=0.3,tie=false",
            "settings": row["settings"] | {"tie": False},
        }
        row["scores"]["cls"]["dev"]["spearman"] = 99.0
    before = make_report(folder)
    path.write_text("\n".join([*lines, *map(json.dumps, rows)]))
    assert make_report(folder) == before


def test_a_collapsed_run_does_not_spoil_the_report(folder: Path) -> None:
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["arm"] == "noise_ratio=0.3" and row["seed"] == 1:
            row["scores"]["cls"]["dev"]["spearman"] = float("nan")
    path.write_text("\n".join(map(json.dumps, rows)))
    text = make_report(folder)["report.md"]
    assert table(text, "noise_ratio")["0.3"][2:4] == ["+nan", "not defined"]
    assert "Best on dev: base (cls)." in text  # of the others


def test_an_axis_of_collapsed_runs_alone_has_no_chart_of_differences(folder: Path) -> None:
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["arm"].startswith("noise_ratio"):
            row["scores"]["cls"]["dev"]["spearman"] = float("nan")
    path.write_text("\n".join(map(json.dumps, rows)))
    made = make_report(folder)
    assert {cells[3] for name, cells in table(made["report.md"], "noise_ratio").items() if "base" not in name} == {
        "not defined"
    }
    assert "noise_ratio: difference from the base" not in made["report.html"]


def test_an_arm_without_a_seed_in_common_has_no_difference(folder: Path) -> None:
    path = folder / "results.jsonl"
    lines = [line for line in path.read_text().splitlines() if not re.search(r'"(base,[12]|noise_ratio=0.3,0)"', line)]
    path.write_text("\n".join(lines))
    assert table(make_report(folder)["report.md"], "noise_ratio")["0.3"] == ["77.55 ± 0.64", "72.55 ± 0.64"]


@pytest.mark.parametrize("setting", ["limit", "min_letters", "corpus"])
def test_other_held_out_text_is_left_out_of_the_guides(folder: Path, setting: str) -> None:
    """Retrieval among 100 is no metric beside retrieval among 1,000."""
    assert guides(folder)["alignment"][1] == "12"
    path = folder / "results.jsonl"
    grid = json.loads((folder / "grid.json").read_text())
    grid["axes"][setting] = [0.3]
    (folder / "grid.json").write_text(json.dumps(grid))
    path.write_text(path.read_text().replace('"settings": {"noise_ratio": 0.3}', f'"settings": {{"{setting}": 0.3}}'))
    assert guides(folder)["alignment"][1] == "9"


def guides(folder: Path) -> dict[str, list[str]]:
    return {name: cells for name, *cells in label_free.table(folder).rows}


def test_what_can_show_is_said_of_the_comparisons_that_there_are(folder: Path) -> None:
    """The base's own ratio, 0.6, is not compared with itself; a grid of the base alone compares nothing."""
    assert "the largest of 2 in a table" in make_report(folder)["report.md"]
    grid = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps(grid | {"product": True, "axes": {"noise_ratio": [0.6]}}))
    alone = make_report(folder)["report.md"]
    assert "With 3 seeds a difference can only show" in alone
    assert "in a table" not in alone


def test_all_combinations_stand_in_one_table(folder: Path) -> None:
    grid = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps(grid | {"product": True}))
    assert len(table(make_report(folder)["report.md"], "all combinations")) == 4


def test_the_page_needs_nothing_else_and_its_charts_are_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also without matplotlib: an ablation of hours does not end in an error, and says what the charts need."""
    monkeypatch.setattr(render, "_svg", SVG)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        write_report(folder)
        assert "report.html has no charts. The charts need matplotlib: python -m pip" in capsys.readouterr().err
    without, page = (folder / "report.html").read_text(), make_report(folder)["report.html"]
    assert ("The charts need matplotlib" in without, "The charts need matplotlib" in page) == (True, False)
    assert without.count("<table>") == page.count("<table>") == 4
    assert "<code>python scripts/ablate.py --grid ...</code>" in page
    assert "<svg" not in page + without
    assert "<img" not in without
    assert not re.search(r'src="(?!data:)|href=|url\(|<script', page)
    opened: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            opened.extend([tag] if tag not in ("meta", "html", "img") else [])

        def handle_endtag(self, tag: str) -> None:
            assert tag == "html" or opened.pop() == tag

    Checker().feed(page)
    assert opened == []
    pictures = dict(re.findall(r'<img alt="(.*?)" src="data:image/svg\+xml;base64,(.*?)">', page))
    assert {
        "Score against noise_ratio",
        "Learning curves: noise_ratio",
        "Learning curves: objective",
        "noise_ratio: difference from the base",
        "objective: difference from the base",
    } == pictures.keys()
    for picture in pictures.values():
        assert ElementTree.fromstring(base64.b64decode(picture)).tag == "{http://www.w3.org/2000/svg}svg"


def test_charts_show_what_the_tables_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Axes] = {}

    def kept(chart: render.LineChart | render.DifferenceChart) -> str:
        drawn[chart.title] = Figure().add_subplot()
        chart.draw(drawn[chart.title])
        return ""

    monkeypatch.setattr(render, "_svg", kept)
    make_report(folder)
    scores = drawn["Score against noise_ratio"]
    dev, _, (bars,) = scores.containers[0]
    assert [line.get_label() for line in scores.containers] == ["dev", "test"]
    assert list(dev.get_xdata()) == [0.3, 0.6, 0.9]
    assert dev.get_ydata() == pytest.approx([77.0333, 75.0, 75.0], abs=1e-3)
    reach = 4.3027 / np.sqrt(3)  # Student's t with 2 degrees of freedom, a standard deviation of 1
    assert bars.get_segments()[1][:, 1] == pytest.approx([75 - reach, 75 + reach], abs=1e-3)
    assert [line.get_ydata()[0] for line in scores.lines if list(line.get_xdata()) == [0, 1]] == [70.0, 65.0]
    curve = drawn["Learning curves: objective"].containers[0][0]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0, 10, 20], [70.0, 65.0, 75.0])
    rows = drawn["noise_ratio: difference from the base"]
    assert [text.get_text() for text in rows.texts] == ["0.3", "0.9"]
    ends = [cell.strip("[]").split(", ") for cell in table(make_report(folder)["report.md"], "noise_ratio")["0.3"][4:6]]
    bars_of_first = [line.get_xdata() for line in rows.lines[:2]]
    assert bars_of_first == [pytest.approx(list(map(float, pair)), abs=0.006) for pair in ends]


def test_names_are_letters_and_no_formula(recwarn: pytest.WarningsRecorder) -> None:
    """Whatever a file or a function is called; a font that lacks its letters is no error."""
    chart = render.LineChart("t", "$", "y", [render.Line("my_$x$ \u6587.py", [(0.1, 79.83)], [0.0])] * 2)
    picture = base64.b64decode(render._svg(chart)).decode()
    assert "my_$x$ \u6587.py" in picture
    assert not recwarn.list


def test_the_script_writes_and_checks(folder: Path, run: Run) -> None:
    assert run("report", f"{folder} --check").code == 2  # nothing is there yet
    assert run("report", str(folder)).code == 0
    assert run("report", f"{folder} --check").code == 0
    elsewhere = folder.parent / "copied"
    shutil.copytree(folder, elsewhere)
    text = (elsewhere / "report.md").read_text(encoding="utf-8")
    (elsewhere / "report.md").write_text(text.replace("75.00", "75.10", 1), encoding="utf-8")
    changed = run("report", f"{elsewhere} --check")
    assert changed.code == 2
    assert "report.md does not match its rows" in changed.err


@pytest.mark.parametrize("lost", ["untrained", "base"])
def test_what_is_not_finished_says_so(folder: Path, lost: str) -> None:
    path = folder / "results.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if f'"arm": "{lost}"' not in line))
    with pytest.raises(ValueError, match=f"no row of {lost} yet"):
        write_report(folder)
    path.write_text('{"id": "a", "arm"')
    with pytest.raises(ValueError, match=r"line 1: not valid JSON"):
        write_report(folder)
    path.write_text('{"id": "a", "arm": "base"}')
    with pytest.raises(ValueError, match=r"the row lacks settings, config, scores"):
        write_report(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no results.jsonl"):
        write_report(folder)
