"""A run that was stopped and resumed is the run that was never stopped; what would make it another is refused."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests import tiny
from tests.runs import assert_same_run, rows, state
from tests.scripts import Run, contents
from tsdae.autoencoder import TSDAE
from tsdae.config import TrainConfig
from tsdae.encoder import SentenceEncoder
from tsdae.losses import LossSum
from tsdae.objectives import tsdae
from tsdae.packing import Batch
from tsdae.run import folder as runs
from tsdae.run.folder import Checkpoints
from tsdae.run.resume import split_step
from tsdae.training import train
from tsdae.utils import files
from tsdae.utils.files import sha256_of
from tsdae.utils.signals import Interrupted

STEPS = 14
FLAGS = "--corpus text.txt --model model --device cpu --precision fp32 --heldout 2 --batch-size 2 --learning-rate 0.01"
FLAGS += f" --steps {STEPS} --eval-every 4 --save-every 3 --log-every 5"


class Scaled(torch.nn.Module):
    """An objective with a parameter of its own, which is trained, saved and resumed as well."""

    def __init__(self, stop_at: int | None = None, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls, self.stop_at, self.number = 0, stop_at, number

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        self.calls += self.training
        if self.calls == self.stop_at and self.training:
            self.stop_at = None
            signal.raise_signal(self.number)
        sentence_BD = model.encode(batch.noisy)
        size = LossSum((self.scale * sentence_BD).square().sum(), len(sentence_BD), "size")
        return tsdae(model, batch) + 0.5 * size


def spread(encoder: SentenceEncoder) -> dict[str, float]:
    torch.rand(3)  # an evaluation may draw random numbers
    return {"spread": float(encoder.encode(tiny.SENTENCES).std())}


def trained(output: Path, objective: Scaled | None = None, corpus: list[str] | None = None, **changes: Any) -> TSDAE:
    settings: dict[str, Any] = {
        **{"steps": STEPS, "batch_size": 4, "device": "cpu", "precision": "fp32", "learning_rate": 1e-2},
        **{"eval_every": 4, "save_every": 3, "log_every": 5, "output": str(output), "early_stop": "heldout_loss"},
        **{"best": "heldout_loss"},  # it falls
        **{"patience": 50},
    }
    settings |= changes
    model = tiny.model(dtype=torch.float32, layers=1, dropout=0.2, attention_dropout=0.1)
    heldout = tiny.dataset(tiny.SENTENCES[:3])
    objective = objective or Scaled()
    return train(model, tiny.dataset(corpus), TrainConfig(**settings), objective, spread, heldout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained(folder)
    assert [row["step"] for row in rows(folder)] == [0, 4, 5, 8, 10, 12, 14, 14]
    return folder


@pytest.fixture(scope="module")
def after_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in step 5."""
    folder = tmp_path_factory.mktemp("runs") / "after-5"
    stopped(folder, 5)
    return folder


@pytest.fixture(scope="module")
def after_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "after-10"
    stopped(folder, 10)
    return folder


def stopped(output: Path, *places: int, number: int = signal.SIGTERM, **changes: Any) -> None:
    """Stops a run, and each run that resumes it, in the step of that number of the life."""
    for life, place in enumerate(places):
        with pytest.raises(Interrupted) as stop:
            trained(output, Scaled(place, number), resume=life > 0, **changes)
        assert stop.value.signal == number


