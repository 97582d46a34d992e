"""The report of an ablation: tables with intervals and verdicts from its rows, as report.md and as one report.html.

It reads what `ablation` wrote and nothing else, so it can be made again from committed rows, the same to the letter.
Settings are chosen and compared on dev; test is shown beside, and differences on it are taken once, for the chosen one.

# K seeds, S resamples
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsdae.ablation import charts
from tsdae.ablation.pages import Section, Table, html, markdown
from tsdae.ablation.rows import GRID, ROWS, read_rows
from tsdae.config import FEWEST_SEEDS, TextConfig
from tsdae.evaluation.foresight import MEASURES, foresight, labelled
from tsdae.evaluation.probes import RECONSTRUCTION
from tsdae.evaluation.statistics import Comparison, compare, detectable, holm
from tsdae.hub.downloads import MINILM
from tsdae.utils.files import read_json

# Settings under which measures of held-out text are not those of the other runs: another text, or another vocabulary.
OTHER_TEXT = {setting.name for setting in dataclasses.fields(TextConfig)}
OTHER_TEXT |= {"corpus", "max_length", "model", "add_tokens"}
DIFFERENCE = ["difference on dev", "verdict", "over seeds", "over pairs"]  # columns of a comparison, see `_cells`
NO_DIFFERENCE = [""] * len(DIFFERENCE)
FEWEST_RUNS = 5  # of a rank correlation: of two runs it is always 1 or -1
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
FORESIGHT_NOTE = """
Does a measure of held-out text tell which run is better? Rank correlation, over all runs, of its last value with
dev's, signed so that +1 is a perfect guide, with a 95 % interval (bootstrap over the settings). Within a run: how
often it moved in dev's direction from one evaluation to the next, and how many points of dev are lost on average by
keeping the evaluation that it calls best. heldout_loss is taken under each run's own noise and objective, so it
compares evaluations of one run rather than runs; the others are taken under the same noise for all. Settings with
another held-out text or vocabulary are left out, and from the reconstruction loss those whose decoder reads another
input.
"""


@dataclass(frozen=True)
class Setting:
    """One arm: its rows, in the order of their seeds."""

    name: str
    rows: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        return self.rows[0]["settings"]

    @property
    def config(self) -> dict[str, Any]:
        return self.rows[0]["config"]

    def of_seeds(self, seeds: list[int]) -> Setting:
        """Only these; what was not trained has no seed and stands beside all."""
        return self if self.seeds == [None] else Setting(self.name, [row for row in self.rows if row["seed"] in seeds])

    @property
    def seeds(self) -> list[Any]:
        return [row["seed"] for row in self.rows]

    @property
    def pooling(self) -> str:
        """By which it is judged: its own; a baseline, which trained for none, by the better one on dev."""
        if self.seeds != [None] and self.config["objective"] != "mlm":
            return self.config["pooling"]
        return max(self.rows[0]["scores"], key=lambda pooling: _mean(self.scores("dev", pooling)))

    def scores(self, split: str, pooling: str | None = None) -> np.ndarray:
        """Spearman x 100 of each seed, [K]."""
        return np.array([row["scores"][pooling or self.pooling][split]["spearman"] for row in self.rows], dtype=float)

    @property
    def same_start(self) -> bool:
        """Whether it begins at the model that is scored untrained."""
        return not {"model", "add_tokens"} & self.settings.keys()

    def resamples(self, folder: Path, split: str, pooling: str | None = None) -> np.ndarray:
        """The same on 1,000 resamples of the sentence pairs, [K, S]."""
        poolings = list(self.rows[0]["scores"])
        places = poolings.index(pooling or self.pooling), list(self.rows[0]["scores"][poolings[0]]).index(split)
        return np.stack([np.load(folder / row["resamples"])[places] for row in self.rows]).astype(np.float64)


def write_report(folder: Path) -> None:
    """report.md and report.html beside the rows."""
    for name, text in make_report(folder).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def check_report(folder: Path) -> None:
    """ValueError if the written report is not the one that its rows make."""
    for name, text in make_report(folder).items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} is not what its rows make; write it again: python scripts/report.py {folder}")


def make_report(folder: Path) -> dict[str, str]:
    """{"report.md": text, "report.html": text}; ValueError if ``folder`` holds no rows."""
    arms, grid = _read(folder)
    sections = [*_sections(folder, arms, grid)]
    return {"report.md": markdown(sections), "report.html": html("Ablation", sections)}


def _read(folder: Path) -> tuple[dict[str, Setting], dict[str, Any]]:
    path = folder / ROWS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {ROWS}; give the --output folder of scripts/ablate.py")
    grid = read_json(folder / GRID)
    rows = [row for row in read_rows(folder) if _belongs(row["settings"], grid)]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["seed"] is not None, row["seed"])):
        grouped.setdefault(row["arm"], []).append(row)
    missing = [name for name in ("untrained", "base") if name not in grouped]
    if missing:
        raise ValueError(f"{path} has no row of {' and '.join(missing)} yet; let scripts/ablate.py go on first")
    return {name: Setting(name, arm_rows) for name, arm_rows in grouped.items()}, grid


def _belongs(settings: dict[str, Any], grid: dict[str, Any]) -> bool:
    """Whether an arm is one of the grid's: the folder may hold rows of other grids, which are kept."""
    is_known = all(value in grid["axes"].get(name, []) for name, value in settings.items())
    return is_known and (grid["product"] or len(settings) <= 1)


