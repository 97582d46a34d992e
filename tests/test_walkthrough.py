"""The walk through the method for teachers: its pictures, the facts it prints, and the notebook made from it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import math
import re
import runpy
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib import image

from tests.scripts import SCRIPTS, Run
from tests.tolerances import FLOAT32

PICTURES = (
    "2-noise 2-share-deleted 3-packing 5-causal-mask 6-cross-attention 7-token-loss 8-loss 8-token-loss "
    "8-cross-attention 9-pairs 9-similarity"
).split()
SOURCE, NOTEBOOK = SCRIPTS / "walkthrough.py", SCRIPTS / "walkthrough.ipynb"


class Walked(NamedTuple):
    """What the script left behind: its variables, its output and its pictures."""

    names: dict[str, Any]
    out: str
    folder: Path


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, out = tmp_path_factory.mktemp("walk"), io.StringIO()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["walkthrough.py", "--tiny"])
        patch.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            names = runpy.run_path(str(SOURCE), run_name="__main__")
    signal.signal(signal.SIGINT, handler)
    return Walked(names, out.getvalue(), folder / "walkthrough")


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_every_picture_is_there_and_not_blank(walked: Walked) -> None:
    assert sorted(path.stem for path in walked.folder.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        pixels = image.imread(walked.folder / f"{name}.png")
        assert pixels[..., :3].std() > 0.05, name
        assert pixels.shape[1] == 1000, name  # all as wide as one another, and letters as large
        assert f"{name}.png" in walked.out


def test_every_token_belongs_to_its_word(walked: Walked) -> None:
    assert walked.names["words"] == "a man is playing a ukulele at the seaside .".split()
    number = walked.names["tokenizer"].convert_tokens_to_ids("##ule")
    assert f"   8  ##ule      {number:>6}  5  ukulele" in walked.out.splitlines()


def test_the_share_deleted_is_the_ratios(walked: Walked) -> None:
    """Binomially: of W words W p go, but for the one that stays where all would have gone."""
    lengths_S = np.array([len(s.replace(".", " .").split()) for s in walked.names["sentences"]])
    count = lengths_S.sum() * len(walked.names["epochs"])
    for ratio, share in walked.names["shares"].items():
        expected = ratio - (ratio**lengths_S).sum() / lengths_S.sum()
        assert share == pytest.approx(expected, abs=5 * math.sqrt(ratio * (1 - ratio) / count)), ratio
        assert f"{ratio} -> {share:.3f}" in walked.out


def test_the_noise_drawn_is_the_noise_trained_on(walked: Walked) -> None:
    names = walked.names
    stays_W = names["kept_words"](names["one"], 0.6, 0)
    kept = " ".join(word for word, stays in zip(names["words"], stays_W, strict=True) if stays)
    assert names["tokenizer"].decode(names["batch"].noisy.token_ids_T, skip_special_tokens=True) == kept
    assert 0 < stays_W.sum() < len(stays_W)


def test_the_share_of_padding(walked: Walked) -> None:
    lengths_B = [len(ids) for ids in walked.names["ragged"].sentences()]
    assert walked.names["padding_share"] == pytest.approx(1 - sum(lengths_B) / (8 * max(lengths_B)))
    assert f"[8, {max(lengths_B)}], {walked.names['padding_share']:.0%} of it padding" in walked.out


def test_the_decoder_sees_the_prefix_only(walked: Walked) -> None:
    tokens = walked.names["tokens"]
    lines = [line for line in walked.out.splitlines() if line.startswith("  t = ")]
    assert lines == [f"  t = {t:<2}  s + {' '.join(tokens[: t - 1])}  ->  {tokens[t - 1]}" for t in range(2, 15)]


def test_cross_attention_to_one_vector_is_the_same_for_all_tokens(walked: Walked) -> None:
    names = walked.names
    assert len(names["textbook_TD"]) == len(names["read"]) == 13
    assert (names["weight_NT1"] == 1).all()
    assert names["query_TNH"].std() > 0.5  # they do ask for different things
    torch.testing.assert_close(names["textbook_TD"], names["short_BD"].expand(13, -1), **FLOAT32)
    assert len(names["added_before"]) == len(names["model"].crosses)
    assert min(names["added_before"]) > 0


def test_the_loss_is_a_sum_and_a_count(walked: Walked) -> None:
    names = walked.names
    assert names["loss_count"] == 13
    assert names["loss_sum"] / names["loss_count"] == pytest.approx(names["loss_mean"], rel=1e-5)
    assert f"= {names['loss_mean']:.4f}; TSDAE(...)(batch).mean {names['loss_mean']:.4f}" in walked.out
    assert names["losses_before"] != names["losses_after"]


def test_training_makes_the_decoder_use_s(walked: Walked) -> None:
    names = walked.names
    own, other = names["bottleneck_before"]
    assert abs(own - other) < 0.05
    own, other = names["bottleneck_after"]
    assert other - own > 0.2
    assert len(names["recorded"]) == 2 * names["recipe"].steps
    assert np.mean(names["recorded"][-10:]) < 0.2 * np.mean(names["recorded"][:10])


def test_before_and_after_are_different_and_what_is_drawn(walked: Walked) -> None:
    names = walked.names
    for label, cosines_B, vectors_BD in names["states"]:
        first_BD, second_BD = vectors_BD[0::2], vectors_BD[1::2]
        norms_B = np.linalg.norm(first_BD, axis=1) * np.linalg.norm(second_BD, axis=1)
        cosines_of_shown = (first_BD * second_BD).sum(1) / norms_B
        np.testing.assert_allclose(cosines_of_shown, cosines_B[names["shown"]], rtol=1e-5)
        assert f"{label}: {names['spearman'](cosines_B):.2f}" in walked.out
    assert not np.allclose(names["cosines_before"], names["cosines_after"], atol=0.05)
    assert names["pairs"].scores[names["shown"]].tolist() == sorted(names["pairs"].scores)


def test_scores_of_the_toy_language_are_what_two_sentences_share(walked: Walked) -> None:
    """Read again from the words: of each part, whether both sentences have one of the same synonyms."""
    names = walked.names
    parts = {name.lower(): names[name].split() for name in ("HOW", "WHO", "WHERE", "WHEN")}
    parts |= {"does": list(names["DOES"]), "what": " ".join(names["DOES"].values()).split()}
    pairs = names["made_pairs"](400, seed=7)

    def read(sentence: str) -> dict[str, str]:
        text = f" {sentence} "
        found = {
            part: [words for words in group if any(f" {word.replace('_', ' ')} " in text for word in words.split("/"))]
            for part, group in parts.items()
        }
        assert all(len(words) == 1 for words in found.values()), (sentence, found)
        return {part: words[0] for part, words in found.items()}

    for first, second, score in zip(pairs.first, pairs.second, pairs.scores, strict=True):
        one, other = read(first), read(second)
        shared = sum(share for part, share in names["SHARES"].items() if one[part] == other[part])
        assert score == pytest.approx(5 * shared / 6)
    assert pairs.scores.min() < 0.5
    assert pairs.scores.max() > 4


def test_the_plane_keeps_what_varies_most(walked: Walked) -> None:
    spread_BD = np.random.default_rng(0).normal(size=(50, 4)) * [1, 9, 0.1, 3]
    plane_B2 = walked.names["plane"](spread_BD + 7)
    largest = np.linalg.eigvalsh(np.cov(spread_BD.T))[:-3:-1]  # the variances along the two main directions
    np.testing.assert_allclose(np.cov(plane_B2.T), np.diag(largest), atol=1e-9)
    np.testing.assert_allclose(plane_B2.mean(0), 0, atol=1e-9)


def test_sentences_are_rebuilt(walked: Walked) -> None:
    original = walked.names["SENTENCE"]
    assert f"  {original}\n     -> {original.lower()}" in walked.out


def test_each_stage_has_a_title_and_its_equation(walked: Walked) -> None:
    stages = [text for text in cells("markdown") if text.startswith("## ")]
    titles = [text.splitlines()[0].removeprefix("## ") for text in stages]
    assert [title.split(".")[0] for title in titles] == [str(number) for number in range(11)]
    for text, title in zip(stages[1:], titles[1:], strict=True):
        assert text.count("$$") == 2, title
        assert text.split("$$")[1].count("{") == text.split("$$")[1].count("}") > 0, title
        assert f"== {title[:12]}" in walked.out


def test_the_notebook_is_the_script(run: Run, tmp_path: Path) -> None:
    assert run("make_notebook", "--check").code == 0
    place = tmp_path / "scripts"
    place.mkdir()
    for name in ("walkthrough.py", "walkthrough.ipynb", "make_notebook.py"):
        shutil.copy(SCRIPTS / name, place)
    shutil.copy(SCRIPTS.parent / "pyproject.toml", tmp_path)
    changed = place / "walkthrough.py"
    changed.write_text(changed.read_text().replace("at the seaside", "at the sea"))
    assert "at the sea." in changed.read_text()

    def made(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(place / "make_notebook.py"), *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    checked = made("--check")
    assert (checked.returncode, checked.stdout.count("\n")) == (1, 1)
    assert "run python scripts/make_notebook.py" in checked.stdout
    assert made().returncode == 0
    assert made("--check").returncode == 0
    assert "at the sea." in (place / "walkthrough.ipynb").read_text()
    with (tmp_path / "pyproject.toml").open("a") as project:
        project.write('[project.urls]\nRepository = "https://github.com/someone/some-name.git"\n')
    assert made("--check").returncode == 1
    assert made().returncode == 0
    assert (
        "colab.research.google.com/github/someone/some-name/blob/main/scripts/"
        in changed.with_suffix(".ipynb").read_text()
    )


def test_the_notebook_is_one(walked: Walked) -> None:
    read = json.loads(NOTEBOOK.read_text())
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 4)
    assert all(cell.get("outputs", []) == [] for cell in read["cells"])
    for number, source in enumerate(cells("code")):
        compile(source, f"cell {number}", "exec")
    assert not any(line.startswith("# %%") for cell in read["cells"] for line in cell["source"])
    code = "\n".join(line for line in SOURCE.read_text().splitlines() if line and not line.startswith("#"))
    joined = "\n".join(cells("code")[1:])
    assert code == "\n".join(line for line in joined.splitlines() if line and not line.startswith("#"))


def test_a_badge_opens_the_notebook() -> None:
    badge = cells("markdown")[0]
    assert re.fullmatch(
        r"\[!\[Open in Colab\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
        r"\(https://colab\.research\.google\.com/github/[\w-]+/[\w-]+/blob/main/scripts/walkthrough\.ipynb\)",
        badge,
    )
    assert badge in (SCRIPTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", [None, ".", "here", "here/unpacked"])
def test_colab_installs_the_package_and_keeps_its_torch(
    place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder where there is one, else from git; never by a name, which an index might know."""
    called: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    colab = cells("code")[0]
    monkeypatch.setattr(warnings, "filterwarnings", lambda *_, **__: None)
    exec(colab, {})
    assert not called  # elsewhere it installs nothing
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(colab, {})
    assert not called  # tsdae is there already
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if place:
        folder = tmp_path / place
        (folder / "tsdae").mkdir(parents=True)
        (folder / "pyproject.toml").touch()
    exec(colab, {})
    (command,) = called
    assert command[1:6] == ["-m", "pip", "install", "--quiet", "--constraint"]
    assert Path(command[6]).read_text() == f"torch=={importlib.metadata.version('torch')}\n"
    (source,) = command[7:]
    owner_and_name = re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", cells("markdown")[0])[0]
    from_git = f"tsdae-torch[plots] @ git+https://github.com/{owner_and_name}"
    assert source == (f"{(tmp_path / place).resolve()}[plots]" if place else from_git)


