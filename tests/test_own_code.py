"""Code that the user names on the command line, as file.py:function or module:function."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tsdae.utils.imports import file_of, named_function

CODE = """from __future__ import annotations
from dataclasses import dataclass
from beside_it import two

@dataclass
class Settings:
    weight: float = 1.0

def weight(model=None, batch=None):
    return two() * Settings().weight
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(CODE)
    Path("beside_it.py").write_text("def two():\n    return 2\n")
    monkeypatch.delitem(sys.modules, "beside_it", raising=False)


@pytest.mark.parametrize("name", ["mine.py:weight", "mine:weight", "./mine.py:weight"])
def test_a_file_may_hold_dataclasses_and_import_what_lies_beside_it(name: str) -> None:
    sys.modules.pop("mine", None)
    try:
        result = named_function(name, "objective")()
    except ValueError as error:
        result = str(error)
    assert result == 2.0
    assert file_of(name) == Path("mine.py")


def test_an_edited_file_is_read_anew_and_a_broken_one_leaves_nothing() -> None:
    assert named_function("mine.py:weight", "objective")() == 2.0
    before = set(sys.modules)
    Path("mine.py").write_text(CODE.replace("= 1.0", "= 3.0"))
    later = Path("mine.py").stat().st_mtime_ns + 10**9
    os.utime("mine.py", ns=(later, later))  # the clock of some file systems is coarse
    assert named_function("mine.py:weight", "objective")() == 6.0
    Path("broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match=r"broken.py cannot be imported: No module named 'nothing_of_that_name'"):
        named_function("broken.py:weight", "objective")
    assert set(sys.modules) == before
