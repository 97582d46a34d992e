"""The pages: their Python runs as it is written, and the files, anchors, flags, tests and scores they name exist."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.mutant_list import MUTANTS
from tests.scripts import SCRIPTS, Run
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.encoder import SentenceEncoder

ROOT = Path(__file__).parents[1]
FOLDERS = ("tsdae", "scripts", "tests", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
README, CODE, GUIDE, TESTS, RESULTS = (ROOT / folder / "README.md" for folder in (".", *FOLDERS))
REPORTS = [
    *(RESULTS.parent / f"ablation/{name}/report.md" for name in ("mini", "mini-five", "mini-open", "minilm", "raw")),
    RESULTS.parent / "label_free.md",
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"<!-- run by tests/test_pages.py -->\n```python\n(.*?)```", page.read_text("utf-8"), re.S)


# ---------------------------------------------------------------------------------------------------------------
# Python


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.encoder().save_pretrained("model")
    Path("my.txt").write_text("\n".join(tiny.SENTENCES * 3))
    return tmp_path


def test_training_in_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, names = blocks(README)[0], dict[str, Any]()
    assert '"mini"' in code
    assert "steps=1500, batch_size=32" in code
    exec(code.replace('"mini"', '"model"').replace("steps=1500, batch_size=32", "steps=3, batch_size=4"), names)
    assert names["vectors"].shape == (1, 24)
    assert "a man is playing a guitar in the morning." in capsys.readouterr().out


def test_a_step_by_hand_is_the_models_own_loss(here: Path) -> None:
    names: dict[str, Any] = {}
    by_hand, step = blocks(CODE)[0].replace('"mini"', '"model"').split("loss.mean.backward()")
    exec(by_hand, names)
    assert all(part.training for part in names["model"].modules())  # with dropout, as `train` has it
    exec(by_hand.replace(".train()", ".eval()"), names)  # without it, to be compared
    model, before = names["model"], {name: tensor.clone() for name, tensor in names["model"].state_dict().items()}
    own = model(names["batch"]).mean.detach()
    assert float(names["loss"].mean.detach()) == pytest.approx(float(own), abs=1e-6)
    exec(f"loss.mean.backward(){step}", names)
    assert any(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_own_noises_and_objectives(here: Path) -> None:
    Path("my_ideas.py").write_text(blocks(README)[1])
    Path("my_loss.py").write_text(blocks(CODE)[1])
    Path("my_noise.py").write_text(blocks(CODE)[2])
    masked = tiny.dataset(noise="my_ideas.py:mask_tokens", noise_ratio=0.5)
    noisy, clean = masked.noised(np.zeros(len(masked), int), np.arange(len(masked)))
    changed_T = noisy.token_ids_T != clean.token_ids_T
    assert set(noisy.token_ids_T[changed_T]) == {masked.vocabulary.mask_id}
    assert 0.35 < changed_T.sum() / (len(changed_T) - 2 * len(masked)) < 0.65
    assert not changed_T[clean.boundaries[:-1]].any() | changed_T[clean.boundaries[1:] - 1].any()
    shortened = tiny.dataset(noise="my_noise.py:keep_the_beginning", noise_ratio=0.5)
    assert shortened.text(7)[0] == "is the house very"
    for method, accumulate in (
        (MethodConfig(model="model", noise="my_ideas.py:mask_tokens", objective="my_ideas.py:alike"), 1),
        (MethodConfig(model="model", noise="my_noise.py:keep_the_beginning", objective="my_loss.py:with_length"), 2),
    ):
        config = TrainConfig(steps=3, batch_size=2, accumulate=accumulate, output=f"run-{accumulate}")
        run = run_training(DataConfig(corpus="my.txt"), method, config)
        assert (run / "encoder" / "model.safetensors").is_file()


def test_a_pooling_of_ones_own(here: Path) -> None:
    names: dict[str, Any] = {}
    exec(blocks(CODE)[3].replace('"mini"', '"model"'), names)
    encoder, cls = names["encoder"], SentenceEncoder.from_pretrained("model")
    cls.load_state_dict(encoder.state_dict())
    mean = SentenceEncoder(cls.pretrained, cls.tokenizer, "mean")
    expected = cls.encode(["a new sentence"]) + mean.encode(["a new sentence"])
    np.testing.assert_allclose(names["vectors"], expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# Links


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(text: str) -> set[str]:
    """Those that GitHub makes of a page's headings; of two that are alike the second gets -1."""
    seen: Counter[str] = Counter()
    made = set()
    for heading in re.findall(r"^#{1,6} (.*)$", without_blocks(text), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        made.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return made


def broken_links(page: Path) -> list[str]:
    """Those within the repository whose file or anchor does not exist."""
    broken = []
    text = re.sub(r"`[^`]*`(?!\])", "", without_blocks(page.read_text("utf-8")))
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        inside = not re.match(r"[a-z]+:", link)
        if inside and not (target.exists() and (not anchor or anchor in anchors(target.read_text("utf-8")))):
            broken.append(link)
    return broken


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n[1](gone.md) [2](#none)\n[3](\n#a-b-c) [4](https://x.org/#none) `[5](code)`\n"
        "```\n[6](block)\n# d\n```\n[`7`](page.md#x_y) [8](page.md#x_y-1) [9](#d)\n## x_y\n## x_y\n"
    )
    assert broken_links(page) == ["gone.md", "#none", "#d"]


def test_every_link_and_anchor_exists() -> None:
    assert {README, CODE, GUIDE, TESTS, RESULTS} < set(PAGES)
    assert {str(page.relative_to(ROOT)): broken for page in PAGES if (broken := broken_links(page))} == {}


def test_every_result_is_in_the_index() -> None:
    linked = {(RESULTS.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", RESULTS.read_text("utf-8"))}
    results = {page.resolve() for page in RESULTS.parent.rglob("*.md")} - {RESULTS.resolve()}
    assert len(results) > 8
    assert results - linked == set()


# ---------------------------------------------------------------------------------------------------------------
# Commands and flags


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(program, flags) of each call in a page's code: of scripts/X.py, tsdae X, and Python files of other folders."""
    code = [
        block for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M) if language in ("", "bash")
    ]
    code += re.findall(r"^    (.*)$", without_blocks(text), re.M)
    code += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", without_blocks(text))]
    for line in itertools.chain.from_iterable(part.replace("\\\n", " ").splitlines() for part in code):
        for call in re.split(r"&&|;| # ", line):
            if named := re.search(
                r"(?:((?:scripts|benchmarks|tests)/[a-z_0-9]+\.(?:py|sh))|(?:^|\s)tsdae ([a-z]+))(?=\s|$)", call
            ):
                program = named[1] or f"scripts/{named[2]}.py"
                yield program, re.findall(r"(?<!\S)--[a-z][a-z-]*", call[named.end() :])


def test_commands_are_found_in_pages() -> None:
    text = (
        "```text\nscripts/no.py\n```\n    tsdae z --zero\n```bash\npython scripts/a.py x --one 1 --two  # --no\n"
        "torchrun --no 4 scripts/b.py \\\n  --three=3\n```\n`tsdae c\n--four`"
    )
    assert list(commands(text)) == [
        ("scripts/a.py", ["--one", "--two"]),
        ("scripts/b.py", ["--three"]),
        ("scripts/z.py", ["--zero"]),
        ("scripts/c.py", ["--four"]),
    ]


def test_every_command_and_flag_exists(run: Run) -> None:
    """Of scripts what --help shows, of other files what their code names."""
    known: dict[str, set[str]] = {}
    for script in SCRIPTS.glob("*.py"):
        shown = run(script.stem, "--help")
        assert shown.code == 0, shown.err
        known[f"scripts/{script.name}"] = set(re.findall(r"--[a-z][a-z-]*", shown.out))
    for path in (path for folder in ("benchmarks", "tests") for path in (ROOT / folder).glob("*.*")):
        if path.suffix in (".py", ".sh"):
            known[f"{path.parent.name}/{path.name}"] = set(re.findall(r'(?<=")--[a-z-]+(?=")', path.read_text("utf-8")))
    called = [(page, *call) for page in PAGES for call in commands(page.read_text("utf-8"))]
    assert len(called) > 60
    wrong = [
        f"{page.relative_to(ROOT)}: {program} {flag}"
        for page, program, flags in called
        for flag in (flags if program in known else ["does not exist"])
        if flag not in known.get(program, ())
    ]
    assert wrong == []
    guide = {program for page, program, _ in called if page == GUIDE}
    assert {name for name in known if name.startswith("scripts/")} - guide == set()
    alone = {
        flag for span in re.findall(r"`([^`]+)`", without_blocks(GUIDE.read_text("utf-8"))) for flag in words_of(span)
    }
    assert alone - set().union(*known.values()) == set()


def words_of(span: str) -> list[str]:
    """The flags at the start of a code span that is no call of a program."""
    return re.findall(r"(?<!\S)--[a-z][a-z-]*", span) if span.startswith("--") else []


# ---------------------------------------------------------------------------------------------------------------
# Files, tests, scores


def test_the_tree_is_the_package() -> None:
    tree = CODE.read_text("utf-8").split("```text\ntsdae/\n")[1].split("```")[0]
    named, folder = [], ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = "" if line.startswith("  ") and line[2] != " " else folder
        named.append(folder + name)
        folder = name if name.endswith("/") and not folder else folder
    package = ROOT / "tsdae"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert len(named) == len(set(named))
    assert [name for name in named if not (package / name).exists()] == []
    assert {name for name in files if not name.endswith("/__init__.py")} - set(named) == set()


def test_every_file_that_the_guides_name_exists() -> None:
    for page in (README, CODE, GUIDE, TESTS, RESULTS):
        spans = re.findall(r"`([^`\n]+)`", without_blocks(page.read_text("utf-8")))
        names = {name for span in spans for name in re.findall(r"^([a-z_0-9./-]+\.(?:py|sh|ipynb))(?:::\w+)?$", span)}
        places = (ROOT, page.parent, ROOT / "tsdae", ROOT / "benchmarks")
        missing = [name for name in names if not any((place / name).exists() for place in places)]
        assert [name for name in missing if not name.startswith("my_")] == [], page


def test_the_tests_and_planted_bugs_that_are_named_exist() -> None:
    text = TESTS.read_text("utf-8")
    rows = [
        line.split(" | ") for line in text.split("## Paper, code")[1].split("\n## ")[0].splitlines() if " | " in line
    ]
    assert len(rows) > 15
    source = {path.stem: path.read_text("utf-8") for path in TESTS.parent.glob("test_*.py")}
    tests = {name for row in rows[2:] for cell in row[2:] for name in re.findall(r"`(?:\w+\.py::)?(test_\w+)`", cell)}
    defined = set(re.findall(r"^def (test_\w+)", "".join(source.values()), re.M))
    assert tests - defined == set()
    planted = {name for row in rows[2:] for name in re.findall(r"`([\w-]+)`", row[3])}
    assert len(planted) > 25
    assert planted - {mutant.name for mutant in MUTANTS} == set()


def test_the_ablations_are_those_of_the_reports() -> None:
    """Every score in the tables of ablations is in a report that is made from the rows."""
    report = "".join(path.read_text("utf-8") for path in REPORTS)
    section = RESULTS.read_text("utf-8").split("## Ablations\n")[1].split("\n## One run")[0]
    tables = README.read_text("utf-8") + section
    cells = [cell.strip() for line in tables.splitlines() if line.startswith("| ") for cell in line.split("|")]
    score = r"[+-]?\d+\.\d\d(?: ± \d+\.\d\d)?|\[[+-].*\]|\d+ %"
    scores = [found for cell in cells for found in re.findall(score, cell)]
    assert len(scores) > 80
    assert [found for found in scores if found not in report] == []


def test_what_is_said_about_objectives_is_on_their_page() -> None:
    page = (RESULTS.parent / "objectives.md").read_text("utf-8")
    section = RESULTS.read_text("utf-8").split("## Other objectives\n")[1].split("\n## ")[0]
    scores = re.findall(r"[+-]?\d+\.\d\d(?: ± \d+\.\d\d)?|\[[+-].*?\]", section)
    assert len(scores) > 15
    assert [found for found in scores if found not in page] == []


def test_the_table_of_scifact_is_that_of_its_rows() -> None:
    page = RESULTS.read_text("utf-8").split("## Search in SciFact\n")[1].split("\n## ")[0]
    lines = []
    for path in (RESULTS.parent / "rows" / "scifact").glob("*.json"):
        for row in json.loads(path.read_text("utf-8")):
            found = row["retrieval"]
            low, high = found["ci95"]
            scores = f"{found['ndcg_at_10']:.2f} [{low:.2f}, {high:.2f}] | {found['recall_at_100']:.2f}"
            if path.stem == "whitened" and row["model"] == "BM25":
                continue  # in the table once, as scores.json has it
            gain = row.get("difference", {}).get("retrieval")
            against = f"{gain['ndcg_at_10']:+.2f} [{gain['ci95'][0]:+.2f}, {gain['ci95'][1]:+.2f}]" if gain else ""
            lines.append(f"| {row['pooling'] or ''} | {scores} | {against} |")
    assert len(lines) > 10
    assert [line for line in lines if line not in page] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 150
