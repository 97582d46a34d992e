"""Import functions that the user names on the command line: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMING = ("noise", "objective", "evaluate", "words", "sentences")  # settings that may name a function


# What each is called with. A class, or an object's method `build`, makes a noise or an objective from what is below.
ARGUMENTS = {
    "noise": ("tokens", "word_T", "draw", "ratio", "vocabulary"),
    "objective": ("model", "batch"),
    "evaluate": ("encoder",),
    "words": ("text",),
    "sentences": ("text",),
}
MADE_FROM = {"noise": "dataset", "objective": "model"}


def names_function(name: str) -> bool:
    """True for module:function, unless a file has that name."""
    return ":" in name and not Path(name).exists()


def named_function(name: str, role: str) -> Callable[..., Any]:
    """Import and return the function that ``name`` spells; the current folder is searched first.

    name: ``package.module:function``, or ``path/to/file.py:function``.
    role: what it is for ("noise", "objective", ...), for the error.
    Runs the module's own code, so call it only with what the user wrote.
    """
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise ValueError(f"{role} {name!r} must have the form module:function or file.py:function")
    try:
        _search_here()
        if module_name.endswith(".py"):
            path = Path(module_name)
            if not path.is_file():
                raise OSError(f"no file {path}")
            module = _module_from_file(path.resolve(), path.stat().st_mtime_ns)
        else:
            module = importlib.import_module(module_name)
    except (ImportError, OSError, SyntaxError) as error:
        raise ValueError(f"{role} {name!r}: {module_name} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function) and not hasattr(function, "build"):
        raise ValueError(f"{role} {name!r}: {module_name} has no function {function_name}")
    check_arguments(function, role, f"{role} {name!r}")
    return function  # what it does with its arguments is the user's promise


def check_arguments(function: Any, role: str, what: str) -> None:
    """Raise ValueError if a function, or a class that makes one, cannot be called as its role wants it."""
    made_from = MADE_FROM.get(role)
    if isinstance(function, type) and made_from is None:
        raise ValueError(
            f"{what} is a class; name a function ({', '.join(ARGUMENTS[role])}), or an object of the class"
        )
    if not callable(function) and not hasattr(function, "build"):
        raise ValueError(f"{what} is {function!r}, which cannot be called with ({', '.join(ARGUMENTS[role])})")
    names = ARGUMENTS[role] if callable(function) and not isinstance(function, type) else (str(made_from),)
    called = function if callable(function) else function.build
    try:
        inspect.signature(called).bind(*names)
    except TypeError as error:
        is_class = " is a class, which" if isinstance(function, type) else ""
        raise ValueError(f"{what}{is_class} must take ({', '.join(names)}): {error}") from error
    except ValueError:  # some of those written in C do not tell
        pass


def made_from(function: Any, source: Any, role: str) -> Any:
    """Return the function itself, or what a class, or the method ``build`` of an object, makes from ``source``."""
    if isinstance(function, type):
        check_arguments(function, role, f"{role} {function.__name__}")
        return function(source)
    return function.build(source) if hasattr(function, "build") else function


def file_of(name: str) -> Path | None:
    """Return the file of file.py:function or module:function; None for a built-in name or module."""
    module = name.rpartition(":")[0]
    if not module or module.endswith(".py"):
        return Path(module) if module else None
    here = _search_here()
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    return path.relative_to(here) if path.is_relative_to(here) else path


def _search_here() -> str:
    """Return the current folder, and search it first from now on."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return here


@functools.cache
def _module_from_file(path: Path, modified_ns: int) -> Any:
    """Return the module of a file; it is run once, and again after an edit."""
    spec = importlib.util.spec_from_file_location(f"{path.stem} of {path.parent}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
