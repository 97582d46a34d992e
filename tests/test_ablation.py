"""Ablations on a tiny model: what is an axis, what is run, what is kept, and that arms are paired."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.runs import assert_equal
from tests.scripts import SCRIPTS, Run
from tsdae import ablation
from tsdae.evaluation import evaluate_sts, load_pairs
from tsdae.grid import AblationConfig, arms_of, parse_grid
from tsdae.inference import load_encoder
from tsdae.settings import DataConfig, MethodConfig
from tsdae.training import TrainConfig

FLAGS = (
    "--corpus text.txt --model model --evaluate pairs.tsv --steps 3 --batch-size 2 --eval-every 2 --log-every 1 "
    "--heldout 2 --precision fp32 --threads 1 --device cpu"
)
GRID = "--grid noise_ratio=0.3 objective=mine.py:scaled --seeds 2 --no-intervals --jobs 2 --output ablation"
MINE = "from tsdae.objectives import tsdae\n\n\ndef scaled(model, batch):\n    return 0.5 * tsdae(model, batch)\n"


def rows(folder: Path = Path("ablation")) -> dict[str, dict[str, Any]]:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


@pytest.mark.slow  # seven runs
def test_a_grid_becomes_rows_and_a_second_call_keeps_them(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is what train.py makes of the same settings; then everything that makes rows incomparable is refused."""
    (place / "mine.py").write_text(MINE)
    dry = run("ablate", f"{FLAGS} {GRID} --dry-run")
    names = [f"{arm},seed={seed}" for seed in (0, 1) for arm in ("base", "noise_ratio=0.3", "objective=mine.py_scaled")]
    assert dry.code == 0, dry.err
    assert dry.out.splitlines() == ["untrained", *names]
    assert "7 runs, 0 of them finished, 2 at once" in dry.err
    assert "estimated: 0.0 hours" in dry.err
    assert not (place / "ablation").exists()
    assert not (place / ".ablation.trials").exists()

    monkeypatch.setattr(ablation, "estimated_seconds", lambda *_: 3600.0)  # it takes three short runs each time
    result = run("ablate", f"{FLAGS} {GRID}")
    assert result.code == 0, result.err
    made = rows()
    assert set(made) == {"untrained", *names}
    assert run("train", f"{FLAGS} --noise-ratio 0.3 --seed 1 --output alone").code == 0
    alone, arm = (
        load_file(folder / "encoder" / "model.safetensors")
        for folder in (place / "alone", place / "ablation" / "runs" / "noise_ratio=0.3,seed=1")
    )
    assert_equal(alone, arm, "weights")
    assert "noise_ratio=0.3" in (place / "ablation" / "report.md").read_text(encoding="utf-8")
    assert (place / "ablation" / "report.html").is_file()
    row = made["noise_ratio=0.3,seed=1"]
    assert (row["settings"], row["seed"], row["config"]["noise_ratio"]) == ({"noise_ratio": 0.3}, 1, 0.3)
    assert [entry["step"] for entry in row["curve"]] == [2, 3]
    assert {"pairs", "heldout_loss", "noisy_retrieval"} <= row["curve"][0].keys()
    pairs = load_pairs("pairs.tsv")
    resamples = np.load(place / "ablation" / row["resamples"])
    assert resamples.shape == (2, 1, 1000)
    for place_of, pooling in enumerate(("cls", "mean")):
        score = evaluate_sts(load_encoder("alone", pooling), pairs)
        assert row["scores"][pooling]["dev"]["spearman"] == pytest.approx(score.spearman, abs=1e-3)
        assert np.nanpercentile(resamples[place_of, 0], (2.5, 97.5)) == pytest.approx(score.ci95, abs=1e-3)
    assert made["untrained"]["steps"] == 0
    assert made["base,seed=0"]["scores"] != made["base,seed=1"]["scores"]

    again = run("ablate", f"{FLAGS} {GRID}")
    assert again.code == 0, again.err
    assert "7 runs, 7 of them finished" in again.err
    assert rows() == made

    refused = {
        FLAGS.replace("--steps 3", "--steps 4"): "was made with steps 3, now it is 4; choose another --output",
        FLAGS.replace("text.txt", "other.txt"): "has other text",
    }
    (place / "other.txt").write_text("a man\na dog\na cat runs\nthe grass\na guitar\n")
    for flags, message in refused.items():
        result = run("ablate", f"{flags} {GRID}")
        assert (result.code, message in result.err) == (2, True), result.err
    (place / "mine.py").write_text(MINE.replace("0.5", "0.6"))
    result = run("ablate", f"{FLAGS} {GRID}")
    assert "mine.py is not the code that ablation/results.jsonl was made with" in result.err
    assert rows() == made


