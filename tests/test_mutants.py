"""The list of planted bugs fits the code: `tests/mutants.py` plants none if one of them cannot be planted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.mutant_list import MUTANTS

ROOT = Path(__file__).parents[1]


def test_every_pattern_stands_once_in_its_file() -> None:
    found = {mutant.name: (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in found.items() if count != 1} == {}
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new] == []
