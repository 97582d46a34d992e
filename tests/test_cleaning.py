"""From texts to sentences: what is split, what is left out and why."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tsdae import load_sentences
from tsdae.text.cleaning import Cleaning, share_of_letters

TEXTS = ["A dog runs.", "  ", "12 345 67", "นั่งที่สวน", "a", "बैठता है", "| x | 1.5 | 2.5 |", "A dog runs."]


def test_each_filter_leaves_out_what_it_names_and_counts_it() -> None:
    kept, dropped = Cleaning(min_characters=2, max_characters=10, min_letters=0.5)(TEXTS)
    assert kept == ["นั่งที่สวน", "बैठता है"]
    assert dropped == {
        "blank": 1,
        "of fewer than 2 characters": 1,
        "of more than 10 characters": 3,
        "with less than 50 % letters": 1,
    }
    assert Cleaning()(TEXTS) == ([text for text in TEXTS if text.strip()], Counter(blank=1))
    assert Cleaning(min_characters=0)(TEXTS)[0] == [text.strip() for text in TEXTS]
    assert Cleaning()([]) == ([], Counter())


def test_letters_are_those_of_every_script_and_their_marks() -> None:
    """A loop over characters; vowel signs of Thai and Hindi are no letters to `str.isalpha`."""
    draw = random.Random(0)
    pieces = [*TEXTS, "e\u0301 \u00e9", "犬 🐕", "\u2028x", "_", "\U0001e922", ""]
    sentences = ["".join(draw.choices(pieces, k=draw.randrange(4))) for _ in range(60)]
    shares = []
    for sentence in sentences:
        others = [character for character in sentence if not character.isspace()]
        letters = [character for character in others if unicodedata.category(character)[0] in "LM"]
        shares.append(len(letters) / len(others) if others else 0.0)
    assert list(map(share_of_letters, sentences)) == shares
    assert share_of_letters("นั่งที่สวน") == 1.0
    assert sum(map(str.isalpha, "นั่งที่สวน")) < 10, "the premise"
    assert 0.0 in shares
    assert 1.0 in shares
    assert len(set(shares)) > 10


def test_a_splitter_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.py").write_text("def at_bars(text):\n    return text.split('|')\n\n\ndef badly(text):\n    return text\n")
    Path("a.txt").write_text("one | two two two\nthree three three |\n")
    assert load_sentences("a.txt", sentences="cut.py:at_bars") == ["one", "two two two", "three three three"]
    with pytest.raises(ValueError, match=r"cut.py:badly must return a list of strings, it returned 'one \|"):
        load_sentences("a.txt", sentences="cut.py:badly")


def test_unicodes_rules_split_documents_of_every_script() -> None:
    texts = ["Mr. Smith came. He left!", "犬が走る。猫も走る。", "कुत्ता दौड़ता है। बिल्ली भी।"]
    others = ["犬が走る。", "猫も走る。", "कुत्ता दौड़ता है।", "बिल्ली भी।"]
    assert Cleaning("icu")(texts) == (["Mr.", "Smith came.", "He left!", *others], Counter())
    assert Cleaning("icu:en")(texts)[0] == ["Mr. Smith came.", "He left!", *others]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    with pytest.raises(ValueError, match="needs a package: python -m pip install"):
        Cleaning("icu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sentences": "words"}, "must be one of lines, regex, icu, icu:LANGUAGE, or module:function, got 'words'"),
        ({"sentences": "nowhere:cut"}, "nowhere cannot be imported"),
        ({"max_characters": 0}, "--max-characters 0 is below --min-characters 1"),
        ({"max_characters": 4, "min_characters": 5}, "--max-characters 4 is below --min-characters 5"),
        ({"min_letters": 50.0}, r"--min-letters must be in \[0, 1\], got 50"),
        ({"min_letters": float("nan")}, "--min-letters must be in"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cleaning(**settings)
