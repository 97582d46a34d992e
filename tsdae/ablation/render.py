"""Write a report as Markdown and as one HTML page: sections of paragraphs, a table and charts each.

The page needs no other file: charts are drawn by matplotlib (extra [plots]) and stand in it as SVG.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from tsdae.evaluation.statistics import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_CHARTS = 'The charts need matplotlib: python -m pip install "tsdae-torch[plots]", then tsdae report FOLDER.'
DASHES = ("-", "--", ":", "-.")  # lines differ in dash as well as in colour, for readers and printers without colours
LONGEST_NAME = 60  # letters that fit into the width of a chart
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 1rem auto; padding: 0 .8rem }
body { color: #000; background: #fff }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums } div { overflow-x: auto }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top }
td:first-child { min-width: 5rem }
img { width: 100%; max-width: 34rem; height: auto } code { overflow-wrap: anywhere; font-size: .85rem }
@media print { body { max-width: none; font-size: 10pt } section { break-inside: avoid } div { overflow: visible } }
</style>
{% for section in sections %}
<section>
{% if loop.first %}<h1>{{ section.title }}</h1>{% else %}<h2>{{ section.title }}</h2>{% endif %}

{% for paragraph in section.text %}
<p>
{%- for piece in paragraph.split("`") %}
{% if loop.index0 % 2 %}<code>{{ piece }}</code>{% else %}{{ piece }}{% endif %}
{% endfor %}
</p>
{% endfor %}
{% if section.table %}
<div><table>
<tr>{% for cell in section.table.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section.table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% for chart in section.charts if draws %}
<p><img alt="{{ chart.title }}" src="data:image/svg+xml;base64,{{ svg(chart) }}"></p>
{% endfor %}
</section>
{% endfor %}
{% if not draws %}<p>{{ no_charts }}</p>{% endif %}
</html>
"""


class Line(NamedTuple):
    """One line of a chart: its points (x, y), and how far an interval reaches to either side of each y (0: none)."""

    name: str
    points: Sequence[tuple[float, float]]
    reach: Sequence[float] | None = None


@dataclass
class LineChart:
    """Lines over a common x axis; ``levels`` are horizontal lines, each with a name."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()

    def draw(self, axes: Axes) -> None:
        """Draw the lines, their intervals as bars, and a legend where there is something to tell apart."""
        for k, line in enumerate(self.lines):
            x, y = zip(*line.points, strict=True)
            axes.errorbar(x, y, line.reach, label=line.name, linestyle=DASHES[k % len(DASHES)], marker=".", capsize=3)
        for k, (name, level) in enumerate(self.levels):
            axes.axhline(level, label=name, linestyle=DASHES[-1 - k % len(DASHES)], color="grey")
        axes.set_xlabel(self.x_name)
        axes.set_ylabel(self.y_name)
        if len(self.lines) + len(self.levels) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False)


@dataclass
class DifferenceChart:
    """Differences from zero, a row each: a thick bar for the interval over seeds, a thin one for that over pairs."""

    title: str
    x_name: str
    rows: Sequence[Comparison]

    def draw(self, axes: Axes) -> None:
        """Draw the first row at the top, its name above its bars."""
        for place, row in enumerate(self.rows):
            if row.over_seeds is not None:
                axes.plot(row.over_seeds, (place, place), color="C0", linewidth=6, alpha=0.6)
            axes.plot(row.over_pairs, (place, place), color="black", linewidth=1.5)
            axes.plot(row.difference, place, "o", color="black")
            axes.text(0.01, place - 0.3, row.name[:LONGEST_NAME], transform=axes.get_yaxis_transform())
        axes.axvline(0, linestyle="--", color="black", linewidth=1)
        axes.set_ylim(len(self.rows) - 0.5, -0.8)
        axes.set_yticks([])
        axes.set_xlabel(self.x_name)


class Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """Paragraphs, then a table, then charts; Markdown leaves the charts out. `Code` in a paragraph has backticks."""

    title: str
    text: list[str] = field(default_factory=list)
    table: Table | None = None
    charts: list[LineChart | DifferenceChart] = field(default_factory=list)


def markdown(sections: Sequence[Section]) -> str:
    """Return the report without its charts."""
    lines: list[str] = []
    for depth, section in enumerate(sections):
        lines += [f"{'#' if depth == 0 else '##'} {section.title}", ""]
        lines += [line for paragraph in section.text for line in (" ".join(paragraph.split()), "")]
        if section.table is not None:
            header, rows = section.table
            lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
            lines += [f"| {' | '.join(map(_in_a_cell, row))} |" for row in rows] + [""]
    return "\n".join(lines)


def _in_a_cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def can_draw() -> bool:
    """True if matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def html(title: str, sections: Sequence[Section]) -> str:
    """Return a whole page, which reads on a phone and on paper; without matplotlib it says what its charts need."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return page.render(title=title, sections=sections, draws=can_draw(), svg=_svg, no_charts=NO_CHARTS)


def _svg(chart: LineChart | DifferenceChart) -> str:
    """Return a picture in base64: an image of its own, so that the names in it are not those of another chart."""
    from matplotlib import style
    from matplotlib.figure import Figure

    height = 4.0 if isinstance(chart, LineChart) else 1.2 + 0.5 * len(chart.rows)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "same bytes each time", "text.parse_math": False}
    look: list[Any] = ["default", "tableau-colorblind10", settings]
    with style.context(look), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names in a script that the font lacks: the browser has another font
        figure, picture = Figure(figsize=(6.4, height)), io.BytesIO()
        chart.draw(figure.add_subplot())
        figure.savefig(picture, format="svg", bbox_inches="tight", metadata={"Date": None})
    return base64.b64encode(picture.getvalue()).decode("ascii")