@pytest.mark.slow  # two runs in processes of their own
def test_rows_of_another_grid_stay_and_what_decides_about_them_is_compared(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second grid in the same folder adds to the first; other pairs, or edited code of a module, are refused."""
    monkeypatch.setattr(ablation, "estimated_seconds", lambda *_: 3600.0)
    (place / "my_module.py").write_text(MINE)
    flags = f"{FLAGS} --seeds 1 --no-intervals --jobs 2 --output ablation --grid"
    assert run("ablate", f"{flags} objective=my_module:scaled").code == 0
    first = rows()
    assert run("ablate", f"{flags} noise_ratio=0.3").code == 0
    assert rows() == first | {name: rows()[name] for name in ("noise_ratio=0.3,seed=0",)}
    report = (place / "ablation" / "report.md").read_text(encoding="utf-8")
    assert ("noise_ratio" in report, "my_module" in report) == (True, False)

    (place / "my_module.py").write_text(MINE.replace("0.5", "0.6"))
    edited = run("ablate", f"{flags} objective=my_module:scaled")
    assert "my_module.py is not the code" in edited.err
    pairs = (place / "pairs.tsv").read_text()
    (place / "pairs.tsv").write_text(pairs + "a dog\ta cat\t1.0\n")
    assert "was scored on other pairs" in run("ablate", f"{flags} noise_ratio=0.3").err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [("return tsdae(model, batch).mean", "must return a LossSum"), ("raise RuntimeError('broken')", "broken")],
)
def test_a_bad_objective_is_found_before_anything_is_trained(place: Path, run: Run, code: str, message: str) -> None:
    (place / "mine.py").write_text(f"from tsdae.objectives import tsdae\n\n\ndef bad(model, batch):\n    {code}\n")
    result = run("ablate", f"{FLAGS} --grid objective=mine.py:bad --seeds 1 --no-intervals --output ablation")
    assert result.code == 2
    assert "a trial of objective=mine.py:bad failed" in result.err
    assert message in result.err
    assert not (place / "ablation").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_stopped_grid_goes_on_where_it_was(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the middle of two runs: both write checkpoints, and end as if they had never been stopped."""
    flags = f"{FLAGS.replace('--steps 3', '--steps 120')} --grid noise_ratio=0.3 --seeds 1 --no-intervals --jobs 2"
    monkeypatch.setattr(ablation, "estimated_seconds", lambda *_: 3600.0)
    assert run("ablate", f"{flags} --output whole").code == 0

    start = (
        f"import runpy, sys, tsdae.ablation as a; a.estimated_seconds = lambda *_: 0.0; sys.path.insert(0, '')\n"
        f"sys.argv = ['ablate.py', *{flags.split()!r}, '--output', 'ablation']\n"
        f"runpy.run_path({str(SCRIPTS / 'ablate.py')!r}, run_name='__main__')"
    )
    process = subprocess.Popen([sys.executable, "-c", start], stderr=subprocess.PIPE, text=True)
    runs = place / "ablation" / "runs"
    names = ["base,seed=0", "noise_ratio=0.3,seed=0"]
    deadline = time.monotonic() + 120
    while not all((runs / name / "metrics.jsonl").is_file() for name in names):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the same command goes on" in said
    assert set(rows() if (place / "ablation" / "results.jsonl").is_file() else {}) <= {"untrained"}
    assert any((runs / name / "checkpoints").is_dir() for name in names)

    assert run("ablate", f"{flags} --output ablation").code == 0
    logs = [(runs / f"{name}.log").read_text(encoding="utf-8") for name in names]
    assert any("going on after step" in log for log in logs)
    for name, row in rows(Path("whole")).items():
        assert (rows()[name]["scores"], rows()[name]["curve"]) == (row["scores"], row["curve"])


def test_what_failed_does_not_hide_the_others(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Path] = []
    monkeypatch.setattr(ablation, "estimated_seconds", lambda *_: 3600.0)
    monkeypatch.setattr(ablation, "_run_all", lambda *_: ["base,seed=1 (not finite)"])
    flags = f"{FLAGS} --grid noise_ratio=0.3 --seeds 2 --no-intervals --output ablation"
    result = run("ablate", flags)
    assert result.code == 2
    assert "1 of 5 runs failed (no report: ablation holds no results.jsonl" in result.err
    monkeypatch.setattr(ablation, "write_report", reported.append)
    result = run("ablate", flags)
    assert result.code == 2
    assert "1 of 5 runs failed (the report is without them): base,seed=1 (not finite)" in result.err
    assert reported == [Path("ablation")]


def test_what_can_fail_at_a_start_is_tried_before_hours_are_spent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def remembered(each: dict[str, Any], *_: Any) -> list[float]:
        tried.extend(each)
        return [1.0]

    monkeypatch.setattr(ablation, "_tried", remembered)
    base = (DataConfig(), MethodConfig(), TrainConfig())
    axes = parse_grid(["noise_ratio=0.3", "decoder_layers=1,99", "hold_on=100", "column=nope", "min_characters=500"])
    arms = list(arms_of(base, axes, AblationConfig(grid=[], seeds=2, intervals=False)))
    ablation.estimated_seconds(base, arms, place / "ablation", 1)
    assert [name for name in tried if not name.startswith("the base")] == [
        "decoder_layers=1",
        "decoder_layers=99",
        "hold_on=100.0",
        "column=nope",
        "min_characters=500",
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("nois=delete", "'nois' is no setting that can be an axis; did you mean noise?"),
        ("output=a,b", "'output' is no setting that can be an axis"),
        ("noise=", "no values; write noise=VALUE,VALUE"),
        ("noise", "no values; write noise=VALUE,VALUE"),
        ("noise_ratio=0.1,much", "'much' is none of its values (float)"),
        ("batch_size=2.5", "'2.5' is none of its values (int)"),
        ("pooling=cls,first", "'first' is none of its values (cls, mean, max)"),
        ("tie=yes", "'yes' is none of its values (bool)"),
        ("noise_ratio=0.9:0.1:0.1", "a range is first:last:step, upwards"),
        ("noise=delete noise=mask", "names noise twice"),
        ("noise_ratio=1.5", "--noise-ratio must lie in [0, 1), got 1.5"),
        ("objective=mlm noise_ratio=0.3 --product", "--noise-ratio: the objective mlm masks tokens by --mlm-ratio"),
        ("noise=shuffle", "unknown noise 'shuffle'"),
        ("tie=false --seeds 0", "--seeds must be at least 1, got 0"),
        ("tie=false --seeds 2", "--seeds 2: an interval over seeds needs 3; --no-intervals does without"),
        ("tie=false --evaluate none", "an ablation compares by labelled pairs"),
        ("evaluate=stsb,pairs.tsv", "'evaluate' is no setting that can be an axis"),
        ("noise_ratio=0.1:nan:0.1", "a range is first:last:step, upwards"),
        ("tie=false --resume", "an ablation goes on by itself where it was stopped"),
    ],
)
def test_bad_grids_get_one_line_before_anything_is_run(place: Path, run: Run, grid: str, message: str) -> None:
    flags = FLAGS if "--evaluate" not in grid else FLAGS.replace("--evaluate pairs.tsv", "")
    result = run("ablate", f"{flags} --output ablation --grid {grid}")
    assert result.code == 2
    assert message in result.err
    assert not (place / "ablation").exists()


