"""Makes the speed table of benchmarks/README.md, and benchmarks/speed.md, from the committed rows.

python benchmarks/tables.py --write    writes both
python benchmarks/tables.py --check    exits with 1 if either differs, or if a row does not belong to a commit here
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/, see speed.py

from benchmarks import limits
from benchmarks.rows import ROOT, ROWS, Row, Spread, git, read, sources_of
from benchmarks.targets import LINES, PROFILES, SLOWER, Line, Rows

README, PAGE = ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "speed.md"
BEGIN, END = "<!-- speed table: begin -->", "<!-- speed table: end -->"
NOT_RUN = "not yet run"
INTRODUCTION = """Made by `python benchmarks/tables.py --write` from the rows in `benchmarks/rows/`, which
`python -m pip install -e ".[benchmark]" && python benchmarks/speed.py --profile` takes; those of a GPU
by `benchmarks/gpu.sh`.

Numbers are the median and, in brackets, the 20th and 80th percentile. The reference is sentence-transformers with the
optimiser that its Trainer takes by default (fused AdamW) and features padded beforehand. First both sides get the same
weights and must compute the same loss and gradients; then they work in turn, in processes of their own, on the same
sentences, and the ratio is over pairs of neighbouring blocks: how many times better the first side is."""
LIMIT = f"""{limits.FORMULA}.

