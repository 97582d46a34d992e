"""Split texts into sentences, strip them, and filter them by length and by share of letters."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex

from tsdae.utils.checks import check_range
from tsdae.utils.imports import named_function

ARTICLE_SPLIT = re.compile(r"\.\s?\n?")  # how the article splits web documents into sentences
LONGER_THAN = 10  # the article keeps split sentences of more than 10 characters
LETTERS = regex.compile(r"[\p{L}\p{M}]+")  # with accents and vowel signs, which `str.isalpha` denies
SPLITS = ("lines", "regex", "icu")

Splitter = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Cleaning:
    """Settings of splitting and filtering; call it with texts.

    sentences: "lines" (a text is a sentence), "regex" (the article's ``\\.\\s?\\n?``), "icu" (Unicode's rules for every
        script, UAX #29) or "icu:LANGUAGE" (which ends no sentence at that language's abbreviations; both need the extra
        ``[sentences]``), or module:function, a function ``str -> list[str]``.
    min_characters, max_characters: leave out shorter and longer sentences, counted without white space around them;
        0: keep blank ones too; None: 11 with "regex" (the article's filter), else 1.
    min_letters: leave out sentences with a smaller share of letters, in [0, 1] (tables, code, rows of numbers).
    ValueError for any other value.

        kept, left_out = Cleaning("regex", min_letters=0.5)(["A first sentence. 12 | 345 | 6789 |"])
        kept        # ["A first sentence"]
        left_out    # Counter({"with less than 50 % letters": 1})
    """

    sentences: str = "lines"
    min_characters: int | None = None
    max_characters: int | None = None
    min_letters: float = 0.0

    def __post_init__(self) -> None:
        splitter_of(self.sentences)
        if self.max_characters is not None and self.max_characters < max(1, self.shortest):
            raise ValueError(f"--max-characters {self.max_characters} is below --min-characters {self.shortest}")
        check_range("--min-letters", self.min_letters, "[0, 1]", "0.5 keeps what is half letters")

    @property
    def shortest(self) -> int:
        """Return the length from which on a sentence is kept, in characters."""
        if self.min_characters is None:
            return LONGER_THAN + 1 if self.sentences == "regex" else 1
        return self.min_characters

    def __call__(self, texts: Sequence[str]) -> tuple[list[str], Counter[str]]:
        """Return the sentences of these texts, in order, and how many were left out, by reason."""
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
                elif self.min_letters > 0 and share_of_letters(sentence) < self.min_letters:
                    dropped[f"with less than {100 * self.min_letters:g} % letters"] += 1
                else:
                    kept.append(sentence)
        return kept, dropped


def splitter_of(name: str) -> Splitter | None:
    """Return the function that splits a text; None for "lines". ValueError if there is no such splitter."""
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
    """Return the best splitter of benchmarks/splitters.md; with a language (abbreviations) it is 14 times as slow."""
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


def share_of_letters(sentence: str) -> float:
    """Return the share of letters and the marks on them among all characters but white space."""
    letters = sum(map(len, LETTERS.findall(sentence)))
    return letters / max(1, sum(map(len, sentence.split())))
