"""Machines that refuse something: a terminal without a letter, a folder, a home, memory. Each costs one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scripts import Run
from tsdae import load_stsb
from tsdae.commands.main import main
from tsdae.commands.parser import Parser
from tsdae.config import PrepareConfig
from tsdae.hub.downloads import STSB, cache_folder, fetch
from tsdae.text.corpus import Corpus
from tsdae.utils import files
from tsdae.utils.device import describe

TRAIN = "--corpus text.txt --model model --device cpu --steps 1 --heldout 0"


def test_a_letter_that_the_terminal_lacks_is_spelled_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of minutes are printed all the same."""
    (place / "text.txt").write_text("un café\nune crêpe\nein Kälbchen 犬\n", encoding="utf-8")
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "latin-1"))
    with contextlib.suppress(SystemExit):  # after an error, which would lose what is looked for below
        main(["neighbours", "model", "model", "--corpus", "text.txt", "--neighbours", "1"])
    sys.stdout.flush()
    out = terminal.getvalue().decode("latin-1")
    assert "un café" in out
    assert r"ein Kälbchen \u72ac" in out


@pytest.fixture
def sealed(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nobody can write, not even root; and nothing is tokenised or downloaded meanwhile."""
    (place / "sealed").mkdir()
    made = files.tempfile.TemporaryFile

    def refused(dir: Path) -> Any:
        if dir.resolve().is_relative_to((place / "sealed").resolve()):
            raise PermissionError(13, "Permission denied")
        return made(dir=dir)

    def never(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("it should be known before")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    for module in ("prepare", "train", "encode"):
        monkeypatch.setattr(f"tsdae.commands.{module}.load_sentences", never)
    monkeypatch.setattr("tsdae.commands.prepare.load_tokenizer", never)
    monkeypatch.setattr("tsdae.commands.train.open_texts", never)
    return place / "sealed"


@pytest.mark.parametrize(
    "command",
    [
        f"train {TRAIN} --output sealed/new/run",
        f"train {TRAIN} --output sealed --overwrite",
        "prepare text.txt --model model --output sealed/corpus",
        "encode model --input text.txt --output sealed/x.npy",
        "evaluate model --pairs pairs.tsv --json sealed/x.json",
    ],
)
def test_an_output_that_cannot_be_written_is_known_before_the_work(command: str, run: Run, sealed: Path) -> None:
    script, arguments = command.split(" ", 1)
    result = run(script, arguments)
    assert result.code == 2
    assert re.search(r"--(output|json) sealed.*sealed cannot be written to \(Permission denied\)", result.err)
    assert list(sealed.iterdir()) == []


def test_runs_without_a_name_need_a_folder_too(run: Run, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sealed)
    result = run("train", TRAIN.replace("text.txt", "../text.txt").replace("model model", "model ../model"))
    assert result.code == 2
    assert "the run folder runs/001: " in result.err
    assert "sealed cannot be written to (Permission denied)" in result.err


def test_a_disk_that_says_yes_and_means_no() -> None:
    """Rights do not tell: /proc can be written to, as far as they go."""
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc")
    with pytest.raises(ValueError, match=r"--output /proc/tsdae: /proc cannot be written to \("):
        files.check_can_write(Path("/proc/tsdae"), "--output")


def test_no_home_and_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "TSDAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(name: str) -> Any:
        raise KeyError(name)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for call in (cache_folder, load_stsb):
        with pytest.raises(ValueError, match=r"^no home folder is known; set TSDAE_CACHE to a folder for downloads$"):
            call()


def test_a_home_that_cannot_be_written(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSDAE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(sealed))
    with pytest.raises(ValueError, match=r"Permission denied\); set TSDAE_CACHE to a folder for downloads$"):
        fetch(STSB)


@pytest.mark.parametrize(("count", "words"), [(1, "(1 thread)"), (2, "(2 threads)")])
def test_one_thread(count: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert words in describe(torch.device("cpu"), "fp32")


# ---------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize(
    ("place_of_it", "step"),
    [
        ("tsdae.text.building.Work.__call__", "the text was read and tokenised"),
        ("tsdae.text.preparation.split_heldout", "the rows were divided into those to train on and those held out"),
        ("tsdae.text.corpus.Corpus.of", "the rows were divided into those to train on and those held out"),
    ],
)
@pytest.mark.parametrize(
    "error", [MemoryError("no bytes"), OSError(12, "Cannot allocate memory")], ids=["numpy", "map"]
)
def test_memory_that_runs_out_is_one_line_and_loses_nothing(
    place_of_it: str, step: str, error: Exception, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there goes on from there when there is memory again, to the same corpus."""

    def empty(*arguments: Any, **settings: Any) -> Any:
        raise error

    prepare = "text.txt --model model --heldout 2 --output"
    assert run("prepare", f"{prepare} expected").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(place_of_it, empty)
        result = run("prepare", f"{prepare} corpus")
        assert result.code == 2
        assert result.err.splitlines()[-1] == f"tsdae prepare: error: out of memory while {step}"
        kept = "Work" not in place_of_it
        assert (place / "corpus.part").exists() == kept
        assert ("finished work is kept in corpus.part; the same command resumes from there" in result.err) == kept
        result = run("train", TRAIN)
        assert result.code == 2
        assert f"out of memory while {step}; `tsdae prepare` needs less memory" in result.err.splitlines()[-1]
    result = run("prepare", f"{prepare} corpus")
    assert ("resuming after 8 texts" in result.err) == kept
    assert Corpus.open("corpus").fingerprint() == Corpus.open("expected").fingerprint()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] can't allocate memory"), torch.OutOfMemoryError("CUDA out of memory")],
)
def test_memory_that_runs_out_anywhere_else(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise error

    with pytest.raises(SystemExit, match="2"):
        Parser(PrepareConfig, description="").run(work)
    assert "error: out of memory: " in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        Parser(PrepareConfig, description="").run(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))
