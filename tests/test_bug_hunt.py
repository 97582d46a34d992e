"""The bug hunt: each bug is one line and shows, its answer is accepted and no other."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import bug_hunt
from bug_hunt import BUGS, SOURCE, Symptoms
from tests import tiny
from tests.mutant_list import MUTANTS
from tests.scripts import Run
from tsdae.evaluation.pairs import Pairs

LEVELS = range(1, 11)


def planted(level: int) -> str:
    return SOURCE.read_text(encoding="utf-8").replace(BUGS[level - 1].right, BUGS[level - 1].wrong)


def lines_that_differ(level: int) -> list[int]:
    right, wrong = SOURCE.read_text(encoding="utf-8").splitlines(), planted(level).splitlines()
    return [number for number, pair in enumerate(zip(right, wrong, strict=True), start=1) if pair[0] != pair[1]]


def test_each_bug_is_one_line_of_the_one_file_and_one_of_the_tests() -> None:
    assert len(BUGS) == len(LEVELS) == len({bug.mutant for bug in BUGS})
    source = SOURCE.read_text(encoding="utf-8")
    for level, bug in enumerate(BUGS, start=1):
        assert source.count(bug.right) == 1, bug.mutant
        assert planted(level).count(bug.wrong) == 1, bug.mutant
        assert len(lines_that_differ(level)) == 1, bug.mutant
        compile(planted(level), bug.mutant, "exec")
        assert bug.right not in bug.hint
    assert {bug.mutant for bug in BUGS} - {mutant.name for mutant in MUTANTS} == set()


@pytest.mark.parametrize("level", LEVELS)
def test_the_right_line_is_accepted_and_no_other(
    level: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = lines_that_differ(level)
    for name in (f"bug_hunt/level_{level}.py", f"level_{level}.py", "scripts/tsdae_in_one_file.py"):
        accepted = run("bug_hunt", f"--level {level} --answer {name}:{line}")
        assert (accepted.code, accepted.err) == (0, "")
        assert accepted.out.startswith(f"Yes. Right is: {BUGS[level - 1].right}\n")
        assert accepted.out.endswith(f"python tests/mutants.py {BUGS[level - 1].mutant}\n")
    for other in (line - 1, line + 1, 1):
        refused = run("bug_hunt", f"--level {level} --answer level_{level}.py:{other}")
        assert (refused.code, refused.out) == (1, f"No, level_{level}.py:{other} is not it.\n")
    hint = run("bug_hunt", f"--level {level} --hint")
    assert (hint.code, hint.out) == (0, BUGS[level - 1].hint + "\n")


def test_lines_are_counted_in_the_copy_as_it_is(run: Run, tmp_path: Path) -> None:
    (line,) = lines_that_differ(1)
    copy = tmp_path / "level_1.py"
    asked = f"--level 1 --output {tmp_path} --answer level_1.py:"
    copy.write_text("# mine\n" + planted(1))
    assert [run("bug_hunt", f"{asked}{line + more}").code for more in (0, 1)] == [1, 0]
    copy.write_text(SOURCE.read_text())  # mended
    assert [run("bug_hunt", f"{asked}{line + more}").code for more in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --level"),
        ("--level 11", "invalid choice: 11"),
        ("--level 1 --answer 52", "--answer is '52'; give bug_hunt/level_1.py:LINE"),
        ("--level 1 --answer bug_hunt/level_2.py:52", "give bug_hunt/level_1.py:LINE"),
        ("--level 1 --answer level_1.py:x", "give bug_hunt/level_1.py:LINE"),
        ("--level 1 --hnt", "did you mean --hint?"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: str, message: str, run: Run) -> None:
    result = run("bug_hunt", arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


# ---------------------------------------------------------------------------------------------------------------
# What shows


def observed(file: Path) -> Symptoms:
    """Eight sentences, so that an epoch is two steps, and all pairs of them."""
    first, second = zip(*itertools.combinations(tiny.SENTENCES, 2), strict=True)
    pairs = Pairs(list(first), list(second), np.arange(len(first)))
    return bug_hunt.observe(file, tiny.SENTENCES, pairs, steps=6, batch_size=4)


@pytest.fixture(scope="module")
def right() -> Symptoms:
    return observed(SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_each_bug_shows_as_its_hint_says(level: int, right: Symptoms, tmp_path: Path) -> None:
    copy = tmp_path / f"level_{level}.py"
    copy.write_text(planted(level))
    wrong = observed(copy)
    same = next((step for step in range(6) if right.losses[step] != wrong.losses[step]), 6)  # steps until one differs
    name = BUGS[level - 1].mutant
    assert same == {"evaluation-in-train-mode": 6, "gradients-pile-up": 2, "same-noise-each-epoch": 2}.get(name, 0)
    assert (wrong.noisy != right.noisy) == (name == "keep-for-delete")
    of_encoder = {
        "qkv-in-the-wrong-order",
        "evaluation-in-train-mode",
        "cls-from-the-last-row",
        "attention-to-the-padding",
    }
    assert (wrong.before != right.before) == (name in of_encoder)
    if name in ("decoder-sees-the-source", "causal-mask-lost"):
        assert wrong.losses[-1] < right.losses[-1]
    text = bug_hunt.sheet(right, wrong)
    assert right.noisy in text
    assert f"{right.after:7.2f}     {wrong.after:7.2f}" in text


@pytest.mark.slow
@pytest.mark.real
def test_a_level_as_a_script(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("bug_hunt", "--level 4")
    assert result.code == 0
    assert Path("bug_hunt/level_4.py").read_text() == planted(4)
    losses = re.findall(r"^ +[\d-]+ +(\d+\.\d{3}) +(\d+\.\d{3})   #", result.out, re.M)
    assert len(losses) == 14
    assert all(own == other for own, other in losses)
    Path("bug_hunt/level_4.py").write_text(SOURCE.read_text())
    mended = run("bug_hunt", "--level 4").out
    assert "is there already and stays as it is" in mended
    scores = re.findall(r"^(?:before training|after) +(\S+) +(\S+)$", mended, re.M)
    assert len(scores) == 2
    assert all(own == other for own, other in scores)
