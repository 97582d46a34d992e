"""Check values that the user has given."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_range(name: str, value: float, interval: str, hint: str = "") -> None:
    """Raise ValueError unless ``value`` is in ``interval``, such as "[0, 1)" or "[1, inf)"; NaN is in none.

    name: of the value, for the message. hint: appended to it, such as "0.6 changes 60 % of the words".

    >>> check_range("--noise-ratio", 1.0, "[0, 1)")
    Traceback (most recent call last):
    ValueError: --noise-ratio must be in [0, 1), got 1.0
    """
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise ValueError(f"{name} must be a number, got {value!r}" + (f": {hint}" if hint else ""))
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low < value if interval[0] == "(" else low <= value
    below = value < high if interval[-1] == ")" else value <= high
    if above and below:
        return
    wanted = f"be in {interval}"
    if high == math.inf:
        wanted = f"be {'above' if interval[0] == '(' else 'at least'} {low:g}"
        wanted += " and finite" if above else ""
    raise ValueError(f"{name} must {wanted}, got {value}" + (f": {hint}" if hint else ""))


def did_you_mean(word: str, known: Collection[str]) -> str | None:
    """Return a question for a mistyped word, or None if no known one is near; --lr is near --learning-rate."""
    letters = word.strip("-")
    short_for = [name for name in known if "".join(part[:1] for part in name.split("-")) == letters]
    near = short_for or difflib.get_close_matches(word, known, n=1) or [name for name in known if word and word in name]
    return f"did you mean {near[0]}?" if near else None


def suggestion(word: str, known: Collection[str], *others: str) -> str:
    """Return what to say after an unknown word: the known one that is near, else all of them and ``others``.

    >>> suggestion("delet", ["delete", "mask"])
    'did you mean delete?'
    >>> suggestion("shuffle", ["delete", "mask"], "or module:function")
    'choose from delete, mask, or module:function'
    """
    return did_you_mean(word, known) or f"choose from {', '.join([*known, *others])}"


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the choices of a ``Literal``, also of one within a list or a union; () of any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((choices for part in get_args(hint) if (choices := choices_of(part))), ())


def check_fields(config: Any) -> None:
    """Raise ValueError for the first field of a dataclass that is none of its type's choices or outside of its range.

    A field's range stands in its metadata (see `config.flag`); None is in every range.
    """
    hints = get_type_hints(type(config))
    for setting in dataclasses.fields(config):
        name, value = f"--{setting.name.replace('_', '-')}", getattr(config, setting.name)
        hint, choices = hints[setting.name], choices_of(hints[setting.name])
        if isinstance(value, str) and list in [get_origin(part) for part in (hint, *get_args(hint))]:
            raise ValueError(f"{name} must be a list, got {value!r}")
        for one in value if isinstance(value, list) else [value]:
            if choices and one not in choices and not (one is None and NoneType in get_args(hint)):
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {one!r}")
        if "range" in setting.metadata and value is not None:
            check_range(name, value, setting.metadata["range"], setting.metadata["hint"])
