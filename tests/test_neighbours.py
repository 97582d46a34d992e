"""The sheet of pairs to score by hand, and neighbours side by side, as a user gets them."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from tests import tiny
from tests.scripts import Run, contents
from tsdae.commands.neighbours import beside, display_width, drawn
from tsdae.commands.sheet import choose_pairs
from tsdae.evaluation.pairs import load_pairs
from tsdae.evaluation.sts import unit
from tsdae.hub.auto_encoder import load_encoder

SHEET = "model other --make-pairs 12 --corpus corpus.jsonl --column body --sheet"


@pytest.fixture
def corpus(place: Path) -> list[str]:
    """30 different sentences, some with tabs, line breaks and quotes in them, two of them twice; a second model."""
    tiny.encoder(seed=1).save_pretrained(place / "other")
    words = itertools.product(("man", "dog", "bird"), ("red", "big"), ("grass", "house", "bread", "apple", "guitar"))
    bodies = [f'the {a} is\t{b},\n"quickly" on the {c}' for a, b, c in words]
    lines = [json.dumps({"body": body}) for body in [*bodies, bodies[3], bodies[5].replace("\t", "  ")]]
    (place / "corpus.jsonl").write_text("\n".join(lines))
    return [" ".join(body.split()) for body in bodies]


def rows_of(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    return (
        [line.split("\t") for line in text.splitlines()]
        if path.suffix == ".tsv"
        else list(csv.reader([*text.splitlines()]))
    )


@pytest.mark.parametrize("name", ["sheet.tsv", "my sheet.csv"])
def test_a_sheet_goes_round(
    name: str, run: Run, place: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, printed what to do, refused while empty, filled in, scored by the very command that was printed."""
    monkeypatch.chdir(place)
    given = f"{SHEET} {name.replace(' ', '_')} --pooling mean --device cpu"
    made = run("evaluate", given)
    assert made.code == 0, made.err
    path = place / name.replace(" ", "_")
    header, *rows = rows_of(path)
    assert header == ["sentence1", "sentence2", "score"]
    assert len(rows) == 12
    assert {row[2] for row in rows} == {""}
    assert {sentence for row in rows for sentence in row[:2]} <= set(corpus)
    assert all(row[0] != row[1] for row in rows)
    assert len({frozenset(row[:2]) for row in rows}) == 12
    command = f"tsdae evaluate model other --pairs {path.name} --pooling mean"
    assert command in made.out.splitlines()

    before = contents(place)
    refused = run("evaluate", given)
    assert (refused.code, contents(place)) == (2, before), "a sheet is never overwritten"
    path.rename(path.with_name("kept"))
    assert run("evaluate", given).code == 0
    assert path.read_bytes() == path.with_name("kept").read_bytes(), "the same pairs every time"

    assert "no score has been filled in yet (12 rows)" in run("evaluate", command.partition("evaluate ")[2]).err
    filled = [[*row[:2], str(i % 6)] if i < 10 else row for i, row in enumerate(rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            file.write("".join("\t".join(row) + "\n" for row in [header, *filled]))
        else:
            csv.writer(file).writerows([header, *filled])
    notes: list[str] = []
    pairs = load_pairs(path, notes.append)
    assert (pairs.first, pairs.second) == tuple([row[side] for row in rows[:10]] for side in (0, 1))
    assert pairs.scores.tolist() == [i % 6 for i in range(10)]
    assert "2 of 12 rows, which have no score yet" in notes[0]
    scored = run("evaluate", command.partition("evaluate ")[2])
    assert scored.code == 0, scored.err
    assert "2 of 12 rows, which have no score yet" in scored.err
    assert scored.out.splitlines()[-2].startswith("other (mean)  pairs Spearman")


def test_models_that_never_disagree(run: Run, place: Path, corpus: list[str]) -> None:
    made = run("evaluate", f"{SHEET.replace('other', './model')} sheet.tsv")
    assert made.code == 2
    assert "the models rank all pairs alike, so scores could not tell them apart" in made.err
    assert not (place / "sheet.tsv").exists()


def unit_vectors(size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(size, 8))
    return [unit(shared + 0.7 * generator.normal(size=shared.shape)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("models", [2, 3])
def test_the_models_disagree_about_most_pairs(models: int) -> None:
    """Ranks among all pairs, in a slow loop: nine of twelve lie far apart, by turns; the others go from low to high."""
    vectors = unit_vectors(60)[:models]
    chosen = [tuple(pair) for pair in choose_pairs(vectors, 12).tolist()]
    every = list(itertools.combinations(range(60), 2))
    rank_MP = np.stack([rankdata([float(v[a] @ v[b]) for a, b in every]) / len(every) for v in vectors])
    apart = dict(zip(every, np.ptp(rank_MP, axis=0), strict=True))
    highest = dict(zip(every, rank_MP.argmax(axis=0), strict=True))
    mean_rank = dict(zip(every, rank_MP.mean(axis=0), strict=True))
    assert len(set(chosen)) == 12
    assert set(chosen) <= set(every)
    far = sorted(chosen, key=lambda pair: -apart[pair])[:9]
    assert min(apart[pair] for pair in far) > np.quantile(list(apart.values()), 0.9)
    counts = np.bincount([highest[pair] for pair in far], minlength=models)
    assert counts.min() >= 9 // models - 1, "each model has pairs that it alone calls alike"
    assert len({row for pair in far for row in pair}) == 18, "no sentence twice"
    rest = sorted(mean_rank[pair] for pair in chosen if pair not in far)
    assert rest[0] < 0.3
    assert rest[-1] > 0.9
    places = [chosen.index(pair) for pair in far]
    assert sorted(places) != list(range(9)), "the order says nothing"
    assert sorted(places) != list(range(3, 12))


@pytest.mark.parametrize("size", [3, 4, 12])
def test_as_many_pairs_as_sentences(size: int) -> None:
    pairs = {tuple(pair) for pair in choose_pairs(unit_vectors(size)[:2], size).tolist()}
    assert len(pairs) == size
    assert all(first < second < size for first, second in pairs)


def test_a_draw_is_fixed_by_its_key() -> None:
    assert sorted(drawn(50, 50, 1).tolist()) == list(range(50))
    assert drawn(50, 5, 1).tolist() == drawn(50, 50, 1).tolist()[:5]
    assert drawn(50, 5, 1).tolist() != drawn(50, 5, 2).tolist()


# ---------------------------------------------------------------------------------------------------------------
# Neighbours


@pytest.mark.parametrize("given", ["--queries 4", "--query dog unknown-to-the-text"])
def test_neighbours_are_those_of_a_slow_loop(
    given: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.encoder(seed=1).save_pretrained(place / "other")
    monkeypatch.setenv("COLUMNS", "400")
    with (place / "text.txt").open("a") as file:
        file.write("dog\ndog\n")
    shown = run("neighbours", f"model other --corpus text.txt --neighbours 2 {given}")
    assert shown.code == 0, shown.err
    head, *blocks, summary = shown.out.strip().split("\n\n")
    assert [cell.strip() for cell in head.split("|")] == ["model (cls)", "other (cls)"]
    queries = [re.sub(r"^\d+\. ", "", block.splitlines()[0]) for block in blocks]
    if given.startswith("--query "):
        assert queries == ["dog", "unknown-to-the-text"]
    else:
        assert len(set(queries)) == 4
        assert set(queries) <= set(tiny.SENTENCES)
    shared = 0
    for query, block in zip(queries, blocks, strict=True):
        others = [sentence for sentence in tiny.SENTENCES if sentence != query]
        expected = []
        for name in ("model", "other"):
            vectors = unit(load_encoder(name).encode([query, *others]))
            order = sorted(((float(vectors[0] @ v), s) for v, s in zip(vectors[1:], others, strict=True)), reverse=True)
            expected.append(order[:2])
        both = {s for _, s in expected[0]} & {s for _, s in expected[1]}
        shared += len(both)
        lines = block.splitlines()[1:]
        assert len(lines) == 2
        for k, line in enumerate(lines):
            cells = [cell.strip() for cell in line.split(" | ")]
            assert cells == [f"{cosine:.3f}{'=' if s in both else ' '} {s}" for cosine, s in (e[k] for e in expected)]
    assert summary.startswith(f"Of 2 neighbours the models share {shared / len(queries):.1f} on average (marked =)")
    assert summary.endswith(f"{len(queries)} queries, 8 different sentences")


def test_a_model_beside_itself_shares_all(run: Run, place: Path) -> None:
    shown = run("neighbours", "model model --corpus text.txt --queries 100")
    assert shown.code == 0, shown.err
    assert "Of 3 neighbours the models share 3.0 on average (marked =); 8 queries, 8 different" in shown.out
    assert shown.out.count("= ") == 2 * 3 * 8


HOSTILE = "\x1b[31mred\x07 and a word" + "x" * 200


@pytest.mark.parametrize("width", [1, 40, 80, 131])
@pytest.mark.parametrize("text", ["a dog " * 100, "犬が走る" * 60, HOSTILE, "d\u0301og " * 40, "dog"])
def test_columns_fit_the_terminal(text: str, width: int) -> None:
    lines = beside([text, "short"], width).splitlines()
    assert 1 <= len(lines) <= 3
    assert max(display_width(line) for line in lines) <= max(width, 40)
    assert len({display_width(line.partition(" | ")[0]) for line in lines if " | " in line}) <= 1, "aligned"
    assert "\x1b" not in "".join(lines)
    assert ("…" in lines[-1]) == (text != "dog"), "what is cut says so"
    assert lines[0].endswith("| short")
