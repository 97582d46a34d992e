"""Commands that are killed at one of their file operations, and called again: what is there must be enough.

Every renaming, new folder, removal and opening of a file for writing is a point, if files have changed since the one
before; SIGKILL comes just before it. The named points run always, all others with `-m slow`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.runs import rows
from tests.scripts import contents
from tsdae.ablation import runner
from tsdae.commands import pretrain as pretraining
from tsdae.commands.main import COMMANDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: signals and a fork server")

PATIENCE_S = 300.0
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "open": 0}  # and which argument is the place
Stop = Callable[[int, str, str], bool]  # (number of the point, event, place below the folder) -> whether to die there

TEXT = "\n".join(f"the {word} {other}" for word in tiny.WORDS[:12] for other in tiny.WORDS) + "\n"
ONE_LAYER = "--layers 1 --width 64 --vocabulary-size 100 --positions 16 --threads 1 --device cpu --heldout 5"
PRETRAIN = f"words.txt --output made --mlm-steps 2 --tsdae-steps 2 {ONE_LAYER}"
PREPARE = "words.txt --model model --output made --overwrite --heldout 5 --workers 1"
ABLATE = (
    "--corpus text.txt --model model --evaluate pairs.tsv --steps 2 --batch-size 2 --eval-every 1 --heldout 2 "
    "--grid noise_ratio=0.3 --seeds 1 --no-intervals --precision fp32 --threads 1 --device cpu --output made"
)


class Here:
    """In place of a process of its own for a run, so that one number counts the operations of all."""

    exitcode = 0

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        target(*arguments)

    def is_alive(self) -> bool:
        return False


def listing(folder: str) -> set[tuple[str, int]]:
    """All files of the output, and what lies beside it, with their sizes."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in (*names, ""))
    return {(str(file), file.stat().st_size * file.is_file()) for file in files if "/made" in str(file)}


def life(folder: str, command: str, flags: str, stop: Stop | None) -> None:
    """One call of a command, which dies where ``stop`` says; its operations are written to the file points."""
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ["TSDAE_CACHE"] = str(Path(folder, "cache"))
    sys.stdout = sys.stderr = open(Path(folder, "log"), "a", buffering=1)  # noqa: SIM115  # as long as the process
    vars(runner).update(estimate=lambda waiting, *_: (60.0, {arm.id: 2 for arm in waiting}), start=Here)
    vars(runner.time).update(sleep=lambda seconds: None)
    vars(pretraining).update(train_tokenizer=lambda *_: tiny.tokenizer())  # not what is tested here
    points, before = list[str](), [set[tuple[str, int]]()]
    record = os.open(Path(folder, "points"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or (event == "open" and not arguments[2] & WRITES):
            return
        place = os.fsdecode(arguments[EVENTS[event]]) if isinstance(arguments[0], (str, os.PathLike)) else ""
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # rmtree names its files below an open folder
            place = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), place)
        place = os.path.relpath(place) if place else ""
        if place.startswith("made") and (state := listing(folder)) != before[0]:
            before[0] = state
            points.append(f"{event} {place}")
            os.write(record, f"{points[-1]}\n".encode())
            if stop and stop(len(points), event, place):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    COMMANDS[command](flags.split())


class At:
    """Die before the ``number``-th operation, or before this event at this place."""

    def __init__(self, number: int = 0, event: str = "", place: str = "") -> None:
        self.number, self.event, self.place = number, event, place

    def __call__(self, number: int, event: str, place: str) -> bool:
        return number == self.number or (event, place) == (self.event, self.place)


@pytest.fixture
def call(server: ForkServerContext, place: Path) -> Callable[..., int | None]:
    """Call a command in a process of its own in the user's folder; return its exit code."""
    (place / "words.txt").write_text(TEXT)

    def called(command: str, flags: str, stop: Stop | None = None) -> int | None:
        child = server.Process(target=life, args=(str(place), command, flags, stop))
        child.start()
        child.join(PATIENCE_S)
        hangs = child.is_alive()
        child.kill()
        child.join()
        assert not hangs, f"{command} was still at work after {PATIENCE_S:.0f} s: it hangs, or the machine is busy"
        return child.exitcode

    return called


def died(code: int | None, place: Path) -> None:
    assert code == -signal.SIGKILL, f"the premise: it was killed\n{(place / 'log').read_text()}"


def survives(code: int | None, place: Path) -> None:
    assert code == 0, (place / "log").read_text()
    left = [name for name in contents(place) if name.endswith((".part", ".old", "part.lock", "complete"))]
    assert not left


def pretrained(place: Path) -> list[Any]:
    """What a pretraining has made, without the clock."""
    names = ("raw/model.safetensors", "tsdae/encoder/model.safetensors")
    made = [(place / "made" / name).read_bytes() for name in names]
    return made + [rows(place / "made" / name) for name in ("mlm", "tsdae")]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["pretrain.json", "mlm/config.json", "tsdae/config.json"])
