"""Settings of the whole test suite: no network, an empty cache, no words of progress bars in captured output."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
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


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Forks processes from one that has imported everything, so that each lives as long as its own work takes.

    There is one such server, and it imports what it is told before its first child: so all that any test needs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_kill", "tests.test_distributed"])
    return context


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.encoder().save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's current folder: a model, a corpus and labelled pairs."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "text.txt").write_text("\n".join(tiny.SENTENCES) + "\n", encoding="utf-8")
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(PAIRS), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("train", "--steps 3")`` is ``python scripts/train.py --steps 3``, in this process."""

    def called(script: str, arguments: str) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments.split()])
        code = None
        try:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        assert code is None or isinstance(code, int)
        return Result(code or 0, *capsys.readouterr())

    return called