def test_the_values_of_an_axis_have_its_type() -> None:
    assert parse_grid(
        ["noise_ratio=0.1:0.5:0.2", "tie=true,false", "decoder-layers=1,none", "steps=10,20", "early_stop=none,loss"]
    ) == {
        "noise_ratio": [0.1, 0.3, 0.5],
        "tie": [True, False],
        "decoder_layers": [1, None],
        "steps": [10, 20],
        "early_stop": [None, "loss"],
    }


@pytest.mark.parametrize(("product", "expected"), [(False, 1 + 2 * (1 + 1 + 2)), (True, 1 + 2 * (2 * 3))])
def test_one_axis_at_a_time_or_all_of_them(product: bool, expected: int) -> None:
    base = (DataConfig(), MethodConfig(), TrainConfig(seed=5))
    axes = parse_grid(["tie=true,false", "noise_ratio=0.3,0.9"])
    arms = list(arms_of(base, axes, AblationConfig(grid=[], seeds=2, intervals=False, product=product)))
    assert len(arms) == len({arm.id for arm in arms}) == expected
    assert arms[0].name == "untrained"
    assert {arm.seed for arm in arms[1:]} == {5, 6}
    for arm in arms[1:]:
        assert arm.configs[2].seed == arm.seed
        differing = {name for name, value in arm.flat.items() if value != arms[0].flat[name]} - {"seed"}
        assert differing == set(arm.settings)
    assert any(arm.settings == {"tie": False, "noise_ratio": 0.3} for arm in arms) == product