def test_pretraining_killed_before_a_state_is_in_place(file: str, place: Path, call: Callable[..., int | None]) -> None:
    died(call("pretrain", PRETRAIN, At(event="os.rename", place=f"made/{file}")), place)
    assert (place / "made" / f"{file}.part").is_file()
    survives(call("pretrain", PRETRAIN), place)
    assert (place / "made" / "tsdae" / "encoder" / "model.safetensors").is_file()


@pytest.mark.slow
def test_pretraining_killed_when_its_corpus_is_in_place(place: Path, call: Callable[..., int | None]) -> None:
    died(call("pretrain", PRETRAIN, At(event="os.rmdir", place="made/corpus.part")), place)
    assert (place / "made" / "corpus.part").is_dir()
    survives(call("pretrain", PRETRAIN), place)


def test_a_users_files_are_not_leftovers(place: Path, call: Callable[..., int | None]) -> None:
    """Only what we write ourselves counts as empty, and is removed."""
    (place / "made").mkdir()
    (place / "made" / "notes.7.old").write_text("mine")
    assert call("pretrain", PRETRAIN) == 2
    assert call("train", "--corpus text.txt --model model --steps 1 --device cpu --heldout 2 --output made") == 2
    assert (place / "made" / "notes.7.old").read_text() == "mine"


@pytest.mark.parametrize("place_of", ["made", "made.part/whole"])
def test_preparing_killed_while_a_folder_is_replaced(
    place_of: str, place: Path, call: Callable[..., int | None]
) -> None:
    """Between the two renames, and after them."""
    assert call("prepare", PREPARE) == 0
    whole = contents(place / "made")
    event, where = ("os.rename", "made") if place_of == "made" else ("os.rmdir", "made.part")
    died(call("prepare", PREPARE, At(event=event, place=where)), place)
    left = {path.name for path in place.glob("made.*")}
    assert ("made.part" in left, (place / "made").exists()) == (True, place_of != "made")
    survives(call("prepare", PREPARE), place)
    assert contents(place / "made") == whole


@pytest.mark.parametrize(
    ("event", "at"),
    [("os.remove", "made.part/00000000.npz"), ("os.remove", "made.part/complete"), ("os.rmdir", "made.part")],
)
def test_preparing_again_without_overwriting_removes_what_was_left(
    event: str, at: str, place: Path, call: Callable[..., int | None]
) -> None:
    """Of a corpus that is there already; its pieces, as large as itself, would stay beside it for ever."""
    flags = PREPARE.replace("--overwrite ", "")
    died(call("prepare", flags, At(event=event, place=at)), place)
    assert (place / "made" / "corpus.json").is_file()
    assert call("prepare", flags) == 2
    assert "already holds a corpus" in (place / "log").read_text()
    assert [path.name for path in place.glob("made*")] == ["made"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "at"),
    [
        ("os.rename", "made/grid.json"),
        ("os.rename", "made/runs/base,seed=0/config.json"),
        ("open", "made/resamples/base,seed=0.npy"),
        ("os.rename", "made/results.jsonl"),
        ("os.rmdir", "made/runs/base,seed=0/best"),
    ],
)
def test_an_ablation_killed_before_a_row(event: str, at: str, place: Path, call: Callable[..., int | None]) -> None:
    died(call("ablate", ABLATE, At(event=event, place=at)), place)
    survives(call("ablate", ABLATE), place)
    lines = (place / "made" / "results.jsonl").read_text().splitlines()
    made = {json.loads(line)["id"] for line in lines}
    assert made == {"untrained", "base,seed=0", "noise_ratio=0.3,seed=0"}
    assert (place / "made" / "report.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "flags"), [("pretrain", PRETRAIN), ("prepare", PREPARE), ("ablate", ABLATE)])
def test_killed_at_every_file_operation(command: str, flags: str, place: Path, call: Callable[..., int | None]) -> None:
    """One after another; a preparation replaces a corpus. What was pretrained is the same bit for bit.

    Nine of them, spread evenly; all, for an hour, with EVERY_POINT=1.
    """
    assert call(command, flags) == 0, (place / "log").read_text()
    count, results = len((place / "points").read_text().splitlines()), []
    assert count > 20
    expected = pretrained(place) if command == "pretrain" else None
    apart = 1 if os.environ.get("EVERY_POINT") else count // 9
    for number in range(1 + apart // 2, count + 1, apart):
        if command != "prepare":
            shutil.rmtree(place / "made", ignore_errors=True)
        code = call(command, flags, At(number))
        died(code, place)
        where = (place / "points").read_text().splitlines()[-1]
        if (again := call(command, flags)) != 0:
            results.append(f"{number} {where}: {again} {(place / 'log').read_text().splitlines()[-1]}")
            for path in place.glob("made*"):
                shutil.rmtree(path)
            continue
        survives(0, place)
        if expected:
            assert pretrained(place) == expected, where
    assert not results, "\n".join(results)
