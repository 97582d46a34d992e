"""Settings of the whole test suite: no network, an empty cache, no words of progress bars in captured output."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is imported

import pytest
import torch

from tests import tiny
from tests.scripts import PAIRS, SCRIPTS, Result, Run

torch.set_num_threads(1)  # on tiny tensors threads only wait for each other: ten times slower on a busy machine


@pytest.fixture(autouse=True)
def _away_from_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests do not read the user's cache or ask an index; those marked real use the cache on purpose."""
    if "real" not in request.keywords:
        monkeypatch.setenv("TSDAE_CACHE", str(tmp_path / "tsdae-cache"))
        monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture(autouse=True)
def _quick_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's learning curve takes longer to draw than three steps, and no test cuts the power."""
    monkeypatch.setattr("tsdae.commands.summary.draw_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the one server from which processes are forked, before a test makes another one of it.

    It imports what it is told before its first child and nothing later: so all that any test needs.
    """
    if any("server" in getattr(item, "fixturenames", ()) for item in session.items) and sys.platform == "linux":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TSDAE_CACHE", os.devnull)  # as in the tests themselves, and in whatever they start
            patch.setenv("PIP_NO_INDEX", "1")
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(
                ["tests.test_kill", "tests.test_kill_points", "tests.test_distributed", "tsdae.ablation.runner"]
            )
            first = context.Process(target=int)
            first.start()
            first.join()


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Forks processes from one that has imported everything, so that each lives as long as its own work takes."""
    return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.encoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A model, a corpus and labelled pairs; tests copy it."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "text.txt").write_text("\n".join(tiny.SENTENCES) + "\n", encoding="utf-8")
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(PAIRS), encoding="utf-8")
    return folder


@pytest.fixture
def place(tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's current folder, a copy of ``user_folder``."""
    folder = shutil.copytree(user_folder, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("train", "--steps 3")`` is ``python scripts/train.py --steps 3``, in this process."""

    def called(script: str, arguments: str) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments.split()])
        monkeypatch.setattr(sys, "path", [*sys.path])
        code = None
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert code is None or isinstance(code, int)
        return Result(code or 0, *capsys.readouterr())

    return called
