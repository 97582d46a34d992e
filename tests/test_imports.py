"""The order of the package, from its source: imports run downwards, and the method can be read alone.

Counted are imports at the top of a file, also those for types; not those inside functions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOWER = ("text", "hub", "ops", "evaluation", "utils", "objectives")  # folders that know nothing of runs and commands
HIGHER = ("tsdae.training", "tsdae.commands", "tsdae.ablation")


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((root / "tsdae").rglob("*.py")):
        found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def at_the_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from at_the_top(getattr(statement, part, []))


def arrows(root: Path) -> dict[str, set[str]]:
    """Which modules of the package each of them imports."""
    files = modules(root)
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for statement in at_the_top(ast.parse(path.read_text(encoding="utf-8")).body):
            if isinstance(statement, ast.Import):
                found[name] |= {alias.name for alias in statement.names} & files.keys()
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                named = {f"{statement.module}.{alias.name}" for alias in statement.names}
                found[name] |= (named & files.keys()) or ({statement.module} & files.keys())
            assert not (isinstance(statement, ast.ImportFrom) and statement.level), f"{name}: write imports in full"
        found[name].discard(name)
    return found


def paths(graph: dict[str, set[str]], start: str) -> dict[str, list[str]]:
    """For each module that ``start`` reaches, one way to it."""
    ways, waiting = {start: [start]}, [start]
    while waiting:
        name = waiting.pop(0)
        for imported in sorted(graph[name] - ways.keys()):
            ways[imported] = [*ways[name], imported]
            waiting.append(imported)
    return ways


def wrong(root: Path) -> list[str]:
    """Every arrow that breaks the order, by name."""
    graph, files = arrows(root), modules(root)
    upwards = [
        f"{name} imports {imported}"
        for name in graph
        for imported in sorted(graph[name])
        if name.split(".")[1:2] and name.split(".")[1] in LOWER and imported.startswith(HIGHER)
    ]
    circles = [
        f"{name} imports {imported}, which imports it again: {' -> '.join(paths(graph, imported)[name])}"
        for name in graph
        for imported in sorted(graph[name])
        if name in paths(graph, imported) and files[name].name != "__init__.py" != files[imported].name
    ]
    return upwards + circles


def test_imports_run_downwards_without_a_circle() -> None:
    assert len(modules(ROOT)) > 40
    assert wrong(ROOT) == []


@pytest.mark.parametrize(
    ("module", "files", "lines"), [("tsdae.autoencoder", 14, 2600), ("tsdae.objectives", 22, 3300)]
)
def test_the_method_can_be_read_alone(module: str, files: int, lines: int) -> None:
    """A file too many: the ways to those that are not the method's own say which import brings it."""
    ways = paths(arrows(ROOT), module)
    length = sum(len(modules(ROOT)[name].read_text(encoding="utf-8").splitlines()) for name in ways)
    listed = "\n".join(" -> ".join(way) for way in ways.values())
    assert len(ways) <= files, f"{module} needs {len(ways)} files, of {files}:\n{listed}"
    assert length <= lines, f"{module} needs {length} lines, of {lines}:\n{listed}"


def test_preparing_a_text_does_not_need_the_training_loop() -> None:
    assert "tsdae.training" not in paths(arrows(ROOT), "tsdae.text.preparation")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("utils/files.py", "from tsdae.training import train", "tsdae.utils.files imports tsdae.training"),
        ("text/corpus.py", "import tsdae.commands.train", "tsdae.text.corpus imports tsdae.commands.train"),
        (
            "packing.py",
            "if TYPE_CHECKING:\n    from tsdae.encoder import SentenceEncoder",
            "tsdae.packing imports tsdae.encoder, which imports it again: tsdae.encoder -> tsdae.packing",
        ),
    ],
)
def test_a_wrong_arrow_is_named(file: str, line: str, message: str, tmp_path: Path) -> None:
    for path in modules(ROOT).values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (tmp_path / "tsdae" / file).open("a", encoding="utf-8") as changed:
        changed.write(f"\n{line}\n")
    assert message in wrong(tmp_path)
