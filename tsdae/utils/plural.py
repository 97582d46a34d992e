"""Numbers with their nouns in messages."""

from __future__ import annotations


def counted(count: int, one: str, more: str | None = None) -> str:
    """Return a number with its noun; ``more``: the plural where it is not the singular and an s.

    >>> counted(1, "thread"), counted(2000, "sentence is", "sentences are")
    ('1 thread', '2,000 sentences are')
    """
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"