@pytest.mark.parametrize("places", [(1,), (7,), (8,), (STEPS,), (2, 3, 3, 5)], ids=str)
def test_a_stopped_run_ends_as_one_that_was_not(places: tuple[int, ...], whole: Path, tmp_path: Path) -> None:
    """In the first step, between checkpoints and rows of the log, at an evaluation, in the last step, many times."""
    stopped(tmp_path / "run", *places)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert ("finished" in written) == (sum(places) == STEPS)
    trained(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["finished"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_in_every_precision(precision: str, tmp_path: Path) -> None:
    trained(tmp_path / "whole", precision=precision)
    stopped(tmp_path / "run", 5, precision=precision)
    trained(tmp_path / "run", resume=True, precision=precision)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_what_came_after_the_checkpoint_is_taken_back(whole: Path, tmp_path: Path) -> None:
    """As after a SIGKILL: rows, a better best/ and half-written files of steps that will be made again."""
    folder = tmp_path / "run"
    stopped(folder, 6)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 0.1}\n{"step": 12, "lo')
    for name in ("best.part", "checkpoints/step-00000009.part", "last.part"):
        (folder / name).mkdir()
        (folder / name / "half").write_text("half")
    (folder / "encoder.123.old").mkdir()  # of a process that ended between two renames
    shutil.rmtree(folder / "best")
    shutil.copytree(folder / "encoder", folder / "best" / "encoder")  # to be replaced at step 8
    trained(folder, resume=True)
    assert_same_run(whole, folder)
    assert not list(folder.rglob("*.part"))
    assert not list(folder.glob("*.old"))


def test_two_processes_do_not_write_in_one_run_folder(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused and changes nothing; when the first has ended, it goes on."""
    monkeypatch.setattr(runs, "LOCK_WAIT", 0.01)
    assert run("train", f"{FLAGS} --output run --steps 4").code == 0
    before = contents(place)
    with FileLock(place / "run" / runs.LOCK):
        refused = run("train", "--resume --output run --steps 6")
    assert refused.code == 2
    assert "another process is training in run; stop it, wait for it, or choose another --output" in refused.err
    assert contents(place) == before
    assert run("train", "--resume --output run --steps 6").code == 0
    assert state(place / "run")["step"] == 6


def test_what_the_user_keeps_in_a_run_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(folder, 6)
    shutil.copytree(folder / "encoder", folder / "encoder.old")
    for name in ("notes.part", "metrics.jsonl.old", "checkpoints/mine.old"):
        (folder / name).write_text("mine")
    trained(folder, resume=True)
    assert (folder / "encoder.old" / "config.json").is_file()
    assert all((folder / name).is_file() for name in ("notes.part", "metrics.jsonl.old", "checkpoints/mine.old"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def malicious(path: Path) -> None:
    """A pickle that would create a file, with the right digest beside it."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(path.parents[2] / "hacked"),)

    with path.open("wb") as file:
        pickle.dump({"format": 1, "trained": Evil()}, file)
    (path.parent / "state.sha256").write_text(sha256_of(path) + "\n")


def of_the_future(path: Path) -> None:
    torch.save({"format": 99}, path)
    (path.parent / "state.sha256").write_text(sha256_of(path))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "no digest": lambda path: (path.parent / "state.sha256").unlink(),
    "another format": of_the_future,
    "malicious": malicious,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], object],
    whole: Path,
    after_10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(after_10, tmp_path / "run")
    found = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert found == ["step-00000009", "step-00000010"], "the last two are kept"
    damage(folder / "checkpoints" / "step-00000010" / "state.pt")
    capsys.readouterr()
    trained(folder, resume=True)
    err = capsys.readouterr().err
    assert "step-00000010 is damaged and not used" in err
    assert "resuming after step 9" in err
    assert not (folder / "hacked").exists()
    assert_same_run(whole, folder)


def test_without_a_whole_checkpoint_a_run_starts_again(
    whole: Path, after_10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(after_10, tmp_path / "run")
    for path in (tmp_path / "run").rglob("state.pt"):
        flip(path)
    trained(tmp_path / "run", resume=True)
    assert "no complete checkpoint yet: starting from step 0" in capsys.readouterr().err
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": tiny.SENTENCES[::-1]}, "the corpus is not the one that the run was started with"),
        ({"learning_rate": 1e-3}, "--learning-rate is 0.001, and the run was started with 0.01"),
        ({"seed": 1}, "--seed is 1"),
        ({"precision": "bf16"}, "--precision is bf16"),
        ({"batch_size": 2}, "is 2, and the run was started with 4"),
        ({"steps": 4}, "--steps 4: the run has made 5 steps already; give a larger number"),
        ({"early_stop": None}, "--early-stop is None"),
    ],
    ids=str,
)
def test_what_would_make_another_run_of_it_is_refused(changes: dict[str, Any], message: str, after_5: Path) -> None:
    before = contents(after_5)
    with pytest.raises(ValueError, match=message):
        trained(after_5, resume=True, **changes)
    assert contents(after_5) == before


