"""Find the word boundaries between the tokens of a text.

Noise deletes, masks and moves words, and a word is a group of whole tokens. A tokenizer has words of its own, but in
scripts without spaces they can be whole sentences, and then nothing is ever deleted. So a word is one of:

    auto             the tokenizer's own; in scripts written without spaces, grapheme clusters as well
    tokens           every token
    characters       grapheme clusters: what a reader takes for one character (Unicode's UAX #29)
    whitespace       text between white space
    module:function  parts returned by the user's segmenter, a function ``str -> list[str]``

Characters and tokens need not agree: a piece can span several characters, a byte can be a part of one. The unit is the
smallest group of whole tokens whose borders are also borders between units of characters: between two tokens there is a
border if some unit begins where the first has ended and the second has not begun. A word space that is written as a
mark (the tsheg, U+1361) may stand at the end of a piece, at the start of one, or be a piece: units begin on both of its
sides, and a token of nothing but such marks stays with the unit before it.

# B sentences, T packed tokens, C characters of several sentences laid end to end
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import regex

from tsdae.utils.imports import named_function
from tsdae.utils.plural import counted

AUTO = "auto"
CHOICES = (AUTO, "tokens", "characters", "whitespace")

# Unicode's blocks, with the places in them that are reserved for more of the script.
WITHOUT_SPACES = {
    "Han": ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF),
            (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    "Hiragana": ((0x3041, 0x309F), (0x1B000, 0x1B16F)),  # the second: old and small kana of both kinds
    "Katakana": ((0x30A0, 0x30FF), (0x31F0, 0x31FF), (0x32D0, 0x32FE), (0x3300, 0x3357), (0xFF66, 0xFF9F)),
    "Thai": ((0x0E01, 0x0E7F),),
    "Lao": ((0x0E80, 0x0EFF),),
    "Khmer": ((0x1780, 0x17FF), (0x19E0, 0x19FF)),
    "Myanmar": ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x116D0, 0x116FF)),
}  # fmt: skip
END_A_WORD = {
    "tsheg": ((0x0F0B, 0x0F0C),),  # between the syllables of Tibetan
    "Ethiopic word space": ((0x1361, 0x1361),),
    "zero-width space": ((0x200B, 0x200B),),
}
KINDS = [*WITHOUT_SPACES, *END_A_WORD]  # a character is of kind 0 (any other) or 1 + its place in this list
RANGES = sorted(
    (first, last, kind)
    for kind, ranges in enumerate([*WITHOUT_SPACES.values(), *END_A_WORD.values()], 1)
    for first, last in ranges
)
FIRSTS, LASTS, KIND_OF = (np.array(column) for column in zip(*RANGES, strict=True))
NOT_BY_SPACES = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last, _ in RANGES) + "]")
CLUSTER = regex.compile(r"\X")
SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()])
BETWEEN = "\0"  # sentences laid end to end: no white space, and no cluster goes across it

SLOW = "slow tokenizer "  # with the name of its class: a kind among those that were met
UNKNOWN_AT_MOST = 0.2  # of the tokens; more of them make a note


def writes_no_spaces(character: str) -> bool:
    """True if the character is of a script without spaces between words."""
    return 0 < _kinds(np.array([ord(character)]))[0] <= len(WITHOUT_SPACES)


class Words:
    """A definition of words.

    name: one of ``CHOICES``, or module:function, which is imported.
    met: number of sentences so far, by the kind of characters that "auto" splits further than the tokenizer, and by
        ``SLOW`` and the name of a slow tokenizer.
    """

    def __init__(self, name: str = AUTO) -> None:
        """Raise ValueError if there is no such definition."""
        self._segmenter = named_function(name, "words") if ":" in name else None
        if self._segmenter is None and name not in CHOICES:
            raise ValueError(
                f"words must be one of {', '.join(CHOICES)}, or module:function (a segmenter of your own), got {name!r}"
            )
        self.name = name
        self.met: Counter[str] = Counter()

    def cut(self, sentences: Sequence[str]) -> np.ndarray:
        """Return the numbers of the sentences in which units of characters count: for "auto" few or none."""
        if self.name != AUTO:
            return np.arange(len(sentences))
        # English costs next to nothing here: whether a string is ASCII is known without reading it.
        found_B = [not sentence.isascii() and NOT_BY_SPACES.search(sentence) is not None for sentence in sentences]
        return np.flatnonzero(found_B)

    def begin(self, sentences: Sequence[str], spans_T2: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Return bool [T], True if a unit begins between the token before and this one (undefined at a first token).

        spans_T2: first and end character of each token in its own sentence.
        lengths_B: tokens of each sentence.
        ValueError, with the sentence, if the user's segmenter does not return its parts.
        """
        firsts_B = np.fromiter(accumulate((len(sentence) + 1 for sentence in sentences), initial=0), np.int64)[:-1]
        borders_C, mark_C = self._borders(sentences, firsts_B)
        begins_before_C1, marks_before_C1 = (np.append(0, np.cumsum(flags_C)) for flags_C in (borders_C, mark_C))
        starts_T, ends_T = (spans_T2 + np.repeat(firsts_B, lengths_B)[:, None]).T
        # A border b with end <= b <= start, of which there is none if the two tokens share a character (start < end).
        between_T = begins_before_C1[starts_T[1:] + 1] > begins_before_C1[ends_T[:-1]]
        if self.name in (AUTO, "whitespace"):
            marks_T = marks_before_C1[ends_T] - marks_before_C1[starts_T]
            between_T &= ((marks_T == 0) | (marks_T < ends_T - starts_T))[1:]
        return np.append(False, between_T)

    def _borders(self, sentences: Sequence[str], firsts_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return two bool [C]: True where a unit begins, and True for marks that end a word.

        The first and the last character of a sentence are no borders.
        """
        text = BETWEEN.join([*sentences, ""])
        code_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        space_C = np.isin(code_C, SPACES)
        kind_C = _kinds(code_C)
        mark_C = kind_C > len(WITHOUT_SPACES)
        beside_mark_C = mark_C | _shifted(mark_C)
        if self.name == "tokens":
            borders_C = np.ones(len(text), dtype=bool)
        elif self.name == "whitespace":
            borders_C = (space_C & ~_shifted(space_C)) | beside_mark_C
        else:
            if self._segmenter is not None:
                borders_C = self._segmented(sentences, firsts_B, len(text))
            else:
                borders_C = _cluster_begins(text)
            if self.name == AUTO:
                spaceless_C = (kind_C > 0) & (kind_C <= len(WITHOUT_SPACES))
                borders_C &= spaceless_C | _shifted(spaceless_C) | beside_mark_C
                self._count(kind_C, firsts_B)
            _move_before_spaces(borders_C, space_C)
        borders_C[firsts_B] = False
        borders_C[np.append(firsts_B[1:], len(text)) - 1] = False
        return borders_C, mark_C

    def _segmented(self, sentences: Sequence[str], firsts_B: np.ndarray, size: int) -> np.ndarray:
        borders_C = np.zeros(size, dtype=bool)
        for sentence, first in zip(sentences, firsts_B.tolist(), strict=True):
            parts: Any = self._segmenter(sentence)  # type: ignore[misc]  # there is one where this is called
            if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
                raise ValueError(f"words {self.name} must return a list of strings, it returned {parts!r:.200}")
            if "".join(parts) != sentence:
                raise ValueError(
                    f"words {self.name}: joined, the parts must equal the sentence, white space included; "
                    f"for {sentence!r:.200} it returned {parts!r:.200}"
                )
            borders_C[first + np.cumsum([len(part) for part in parts[:-1]], dtype=np.int64)] = True
        return borders_C

    def _count(self, kind_C: np.ndarray, firsts_B: np.ndarray) -> None:
        for kind, name in enumerate(KINDS, 1):
            self.met[name] += int(np.logical_or.reduceat(kind_C == kind, firsts_B).sum())


def _kinds(code_C: np.ndarray) -> np.ndarray:
    range_C = np.searchsorted(FIRSTS, code_C, side="right") - 1
    return np.where((range_C >= 0) & (code_C <= LASTS[range_C]), KIND_OF[range_C], 0)


def _shifted(flags_C: np.ndarray) -> np.ndarray:
    """Return the flags of the character before each."""
    return np.append(False, flags_C[:-1])


def _cluster_begins(text: str) -> np.ndarray:
    begins_C = np.zeros(len(text) + 1, dtype=bool)
    begins_C[np.cumsum([len(cluster) for cluster in CLUSTER.findall(text)])] = True
    return begins_C[:-1]


def _move_before_spaces(borders_C: np.ndarray, space_C: np.ndarray) -> None:
    """Move borders before white space: it belongs to the unit after it, as in ▁dog, and is no unit alone."""
    spaces_begin_C = np.maximum.accumulate(np.where(space_C, 0, np.arange(1, len(space_C) + 1)))
    behind = np.flatnonzero(borders_C & _shifted(space_C))
    borders_C[behind] = False
    borders_C[spaces_begin_C[behind - 1]] = True


class WordCounts(NamedTuple):
    """Counts of a tokenised text, without special tokens and spaces.

    unknown: number of unknown tokens. met: number of sentences by kind, see `Words`.
    """

    words: int
    tokens: int
    characters: int
    unknown: int
    met: dict[str, int]

    @classmethod
    def checked(cls, read: Any) -> WordCounts:
        """Return them from JSON; ValueError if it holds anything else."""
        if isinstance(read, dict) and set(read) == set(cls._fields) and isinstance(read["met"], dict):
            counts = [count for name, count in read.items() if name != "met"]
            if all(type(count) is int for count in (*counts, *read["met"].values())):
                return cls(**read)
        raise ValueError(f"counts of words cannot be {str(read)[:100]}")


def notes(name: str, counts: WordCounts) -> list[str]:
    """Return lines for the user: the definition of words; a slow tokenizer; a vocabulary of another language."""
    plain = {
        AUTO: "the tokenizer's own",
        "tokens": "every token is one",
        "characters": "character clusters",
        "whitespace": "text between white space",
    }
    parts = [plain.get(name, f"as {name} cuts")]
    scripts = [kind for kind in WITHOUT_SPACES if counts.met.get(kind)]
    if scripts:
        first = counted(counts.met[scripts[0]], "sentence")
        others = [f", {counts.met[kind]:,} with {kind}" for kind in scripts[1:]]
        parts.append(f"in {first} with {scripts[0]}{''.join(others)}, character clusters")
    parts += [
        f"in {counted(counts.met[kind], 'sentence')} words end at the {kind}"
        for kind in END_A_WORD
        if counts.met.get(kind)
    ]
    words = max(1, counts.words)
    parts.append(
        f"a word has {counts.characters / words:.1f} characters and {counts.tokens / words:.1f} tokens on average"
    )
    lines = [f"words: {'; '.join(parts)}"]
    lines += [
        f"{kind.removeprefix(SLOW)} is a slow tokenizer without word ids: words are taken from its pieces"
        for kind in counts.met
        if kind.startswith(SLOW)
    ]
    if counts.unknown > UNKNOWN_AT_MOST * counts.tokens:
        lines.append(
            f"{100 * counts.unknown / counts.tokens:.0f} % of the tokens are unknown to this vocabulary; choose a "
            "model whose tokenizer knows the language (for example xlm-roberta-base), or make one from this text "
            "(tsdae pretrain)"
        )
    return lines
