"""The report of an ablation: tables with intervals and verdicts from its rows, as report.md and as one report.html.

It reads the rows and nothing else, so report.md can be made again from committed rows, the same to the letter.
Settings are chosen and compared on dev; test is shown beside, and differences on it are taken once, for the chosen one.

# K seeds, S resamples
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.ablation.grid import shown
from tsdae.ablation.render import NO_CHARTS, DifferenceChart, Line, LineChart, Section, Table, can_draw, html, markdown
from tsdae.ablation.rows import GRID, ROWS, read_rows
from tsdae.config import FEWEST_SEEDS
from tsdae.evaluation.scores import bracketed
from tsdae.evaluation.statistics import Comparison, compare, detectable, holm, seed_interval
from tsdae.evaluation.validation import labelled
from tsdae.hub.downloads import MINILM
from tsdae.utils.files import read_json
from tsdae.utils.plural import counted
from tsdae.utils.progress import print_note

DIFFERENCE = ["difference on dev", "verdict", "over seeds", "over pairs"]  # columns of a comparison, see `_cells`
NO_DIFFERENCE = [""] * len(DIFFERENCE)
NONE_IS_ALL = ("limit", "decoder_layers")
# What the paper found best on STS-B (Wang, Reimers, Gurevych 2021, section 3), by our names.
PUBLISHED_BEST = {"noise": "delete", "noise_ratio": 0.6, "pooling": "cls", "tie": True}
SAMPLE_NOTE = """
The sample run adapts a finished small sentence model, read by a vector that it was not trained to use, to the
sentences of STS-B's train split. It can show how settings compare in such an adaptation. It cannot show what the
paper shows, which starts from raw BERT: there the vector has everything to learn, here it has much to lose.
"""
HOW_TO_READ = """
All figures are those of the last step: Spearman x 100 of cosine and gold score, mean ± standard deviation over the
seeds. Settings share seeds, noise and batches, so differences are paired. Each difference has two 95 % intervals:
over seeds (Student's t) and over sentence pairs (bootstrap, 1,000 resamples). A verdict rests on the less certain of
the two, after Holm's correction over its table. "Below seed noise": the difference is smaller than the standard
deviation of one setting's runs over their seeds.
"""


@dataclass(frozen=True)
class Setting:
    """One setting of the grid: its rows, in the order of their seeds. folder: of the ablation."""

    name: str
    rows: list[dict[str, Any]]
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        return self.rows[0]["settings"]

    @property
    def config(self) -> dict[str, Any]:
        return self.rows[0]["config"]

    @property
    def seeds(self) -> list[Any]:
        return [row["seed"] for row in self.rows]

    @property
    def splits(self) -> list[str]:
        return list(next(iter(self.rows[0]["scores"].values())))

    @property
    def poolings(self) -> list[str]:
        return list(self.rows[0]["scores"])

    @property
    def is_trained(self) -> bool:
        return self.seeds != [None]

    @property
    def pooling(self) -> str:
        """Return the pooling by which it is judged: its own; of a baseline, the better one on dev."""
        if self.is_trained and self.config["objective"] != "mlm":
            return self.config["pooling"]
        return max(self.poolings, key=lambda pooling: _mean(self.scores("dev", pooling)))

    @property
    def same_start(self) -> bool:
        """True if its training starts from the model that is scored untrained."""
        return not {"model", "add_tokens"} & self.settings.keys()

    def of_seeds(self, seeds: list[Any]) -> Setting:
        """Return it with these seeds only; what was not trained has no seed and is compared with all."""
        rows = [row for row in self.rows if row["seed"] in seeds]
        return dataclasses.replace(self, rows=rows) if self.is_trained else self

    def scores(self, split: str, pooling: str | None = None) -> np.ndarray:
        """Return Spearman x 100 of each seed, [K]."""
        return np.array([row["scores"][pooling or self.pooling][split]["spearman"] for row in self.rows], dtype=float)

    def resamples(self, split: str, pooling: str | None = None) -> np.ndarray:
        """Return the same on 1,000 resamples of the sentence pairs, [K, S]."""
        places = self.poolings.index(pooling or self.pooling), self.splits.index(split)
        return np.stack([np.load(self.folder / row["resamples"])[places] for row in self.rows]).astype(np.float64)


def write_report(folder: Path) -> None:
    """Write report.md and report.html beside the rows."""
    for name, text in make_report(folder).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    if not can_draw():
        print_note(f"{folder / 'report.html'} has no charts. {NO_CHARTS}")


def check_report(folder: Path) -> None:
    """ValueError if the written report.md is not the one that its rows make."""
    path = folder / "report.md"
    if not path.is_file() or path.read_text(encoding="utf-8") != make_report(folder)["report.md"]:
        raise ValueError(f"{path} does not match its rows; regenerate it: tsdae report {folder}")


def make_report(folder: Path) -> dict[str, str]:
    """Return {"report.md": text, "report.html": text}; ValueError if ``folder`` holds no rows."""
    sections = _sections(folder)
    text = markdown(sections) + "\nreport.html holds the same with charts.\n"
    return {"report.md": text, "report.html": html("Ablation", sections)}


def read_settings(folder: Path) -> tuple[dict[str, Setting], dict[str, Any]]:
    """Return the settings of the grid by name, "untrained" and "base" among them, and what grid.json says.

    ValueError if there are no rows, or none of those two.
    """
    path = folder / ROWS
    if not path.is_file():
        raise ValueError(f"{folder} has no {ROWS}; give the --output folder of tsdae ablate")
    grid = read_json(folder / GRID)
    rows = [row for row in read_rows(folder) if _belongs(row["settings"], grid)]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["seed"] is not None, row["seed"])):
        grouped.setdefault(row["arm"], []).append(row)
    missing = [name for name in ("untrained", "base") if name not in grouped]
    if missing:
        raise ValueError(f"{path} has no row of {' and '.join(missing)} yet; let tsdae ablate finish first")
    return {name: Setting(name, rows_of_one, folder) for name, rows_of_one in grouped.items()}, grid


def _belongs(settings: dict[str, Any], grid: dict[str, Any]) -> bool:
    """True if the grid asks for these settings: the folder may hold rows of other grids, which are kept."""
    is_known = all(value in grid["axes"].get(name, []) for name, value in settings.items())
    return is_known and (grid["product"] or len(settings) <= 1)


def _sections(folder: Path) -> list[Section]:
    settings, grid = read_settings(folder)
    base, start = settings["base"], settings["untrained"]
    trained = [setting for setting in settings.values() if setting.is_trained]
    return [
        _about(settings, grid),
        _whether_it_helped(base, start),
        *(_axis_section(axis, values, base, start) for axis, values in _axes(trained, base, grid).items()),
        _chosen(trained, base, start),
    ]


def _axes(trained: list[Setting], base: Setting, grid: dict[str, Any]) -> dict[str, dict[Any, Setting]]:
    """Return the settings of each axis by value, the base's own value among them; all of them for combinations."""
    if grid["product"]:
        return {"all combinations": {setting.name: setting for setting in trained}}
    axes = {}
    for axis, values in grid["axes"].items():
        by_value = {one.settings[axis]: one for one in trained if axis in one.settings} | {base.config[axis]: base}
        axes[axis] = {value: by_value[value] for value in dict.fromkeys([*values, *by_value]) if value in by_value}
    return axes


def _about(settings: dict[str, Setting], grid: dict[str, Any]) -> Section:
    base = settings["base"]
    config, row = base.config, base.rows[0]
    runs = [row for setting in settings.values() for row in setting.rows if setting.is_trained]
    text = "the sentences of STS-B's train split" if config["corpus"] is None else config["corpus"]
    text += "" if config["limit"] is None else f" ({config['limit']:,} of them)"
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    versions += f", commit {row['commit'][:12]}" if row.get("commit") else ""
    hours = sum(row["seconds"] for row in runs) / 3600
    section = Section(
        "Ablation",
        [
            f"Made by `{grid['command']}`",
            f"{config['model']}, {config['pooling']} vector, {counted(row['steps'], 'step')} of batch "
            f"{config['batch_size'] * config['accumulate']} on {text}; seeds {', '.join(map(str, base.seeds))}, "
            f"{counted(len(runs), 'run')}, together {hours:.1f} hours on {row['machine']}, "
            f"{counted(config['threads'], 'thread')} in each, {versions}. "
            f"Text {row['text'][:16]}, its tokens {str(row['corpus_fingerprint'])[:16]}.",
            HOW_TO_READ,
        ],
    )
    if (seeds := len(base.seeds)) >= FEWEST_SEEDS:
        others = [sum(value != config[axis] for value in values) for axis, values in grid["axes"].items()]
        largest = len(settings) - 2 if grid["product"] else max(others)
        reach = f"about {detectable(seeds):.1f} standard deviations of the paired differences"
        if largest > 1:
            reach += f", and the largest of {largest} in a table at {detectable(seeds, largest):.1f}"
        section.text.append(
            f"With {seeds} seeds a difference can only show if it is {reach}; "
            '"not shown" and "below seed noise" do not mean "equal".'
        )
    if config["corpus"] is None and config["model"] == MINILM.name:
        section.text.append(SAMPLE_NOTE)
    return section


def _difference(name: str, ours: Setting, theirs: Setting, split: str, pooling: str | None = None) -> Comparison:
    """Return the difference on the seeds that both have, of which there are some.

    pooling: of ``theirs``, if not its own.
    """
    shared = _shared(ours, theirs)
    ours, theirs = ours.of_seeds(shared), theirs.of_seeds(shared)
    resampled_KS = ours.resamples(split) - theirs.resamples(split, pooling)
    return compare(name, ours.scores(split), theirs.scores(split, pooling), resampled_KS)


def _shared(ours: Setting, theirs: Setting) -> list[Any]:
    return [seed for seed in ours.seeds if seed in theirs.seeds or not theirs.is_trained]


def _whether_it_helped(base: Setting, start: Setting) -> Section:
    own, best = base.pooling, start.pooling
    pairs = [(f"base ({own}) against the untrained model's {own} vector", own)]
    if best != own:
        pairs.append((f"base ({own}) against the untrained model's better one, {best}", best))
    compared = holm([_difference(name, base, start, "dev", pooling) for name, pooling in pairs])
    rows = [
        [f"{one.name}, {pooling}", *(_spread(one.scores(split, pooling)) for split in one.splits), *NO_DIFFERENCE]
        for one in (start, base)
        for pooling in one.poolings
    ]
    rows += [[one.name, *[""] * len(base.splits), *_cells(one)] for one in compared]
    return Section("Does training help?", table=Table(["", *base.splits, *DIFFERENCE], rows))


def _axis_section(axis: str, values: dict[Any, Setting], base: Setting, start: Setting) -> Section:
    names = {value: "all" if value is None and axis in NONE_IS_ALL else shown(value) for value in values}
    others = {value: one for value, one in values.items() if one is not base and _shared(one, base)}
    compared = holm([_difference(names[value], one, base, "dev") for value, one in others.items()])
    cells = {one.name: _cells(one) for one in compared}
    rows = []
    for value, one in values.items():
        label = names[value] + (" (base)" if one is base else "")
        label += " (published best)" if axis in PUBLISHED_BEST and value == PUBLISHED_BEST[axis] else ""
        label += f" (judged by {one.pooling})" if one.pooling != base.pooling and axis != "pooling" else ""
        scores = [_spread(one.scores(split)) for split in one.splits]
        rows.append([label, *scores, *cells.get(names[value], NO_DIFFERENCE)])
    section = Section(axis, table=Table([axis, *base.splits, *DIFFERENCE], rows))
    defined = [one for one in compared if not math.isnan(one.difference)]
    if defined:
        title = f"{axis}: difference from the base"
        section.charts.append(DifferenceChart(title, "points of Spearman on dev", defined))
    if len(values) > 2 and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        lines = [line for split in base.splits if (line := _score_line(split, values)).points]
        levels = [(f"untrained, {split}", float(start.scores(split, base.pooling)[0])) for split in base.splits]
        if lines:
            section.charts.append(LineChart(f"Score against {axis}", axis, "Spearman", lines, levels))
    curves = [curve for value, one in values.items() if (curve := _curve(names[value], one, start)).points]
    if curves and axis != "steps":
        section.charts.append(LineChart(f"Learning curves: {axis}", "step", "Spearman on dev, while training", curves))
    return section


def _score_line(split: str, values: dict[Any, Setting]) -> Line:
    """Return the mean over the seeds by value, with its interval over seeds (Student's t)."""
    points, reach = [], []
    for value in sorted(values):
        scores_K = values[value].scores(split)
        mean, ends = float(scores_K.mean()), seed_interval(scores_K)
        if not math.isnan(mean):
            points.append((value, mean))
            reach.append(ends[1] - mean if ends else 0.0)
    return Line(split, points, reach)


def _curve(name: str, setting: Setting, start: Setting) -> Line:
    """Return the mean over the seeds of what labelled pairs said at each evaluation, from the untrained model on."""
    by_step: dict[int, list[float]] = {}
    for row in setting.rows:
        for entry in row["curve"]:
            if (label := labelled(entry)) is not None and not math.isnan(entry[label]):
                by_step.setdefault(entry["step"], []).append(entry[label])
    trained_for = setting.config["pooling"]
    if by_step and setting.same_start and trained_for in start.poolings:
        by_step[0] = [float(start.scores("dev", trained_for)[0])]
    return Line(name, [(step, float(np.mean(values))) for step, values in sorted(by_step.items())])


def _chosen(trained: list[Setting], base: Setting, start: Setting) -> Section:
    """Return the section on the best setting on dev, and what test says of it: looked at once."""
    best = max(trained, key=lambda setting: _mean(setting.scores("dev")))
    section = Section("The setting that dev chooses")
    if "test" not in base.splits:
        section.text.append(f"Best on dev: {best.name} ({best.pooling}). There is no test split to confirm it.")
        return section
    section.text.append(
        f"Best on dev: {best.name} ({best.pooling}). It is the largest of {len(trained)} means, so its dev score "
        "flatters it; test decides nothing before this, and is compared once, here."
    )
    against = [("the base", base, base.pooling)] if best is not base and _shared(best, base) else []
    if best.same_start:
        against += [
            (f"untrained, {pooling}", start, pooling) for pooling in dict.fromkeys((base.pooling, start.pooling))
        ]
    compared = holm(
        [_difference(f"{best.name} against {name}", best, other, "test", pooling) for name, other, pooling in against]
    )
    section.table = Table(["", "difference on test", *DIFFERENCE[1:]], [[one.name, *_cells(one)] for one in compared])
    return section


def _mean(scores_K: np.ndarray) -> float:
    """Return what to choose by: what is not defined is never the best."""
    return float(np.nan_to_num(scores_K, nan=-math.inf).mean())


def _spread(scores_K: np.ndarray) -> str:
    return f"{scores_K.mean():.2f}" + (f" ± {scores_K.std(ddof=1):.2f}" if len(scores_K) > 1 else "")


def _cells(one: Comparison) -> list[str]:
    """Return the cells under `DIFFERENCE`."""
    over_seeds = bracketed(one.over_seeds, "+") if one.over_seeds else ""
    return [f"{one.difference:+.2f}", one.verdict, over_seeds, bracketed(one.over_pairs, "+")]