def test_a_settings_file_that_was_edited_is_noticed(after_5: Path, tmp_path: Path) -> None:
    shutil.copytree(after_5, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"weight_decay": 0.0', '"weight_decay": 0.5'))
    with pytest.raises(ValueError, match=r"--weight-decay is 0.5, and the run was started with 0.0"):
        trained(tmp_path / "run", resume=True, weight_decay=0.5)


def test_another_model_is_refused(after_5: Path) -> None:
    config = TrainConfig(
        **{name: value for name, value in json.loads((after_5 / "config.json").read_text()).items()
           if name in TrainConfig.__dataclass_fields__} | {"resume": True, "epochs": None}
    )  # fmt: skip
    heldout = tiny.dataset(tiny.SENTENCES[:3])
    with pytest.raises(ValueError, match="the model or objective is not the one that"):
        train(tiny.model(width=12, dtype=torch.float32), tiny.dataset(), config, Scaled(), spread, heldout)


@pytest.mark.slow
def test_a_linear_schedule_keeps_its_steps(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 5, schedule="linear")
    with pytest.raises(ValueError, match=r"--steps is 20, and the run was started with 14"):
        trained(tmp_path / "run", resume=True, schedule="linear", steps=20)
    trained(tmp_path / "whole", schedule="linear")
    trained(tmp_path / "run", resume=True, schedule="linear")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_more_steps_under_a_constant_schedule(tmp_path: Path) -> None:
    trained(tmp_path / "run", steps=8)
    trained(tmp_path / "run", steps=16, resume=True)
    trained(tmp_path / "whole", steps=16)
    states = [Checkpoints(tmp_path / name).newest() for name in ("run", "whole")]
    for name, weight in states[0]["trained"].items():
        assert torch.equal(weight, states[1]["trained"][name])


@pytest.mark.slow
def test_other_versions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(tmp_path / "run", 5)
    then = runs.versions() | {"torch": "1.0.0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "versions", lambda: then)
        stopped(tmp_path / "old", 5)
    for name in ("run", "old"):
        capsys.readouterr()
        trained(tmp_path / name, resume=True)
        noted = f"torch 1.0.0 -> {torch.__version__}" in capsys.readouterr().err
        assert noted == (name == "old")


# ---------------------------------------------------------------------------------------------------------------
# Disks


def test_a_disk_with_too_little_space_is_noticed_before_writing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    calls = iter([2**40, 2**40, 1000])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, next(calls)))
        with pytest.raises(OSError, match=r"the checkpoint of step 9 needs 1\d MB, and only 0 MB are free"):
            trained(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000006",
    ]
    trained(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a loss of power needs it, which no test can cause."""
    happened = []
    replace_folder = files.replace_folder

    def renamed(staged: Path, path: Path) -> None:
        happened.append(f"{staged.name} -> {path.name}")
        replace_folder(staged, path)

    monkeypatch.setattr(runs, "sync", lambda path: happened.append(path.name))
    monkeypatch.setattr(files, "replace_folder", renamed)
    Checkpoints(tmp_path).save(3, {"weight": torch.ones(2)}, keep=1)
    name = "step-00000003"
    assert happened == ["state.pt", "state.sha256", f"{name}.part", f"{name}.part -> {name}", "checkpoints"]


def test_the_needed_space_is_that_of_the_tensors(tmp_path: Path) -> None:
    trained(tmp_path / "run", steps=1)
    state = Checkpoints(tmp_path / "run").newest()
    size = next((tmp_path / "run").rglob("state.pt")).stat().st_size
    assert 0.5 * size < runs.size_of(state) < size


# ---------------------------------------------------------------------------------------------------------------
# From the command line


def test_resume_and_output_are_enough(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --output whole").code == 0
    assert run("train", f"{FLAGS} --output run --steps 7").code == 0
    assert run("train", "--resume --output run --steps 14 --log-every 5").code == 0
    states = [Checkpoints(place / name).newest() for name in ("whole", "run")]
    assert all(torch.equal(weight, states[1]["trained"][name]) for name, weight in states[0]["trained"].items())

    twice = run("train", "--resume --output run --steps 20 --epochs 3")
    assert (twice.code, "--steps and --epochs are both lengths of a run" in twice.err) == (2, True)

    again = run("train", "--resume --output run")
    assert again.code == 0
    assert again.err == "run is finished: 14 steps. Its encoder is run/encoder\n"


def test_a_stopped_script_prints_what_goes_on_with_it(run: Run, place: Path) -> None:
    (place / "mine.py").write_text(
        "import signal\n\nfrom tsdae.objectives import tsdae\n\ncalls = []\n\n\ndef mine(model, batch):\n"
        "    calls.extend([1] * model.training)\n    if len(calls) == 6:\n        signal.raise_signal(signal.SIGINT)\n"
        "    return tsdae(model, batch)\n"
    )
    result = run("train", f"{FLAGS} --output run --objective mine.py:mine")
    assert result.code == 130
    command = "tsdae train --resume --output run --objective mine.py:mine"
    assert "run folder run\n" in result.err
    assert (
        "if it is stopped, resume it with: tsdae train --resume --output run --objective mine.py:mine\n" in result.err
    )
    last = result.err.splitlines()[-1]
    assert last == f"stopped after step 5 of 14; checkpoint and model are in run; resume with: {command}"

    before = contents(place)
    refused = run("train", "--resume --output run")
    assert refused.code == 2
    assert (
        "the run's --objective is code of your own, which is not run unasked; give --objective mine.py:mine"
        in refused.err
    )
    assert contents(place) == before
    assert run("train", command.split(" train ")[1]).code == 0
    assert run("train", f"{FLAGS} --output whole --objective mine.py:mine").code == 0
    assert_same_run(place / "whole", place / "run")


@pytest.mark.parametrize(
    ("processes", "expected"), [(1, (8, 3)), (2, (6, 2)), (3, (8, 1)), (4, (6, 1)), (12, (2, 1)), (24, (1, 1))]
)
def test_a_step_keeps_its_sentences_under_other_processes(processes: int, expected: tuple[int, int]) -> None:
    assert split_step(24, 8, processes) == expected


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="5 processes cannot share the run's 24 sentences per step equally"):
        split_step(24, 8, 5)


def test_resume_starts_a_run_that_has_not_begun(run: Run, place: Path) -> None:
    """So one command line serves a queue that starts a job again and again."""
    for _ in range(2):
        assert run("train", f"{FLAGS} --output run --resume").code == 0
    refused = run("train", "--resume --output rnu")
    assert refused.code == 2
    assert "--resume: rnu holds no run; to start one, give its settings as well" in refused.err


def test_the_table_of_a_run_that_died_before_it_is_made(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --output run --evaluate pairs.tsv").code == 0
    table = (place / "run" / "evaluation.json").read_bytes()
    (place / "run" / "evaluation.json").unlink()
    assert run("train", "--resume --output run").code == 0
    assert (place / "run" / "evaluation.json").read_bytes() == table


DISAGREES = [
    ("--noise-ratio 0.5", "--noise-ratio is 0.5, and the run was started with 0.6; leave it out, or start a new"),
    ("--no-tie", "--tie is False, and the run was started with True"),
    ("--pooling mean", "--pooling is mean, and the run was started with cls"),
    ("--batch-size 3", "is 3, and the run was started with 2"),
    ("--steps 9 --corpus other.txt", "the corpus is not the one that the run was started with"),
    ("--overwrite", "--resume continues a run and --overwrite replaces it"),
    ("--steps 3", "--steps 3: the run has made 7 steps already; give a larger number"),
]


def test_a_flag_that_does_not_agree_is_named(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --steps 7 --output run").code == 0
    (place / "other.txt").write_text("\n".join([*tiny.SENTENCES, "a dog"]))
    before = contents(place)
    for flags, message in DISAGREES:
        result = run("train", f"--resume --output run {flags}")
        assert result.code == 2
        assert message in result.err.splitlines()[-1]
        assert contents(place) == before


def test_the_same_text_may_lie_elsewhere(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --output run --steps 7").code == 0
    (place / "text.txt").rename(place / "moved.txt")
    assert run("train", "--resume --output run --corpus moved.txt --steps 14").code == 0


EDITED: list[tuple[str, object]] = [
    *[("steps", "forty"), ("steps", None), ("save_every", "4"), ("learning_rate", "3e-5"), ("model", 7)],
    *[("heldout", 2), ("noise", {}), ("finished", None), ("keep", 1.5), ("processes", "two"), ("tie", "no")],
    *[("pooling", "last"), ("steps", True)],
]


def test_an_edited_config_gets_one_line(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --output run --steps 1").code == 0
    path = place / "run" / "config.json"
    settings = json.loads(path.read_text())
    for name, value in EDITED:
        path.write_text(json.dumps(settings | {name: value}))
        result = run("train", "--resume --output run")
        assert result.code == 2
        assert f"run/config.json: {name} cannot be {value!r}; was the file edited?" in result.err


def test_a_log_that_lost_its_end_goes_on_with_whole_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(tmp_path / "run", 7)
    metrics = tmp_path / "run" / "metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size - 5)
    capsys.readouterr()
    trained(tmp_path / "run", resume=True)
    assert "metrics.jsonl has lost rows of the steps before 7" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 4, 8, 10, 12, 14, 14]


def test_nothing_to_go_on_with_is_not_promised(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    result = run("train", f"{FLAGS} --output run")
    assert result.code == 2
    assert result.err.splitlines()[-1] == "tsdae train: error: [Errno 30] Read-only file system: 'run'"


def test_a_run_of_another_device_goes_on_here(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --output run --steps 3").code == 0
    settings = json.loads((place / "run" / "config.json").read_text())
    (place / "run" / "config.json").write_text(json.dumps(settings | {"device": "tpu"}))
    assert "--device" in run("train", "--resume --output run --steps 4").err
    resumed = run("train", "--resume --output run --steps 4 --device auto")
    assert resumed.code == 0, resumed.err


# ---------------------------------------------------------------------------------------------------------------
# Early stopping


def test_early_stopping_ends_a_run_and_keeps_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def values() -> Callable[[SentenceEncoder], dict[str, float]]:
        seen = itertools.chain([3.0, 5.0, 4.0, 5.0, np.nan], itertools.repeat(1.0))
        return lambda _: {"quality": next(seen)}

    def config(name: str, **changes: Any) -> TrainConfig:
        settings = {"steps": 30, "batch_size": 2, "device": "cpu", "precision": "fp32", "eval_every": 2}
        settings |= {"early_stop": "quality", "best": "quality", "output": str(tmp_path / name)}
        return TrainConfig(**(settings | changes))

    train(tiny.model(dtype=torch.float32), tiny.dataset(), config("run"), evaluate=values())
    assert "stopping early: quality did not improve in 3 evaluations" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "run") if "quality" in row] == [0, 2, 4, 6, 8]
    assert json.loads((tmp_path / "run" / "best" / "measures.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["finished"] == 8
    train(tiny.model(dtype=torch.float32), tiny.dataset(), config("run", resume=True), evaluate=values())
    assert rows(tmp_path / "run")[-1]["step"] == 8, "there is nothing to go on with"


def test_a_measure_that_is_not_taken_cannot_stop(tmp_path: Path) -> None:
    config = TrainConfig(steps=2, eval_every=1, early_stop="quality", device="cpu", precision="fp32")
    with pytest.raises(ValueError, match="--early-stop quality is not measured in this run; choose from heldout_loss"):
        train(tiny.model(), tiny.dataset(), config, heldout=tiny.dataset())


def test_the_measures_of_a_function_are_known_at_the_start(run: Run, place: Path) -> None:
    (place / "mine.py").write_text(
        "def quality(encoder):\n    return {'quality': 1.0}\n\n\ndef wrong(encoder):\n    return 3\n"
    )
    for stop in ("quality", "heldout_loss"):
        result = run("train", f"{FLAGS} --evaluate mine.py:quality --early-stop {stop} --overwrite --output run")
        assert result.code == 0, result.err
        assert "evaluated before training and every 4 steps: quality, heldout_loss, " in result.err
    names = "choose from quality, heldout_loss"
    for flag, hint in (("--early-stop qualit", "did you mean quality?"), ("--best stsb_dev", names)):
        result = run("train", f"{FLAGS} --evaluate mine.py:quality {flag} --output new")
        assert result.code == 2
        assert f"{flag} is not measured in this run; {hint}" in result.err
    (place / "loss.py").write_text("def loss(encoder):\n    return {'loss': 1.0}\n")
    result = run("train", f"{FLAGS} --evaluate loss.py:loss --output new")
    assert (result.code, "metrics.jsonl has a column loss; give the metric another name" in result.err) == (2, True)
    result = run("train", f"{FLAGS} --evaluate mine.py:wrong --output new")
    assert result.code == 2
    assert "--evaluate mine.py:wrong must return {name: number}, it returned 3" in result.err
    assert not (place / "new").exists()
