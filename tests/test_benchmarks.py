"""The benchmark's arithmetic, its tables, and what it refuses. Nothing here is timed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    bench,
    gpu,
    gpu_checks,
    gpu_place,
    gpu_speed,
    measure_training,
    objectives,
    ours,
    parts,
    rows,
    tables,
)
from benchmarks.limits import Shape, Tokens, flop
from benchmarks.targets import LINES, PROFILES, SLOWER
from benchmarks.workers import Worker, WorkerFailed
from tests import tiny
from tsdae import SentenceEncoder, ops
from tsdae.evaluation.pairs import Pairs
from tsdae.hub.model_folder import SentenceSettings, write_sentence_settings
from tsdae.text.corpus import Corpus

ORIGIN = rows.Origin({"python": "3.11.7"}, "a processor", None, "c0ffee", True, "digest", "2026-11-23", "a command")
LIMIT = {
    "products_ms": 100.0,
    "optimiser_ms": 10.0,
    "softmax_ms": 2.0,
    "total_ms": 112.0,
    "gflop": 17.7,
    "gflop_per_second": 177.0,
    "noisy_tokens": 58,
    "target_tokens": 103,
    "steps": 6,
    "share": {"p20": 0.44, "p50": 0.5, "p80": 0.56},
}


def training_row(name: str, ours: float, theirs: float, **changes: Any) -> rows.Row:
    made = ORIGIN.row(
        name,
        "steps/s",
        {"ours": [ours] * 5, "reference": [theirs] * 5},
        [ours / theirs] * 5,
        threads=2,
        dtype="fp32",
        batch=8,
        limit=LIMIT,
    )
    return dataclasses.replace(made, **changes)


def test_percentiles_and_ratios() -> None:
    assert rows.spread(range(101)) == {"p20": 20.0, "p50": 50.0, "p80": 80.0}
    assert rows.spread([1 / 3]) == {"p20": 0.33333, "p50": 0.33333, "p80": 0.33333}
    assert rows.ratios([[3.0, 3.0], [4.0]], [[1.0, 2.0], [2.0]]) == [2.0, 2.0]
    row = training_row("train-fp32-8", 4.0, 2.0)
    assert (row.ratio, row.n) == ({"p20": 2.0, "p50": 2.0, "p80": 2.0}, 5)


def test_sides_alternate_over_the_same_steps() -> None:
    calls: list[tuple[str, int, int]] = []

    def side(name: str) -> bench.Block:
        def block(first: int, count: int) -> list[float]:
            calls.append((name, first, count))
            return [float(len(calls))] * count

        return block

    ours, theirs = bench.alternate(side("ours"), side("theirs"), 3, 2, 5)
    assert calls == [("ours", 3, 5), ("theirs", 3, 5), ("theirs", 8, 5), ("ours", 8, 5)]
    assert (ours, theirs) == ([[1.0] * 5, [4.0] * 5], [[2.0] * 5, [3.0] * 5])


@pytest.mark.parametrize("decoder_layers", [None, 2])
def test_flop_formula_counts_what_the_step_multiplies(decoder_layers: int | None) -> None:
    model, batch = tiny.model(decoder_layers=decoder_layers), tiny.batch()
    with FlopCounterMode(display=False) as counter:
        model(batch).mean.backward()
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for operation, count in counts.items() if operation in ("aten.mm", "aten.addmm"))
    config = model.encoder.bert.config
    shape = Shape(config.width, config.feed_forward, config.layers, decoder_layers or 3, config.vocabulary_size)
    tokens = Tokens(batch.noisy.token_count, batch.target.token_count - len(batch.target), len(batch.target))
    assert counted == flop(shape, tokens)


def test_time_of_parts_is_the_time_of_the_step() -> None:
    """Each operation is put where it belongs, also in the backward pass, and the parts add up."""
    model, batch = tiny.model().train(), tiny.batch()
    found = parts.time_of_parts(lambda number: model(batch).mean.backward(), 0, 2)
    assert min(found.values()) >= 0
    for part in ("matrix products", "attention", "softmax, loss and their products", "dropout", "layer norm and GELU"):
        assert found[part] > 0, part
    assert found["optimiser"] == 0


def test_a_tree_with_changes_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states: dict[str, tuple[str | None, str]] = {"clean": ("c0ffee", ""), "changed": ("c0ffee", " M tsdae/bert.py")}
    for state, (commit, changed) in states.items():
        answers = {"rev-parse": str(commit).encode(), "status": changed.encode()}
        monkeypatch.setattr(rows, "git", lambda command, *_, answers=answers: answers[command])
        taken = rows.origin("a command", None)
        row = taken.row("encode", "s", {"ours": [1.0]}, threads=1, dtype="fp32")
        if state == "clean":
            assert rows.write([row], tmp_path / state) == [tmp_path / state / "encode.json"]
            assert rows.read(tmp_path / state) == {"encode": row}
        else:
            with pytest.raises(rows.Refused, match="differs from its commit"):
                rows.write([row], tmp_path / state)
            assert not (tmp_path / state).exists()


def test_a_tree_without_a_repository_has_to_name_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "git", lambda *_: None)
    with pytest.raises(rows.Refused, match="--commit"):
        rows.check_writable(rows.origin("a command", None))
    named = rows.origin("a command", None, "c0ffee")
    rows.check_writable(named)
    assert (named.commit, named.clean) == ("c0ffee", None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A README, a page and two rows whose tables are written."""
    monkeypatch.setattr(tables, "git", lambda command, *_: b"false" if command == "rev-parse" else b"")
    monkeypatch.setattr(tables, "sources_of", lambda commit: "digest" if commit == "c0ffee" else None)
    paths = {"readme": tmp_path / "README.md", "page_file": tmp_path / "speed.md", "folder": tmp_path / "rows"}
    paths["readme"].write_text(f"before\n{tables.BEGIN}\n{tables.END}\nafter\n", encoding="utf-8")
    rows.write([training_row("train-fp32-8", 4.2, 2.0), training_row("train-fp32-64", 0.6, 0.3)], paths["folder"])
    assert tables.main(["--write"], **paths) == 0
    assert tables.main(["--check"], **paths) == 0
    return paths


