"""Plants named one-line bugs, one at a time, and shows that the tests notice each.

    python tests/mutants.py [--list] [--jobs N] [NAME ...]

Each mutant is planted in a copy of the project, and the tests named with it are run there. It counts as killed only
if those tests pass without it, its pattern stands exactly once in its file, the mutated package imports, and at least
one test fails on an assertion. Prints `killed NAME by TEST` or `survived NAME` for each, and last the two counts;
exits with 0 only if none survived. See `mutant_list` for the bugs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.mutant_list import MUTANTS, Mutant  # noqa: E402  # the root has to be on the path first

COPIED = ("tsdae", "tests", "scripts", "pyproject.toml", "README.md")
# What a failed assertion looks like to pytest; everything else (an import that fails, say) is no proof.
ASSERTIONS = ("AssertionError", "Failed: DID NOT RAISE", "assert ")


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants one-line bugs and shows that the tests notice each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to plant; default: all")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
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
    selections = sorted({mutant.tests for mutant in chosen})
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for tests, failures in zip(selections, pool.map(lambda tests: run(None, tests), selections), strict=True):
            if failures is None or failures:
                print(f"without any mutant, pytest {tests} does not pass: {failures}")
                return 2
        killed = 0
        for mutant, failures in zip(chosen, pool.map(lambda m: run(m, m.tests), chosen), strict=True):
            if failures:
                killed += 1
                print(f"killed {mutant.name} by {failures[0]}", flush=True)
            else:
                why = " (the package does not import, or pytest stopped)" if failures is None else ""
                print(f"survived {mutant.name}{why}", flush=True)
    print(f"mutants: {killed} killed, {len(chosen) - killed} survived")
    return 0 if killed == len(chosen) else 1


def run(mutant: Mutant | None, tests: str) -> list[str] | None:
    """Names of the tests that fail on an assertion; None if the package does not import or pytest itself stops."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        if mutant is not None:
            path = copy / mutant.file
            path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        if mutant is None:
            check = f"import tsdae.recipe as r, sys; sys.exit(not r.__file__.startswith({folder!r}))"
            if subprocess.run([sys.executable, "-c", check], cwd=copy, env=environment, check=False).returncode:
                return None
        for stop_after in (1, 20):  # the first failure is an assertion as a rule; if not, a later one may be
            report = copy / "report.xml"
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--maxfail={stop_after}"]
            command += [f"--junitxml={report}", *tests.split()]
            done = subprocess.run(command, cwd=copy, env=environment, check=False, capture_output=True)
            if done.returncode not in (0, 1):  # an import or collection error: no proof
                return None
            failures = assertions(report)
            if failures or done.returncode == 0:
                return failures
        return None


def assertions(report: Path) -> list[str]:
    """The tests of a JUnit report that failed on an assertion."""
    return [
        f"{case.get('classname')}::{case.get('name')}".replace("tests.", "", 1)
        for case in ElementTree.parse(report).iter("testcase")
        for failure in case.iter("failure")
        if any(mark in (failure.get("message") or "") for mark in ASSERTIONS)
    ]


if __name__ == "__main__":
    sys.exit(main())
