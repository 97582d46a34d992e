"""From texts to sentences that are worth training on: split, stripped, and filtered by length and by share of letters.

Knows strings only; where they come from is the business of `sources`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tsdae.utils.imports import named_function

ARTICLE_SPLIT = re.compile(r"\.\s?\n?")  # how the article splits web documents into sentences
LONGER_THAN = 10  # the article keeps split sentences of more than 10 characters
SPLITS = ("lines", "regex", "icu")

Splitter = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Cleaning:
    """What becomes of a text.

    sentences: "lines" (a text is a sentence), "regex" (the article's ``\\.\\s?\\n?``), "icu" (Unicode's rules for every
        script, UAX #29) or "icu:LANGUAGE" (which ends no sentence at that language's abbreviations; both need the extra
        ``[sentences]``), or module:function, a function ``str -> list[str]``.
    min_characters, max_characters: shorter and longer sentences are left out, counted without white space around them;
        0: blank ones stay too; None: 11 with "regex" (the article's filter), else 1.
    min_letters: share of letters, with their accents and vowel signs, among the characters that are no spaces, in
        [0, 1]; sentences with fewer are left out (tables, code, rows of figures).
    ValueError if something is none of this.
    """

    sentences: str = "lines"
    min_characters: int | None = None
    max_characters: int | None = None
    min_letters: float = 0.0

    def __post_init__(self) -> None:
        splitter_of(self.sentences)
        if self.max_characters is not None and self.max_characters < max(1, self.shortest):
            raise ValueError(
                f"--max-characters {self.max_characters} leaves nothing beside --min-characters {self.shortest}"
            )
        if not 0.0 <= self.min_letters <= 1.0:
            raise ValueError(
                f"--min-letters must lie in [0, 1], got {self.min_letters}: 0.5 keeps what is half letters"
            )

    @property
    def shortest(self) -> int:
        """Return the length from which on a sentence is kept, in characters."""
        if self.min_characters is None:
            return LONGER_THAN + 1 if self.sentences == "regex" else 1
        return self.min_characters

    def __call__(self, texts: Sequence[str]) -> tuple[list[str], Counter[str]]:
        """The sentences of these texts, in order, and how many were left out for which reason."""
        split, shortest = splitter_of(self.sentences), self.shortest
        kept: list[str] = []
        dropped: Counter[str] = Counter()
        for text in texts:
            for part in (text,) if split is None else split(text):
                sentence = part.strip()
                if len(sentence) < shortest:
                    if sentence:
                        dropped[f"of fewer than {shortest} characters"] += 1
                    elif split is None or not text.strip():  # what follows a document's last stop is not a blank line
                        dropped["blank"] += 1
                elif self.max_characters is not None and len(sentence) > self.max_characters:
                    dropped[f"of more than {self.max_characters:,} characters"] += 1
                else:
                    kept.append(sentence)
        if self.min_letters > 0 and kept:
            enough_B = share_of_letters(kept) >= self.min_letters
            dropped[f"with less than {100 * self.min_letters:g} % letters"] += int((~enough_B).sum())
            kept = [sentence for sentence, enough in zip(kept, enough_B, strict=True) if enough]
        return kept, +dropped


def splitter_of(name: str) -> Splitter | None:
    """What cuts a text into sentences; None: nothing does. ValueError if there is no such splitter."""
    if name == "lines":
        return None
    if name == "regex":
        return ARTICLE_SPLIT.split
    if name.split(":")[0] == "icu":
        return _icu(name.partition(":")[2])
    if ":" in name:
        return functools.partial(_checked, named_function(name, "sentences"), name)
    raise ValueError(f"--sentences must be one of {', '.join(SPLITS)}, icu:LANGUAGE, or module:function, got {name!r}")


def _icu(language: str) -> Splitter:
    """The best of those compared in benchmarks/splitters.md; abbreviations make it 14 times as slow."""
    try:
        from icu4py.breakers import SentenceBreaker
    except ImportError as error:
        raise ValueError('--sentences icu needs a package: python -m pip install "icu4py>=1.2"') from error
    locale = f"{language}@ss=standard" if language else "root"
    return lambda text: list(SentenceBreaker(text, locale))


def _checked(split: Callable[[str], object], name: str, text: str) -> Sequence[str]:
    parts = split(text)
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"--sentences {name} must return a list of strings, it returned {parts!r:.200}")
    return parts


def share_of_letters(sentences: Sequence[str]) -> np.ndarray:
    """[B]: letters and the marks on them (Unicode's categories L and M) among what is no white space."""
    text = "".join(sentences)
    code_C = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    kind_C = _kinds_of_characters()[code_C]
    ends_B = np.cumsum([len(sentence) for sentence in sentences])
    letters_B, others_B = (
        np.diff(np.append(0, np.cumsum(kind_C == kind))[np.append(0, ends_B)]) for kind in (LETTER, OTHER)
    )
    return letters_B / np.maximum(1, letters_B + others_B)


SPACE, LETTER, OTHER = 0, 1, 2


@functools.cache
def _kinds_of_characters() -> np.ndarray:
    """uint8, by code point: looking each character up takes 60 times as long as one look into a table."""
    kinds = bytearray(0x110000)
    for code in range(len(kinds)):
        character = chr(code)
        letter = unicodedata.category(character)[0] in "LM"
        kinds[code] = LETTER if letter else SPACE if character.isspace() else OTHER
    return np.frombuffer(kinds, np.uint8)