# ---------------------------------------------------------------------------------------------------------------
# The exercises


def test_six_questions_each_with_a_cell_to_run_and_a_solution() -> None:
    notebook = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in notebook]
    kinds = [cell["cell_type"] for cell in notebook]
    for number in range(1, 7):
        (asked,) = (
            place for place, source in enumerate(sources) if re.search(rf"^\*\*{number}\.\*\* .*\?$", source, re.M)
        )
        assert kinds[asked : asked + 3] == ["markdown", "code", "markdown"]
        assert f"== Exercise {number}: " in sources[asked + 1]
        assert sources[asked + 2].startswith("<details><summary>Solution</summary>\n\n")
        assert sources[asked + 2].count("</details>") == 1


def test_the_solutions_are_true(walked: Walked) -> None:
    """Those that hold of any model; what mini and the toy language show is read in the notebook's own run."""
    names = walked.names
    assert np.mean(names["left"]) == pytest.approx(1.35, abs=0.1)
    assert np.mean(np.equal(names["left"], 1)) == pytest.approx(0.74, abs=0.06)
    assert list(names["by_ratio"]) == [0.0, 0.3, 0.6, 0.9]
    assert names["by_ratio"][0.9] > names["by_ratio"][0.0]
    assert names["company"] < 1e-5
    assert names["other_words"] < names["same_words"] < 0.999
    assert names["first_rise"] > names["last_rise"] + 0.5
    assert names["spearman_mean"] != names["spearman"](names["cosines_after"])
    assert names["encoder"].pooling == "cls"
    for number in range(1, 7):
        assert f"== Exercise {number}: " in walked.out


def test_without_matplotlib_one_line_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("walkthrough", "--tiny")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert 'python -m pip install -e ".[plots]"' in result.err


def test_wrong_flags_and_folders_end_in_one_line(run: Run, tmp_path: Path) -> None:
    result = run("walkthrough", "--tinny")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "did you mean --tiny?" in result.err
    (tmp_path / "file").touch()
    result = run("walkthrough", f"--tiny --output {tmp_path / 'file' / 'folder'}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "cannot write" in result.err
