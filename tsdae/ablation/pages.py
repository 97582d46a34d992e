"""A report as Markdown and as one HTML file that needs nothing else: sections of paragraphs, tables and charts."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 1rem auto; padding: 0 .8rem }
body { color: #000; background: #fff }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums } div { overflow-x: auto }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top }
td:first-child { min-width: 5rem }
svg { width: 100%; max-width: 34rem; height: auto } code { overflow-wrap: anywhere; font-size: .85rem }
@media print { body { max-width: none; font-size: 10pt } section { break-inside: avoid } div { overflow: visible } }
"""


class Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """Paragraphs, then a table, then charts; Markdown leaves the charts out."""

    title: str
    text: list[str] = field(default_factory=list)
    table: Table | None = None
    charts: list[str] = field(default_factory=list)


def markdown(sections: list[Section]) -> str:
    """Without the charts."""
    lines: list[str] = []
    for depth, section in enumerate(sections):
        lines += [f"{'#' if depth == 0 else '##'} {section.title}", ""]
        lines += [line for paragraph in section.text for line in (" ".join(paragraph.split()), "")]
        if section.table is not None:
            header, rows = section.table
            lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
            lines += [f"| {' | '.join(map(_in_a_cell, row))} |" for row in rows] + [""]
    lines.append("report.html holds the same with charts.")
    return "\n".join(lines) + "\n"


def _in_a_cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def html(title: str, sections: list[Section]) -> str:
    """A whole page, which reads on a phone and on paper."""
    parts = ['<!doctype html>\n<html lang="en">\n<meta charset="utf-8">', f"<title>{escape(title)}</title>"]
    parts += ['<meta name="viewport" content="width=device-width, initial-scale=1">', f"<style>{STYLE}</style>"]
    for depth, section in enumerate(sections):
        parts.append(f"<section>\n<h{1 + (depth > 0)}>{escape(section.title)}</h{1 + (depth > 0)}>")
        for paragraph in section.text:
            pieces = escape(" ".join(paragraph.split()), quote=False).split("`")  # every second one is code
            marked = "".join(f"<code>{piece}</code>" if k % 2 else piece for k, piece in enumerate(pieces))
            parts.append(f"<p>{marked}</p>")
        if section.table is not None:
            header, rows = section.table
            parts.append("<div><table>\n<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>")
            parts += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
            parts.append("</table></div>")
        parts += [f"<p>{chart}</p>" for chart in section.charts]
        parts.append("</section>")
    return "\n".join([*parts, "</html>"]) + "\n"