def _sections(folder: Path, arms: dict[str, Setting], grid: dict[str, Any]) -> Iterator[Section]:
    base, start = arms["base"], arms["untrained"]
    trained = [arm for arm in arms.values() if arm is not start]
    yield _about(arms, grid)
    yield _whether_it_helped(folder, base, start)
    for axis, values in _axes(trained, base, grid):
        yield _axis_section(folder, axis, values, base, start)
    yield _chosen(folder, trained, base, start)
    if any(row["curve"] for row in base.rows):
        yield _label_free(trained)


def _axes(trained: list[Setting], base: Setting, grid: dict[str, Any]) -> Iterator[tuple[str, dict[Any, Setting]]]:
    """Each axis with its arms by value, the base's own value among them; all arms at once for combinations."""
    if grid["product"]:
        yield "all combinations", {arm.name: arm for arm in trained}
        return
    for axis, values in grid["axes"].items():
        by_value = {arm.settings[axis]: arm for arm in trained if axis in arm.settings}
        by_value[base.config[axis]] = base
        asked = [*values, *(value for value in by_value if value not in values)]
        yield axis, {value: by_value[value] for value in asked if value in by_value}


def _about(arms: dict[str, Setting], grid: dict[str, Any]) -> Section:
    base = arms["base"]
    config, row = base.config, base.rows[0]
    runs = [row for arm in arms.values() for row in arm.rows if row["seed"] is not None]
    text = "the sentences of STS-B's train split" if config["corpus"] is None else config["corpus"]
    text += "" if config["limit"] is None else f" ({config['limit']:,} of them)"
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    hours = sum(row["seconds"] for row in runs) / 3600
    section = Section(
        "Ablation",
        [
            f"Made by `{grid['command']}`",
            f"{config['model']}, {config['pooling']} vector, {row['steps']:,} steps of batch "
            f"{config['batch_size'] * config['accumulate']} on {text}; seeds {', '.join(map(str, base.seeds))}, "
            f"{len(runs)} runs, together {hours:.1f} hours on {row['machine']}, {config['threads']} threads in each, "
            f"{versions}. Text {row['text'][:16]}, its tokens {str(row['corpus_fingerprint'])[:16]}.",
            HOW_TO_READ,
        ],
    )
    if (seeds := len(base.seeds)) >= FEWEST_SEEDS:
        others = [sum(value != config[axis] for value in values) for axis, values in grid["axes"].items()]
        largest = len(arms) - 2 if grid["product"] else max(others)
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


def _difference(
    folder: Path, name: str, ours: Setting, theirs: Setting, split: str, pooling: str | None = None
) -> Comparison:
    """On the seeds that both have, of which there are some. pooling: of ``theirs``, if not its own."""
    shared = _shared(ours, theirs)
    ours, theirs = ours.of_seeds(shared), theirs.of_seeds(shared)
    resampled_KS = ours.resamples(folder, split) - theirs.resamples(folder, split, pooling)
    return compare(name, ours.scores(split), theirs.scores(split, pooling), resampled_KS)


