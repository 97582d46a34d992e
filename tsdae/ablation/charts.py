"""Three charts as SVG text: scores against a setting, learning curves, differences with intervals.

Written by hand so that a report is one file, the same bytes on every machine. They are drawn 400 units wide, which is a
phone's width: there the letters have their own size, elsewhere they grow. Lines differ in dash as well as in colour,
for readers and printers without colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LETTER = 400, 11
LONGEST = 60  # letters that fit into the width
# Okabe and Ito's colours (2008), which the usual kinds of colour blindness keep apart, darkest first.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a6a00")
DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 4", "1 3", "4 4", "10 2 2 2 2 2")
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 36  # margins of a chart with axes


class Line(NamedTuple):
    """One line of a chart: its points (x, y), and an interval (low, high) or None at each of them."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float] | None] = ()


class Difference(NamedTuple):
    """One row of a chart of differences, with a narrow-drawn and a wide-drawn interval."""

    name: str
    value: float
    thick: tuple[float, float] | None
    thin: tuple[float, float]


def lines(
    title: str,
    x_name: str,
    y_name: str,
    drawn: Sequence[Line],
    levels: Sequence[tuple[str, float]] = (),
    height: int = 250,
) -> str:
    """Lines with intervals over a common x axis; ``levels`` are horizontal lines with a name. A legend stands below."""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [y for _, y in levels]
    ys += [end for line in drawn for ends in line.intervals if ends is not None for end in ends]
    x_low, x_high = _padded(min(xs), max(xs), 0.03)
    y_low, y_high = _padded(min(ys), max(ys), 0.05)
    legend = [
        (line.name, COLOURS[k % len(COLOURS)], DASHES[(k + k // len(COLOURS)) % len(DASHES)])
        for k, line in enumerate(drawn)
    ]
    bottom = height - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP)

    parts = []
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(_stroke(f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", "#ddd"))
        parts.append(_text(LEFT - 4, y + 4, f"{tick:g}", "end"))
    for tick in _ticks(x_low, x_high, 6):
        x, _ = place(tick, y_low)
        parts.append(_text(x, bottom + 14, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 29, x_name, "middle"))
    parts.append(_stroke(f"M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}", COLOURS[0]))
    parts.append(_text(LEFT + 4, TOP + 8, y_name, "start"))
    for name, level in levels:
        _, y = place(x_low, level)
        parts.append(_stroke(f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", "#666", dash="2 4"))
        parts.append(_text(WIDTH - RIGHT - 2, y - 3, name, "end"))
    for line, (_, colour, dash) in zip(drawn, legend, strict=True):
        for (x, _), ends in zip(line.points, line.intervals, strict=False):
            if ends is not None:
                (across, low), (_, high) = place(x, ends[0]), place(x, ends[1])
                parts.append(_stroke(f"M{across:.1f} {low:.1f}V{high:.1f}", colour, 2, opacity=0.45))
        corners = [place(x, y) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        parts.append(_stroke(f"M{path}", colour, 1.5, dash))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in corners]
    across, down = LEFT, height + 8
    for name, colour, dash in legend if len(drawn) > 1 else ():
        needed = 34 + _length(name)
        if across + needed > WIDTH and across > LEFT:
            across, down = LEFT, down + 16
        parts.append(
            f'<path d="M{across} {down - 4}h22" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts.append(_text(across + 26, down, name, "start"))
        across += needed + 8
    return _svg(title, down + 8 if len(drawn) > 1 else height, parts)


def forest(title: str, unit: str, rows: Sequence[Difference]) -> str:
    """Differences from zero, a row each; the thick bar is the interval over seeds, the thin one that over pairs."""
    row_height, top = 30, 6
    ends = [end for row in rows for ends in (row.thick or row.thin, row.thin) for end in ends]
    low, high = _padded(min(*ends, 0.0), max(*ends, 0.0), 0.04)
    bottom = top + row_height * len(rows)

    def across(value: float) -> float:
        return 8 + (value - low) / (high - low) * (WIDTH - 16)

    parts = [_stroke(f"M{across(0):.1f} {top}V{bottom}", COLOURS[0], dash="3 3")]
    for k, row in enumerate(rows):
        y = top + row_height * k + 22
        parts.append(_text(8, y - 9, row.name, "start"))
        for interval, thickness in ((row.thin, 1.5), (row.thick, 5)):
            if interval is not None:
                first, last = across(interval[0]), across(interval[1])
                parts.append(_stroke(f"M{first:.1f} {y}H{last:.1f}", COLOURS[1], thickness, opacity=0.7))
        parts.append(f'<circle cx="{across(row.value):.1f}" cy="{y}" r="4" fill="#000"/>')
    for tick in _ticks(low, high, 6):
        parts.append(_stroke(f"M{across(tick):.1f} {bottom}v4", COLOURS[0]))
        parts.append(_text(across(tick), bottom + 16, f"{tick:+g}" if tick else "0", "middle"))
    parts.append(_text(WIDTH / 2, bottom + 31, unit, "middle"))
    return _svg(title, bottom + 38, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" font-size="{LETTER}">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"])


def _stroke(path: str, colour: str, thickness: float = 1, dash: str = "", opacity: float = 1) -> str:
    style = f'stroke-width="{thickness:g}" stroke-dasharray="{dash or "none"}" stroke-opacity="{opacity:g}"'
    return f'<path d="{path}" fill="none" stroke="{colour}" {style}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _length(text: str) -> float:
    """About how wide a text is drawn."""
    return 0.55 * LETTER * min(len(text), LONGEST)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = share * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` round numbers between ``low`` and ``high``."""
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]
