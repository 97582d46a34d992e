"""Every public class and function has an example in its docstring, and it runs as it stands there."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch

import tsdae
from tests.test_evaluation import layout
from tsdae.evaluation.scores import Scores
from tsdae.packing import Layout, Packed
from tsdae.text.corpus import Corpus

PUBLIC: dict[str, Any] = {name: getattr(tsdae, name) for name in tsdae.__all__}
PUBLIC |= {"Packed": Packed, "Layout": Layout, "Corpus": Corpus, "Scores": Scores}


def examples(name: str) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=False)
    return [found for found in finder.find(PUBLIC[name], name, globs={"torch": torch, **PUBLIC}) if found.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs(name: str, place: Path) -> None:
    """In a folder with a text and STS-B."""
    (place / "stsb").mkdir()
    layout(place / "stsb", "original")
    (example,) = examples(name)
    printed: list[str] = []
    assert doctest.DocTestRunner().run(example, out=printed.append).failed == 0, "".join(printed)
