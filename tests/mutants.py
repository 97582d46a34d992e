"""Plants named one-line bugs, one at a time, and shows that the tests notice each.

    python tests/mutants.py [--list] [--jobs N] [--minutes N] [--passed] [NAME ...]

Each mutant is planted in a copy of the project, and the tests named with it are run there. It counts as killed only
if those tests pass without it (they are run first; not with --passed, for tests that have just passed), its pattern
stands exactly once in its file, the mutated package imports, and at least one test fails on an assertion. Prints
`killed NAME by TEST` or `survived NAME` for each, with the seconds that it took, and last the two counts and the
names of what survived; exits with 0 only if nothing did. See `mutant_list` for the bugs.

Every copy is tested in a process forked from this one, which has imported PyTorch and all else that is not ours: that
takes longer than most of the tests. A mutant whose tests run for ever is ended, and has survived.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.mutant_list import MUTANTS, Mutant  # noqa: E402  # the root has to be on the path first

COPIED = ("tsdae", "tests", "scripts", "benchmarks", "pyproject.toml", "README.md")
# What a failed assertion looks like to pytest; everything else (an import that fails, say) is no proof.
ASSERTIONS = ("AssertionError", "Failed: DID NOT RAISE", "assert ")
NOT_OURS = ("torch", "transformers", "datasets", "scipy.stats", "pyarrow.parquet", "safetensors.torch", "hypothesis")
FAILURES_AT_MOST = 20  # the first is an assertion as a rule; if not, a later one may be
OUTCOME = "outcome.json"  # what a forked process leaves in its copy


class Outcome(NamedTuple):
    """killers: the tests that failed on an assertion. trouble: why there is no verdict, or none that counts."""

    killers: list[str]
    trouble: str | None
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants one-line bugs and shows that the tests notice each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to plant; default: all")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which the tests of a mutant are ended")
    parser.add_argument("--passed", action="store_true", help="do not run the tests without a bug first")
    arguments = parser.parse_args()
    if arguments.list:
        for mutant in MUTANTS:
            print(f"{mutant.name}: {mutant.file}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}")
        return 0
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}; --list prints them")
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]

    for mutant in chosen:
        found = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if found != 1:
            print(
                f"mutant {mutant.name}: its pattern {mutant.old!r} stands {found} times in {mutant.file}, not once; "
                "mend the pattern in tests/mutant_list.py"
            )
            return 2
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is imported
    for name in ("CI", "BUILD_NUMBER"):  # with one of them pytest writes whole differences, and long ones take minutes
        os.environ.pop(name, None)
    for name in NOT_OURS:
        importlib.import_module(name)
    alone = set() if arguments.passed else {mutant.tests for mutant in chosen}
    unmutated: list[Task] = [(None, tests) for tests in sorted(alone)]
    for (_, tests), outcome in outcomes(unmutated, arguments.jobs, 60 * arguments.minutes):
        if outcome.killers or outcome.trouble:
            print(f"without any mutant, pytest {tests} does not pass: {outcome.trouble or outcome.killers}")
            return 2
    survivors: list[str] = []
    mutated: list[Task] = [(mutant, mutant.tests) for mutant in chosen]
    for (planted, _), outcome in outcomes(mutated, arguments.jobs, 60 * arguments.minutes):
        name = planted.name if planted else ""
        if not outcome.killers:
            survivors.append(name)
        verdict = f"killed {name} by {outcome.killers[0]}" if outcome.killers else f"survived {name}"
        trouble = f": {outcome.trouble}" if outcome.trouble and not outcome.killers else ""
        print(f"{verdict}{trouble} ({outcome.seconds:.0f} s)", flush=True)
    print(f"mutants: {len(chosen) - len(survivors)} killed, {len(survivors)} survived", *survivors)
    return 1 if survivors else 0


Task = tuple[Mutant | None, str]  # what is planted, and the arguments for pytest


def outcomes(tasks: list[Task], jobs: int, seconds: float) -> Iterator[tuple[Task, Outcome]]:
    """Each task as it ends, so many at a time."""
    waiting = tasks[::-1]
    running: dict[int, tuple[Task, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, folder = waiting.pop(), Path(tempfile.mkdtemp())
                process = os.fork()  # safe: nothing here has started a thread
                if process == 0:
                    in_copy(folder, *task)
                running[process] = (task, folder, time.monotonic())
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                for number, (_, _, since) in running.items():
                    if time.monotonic() > since + seconds:
                        end(number)
                time.sleep(0.05)
                continue
            task, folder, since = running.pop(process)
            took = time.monotonic() - since
            report = folder / OUTCOME
            if report.is_file():
                outcome = Outcome(**json.loads(report.read_text()), seconds=took)
            else:
                why = f"was ended after {took:.0f} s" if os.WIFSIGNALED(status) else "ended before its tests had"
                outcome = Outcome([], f"its process {why}", took)
            shutil.rmtree(folder)
            yield task, outcome
    finally:
        for process, (_, folder, _) in running.items():
            end(process)
            shutil.rmtree(folder, ignore_errors=True)


def end(process: int) -> None:
    """With all that its tests have started: it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def in_copy(folder: Path, mutant: Mutant | None, tests: str) -> NoReturn:
    """In a forked process: plants the mutant in a copy, runs pytest there, and leaves the outcome."""
    try:
        os.setsid()
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, folder / name)
        if mutant is not None:
            path = folder / mutant.file
            path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        # From here on this process, and all that it starts, knows the copy and nothing of the project beside it.
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path[:] = [str(folder), *(place for place in sys.path if Path(place).resolve() != ROOT)]
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "tsdae")]:
            del sys.modules[name]
        sys.modules["__main__"] = types.ModuleType("__main__")  # else a process that a test spawns runs this file
        (folder / OUTCOME).write_text(json.dumps(verdict_of(folder, tests)))
    except BaseException as error:
        (folder / OUTCOME).write_text(json.dumps({"killers": [], "trouble": repr(error)}))
    finally:
        os._exit(0)


def verdict_of(folder: Path, tests: str) -> dict[str, object]:
    try:
        recipe = importlib.import_module("tsdae.commands.train")
    except Exception as error:
        return {"killers": [], "trouble": f"the package does not import: {error!r}"}
    if not str(recipe.__file__).startswith(str(folder)):
        return {"killers": [], "trouble": f"{recipe.__file__} is not the copy"}
    noticed = Noticed()
    options = ["-p", "no:cacheprovider", f"--maxfail={FAILURES_AT_MOST}"]
    # Plugins that were imported, and iterators that were opened, before the fork.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
    code = pytest.main([*options, *tests.split()], [noticed])
    trouble = None
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # a collection error, say
        trouble = f"pytest ended with {code!r}"
    elif code == pytest.ExitCode.TESTS_FAILED and not noticed.killers:
        trouble = "tests failed, none of them on an assertion"
    return {"killers": [] if trouble else noticed.killers, "trouble": trouble}


class Noticed:
    """A plugin of pytest: ends it at the first test that fails on an assertion."""

    def __init__(self) -> None:
        self.killers: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        message = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
        if report.when == "call" and report.failed and any(mark in message for mark in ASSERTIONS):
            self.killers.append(item.nodeid.removeprefix("tests/").replace(".py::", "::"))
            item.session.shouldfail = "a test has noticed"
        return report


if __name__ == "__main__":
    sys.exit(main())
