"""The command line before anything runs: commands, flags and their groups, mistyped words, and what is imported."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

import tsdae
from tests.scripts import SCRIPTS, Run
from tsdae.commands.main import COMMANDS, main
from tsdae.commands.parser import Parser
from tsdae.config import AblationConfig, DataConfig, EvaluationConfig, MethodConfig, OutputConfig, TrainConfig, flag
from tsdae.utils.checks import did_you_mean

ROOT = SCRIPTS.parent
HEAVY = "torch transformers datasets numpy scipy"  # packages that take seconds
NOT_IMPORTED = f"""
import contextlib, io, sys, tsdae
from tsdae.commands.main import COMMANDS, main
for arguments in [["--help"], ["trian"], ["train", "--lr", "1"], *([name, "--help"] for name in COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(arguments)
print(*sorted({{*"{HEAVY}".split()}} & sys.modules.keys()))
"""


def test_help_and_typos_are_answered_before_anything_heavy_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", NOT_IMPORTED], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "\n"


def test_tsdae_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        main(arguments)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        assert [line.split()[0] for line in lines] == list(COMMANDS)
        assert all(len(line.split()) > 5 for line in lines), "each has a line of help"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_its_script(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(name, "--help")
    assert (shown.code, shown.err) == (0, "")
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == shown.out
    assert shown.out.startswith(f"usage: tsdae {name} [flags]")


def test_each_script_of_a_command_is_there() -> None:
    callers = [path.stem for path in SCRIPTS.glob("*.py") if "tsdae.commands.main" in path.read_text(encoding="utf-8")]
    assert sorted(callers) == sorted(COMMANDS)


def test_the_installed_command_is_main() -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["tsdae"]
    module, _, name = entry.partition(":")
    assert getattr(import_module(module), name) is main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "unknown command trian; did you mean train?"),
        ("zzz", "unknown command zzz; choose from train, prepare,"),
        ("train --lr 3e-5", "unknown argument --lr; did you mean --learning-rate?"),
        ("train --bs 8", "unknown argument --bs; did you mean --batch-size?"),
        ("train --learning 1", "unknown argument --learning; did you mean --learning-rate?"),
        ("train --early_stopp x", "unknown argument --early_stopp; did you mean --early-stop?"),
        ("train --stops=3", "unknown argument --stops; did you mean --steps?"),
        ("train --bsize 8", "unknown argument --bsize; did you mean --batch-size?"),
        ("train -lr 3e-5", "unknown argument -lr; did you mean --learning-rate?"),
        ("train --zzz", "unknown argument --zzz; see --help"),
        ("encode model --inptu a.txt", "unknown argument --inptu; did you mean --input?"),
    ],
)
def test_mistyped_words_get_a_question(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert message in shown.err


def test_odd_names_get_no_question() -> None:
    """A user's metric may be called anything."""
    assert did_you_mean("", ["delete"]) is None
    assert did_you_mean("x", ["a-", "--", ""]) is None
    assert did_you_mean("ab", ["alpha--beta"]) == "did you mean alpha--beta?"


def test_flags_are_grouped_by_the_class_that_defines_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    sections = {section.split(":\n")[0]: section for section in capsys.readouterr().out.split("\n\n")}
    for config in (DataConfig, MethodConfig, TrainConfig, OutputConfig, EvaluationConfig):
        section = sections[(config.__doc__ or "").partition(".")[0]]
        flags = [line.split()[0] for line in section.splitlines() if line.startswith("  --")]
        own = [name.replace("_", "-") for name in vars(config)["__annotations__"]]
        assert [name for name in flags if not name.startswith("--no-")] == [f"--{name}" for name in own]


def test_every_setting_has_a_help_text() -> None:
    for config in (AblationConfig, DataConfig, MethodConfig, TrainConfig):
        assert all(setting.metadata["help"] for setting in dataclasses.fields(config))


@dataclass(frozen=True)
class Settings:
    """Settings."""

    share: bool = flag(True, "share it (paper: yes)")
    quiet: bool = flag(False, "say less")
    kind: Literal["a", "b"] = flag("a", "which (paper: a)")
    rate: float = flag(0.0, "how fast")
    top_k: int | None = flag(None, "how many")
    names: list[str] | None = field(default=None, metadata={"help": "of whom"})


@pytest.mark.parametrize(
    ("arguments", "filled"),
    [
        ("", Settings()),
        ("--no-share --quiet --kind b", Settings(share=False, quiet=True, kind="b")),
        ("--share no --quiet TRUE", Settings(share=False, quiet=True)),
        ("--top_k 3 --rate=1e-2 --names x y", Settings(top_k=3, rate=0.01, names=["x", "y"])),
    ],
)
def test_a_class_is_filled_by_its_flags(arguments: str, filled: Settings) -> None:
    parser = Parser(Settings, description="")
    assert parser.configs(arguments.split()) == (filled,)
    given = {word.lstrip("-").split("=")[0].replace("-", "_") for word in arguments.split() if word.startswith("--")}
    assert parser.given == {name.removeprefix("no_") for name in given}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--quiet perhaps", "argument --quiet: 'perhaps' is neither true nor false; write a file"),
        ("--kind c", "argument --kind: invalid choice: 'c' (choose from"),
        ("--top-k x", "argument --top-k: invalid int value: 'x'"),
        ("--names", "argument --names: expected at least one argument"),
    ],
)
def test_wrong_values_name_their_flag(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(Settings, description="").configs(arguments.split())
    assert message in capsys.readouterr().err


def test_help_shows_defaults_and_how_to_turn_a_flag_off(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(Settings, description="")
    parser.add_argument("models", metavar="MODEL", nargs="+")
    with pytest.raises(SystemExit):
        parser.configs(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "[flags] MODEL ... ",
        "--no-share do not share it",
        "{a,b} which (paper: a; default: a)",
        "--rate X how fast (default: 0)",
        "--top-k N how many",
    ):
        assert text in shown


def test_public_names_load_when_they_are_used_and_checkers_see_the_same() -> None:
    tree = ast.parse(Path(str(tsdae.__file__)).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.names[0].name: node.module for node in checked.body if isinstance(node, ast.ImportFrom)}
    assert sorted(seen) == sorted(tsdae.__all__)
    for name, module in seen.items():
        assert getattr(tsdae, name) is getattr(import_module(str(module)), name)
        assert name in dir(tsdae)
    assert tsdae.packing is import_module("tsdae.packing")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(tsdae, "nothing")  # noqa: B009
