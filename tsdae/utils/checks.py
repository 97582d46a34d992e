"""Check values that the user has given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_range(name: str, value: float, interval: str, hint: str = "") -> None:
    """Raise ValueError unless ``value`` is in ``interval``, such as "[0, 1)" or "[1, inf)"; NaN is in none.

    name: of the value, for the message. hint: appended to it, such as "0.6 changes 60 % of the words".

    >>> check_range("--noise-ratio", 1.0, "[0, 1)")
    Traceback (most recent call last):
    ValueError: --noise-ratio must lie in [0, 1), got 1.0
    """
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise ValueError(f"{name} must be a number, got {value!r}" + (f": {hint}" if hint else ""))
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low < value if interval[0] == "(" else low <= value
    below = value < high if interval[-1] == ")" else value <= high
    if above and below:
        return
    wanted = f"lie in {interval}"
    if high == math.inf:
        wanted = f"be {'above' if interval[0] == '(' else 'at least'} {low:g}"
        wanted += " and finite" if above else ""
    raise ValueError(f"{name} must {wanted}, got {value}" + (f": {hint}" if hint else ""))


def check_fields(config: Any) -> None:
    """Raise ValueError for the first field of a dataclass that is none of its type's choices or outside of its range.

    A field's range stands in its metadata (see `config.flag`); None is in every range.
    """
    hints = get_type_hints(type(config))
    for setting in dataclasses.fields(config):
        name, value = f"--{setting.name.replace('_', '-')}", getattr(config, setting.name)
        choices = get_args(hints[setting.name]) if get_origin(hints[setting.name]) is Literal else ()
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if "range" in setting.metadata and value is not None:
            check_range(name, value, setting.metadata["range"], setting.metadata["hint"])