Every product is timed by itself (`torch.mm`, in the row's precision, at the token counts of steps that were timed); so
are one fused AdamW pass over all weights and one softmax over the logits. Their sum is the limit. Left out: attention's
own products, layer norms, dropout, GELU, embeddings, casts, Python."""
LIMIT_HEAD = """| row | tokens, noisy + target | GFLOP | GFLOP/s | products | optimiser | softmax | limit | reached |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def number(value: float) -> str:
    """Three significant digits, with thousands separated."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_spread(spread: Spread, unit: str) -> str:
    return f"{number(spread['p50'])}{unit} [{number(spread['p20'])}, {number(spread['p80'])}]"


def one_line(row: Row) -> str:
    """A row as the benchmark prints it when it has been taken."""
    sides = "; ".join(f"{side} {with_spread(values, ' ' + row.unit)}" for side, values in row.values.items())
    ratio = f"; ratio {with_spread(row.ratio, ' x')}" if row.ratio else ""
    limit = row.details.get("limit")
    share = f"; {100 * limit['share']['p50']:.0f} % of the limit" if limit else ""
    return f"{row.name}: {sides}{ratio}{share} (n = {row.n})"


def table(lines: tuple[Line, ...], rows: Rows, spread: bool) -> str:
    """The lines as a Markdown table; one without a row says so."""
    made = [
        "| what | ours | the other side | ratio | of the limit | target | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        row = rows.get(line.name)
        if row is None:
            made.append(f"| {line.what} | {NOT_RUN} | | | | {line.target} | |")
            continue
        shown = [
            f"{side if side != 'ours' else ''} {with_spread(values, f' {row.unit}')}".strip()
            if spread
            else f"{side if side not in ('ours', 'reference') else ''} {number(values['p50'])} {row.unit}".strip()
            for side, values in row.values.items()
        ]
        first, second = [*shown, ""][:2]
        ratio = "" if row.ratio is None else with_spread(row.ratio, " x") if spread else f"{row.ratio['p50']:.2f} x"
        share = f"{100 * row.details['limit']['share']['p50']:.0f} %" if "limit" in row.details else ""
        met = "" if line.meets is None else "yes" if line.meets(row, rows) else "**no**"
        made.append(f"| {line.what} | {first} | {second} | {ratio} | {share} | {line.target} | {met} |")
    return "\n".join(made)


def readme_block(rows: Rows) -> str:
    """Return what is between the two markers of benchmarks/README.md."""
    shown = [rows[line.name] for line in LINES if line.name in rows]
    taken = "; ".join(sorted({f"{row.cpu}, {row.threads} threads, commit {row.commit[:7]}" for row in shown}))
    foot = f"Taken on {taken}." if rows else f"No measurement is committed: {NOT_RUN}."
    return f"{BEGIN}\n{table(LINES, rows, spread=False)}\n\n{foot}\n{END}"


def page(rows: Rows) -> str:
    """benchmarks/speed.md: every row with its spread, the limits, the profiles, the slower cases and the origins."""
    parts = [
        "# Speed and memory",
        INTRODUCTION,
        table(LINES, rows, spread=True),
        "## Slower cases",
        table(SLOWER, rows, spread=True),
        "## The limit",
        limits_text(rows),
        "## Where the time of a step goes",
        *(profile_text(line, rows) for line in PROFILES),
        "## Notes to single rows",
        notes(rows),
        "## Origin of the rows",
        origins(rows),
    ]
    return "\n\n".join(parts) + "\n"


def limits_text(rows: Rows) -> str:
    """The arithmetic: products + optimiser + softmax = limit, and its share of the time a step takes."""
    made = []
    for name, row in rows.items():
        limit = row.details.get("limit")
        if limit:
            share = {percentile: 100 * value for percentile, value in limit["share"].items()}
            cells = [
                name,
                f"{number(limit['noisy_tokens'])} + {number(limit['target_tokens'])}",
                *(number(limit[key]) for key in ("gflop", "gflop_per_second")),
                *(f"{number(limit[key])} ms" for key in ("products_ms", "optimiser_ms", "softmax_ms", "total_ms")),
                with_spread(share, " %"),
            ]
            made.append(f"| {' | '.join(cells)} |")
    return f"{LIMIT}\n\n" + ("\n".join([LIMIT_HEAD, *made]) if made else NOT_RUN)


def profile_text(line: Line, rows: Rows) -> str:
    """Milliseconds of a step by part, for each side."""
    row = rows.get(line.name)
    if row is None:
        return f"{line.what}: {NOT_RUN}"
    sides = list(row.details["parts"])
    made = [f"{line.what}, milliseconds under the profiler ({row.details['steps']} steps):", ""]
    made += [f"| part | {' | '.join(sides)} |", f"| --- |{' --- |' * len(sides)}"]
    for part in row.details["parts"][sides[0]]:
        made.append(f"| {part} | {' | '.join(number(row.details['parts'][side][part]) for side in sides)} |")
    made.append(f"| all | {' | '.join(number(row.values[side]['p50']) for side in sides)} |")
    return "\n".join(made)


def notes(rows: Rows) -> str:
    """What belongs to single rows, beside limits and profiles."""
    made = []
    for name, row in rows.items():
        shown = {key: value for key, value in row.details.items() if key not in ("limit", "parts", "steps")}
        if shown:
            made.append(f"* {name}: " + "; ".join(f"{key.replace('_', ' ')} {_text(shown[key])}" for key in shown))
    return "\n".join(made) or "None."


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def origins(rows: Rows) -> str:
    """Machine, versions, commit and command of each row."""
    made: dict[str, list[str]] = {}
    for name, row in rows.items():
        versions = ", ".join(f"{package} {version}" for package, version in row.versions.items() if version)
        gpu = f"; {row.gpu}" if row.gpu else ""
        text = f"{row.date}, commit {row.commit}, `{row.command}`, {row.cpu}{gpu}; {versions}"
        made.setdefault(text, []).append(f"{name} (n = {row.n}, {row.threads} threads)")
    return "\n".join(f"* {', '.join(names)}: {text}" for text, names in made.items()) or NOT_RUN


def with_block(readme: str, block: str) -> str:
    """Return benchmarks/README.md with the text between its markers replaced."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"benchmarks/README.md must have the lines {BEGIN} and {END} once each, around its table")
    before, rest = readme.split(BEGIN)
    return before + block + rest.split(END)[1]


def check_rows(rows: Rows) -> tuple[list[str], list[str]]:
    """(what is wrong, notes): every row was taken in a clean tree of a commit of this history, from that code."""
    wrong, unchecked = [], []
    is_shallow = (git("rev-parse", "--is-shallow-repository") or b"").strip() == b"true"
    digests = {commit: sources_of(commit) for commit in {row.commit for row in rows.values()}}
    for name, row in rows.items():
        digest = digests[row.commit]
        if row.clean is False:
            wrong.append(f"row {name} was taken in a tree that differs from its commit")
        if is_shallow and digest is None:
            unchecked.append(name)
        elif git("merge-base", "--is-ancestor", row.commit, "HEAD") is None and not is_shallow:
            wrong.append(f"row {name} names commit {row.commit}, which is not in the history")
        elif digest != row.sources:
            wrong.append(f"row {name} was not taken from the code of commit {row.commit}: the digests differ")
    if is_shallow:
        return wrong, [
            f"this clone is shallow: ancestry is not checked, nor the code of {len(unchecked)} of {len(rows)} rows"
        ]
    return wrong, []


def main(argv: list[str], readme: Path = README, page_file: Path = PAGE, folder: Path = ROWS) -> int:
    parser = argparse.ArgumentParser(description="Makes the speed tables from the committed rows.", allow_abbrev=False)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--write", action="store_true", help="write the table of benchmarks/README.md, and benchmarks/speed.md"
    )
    action.add_argument("--check", action="store_true", help="exit with 1 if they differ from the rows")
    arguments = parser.parse_args(argv)
    texts = {readme: readme.read_text(encoding="utf-8")}
    try:
        rows = read(folder)
        wanted = {readme: with_block(texts[readme], readme_block(rows)), page_file: page(rows)}
    except ValueError as error:
        parser.error(str(error))
    if arguments.write:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    wrong, unchecked = check_rows(rows)
    for path, text in wanted.items():
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        wrong += difflib.unified_diff(
            found.splitlines(), text.splitlines(), path.name, "made from the rows", lineterm=""
        )
    print("\n".join([*wrong, *unchecked] or [f"{len(rows)} rows, and the tables are theirs"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