def _shared(ours: Setting, theirs: Setting) -> list[Any]:
    return [seed for seed in ours.seeds if seed in theirs.seeds or theirs.seeds == [None]]


def _whether_it_helped(folder: Path, base: Setting, start: Setting) -> Section:
    own, best = base.pooling, start.pooling
    pairs = [(f"base ({own}) against the untrained model's {own} vector", own)]
    if best != own:
        pairs.append((f"base ({own}) against the untrained model's better one, {best}", best))
    compared = holm([_difference(folder, name, base, start, "dev", pooling) for name, pooling in pairs])
    rows = [
        [f"untrained, {pooling}", *(_spread(start.scores(split, pooling)) for split in _splits(start)), *NO_DIFFERENCE]
        for pooling in start.rows[0]["scores"]
    ]
    rows += [
        [f"base, {pooling}", *(_spread(base.scores(split, pooling)) for split in _splits(base)), *NO_DIFFERENCE]
        for pooling in base.rows[0]["scores"]
    ]
    rows += [[one.name, *[""] * len(_splits(base)), *_cells(one)] for one in compared]
    return Section("Does training help?", table=Table(["", *_splits(base), *DIFFERENCE], rows))


def _axis_section(folder: Path, axis: str, values: dict[Any, Setting], base: Setting, start: Setting) -> Section:
    others = {value: arm for value, arm in values.items() if arm is not base and _shared(arm, base)}
    names = {value: _named(axis, value) for value in values}
    compared = holm([_difference(folder, names[value], arm, base, "dev") for value, arm in others.items()])
    cells = {one.name: _cells(one) for one in compared}
    rows = []
    for value, arm in values.items():
        label = names[value] + (" (base)" if arm is base else "")
        label += " (published best)" if axis in PUBLISHED_BEST and value == PUBLISHED_BEST[axis] else ""
        label += f" (judged by {arm.pooling})" if arm.pooling != base.pooling and axis != "pooling" else ""
        scores = [_spread(arm.scores(split)) for split in _splits(arm)]
        rows.append([label, *scores, *cells.get(names[value], NO_DIFFERENCE)])
    section = Section(axis, table=Table([axis, *_splits(base), *DIFFERENCE], rows))
    drawn = [
        charts.Difference(one.name, one.difference, one.over_seeds, one.over_pairs)
        for one in compared
        if not math.isnan(one.difference)
    ]
    if drawn:
        section.charts.append(charts.forest(f"{axis}: difference from the base", "points of Spearman on dev", drawn))
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) > 2 and len(numbers) == len(values):
        lines = [
            _line(split, [(value, values[value].scores(split)) for value in sorted(numbers)]) for split in _splits(base)
        ]
        levels = [(f"untrained, {split}", start.scores(split, base.pooling)[0]) for split in _splits(base)]
        if any(line.points for line in lines):
            section.charts.append(charts.lines(f"Score against {axis}", axis, "Spearman", lines, levels))
    curves = [line for value, arm in values.items() if (line := _curve(names[value], arm, start)) is not None]
    if curves and axis != "steps":
        section.charts.append(
            charts.lines(f"Learning curves: {axis}", "step", "Spearman on dev, while training", curves)
        )
    return section


def _line(name: str, scores: list[tuple[float, np.ndarray]]) -> charts.Line:
    known = [(value, scores_K) for value, scores_K in scores if not math.isnan(scores_K.mean())]
    points = [(value, float(scores_K.mean())) for value, scores_K in known]
    return charts.Line(name, points, [_own_interval(scores_K) for _, scores_K in known])


def _own_interval(scores_K: np.ndarray) -> tuple[float, float] | None:
    """Student's t, of the mean of one setting."""
    if len(scores_K) < FEWEST_SEEDS:
        return None
    reach = detectable(len(scores_K)) * float(scores_K.std(ddof=1))
    return float(scores_K.mean()) - reach, float(scores_K.mean()) + reach


