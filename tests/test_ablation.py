"""Ablations on a tiny model: what is an axis, what is run, what is kept, and that arms are paired."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from tests.runs import assert_equal, wait_until
from tests.scripts import SCRIPTS, Run
from tsdae.ablation import runner as ablation
from tsdae.ablation import trials
from tsdae.ablation.grid import Arm, arms_of, parse_grid
from tsdae.config import AblationConfig, DataConfig, MethodConfig, TrainConfig
from tsdae.evaluation.pairs import load_pairs
from tsdae.evaluation.sts import evaluate_sts
from tsdae.hub.auto_encoder import load_encoder
from tsdae.run.folder import LOCK

FLAGS = (
    "--corpus text.txt --model model --evaluate pairs.tsv --steps 3 --batch-size 2 --eval-every 2 --log-every 1 "
    "--heldout 2 --precision fp32 --threads 1 --device cpu"
)
GRID = "--grid noise_ratio=0.3 objective=mine.py:scaled --seeds 2 --no-intervals --jobs 2 --output ablation"
MINE = "from tsdae.objectives import tsdae\n\n\ndef scaled(model, batch):\n    return 0.5 * tsdae(model, batch)\n"
SLOW = f"import time\n{MINE.replace('return', 'time.sleep(0.02); return')}"


def no_trials(waiting: list[Arm], *_: Any) -> tuple[float, dict[str, int]]:
    """In place of `estimate`, which takes short runs each time."""
    return 3600.0, {arm.id: 3 for arm in waiting}


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
    assert "7 runs, 0 finished; 2 at a time" in dry.err
    assert re.search(r": \d short runs of 22 steps", dry.err)
    assert re.search(r"estimated: \d+ seconds", dry.err)
    assert not (place / "ablation").exists()
    assert not (place / ".ablation.trials").exists()

    monkeypatch.setattr(ablation, "estimate", no_trials)
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
    assert [entry["step"] for entry in row["curve"]] == [0, 2, 3]
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
    assert "7 runs, 7 finished" in again.err
    assert rows() == made

    refused = {
        FLAGS.replace("--steps 3", "--steps 4"): "was made with steps 3, now it is 4; choose another --output",
        FLAGS.replace("text.txt", "other.txt"): "was made with text ",
    }
    (place / "other.txt").write_text("a man\na dog\na cat runs\nthe grass\na guitar\n")
    for flags, message in refused.items():
        result = run("ablate", f"{flags} {GRID}")
        assert (result.code, message in result.err) == (2, True), result.err
    (place / "mine.py").write_text(MINE.replace("0.5", "0.6"))
    result = run("ablate", f"{FLAGS} {GRID}")
    assert "was made with own_code {'mine.py': " in result.err
    assert rows() == made


@pytest.mark.slow  # six runs in processes of their own
def test_rows_of_another_grid_stay_and_what_decides_about_them_is_compared(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second grid in the same folder adds to the first; other pairs, or edited code of a module, are refused."""
    monkeypatch.setattr(ablation, "estimate", no_trials)
    (place / "my_module.py").write_text(MINE)
    flags = f"{FLAGS} --seeds 1 --no-intervals --jobs 2 --output ablation --grid"
    assert run("ablate", f"{flags} objective=my_module:scaled,simcse,barlow_twins").code == 0
    first = rows()
    losses = {row["curve"][-1]["heldout_loss"] for row in first.values() if row["steps"]}
    assert len(losses) == 4, "the base's and three others"
    assert run("ablate", f"{flags} noise_ratio=0.3").code == 0
    assert rows() == first | {name: rows()[name] for name in ("noise_ratio=0.3,seed=0",)}
    report = (place / "ablation" / "report.md").read_text(encoding="utf-8")
    assert ("noise_ratio" in report, "my_module" in report) == (True, False)

    (place / "my_module.py").write_text(MINE.replace("0.5", "0.6"))
    edited = run("ablate", f"{flags} objective=my_module:scaled")
    assert "was made with own_code {'my_module.py': " in edited.err
    pairs = (place / "pairs.tsv").read_text()
    (place / "pairs.tsv").write_text(pairs + "a dog\ta cat\t1.0\n")
    assert "was made with pairs " in run("ablate", f"{flags} noise_ratio=0.3").err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [("return tsdae(model, batch).mean", "must return a LossSum"), ("raise RuntimeError('broken')", "broken")],
)
def test_a_bad_objective_is_found_before_anything_is_trained(place: Path, run: Run, code: str, message: str) -> None:
    (place / "mine.py").write_text(f"from tsdae.objectives import tsdae\n\n\ndef bad(model, batch):\n    {code}\n")
    result = run("ablate", f"{FLAGS} --grid objective=mine.py:bad --seeds 1 --no-intervals --output ablation")
    assert result.code == 2
    assert "a short run of objective=mine.py:bad failed" in result.err
    assert message in result.err
    assert not (place / "ablation").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_stopped_grid_goes_on_where_it_was(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the middle of two runs: both write checkpoints, and end as if they had never been stopped."""
    (place / "mine.py").write_text(SLOW)
    flags = f"{FLAGS.replace('--steps 3', '--steps 120')} --objective mine.py:scaled"
    flags += " --grid noise_ratio=0.3 --seeds 1 --no-intervals --jobs 2"
    monkeypatch.setattr(ablation, "estimate", no_trials)
    assert run("ablate", f"{flags} --output whole").code == 0

    process = subprocess.Popen(script(f"{flags} --output ablation"), stderr=subprocess.PIPE, text=True)
    runs = place / "ablation" / "runs"
    names = ["base,seed=0", "noise_ratio=0.3,seed=0"]
    assert wait_until(
        lambda: all((runs / name / "metrics.jsonl").is_file() for name in names) or process.poll() is not None
    )
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "the same command resumes all runs" in said
    assert set(rows() if (place / "ablation" / "results.jsonl").is_file() else {}) <= {"untrained"}
    assert any((runs / name / "checkpoints").is_dir() for name in names)

    assert run("ablate", f"{flags} --output ablation").code == 0
    logs = [(runs / f"{name}.log").read_text(encoding="utf-8") for name in names]
    assert any("resuming after step" in log for log in logs)
    for name, row in rows(Path("whole")).items():
        assert (rows()[name]["scores"], rows()[name]["curve"]) == (row["scores"], row["curve"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_runs_end_with_the_process_that_began_them(place: Path) -> None:
    """Killed outright, it can tell them nothing; left alone they would write where the next call writes."""
    said = "import os\n" + SLOW.replace("time.sleep", "open('pid', 'w').write(str(os.getpid())); time.sleep")
    (place / "mine.py").write_text(said)
    flags = f"{FLAGS.replace('--steps 3', '--steps 20000')} --objective mine.py:scaled"
    flags += " --seeds 1 --no-intervals --output ablation --grid tie=true"
    process = subprocess.Popen(script(flags))
    run_folder = place / "ablation" / "runs" / "base,seed=0"
    try:
        assert wait_until(lambda: (run_folder / "metrics.jsonl").is_file())
        refused = subprocess.run(script(flags), capture_output=True, text=True)
        assert refused.returncode == 2
        assert "another process is running or timing the ablation ablation; wait" in refused.stderr
    finally:
        process.kill()
        process.wait()
    try:
        FileLock(run_folder / LOCK).acquire(timeout=60)
    except Timeout:
        os.kill(int((place / "pid").read_text()), signal.SIGKILL)
        raise AssertionError("the run goes on alone") from None
    assert (run_folder / "checkpoints").is_dir(), "it was told, and has written one"


def script(flags: str) -> list[str]:
    """The command line of ablate.py in a process of its own, without trials."""
    code = (
        f"import runpy, sys\nsys.path[:0] = ['', {str(SCRIPTS.parent)!r}]\n"
        "from tests.test_ablation import ablation, no_trials\nablation.estimate = no_trials\n"
        f"sys.argv = ['ablate.py', *{flags.split()!r}]\n"
        f"runpy.run_path({str(SCRIPTS / 'ablate.py')!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", code]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_trials_end_with_what_asked_for_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while they run: none of them is left to write where their folder was removed."""

    class Running:
        killed = joined = 0

        def is_alive(self) -> bool:
            raise KeyboardInterrupt

        def kill(self) -> None:
            self.killed += 1

        def join(self) -> None:
            self.joined += 1

    started = [Running(), Running()]
    waiting = iter(started)
    monkeypatch.setattr(trials, "start", lambda *_: next(waiting))
    base = Arm({}, 0, (DataConfig(), MethodConfig(), TrainConfig()))
    with pytest.raises(KeyboardInterrupt):
        trials.try_out([base, base], place / "trials")
    assert [(each.killed, each.joined) for each in started] == [(1, 1), (1, 1)]


def test_a_run_of_another_text_is_no_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of the hub that has changed after its first run: what is of that text stops, the others go on."""
    base = (DataConfig(corpus="hub:text"), MethodConfig(model="model"), TrainConfig())
    arms = list(arms_of(base, parse_grid(["limit=5"]), AblationConfig(grid=[], seeds=3, intervals=False)))[1:]
    (place / "ablation" / "runs").mkdir(parents=True)
    for arm in arms:
        read = "its first five" if arm.settings else ("as it was" if arm.seed == 0 else "as it is now")
        row = {"id": arm.id, "config": arm.flat, "corpus_fingerprint": read}
        (place / "ablation" / "runs" / f"{arm.id}.json").write_text(json.dumps(row))

    class Ended:
        exitcode = 0

        def is_alive(self) -> bool:
            return False

    monkeypatch.setattr(ablation, "start", lambda *_: Ended())
    monkeypatch.setattr(ablation, "about", lambda _: {})
    done: dict[str, dict[str, Any]] = {}
    failed = ablation._run_all(arms, {}, place / "ablation", 1, done)
    assert set(done) == set(rows()) == {"base,seed=0", *(f"limit=5,seed={seed}" for seed in range(3))}
    assert len(failed) == 1
    assert failed[0].startswith("base,seed=1 (it was trained on a different text from base,seed=0")
    assert "not started, with the same text: 1 more" in failed[0]


def test_what_failed_does_not_hide_the_others(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Path] = []
    monkeypatch.setattr(ablation, "estimate", no_trials)
    monkeypatch.setattr(ablation, "_run_all", lambda *_: ["base,seed=1 (not finite)"])
    flags = f"{FLAGS} --grid noise_ratio=0.3 --seeds 2 --no-intervals --output ablation"
    result = run("ablate", flags)
    assert result.code == 2
    assert "1 of 5 runs failed (no report: ablation has no results.jsonl" in result.err
    monkeypatch.setattr(ablation, "write_report", reported.append)
    result = run("ablate", flags)
    assert result.code == 2
    assert "1 of 5 runs failed (the report leaves them out): base,seed=1 (not finite)" in result.err
    assert reported == [Path("ablation")]


def arms_for(base: tuple[DataConfig, MethodConfig, TrainConfig], axes: list[str], seeds: int = 1) -> list[Arm]:
    return list(arms_of(base, parse_grid(axes), AblationConfig(grid=[], seeds=seeds, intervals=False)))


def test_what_can_fail_at_a_start_is_tried_before_hours_are_spent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, whatever the seed; as many at once as later, so the last two have the machine to share as well."""
    tried: list[list[str]] = []

    def remembered(arms: list[Arm], *_: object) -> list[trials.Trial]:
        tried.append([arm.name for arm in arms])
        return [trials.Trial(1.0, 1.0, 1.0, 100)] * len(arms)

    monkeypatch.setattr(trials, "try_out", remembered)
    axes = ["noise_ratio=0.3", "decoder_layers=1,99", "hold_on=100", "column=nope", "min_characters=500", "tie=false"]
    arms = arms_for((DataConfig(), MethodConfig(), TrainConfig()), axes, seeds=2)
    trials.estimate(arms, place / "trials", 4)
    assert tried == [
        ["base", "decoder_layers=1", "decoder_layers=99", "hold_on=100.0"],
        ["column=nope", "min_characters=500", "tie=false", "column=nope"],
    ]


def test_the_estimate_counts_the_steps_of_each_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start takes 1 second, a step 2, an evaluation 5; twice the batch 3 a step, and --limit leaves half."""

    def trial(arms: list[Arm], *_: object) -> list[trials.Trial]:
        return [
            trials.Trial(1.0, 3.0 if "batch_size" in arm.settings else 2.0, 5.0, 50 if "limit" in arm.settings else 100)
            for arm in arms
        ]

    monkeypatch.setattr(trials, "try_out", trial)
    base = (DataConfig(), MethodConfig(), TrainConfig(epochs=2, batch_size=10, eval_every=10))
    seconds, steps = trials.estimate(arms_for(base, ["batch_size=20", "limit=50", "epochs=4"]), place / "trials", 2)
    assert steps == {
        "untrained": 0,
        "base,seed=0": 20,
        "batch_size=20,seed=0": 10,
        "limit=50,seed=0": 10,
        "epochs=4.0,seed=0": 40,
    }
    # of each: the start, its steps, its evaluations and the two at the end
    expected = [1 + 2 * 5, 1 + 40 + 4 * 5, 1 + 10 * 3 + 3 * 5, 1 + 20 + 3 * 5, 1 + 80 + 6 * 5]
    assert seconds == pytest.approx(sum(expected) / 2)


def test_twenty_steps_are_timed_without_the_start_and_the_evaluations(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts the looks at the log: 40 for a start, 9 for each evaluation, 2 for each of 22 steps."""
    shown = [40 + 9, *(49 + 2 * step for step in range(1, 23)), 49 + 44 + 9]
    now = 0

    class Running:
        exitcode = 0

        def is_alive(self) -> bool:
            return now < shown[-1] + 3

        def join(self) -> None:
            pass

    def passing(_: float) -> None:
        nonlocal now
        now += 1
        log = place / "trials" / "0" / "metrics.jsonl"
        log.parent.mkdir(exist_ok=True)
        log.write_text("{}\n" * sum(time <= now for time in shown) + '{"half')

    monkeypatch.setattr(trials, "start", lambda *_: Running())
    monkeypatch.setattr(trials.time, "sleep", passing)
    monkeypatch.setattr(trials.time, "perf_counter", lambda: float(now))
    monkeypatch.setattr(trials, "stored_settings", lambda _: {"training_sentences": 8})
    base = Arm({}, 0, (DataConfig(), MethodConfig(), TrainConfig()))
    assert trials.try_out([base], place / "trials") == [trials.Trial(40.0, 2.0, 9.0, 8)]


@pytest.mark.slow  # two trials
def test_epochs_are_counted_in_the_steps_of_the_text(place: Path, run: Run) -> None:
    """8 sentences, 2 of them held out, in batches of 2; --limit 5 leaves 3."""
    flags = FLAGS.replace("--steps 3", "--epochs 1")
    result = run("ablate", f"{flags} --no-intervals --seeds 1 --output ablation --grid limit=5 --dry-run")
    assert result.code == 0, result.err
    train = TrainConfig(epochs=1, batch_size=2, precision="fp32", threads=1, device="cpu")
    base = (DataConfig(corpus="text.txt", heldout="2", evaluate="pairs.tsv"), MethodConfig(model="model"), train)
    arms = arms_for(base, ["limit=5"])
    assert trials.estimate(arms, place / "trials", 1)[1] == {"untrained": 0, "base,seed=0": 3, "limit=5,seed=0": 2}
    found = trials.try_out(arms[1:], place / "trials")
    assert [one.sentences for one in found] == [6, 3]
    assert all(0 < one.step < one.start for one in found)


def test_arms_of_which_one_value_is_none_are_tried_apart() -> None:
    arms = arms_for((DataConfig(limit=50), MethodConfig(), TrainConfig()), ["limit=none", "max_characters=none,9"])
    assert len({trials.size_class(arm) for arm in arms[1:]}) == len(arms[1:])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("nois=delete", "'nois' cannot be an axis; did you mean noise?"),
        ("output=a,b", "'output' cannot be an axis"),
        ("noise=", "no values; write noise=VALUE,VALUE"),
        ("noise", "no values; write noise=VALUE,VALUE"),
        ("noise_ratio=0.1,much", "invalid value 'much'; expected: float"),
        ("batch_size=2.5", "invalid value '2.5'; expected: int"),
        ("pooling=cls,first", "invalid value 'first'; expected: cls, mean, max"),
        ("tie=yes", "invalid value 'yes'; expected: bool"),
        ("noise_ratio=0.9:0.1:0.1", "a range is first:last:step, with first <= last"),
        ("noise=delete noise=mask", "names noise twice"),
        ("noise_ratio=1.5", "--noise-ratio must be in [0, 1), got 1.5"),
        ("objective=mlm noise_ratio=0.3 --product", "--noise-ratio: the objective mlm masks tokens by --mlm-ratio"),
        ("noise=shuffle", "unknown noise 'shuffle'"),
        ("tie=false --seeds 0", "--seeds must be at least 1, got 0"),
        ("tie=false --seeds 2", "--seeds 2: intervals need at least 3 seeds; with fewer, add --no-intervals"),
        ("tie=false --evaluate none", "an ablation needs labelled pairs"),
        ("evaluate=stsb,pairs.tsv", "'evaluate' cannot be an axis"),
        ("noise_ratio=0.1:nan:0.1", "a range is first:last:step, with first <= last"),
        ("tie=false --resume", "an ablation resumes automatically"),
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


def test_threads_are_those_of_the_environment_and_time_is_in_a_unit_that_is_read(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests' own limit is one thread, as OMP_NUM_THREADS=1 makes it; eight cores would allow eight."""
    monkeypatch.setattr(ablation, "estimate", lambda waiting, *_: (300.0, {}))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    flags = f"{FLAGS.replace('--threads 1 ', '')} --grid noise_ratio=0.3 --output ablation --dry-run"
    result = run("ablate", flags)
    assert result.code == 0, result.err
    assert "1 at a time, 1 thread each" in result.err
    assert "estimated: 5 minutes" in result.err
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "4 at a time, 2 threads each" in run("ablate", f"{flags} --jobs 4").err
    assert [ablation.duration(seconds) for seconds in (44.6, 5000, 9000)] == ["45 seconds", "83 minutes", "2.5 hours"]


def test_a_trial_shows_its_progress(place: Path) -> None:
    seen: list[int] = []
    base = (
        DataConfig(corpus="text.txt", heldout="2", evaluate="pairs.tsv"),
        MethodConfig(model="model"),
        TrainConfig(batch_size=2, device="cpu", threads=1, precision="fp32"),
    )
    trials.try_out([Arm({}, 0, base)], place / "trials", seen.append)
    assert sum(seen) == trials.LINES
