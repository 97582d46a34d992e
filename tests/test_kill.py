"""Runs that are killed from another process, at any moment, and resumed: nothing may be lost.

The runs are forked from a server that has imported everything, so that a life takes as long as its steps.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # PyTorch imports it with the first optimizer: a second that a life need not take

from tests import tiny
from tests.runs import assert_same_run
from tsdae.config import TrainConfig
from tsdae.run import folder as runs
from tsdae.training import train

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: signals and a fork server"),
    pytest.mark.slow,
]

STEPS, PATIENCE_S = 60, 300.0
BATCH = [" ".join(tiny.WORDS[i : i + 12]) for i in range(0, 36, 3)] * 4  # large enough for two threads


def life(output: str, slow: float, largest_file: int | None, settings: dict[str, Any]) -> None:
    """One process's attempt at the run. slow: seconds that each sync of a checkpoint takes longer."""
    torch.set_num_threads(2)
    sys.stderr = open(Path(output).with_suffix(".log"), "a", buffering=1)  # noqa: SIM115  # open as long as the process
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if slow:
        synced = runs.sync

        def slowly(path: Path) -> None:
            time.sleep(slow)
            synced(path)

        runs.sync = slowly
    model = tiny.model(dtype=torch.float32, width=96, feed_forward=384, dropout=0.2, attention_dropout=0.1)
    recipe: dict[str, Any] = {
        **{"steps": STEPS, "batch_size": 24, "device": "cpu", "precision": "fp32", "learning_rate": 1e-3},
        **{"eval_every": 7, "save_every": 4, "log_every": 1, "output": output, "resume": True},
    }
    train(model, tiny.dataset(BATCH), TrainConfig(**(recipe | settings)), heldout=tiny.dataset())


@pytest.fixture
def born(server: ForkServerContext) -> Iterator[Callable[..., ForkServerProcess]]:
    children: list[ForkServerProcess] = []

    def begin(output: Path, slow: float = 0.0, largest_file: int | None = None, **settings: Any) -> ForkServerProcess:
        children.append(server.Process(target=life, args=(str(output), slow, largest_file, settings)))
        children[-1].start()
        return children[-1]

    yield begin
    for child in children:
        child.kill()


@pytest.fixture(scope="module")
def whole(server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    child = server.Process(target=life, args=(str(folder), 0.0, None, {}))
    child.start()
    child.join(PATIENCE_S)
    child.kill()  # if it hangs
    child.join()
    assert child.exitcode == 0
    return folder


def wait_for(child: ForkServerProcess, what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert child.is_alive(), "the process has ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.001)


def kill(child: ForkServerProcess, folder: Path) -> None:
    """SIGKILL, and the proof that it came in the middle of the run."""
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    config = folder / "config.json"
    assert not config.is_file() or "finished" not in json.loads(config.read_text())


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.is_file() else 0


def is_writing(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.part"))


def survives(folder: Path, whole: Path, born: Callable[..., ForkServerProcess]) -> None:
    """The run is resumed once more, and ends as the one that was never stopped."""
    child = born(folder)
    child.join(PATIENCE_S)
    assert child.exitcode == 0, folder.with_suffix(".log").read_text()
    assert_same_run(whole, folder)
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("seed", [6, 9])
def test_killed_at_random_points(
    seed: int, whole: Path, tmp_path: Path, born: Callable[..., ForkServerProcess]
) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "run"
    lives = []
    for _ in range(8):
        start = steps_logged(folder) // 4 * 4
        child = born(folder)
        further = chance.randint(1, 6)
        wait_for(child, lambda start=start, further=further: steps_logged(folder) >= start + further)
        time.sleep(chance.random() * 0.02)
        kill(child, folder)
        lives.append(steps_logged(folder))
    assert lives[-1] > 8, "the run went on between the kills"
    survives(folder, whole, born)


def test_killed_while_a_checkpoint_is_written(
    whole: Path, tmp_path: Path, born: Callable[..., ForkServerProcess]
) -> None:
    chance = random.Random(2)
    folder = tmp_path / "run"
    for _ in range(6):
        child = born(folder, slow=0.5)  # three syncs: 1.5 s, in which it is to be met
        wait_for(child, lambda: is_writing(folder))
        time.sleep(chance.random() * 0.7)
        kill(child, folder)
        assert is_writing(folder), "the premise: it died while it wrote"
        runs.remove(next((folder / "checkpoints").glob("*.part")))
    survives(folder, whole, born)


def test_killed_before_the_first_checkpoint(
    whole: Path, tmp_path: Path, born: Callable[..., ForkServerProcess]
) -> None:
    folder = tmp_path / "run"
    for begun in (lambda: (folder / "config.json").is_file(), lambda: steps_logged(folder) >= 2):
        child = born(folder, slow=1.0)  # the first checkpoint takes three seconds
        wait_for(child, begun)
        kill(child, folder)
        assert not list(folder.glob("checkpoints/step-*[0-9]")), "the premise: it died before the first"
    survives(folder, whole, born)


def test_a_file_that_cannot_grow_ends_the_run_and_leaves_the_last_checkpoint(
    whole: Path, tmp_path: Path, born: Callable[..., ForkServerProcess]
) -> None:
    """As on a full disk: the limit lies between the size of a model and that of a checkpoint."""
    folder = tmp_path / "run"
    child = born(folder)
    wait_for(child, lambda: steps_logged(folder) >= 10)
    kill(child, folder)
    size = next(whole.rglob("state.pt")).stat().st_size
    child = born(folder, largest_file=size // 2)
    child.join(PATIENCE_S)
    assert child.exitcode == 1
    last_line = folder.with_suffix(".log").read_text().splitlines()[-1]
    assert last_line.startswith("OSError:")
    assert "state.pt" in last_line
    assert not is_writing(folder), "its half is removed"
    survives(folder, whole, born)