def _curve(name: str, arm: Setting, start: Setting) -> charts.Line | None:
    """Mean over the seeds of what labelled pairs said at each evaluation, from the untrained model on."""
    by_step: dict[int, list[float]] = {}
    for row in arm.rows:
        for entry in row["curve"]:
            if (label := labelled(entry)) is not None and not math.isnan(entry[label]):
                by_step.setdefault(entry["step"], []).append(entry[label])
    if not by_step:
        return None
    trained_for = arm.config["pooling"]
    is_known = arm.same_start and trained_for in start.rows[0]["scores"]
    first = [(0, float(start.scores("dev", trained_for)[0]))] if is_known else []
    return charts.Line(name, first + [(step, float(np.mean(values))) for step, values in sorted(by_step.items())])


def _chosen(folder: Path, trained: list[Setting], base: Setting, start: Setting) -> Section:
    """The best on dev, and what test says of it: looked at once."""
    best = max(trained, key=lambda arm: _mean(arm.scores("dev")))
    section = Section("The setting that dev chooses")
    if "test" not in _splits(base):
        section.text.append(f"Best on dev: {best.name} ({best.pooling}). There is no test split to confirm it.")
        return section
    section.text.append(
        f"Best on dev: {best.name} ({best.pooling}). It is the largest of {len(trained)} means, so its dev score "
        "flatters it; test decides nothing before this, and is compared once, here."
    )
    against = [(f"{best.name} against the base", base, base.pooling)] if best is not base else []
    if best.same_start:
        poolings = dict.fromkeys((base.pooling, start.pooling))
        against += [(f"{best.name} against untrained, {pooling}", start, pooling) for pooling in poolings]
    compared = holm(
        [
            _difference(folder, name, best, other, "test", pooling)
            for name, other, pooling in against
            if _shared(best, other)
        ]
    )
    section.table = Table(["", "difference on test", *DIFFERENCE[1:]], [[one.name, *_cells(one)] for one in compared])
    return section


def _label_free(trained: list[Setting]) -> Section:
    rows = []
    for one in MEASURES:
        apart = OTHER_TEXT | ({"decoder_input_noise"} if one in RECONSTRUCTION else set())
        arms = [arm for arm in trained if not apart & arm.settings.keys()]
        runs = [[entry for entry in row["curve"] if labelled(entry)] for arm in arms for row in arm.rows]
        found = foresight(one, runs, [arm.name for arm in arms for _ in arm.rows])
        if found is not None and not math.isnan(found.correlation):
            rows.append(
                [
                    one,
                    f"{found.correlation:+.2f} [{found.ci95[0]:+.2f}, {found.ci95[1]:+.2f}]"
                    if found.runs >= FEWEST_RUNS
                    else f"fewer than {FEWEST_RUNS} runs",
                    str(found.runs),
                    f"{100 * found.agreement:.0f} %" if found.moves else "",
                    str(found.moves),
                    f"{found.regret:.2f}",
                ]
            )
    header = ["measure", "rank correlation with dev", "runs", "moves as dev does", "moves", "lost by choosing the step"]
    return Section(
        "What could have been known without labels",
        [FORESIGHT_NOTE],
        Table(header, rows),
    )


# ---------------------------------------------------------------------------------------------------------------
# Words


def _splits(arm: Setting) -> list[str]:
    return list(next(iter(arm.rows[0]["scores"].values())))


def _named(axis: str, value: Any) -> str:
    if value is None:
        return "all" if axis in ("limit", "decoder_layers") else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mean(scores_K: np.ndarray) -> float:
    """To choose by: what is not defined is never the best."""
    return float(np.nan_to_num(scores_K, nan=-math.inf).mean())


def _spread(scores_K: np.ndarray) -> str:
    return f"{scores_K.mean():.2f}" + (f" ± {scores_K.std(ddof=1):.2f}" if len(scores_K) > 1 else "")


def _cells(one: Comparison) -> list[str]:
    """Under `DIFFERENCE`."""
    over_seeds, over_pairs = (
        f"[{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends is not None else "" for ends in (one.over_seeds, one.over_pairs)
    )
    return [f"{one.difference:+.2f}", one.verdict, over_seeds, over_pairs]