def test_tables_say_what_the_rows_say(site: dict[str, Path]) -> None:
    readme, page = (site[name].read_text(encoding="utf-8") for name in ("readme", "page_file"))
    assert readme.startswith("before\n")
    assert readme.endswith("\nafter\n")
    first = (
        "| training, CPU fp32, batch 8 | 4.2 steps/s | 2 steps/s | 2.10 x | 50 % | 2.0 x, aim 2.4 x; or 75 % of the "
    )
    assert f"{first}limit | yes |" in readme
    assert "| 0.6 steps/s | 0.3 steps/s | 2.00 x | 50 % | no smaller than at 8 | **no** |" in readme
    assert "| train-fp32-8 | 58 + 103 | 17.7 | 177 | 100 ms | 10 ms | 2 ms | 112 ms | 50 % [44, 56] |" in page
    for line in (*LINES, *SLOWER):
        assert line.what in page
    assert page.count("not yet run") == len(LINES) - 2 + len(SLOWER) + len(PROFILES)


def test_check_notices_a_number_that_no_row_holds(site: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = site["readme"].read_text(encoding="utf-8")
    site["readme"].write_text(text.replace("4.2 steps/s", "4.3 steps/s"), encoding="utf-8")
    assert tables.main(["--check"], **site) == 1
    assert "4.3 steps/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("clean", False, "differs from its commit"),
        ("commit", "f00d", "was not taken from the code of commit f00d"),
        ("sources", "other", "was not taken from the code of commit c0ffee"),
    ],
)
def test_check_notices_a_row_that_belongs_to_no_commit(
    key: str, value: object, complaint: str, site: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = site["folder"] / "train-fp32-8.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    assert tables.main(["--write"], **site) == 0
    assert tables.main(["--check"], **site) == 1
    assert complaint in capsys.readouterr().out


def test_check_in_a_shallow_clone_counts_what_it_cannot_know(
    site: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "git", lambda command, *_: b"true\n" if command == "rev-parse" else None)
    monkeypatch.setattr(tables, "sources_of", lambda commit: None)
    assert tables.main(["--check"], **site) == 0
    assert "of 2 of 2 rows" in capsys.readouterr().out


def test_digest_of_a_commit_is_that_of_its_files() -> None:
    """Of this repository's own history, where there is one."""
    commit, clean = rows.tree_state()
    if commit is None or rows.sources_of(commit) is None:
        assert rows.sources_of("no-such-commit") is None
        return
    assert not clean or rows.sources_of(commit) == rows.sources_here()


@pytest.mark.slow  # a process that imports torch
def test_a_worker_says_what_went_wrong_in_it() -> None:
    with Worker("ours", threads=1) as worker, pytest.raises(WorkerFailed, match="ours, in no_such_method"):
        worker.call("no_such_method")


@pytest.mark.reference
def test_equal_sides_are_found_equal_and_others_are_named(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    from tests import families

    families.save(tmp_path, "bert", pad_token_id=0, max_position_embeddings=40)
    tiny.tokenizer().save_pretrained(tmp_path)
    write_sentence_settings(tmp_path, 24, SentenceSettings("cls", max_length=39))
    with Worker("ours", 1) as ours, Worker("reference", 1) as theirs:
        theirs.call("load_training", str(tmp_path))
        weights = theirs.call("weights")
        ours.call("load_training", str(tmp_path), tiny.SENTENCES, weights)
        assert ours.call("dropout") == theirs.call("dropout") == [0.1]
        errors = measure_training.prove_equal(ours, theirs, batch_size=4)
        assert errors["fp64"] < 1e-9

        name = next(name for name in weights["decoder"] if name.endswith("1.crossattention.output.dense.bias"))
        weights["decoder"][name][0] += np.float32(0.01)  # one element: layer norm takes no notice of all alike
        ours.call("load_training", str(tmp_path), tiny.SENTENCES, weights)
        with pytest.raises(bench.NotEqual, match="fp64, batch of 4: the loss by"):
            measure_training.prove_equal(ours, theirs, batch_size=4)


def test_gpu_parts_are_not_run_without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_part_that_dies_or_hangs_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their place a script whose parts die, hang, pass, and come when no time is left."""
    script = tmp_path / "parts.py"
    script.write_text(
        "import json, os, sys, time\n"
        "part, out = sys.argv[-1], sys.argv[sys.argv.index('--output') + 1]\n"
        "if part == 'dies': os.kill(os.getpid(), 9)\n"
        "if part == 'hangs': time.sleep(600)\n"
        "json.dump({'part': part, 'state': 'passed'}, open(f'{out}/{part}.json', 'w'))\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "SHORTEST_S", 0.01)
    monkeypatch.setattr(gpu, "LIMITS_S", {"dies": 60, "hangs": 0.05, "passes": 60, "late": 0.0001})
    assert gpu.main(["--cpu", "--output", str(tmp_path)]) == 1
    states = {part: json.loads((tmp_path / f"{part}.json").read_text())["state"] for part in gpu.LIMITS_S}
    assert list(states.values()) == [
        "died with exit code -9",
        "stopped after 1 s",
        "passed",
        "not started: no time is left",
    ]
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{part}: {state}" for part, state in states.items()
    ]
    assert gpu.main(["--cpu", "--only", "passes", "--output", str(tmp_path)]) == 0


@pytest.mark.slow  # ten processes
@pytest.mark.reference
def test_every_line_of_the_gpu_script_but_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    command = [str(rows.ROOT / "benchmarks" / "gpu.sh"), "--cpu", "--minutes", "60", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = "".join(path.read_text(encoding="utf-8")[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert done.stdout.count(": passed") == len(gpu.LIMITS_S)
    assert set(rows.read(tmp_path / "rows-of-no-commit")) == {
        f"gpu-{batch}{suffix}" for batch in (8, 256) for suffix in ("", "-no-attention-dropout")
    }


@pytest.fixture
def compared_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the rows of objectives.py: empty."""
    monkeypatch.setattr(objectives, "ROWS", tmp_path)
    (tmp_path / "objectives").mkdir()
    return tmp_path


def write_run(arm: objectives.Arm, rate: float, seed: int, dev: float, test: float, later: float = 0.0) -> None:
    """A run that scores so after equal sentences, and ``later`` more on dev after equal time."""
    name = f"{arm.name}-{rate}-{seed}.npy"
    noise = np.random.default_rng(seed).normal(size=1000)  # of the pairs: the same for every model
    np.save(objectives.ROWS / "objectives" / name, (test + noise).astype(np.float32))
    scores = {"dev": dev, "test": test, "resamples": name}
    ways = {"sentences": scores, "time": scores | {"dev": dev + later}}
    objectives.write("STS-B", "run", {"name": arm.name, "rate": rate, "seed": seed} | ways)


def test_objectives_are_compared_at_the_rate_that_dev_of_one_seed_chose(compared_in: Path) -> None:
    """Test scores must not choose; equal time is that of TSDAE's 48,000 sentences; what is missing says so."""
    tsdae, mean, mlm, *_ = objectives.ARMS
    seconds = {arm.name: [0.1, 0.2, 0.4] for arm in objectives.ARMS} | {mlm.name: [0.04, 0.08, 0.1]}
    objectives.write("STS-B", "cost", {"seconds_per_sentence": seconds})
    assert objectives.steps_in_time(tsdae, "STS-B") == tsdae.steps == 1500
    assert objectives.steps_in_time(mlm, "STS-B") == 3750
    for seed in range(3):
        write_run(tsdae, 3e-4, seed, 68 + seed, 58 + seed)
        write_run(mean, 3e-4, seed, 70 + seed, 61.5 + seed + 0.1 * seed)
    write_run(tsdae, 1e-3, 0, 67, 99, later=2)
    write_run(tsdae, 1e-4, 0, math.nan, math.nan)
    write_run(mlm, 3e-4, 0, 50, 40)
    assert objectives.best_rate(tsdae, "sentences") == 3e-4
    assert objectives.best_rate(tsdae, "time") == 1e-3
    untrained = {"name": "untrained", "pooling": "mean", "dev": 30, "test": 20.0}
    np.save(compared_in / "objectives" / "untrained.npy", np.random.default_rng(5).normal(20, 1, 1000))
    objectives.write("STS-B", "baseline", untrained | {"resamples": "untrained.npy"})
    lines = {
        line[0]: dict(zip(objectives.HEADER, line, strict=True)) for line in objectives.lines("sentences", "STS-B")
    }
    assert list(lines[tsdae.name].values())[1:7] == ["0.0003", "1,500", "3", "69.00 ± 1.00", "59.00 ± 1.00", ""]
    assert lines[mean.name]["difference"] == "+3.60"
    assert lines[mean.name]["verdict"] == "better"
    assert lines["untrained"]["difference"] == "-42.60"
    assert lines["untrained"]["verdict"] == "worse"
    assert lines[mlm.name]["difference"] == "-21.50", "against the mean of TSDAE, in the seed that both have"
    assert lines[mlm.name]["verdict"] == "not judged: fewer than 3 seeds"
    assert lines["ct, mean"]["dev"] == "not yet run"


def test_rates_are_tried_until_the_best_is_at_no_edge(compared_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both comparisons: after equal time a larger one is best."""
    scores = {3e-5: (40, 0), 1e-4: (50, 0), 3e-4: (60, 0), 1e-3: (61, 0), 3e-3: (52, 20), 1e-2: (50, 0)}

    def run(text: objectives.Text, arm: objectives.Arm, rate: float, seed: int) -> None:
        if not any(row["rate"] == rate for row in objectives.runs_of(arm, "STS-B")):
            write_run(arm, rate, seed, scores[rate][0], 50, later=scores[rate][1])

    monkeypatch.setattr(objectives, "run", run)
    objectives.search(objectives.Text("STS-B", None, 1), objectives.TSDAE_CLS)
    assert [row["rate"] for row in objectives.rows()] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]


def test_another_text_waits_for_all_runs_that_choose_the_rates(compared_in: Path) -> None:
    """A row written twice, by a process that outlived its parent, is no further seed."""
    arm = objectives.TSDAE_CLS
    finished = []
    for seed, rate in [(0, 1e-4), (0, 3e-4), (0, 1e-3), (1, 3e-4), (1, 3e-4), (2, 3e-4)]:
        write_run(arm, rate, seed, 60 if rate == 3e-4 else 50, 50)
        finished.append(objectives.has_its_rates(arm))
    assert finished == [False, False, False, False, False, True]
    assert len(objectives.settings_of("sentences", "STS-B")[arm.name]) == 3


@pytest.mark.slow  # mini is trained for 14 steps and scored nine times
def test_objectives_are_trained_scored_and_resumed(compared_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TSDAE with two poolings in small batches, from mini, on forty sentences."""
    sentences = [f"{sentence} {number}" for number, sentence in enumerate(tiny.SENTENCES * 5)][:40]
    pairs = Pairs(sentences[:20], sentences[20:], np.arange(20.0))
    corpus = Corpus.build(sentences, SentenceEncoder.from_pretrained("mini").tokenizer)
    monkeypatch.setattr(objectives, "load", lambda text: (sentences, corpus, {"dev": pairs, "test": pairs}))
    arms = (objectives.TSDAE_CLS._replace(batch=4), objectives.TSDAE_MEAN._replace(batch=8))
    for name, value in {"ARMS": arms, "TSDAE_CLS": arms[0], "SENTENCES": 16, "SEEDS": 2}.items():
        monkeypatch.setattr(objectives, name, value)
    monkeypatch.setattr(objectives, "FIRST_RATES", (3e-4,))
    monkeypatch.setattr(objectives, "RATES", (3e-4,))
    monkeypatch.setattr(objectives, "ROUNDS", 1)
    monkeypatch.setattr(objectives, "SENTENCES_OF_A_ROUND", 16)
    text = objectives.Text("STS-B", None, 1)
    measured = objectives.costs(text)
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in measured.values())
    objectives.write(
        "STS-B", "cost", {"seconds_per_sentence": {name: [1.0] for name in measured} | {arms[1].name: [0.5]}}
    )
    for _ in range(2):  # the second time everything is there
        objectives.write_baselines(text)
        for arm in arms:
            objectives.search(text, arm)
            objectives.repeat(text, arm)
    found = objectives.rows()
    assert [row["kind"] for row in found].count("run") == 4
    assert {row["seed"] for row in found if row["kind"] == "run"} == {0, 1}
    assert len({row["name"] for row in found if row["kind"] == "baseline"}) >= 6
    for row in found[-4:]:
        assert row["steps"] == (
            {"sentences": 4, "time": 4} if row["name"] == arms[0].name else {"sentences": 2, "time": 4}
        )
        assert all(math.isfinite(row[way][split]) for way in ("sentences", "time") for split in ("dev", "test"))
    written = objectives.page()
    assert "not yet run" not in written
    assert "| tsdae, cls | 0.0003 | 4 | 2 |" in written


def test_what_was_measured_of_ours_outlives_a_reference_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("tensors on two devices")

    monkeypatch.setattr(gpu_speed, "seconds_of_theirs", fails)
    place = gpu_place.Place(True, tmp_path, dataclasses.replace(ORIGIN, commit="unknown"))
    with pytest.raises(RuntimeError, match="two devices"):
        gpu_speed.batch_8(place)
    found = rows.read(tmp_path / "rows-of-no-commit")
    assert set(found) == {"gpu-8", "gpu-8-no-attention-dropout"}
    assert all(set(row.values) == {"ours"} and row.batch == 8 for row in found.values())


@pytest.mark.slow  # five passes of mini in fp64
def test_parity_allows_what_another_order_of_sums_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU never sums in a CPU's order: plain operations take its place."""
    calls: list[str] = []
    exact = ours.loss_and_gradients

    def elsewhere(model: Any, batch: Any, precision: Any) -> Any:
        calls.append(precision)
        with ops.plain() if len(calls) % 5 == 2 else contextlib.nullcontext():  # the second of a case is "there"
            return exact(model, batch, precision)

    monkeypatch.setattr(ours, "loss_and_gradients", elsewhere)
    found = gpu_checks.parity(gpu_place.Place(True, tmp_path, ORIGIN))
    assert calls[:2] == ["fp64", "fp64"]
    assert 0 < found["paper, fp64"] < 1e-9


@pytest.mark.reference
def test_the_reference_is_on_one_device(tmp_path: Path) -> None:
    """Its loss makes a decoder on the CPU, wherever the encoder is."""
    pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    from benchmarks import reference

    ours.Side(1, "cpu").write_training_folder(str(gpu_place.MINI), str(tmp_path))
    side = reference.Side(1, "meta")
    side.load_training(str(tmp_path))
    assert {parameter.device.type for parameter in side.loss.parameters()} == {"meta"}
