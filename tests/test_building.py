"""Texts on their way into a corpus: in chunks, in several processes, stopped and begun again, always the same rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tests import tiny
from tests.runs import wait_until
from tests.scripts import Result, Run, contents
from tests.tiny import assert_equal
from tsdae.config import PrepareConfig, TextConfig
from tsdae.text import building, reading
from tsdae.text.building import COLUMNS, Piece, Rows, Seen, Work, collect, hashes_of
from tsdae.text.cleaning import Cleaning
from tsdae.text.corpus import Corpus
from tsdae.text.preparation import build_corpora
from tsdae.text.reading import Texts
from tsdae.text.word_boundaries import Words, notes

# Every kind of line twice, so that "repeated" and all else lie on both sides of every border between chunks.
LINES = [
    *tiny.SENTENCES,
    "",
    "\u200d",
    *(f"the {word}" for word in tiny.WORDS),
    "a",
    *tiny.SENTENCES[::-1],
    "",
    "an 犬",
]


def collected(lines: Iterable[str], folder: Path | None = None, work: Work | None = None, **settings: Any) -> Rows:
    rows = Rows(tiny.tokenizer().unk_token_id, folder)
    for _ in collect(Texts(lines), work or Work(tiny.tokenizer()), rows, **settings):
        pass
    return rows


def columns(rows: Rows) -> dict[str, list[int]]:
    return {name: [value for piece in rows for value in piece.columns[name].tolist()] for name in COLUMNS}


# ---------------------------------------------------------------------------------------------------------------
# Repeated sentences


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_seen_is_a_set(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Python's: values repeated within one call, 0, and the merge of recent ones."""
    monkeypatch.setattr(building, "RECENT", 700)
    draw = np.random.default_rng(size)
    seen, known = Seen(), set[int]()
    for _ in range(6):
        values = draw.integers(0, 2 * size, size).astype(np.uint64)
        new = []
        for value in values.tolist():
            new.append(value not in known)
            known.add(value)
        np.testing.assert_array_equal(seen.add(values), new)  # which prints no long difference
    assert seen.add(np.array(sorted(known), np.uint64)).sum() == 0


def test_what_is_kept_and_why_the_rest_is_not() -> None:
    apart = hashes_of(["the dog", "a man"])
    rows = collected(LINES, apart_hashes=apart)
    held_out = [line for line in LINES if line in ("the dog", "a man")]
    distinct = [line for line in dict.fromkeys(LINES) if line not in ("", "\u200d", *held_out)]
    assert_equal(Corpus.of(rows, Work(tiny.tokenizer())), Corpus.build(distinct, tiny.tokenizer()))
    assert rows.dropped == {
        "without a word": 3,
        "held out by a file": len(held_out),
        "repeated": len(LINES) - 3 - len(held_out) - len(distinct),
    }
    assert rows.texts == len(LINES)
    every = collected(LINES, keep_repeated=True)
    assert len(every) == len(LINES) - 3
    assert every.dropped == {"without a word": 3}


def test_counts_are_those_of_the_kept_sentences() -> None:
    distinct = [line for line in dict.fromkeys(LINES) if line.strip("\u200d")]
    found = collected(LINES).counts
    built = Corpus.build(distinct, tiny.tokenizer()).counts
    assert built is not None
    assert found._replace(met={}) == built._replace(met={})
    assert found.words == sum(
        len(tiny.tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(s)) for s in distinct
    )
    assert found.characters == sum(len(s.replace(" ", "")) for s in distinct)
    assert found.unknown == 1, "the premise: the dog in Japanese"


def five_words(number: int) -> list[str]:
    return [f"the {word}" for word in tiny.WORDS[5 * number : 5 * number + 5]]


@pytest.mark.parametrize("limit", [1, 5, 9, 30, 1000])
def test_a_limit_is_of_kept_sentences_and_reads_no_more_than_it_needs(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(LINES)
    rows = collected(lines, limit=limit)
    everything = collected(LINES)
    assert len(rows) == min(limit, len(everything))
    assert rows.hashes.tolist() == everything.hashes[:limit].tolist()
    if limit < 5:
        assert len(list(lines)) == len(LINES) - limit, "the first eight are distinct"
    monkeypatch.setattr(reading, "TEXTS_AT_ONCE", 1)
    documents = [". ".join(five_words(k)) for k in range(4)]  # five sentences each: the last one may be cut
    work = Work(tiny.tokenizer(), cleaning=Cleaning("regex", 1))
    assert len(collected(documents, work=work, limit=limit)) == min(limit, 20)


# ---------------------------------------------------------------------------------------------------------------
# Chunks, processes, stops


@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_chunks_and_files_leave_no_trace(monkeypatch: pytest.MonkeyPatch, at_once: int, tmp_path: Path) -> None:
    whole = collected(LINES)
    monkeypatch.setattr(reading, "TEXTS_AT_ONCE", at_once)
    collected(LINES, tmp_path)
    for rows in (collected(LINES), Rows(tiny.tokenizer().unk_token_id, tmp_path)):
        assert columns(rows) == columns(whole)
        assert (rows.texts, rows.dropped, rows.counts) == (whole.texts, whole.dropped, whole.counts)
        assert "1 sentence with Han" in notes(Words().name, rows.counts)[0]


@pytest.mark.slow  # two more processes that import torch
def test_workers_leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = collected(LINES)
    monkeypatch.setattr(reading, "TEXTS_AT_ONCE", 4)
    monkeypatch.setattr(building, "ALONE", 2)
    here: list[int] = []

    def counted(self: Work, texts: list[str], work: Any = Work.__call__) -> Any:
        here.append(len(texts))
        return work(self, texts)

    monkeypatch.setattr(Work, "__call__", counted)
    rows = collected(LINES, workers=2)
    assert len(here) == 2, "the rest was done elsewhere"
    assert columns(rows) == columns(whole)
    assert (rows.texts, rows.dropped, rows.counts) == (whole.texts, whole.dropped, whole.counts)
    with pytest.raises(ValueError, match="sentence 3 holds half of a surrogate pair"):
        collected([*LINES[:10], "a cat", "half \ud83d"], workers=2)


def stopped_after(count: int, error: BaseException) -> Any:
    """`Rows.append` that ends the work after so many chunks."""
    left = [count]
    append = Rows.append

    def stop(self: Rows, piece: Piece) -> None:
        append(self, piece)
        left[0] -= 1
        if left[0] == 0:
            raise error

    return stop


@pytest.fixture
def prepare(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`tsdae prepare` of LINES, six at a time, ended after ``stop`` chunks (0: never)."""
    (place / "text.txt").write_text("\n".join(LINES), encoding="utf-8")

    def prepared(flags: str, stop: int = 0, error: BaseException | None = None) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(reading, "TEXTS_AT_ONCE", 6)
            patch.setattr(Rows, "append", stopped_after(stop, error or KeyboardInterrupt()))
            return run("prepare", flags)

    return prepared


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ("", SystemExit(143)),
        ("--shuffle --limit 20", KeyboardInterrupt()),
        ("--keep-repeated --limit 40", KeyboardInterrupt()),
        ("--heldout apart.txt", SystemExit(143)),
    ],
)
def test_a_stopped_preparation_goes_on(
    settings: str, error: BaseException, prepare: Callable[..., Result], run: Run, place: Path
) -> None:
    """To the same bytes, however often it is stopped."""
    (place / "apart.txt").write_text("a dog\nthe man\n")
    command = f"text.txt --model model --workers 1 {settings}"
    assert run("prepare", f"{command} --output whole").code == 0, "in one chunk"
    for done, more in ((2, 2), (5, 3), (6, 1)):  # chunks
        stopped = prepare(f"{command} --output other", more, error)
        assert stopped.code == (130 if isinstance(error, KeyboardInterrupt) else 143)
        assert stopped.err.endswith(f"stopped after {6 * done} texts; the same command resumes from there\n")
        assert not (place / "other").exists()
    gone_on = prepare(f"{command} --output other")
    assert gone_on.code == 0, gone_on.err
    assert "resuming after 36 texts, from other.part" in gone_on.err
    assert contents(place / "other") == contents(place / "whole")
    assert not list(place.glob("*.part"))


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-300], lambda whole: b"", lambda whole: whole[:99] + b"?" * 9 + whole[108:]]
)
def test_what_the_disk_has_lost_is_made_again(
    damage: Callable[[bytes], bytes], prepare: Callable[..., Result], run: Run, place: Path
) -> None:
    """With all that comes after it, since a limit may cut the text into other chunks then."""
    command = "text.txt --model model --output"
    assert run("prepare", f"{command} whole").code == 0, "in one chunk"
    assert prepare(f"{command} other", stop=3).code == 130
    lost = place / "other.part" / "00000001.npz"
    lost.write_bytes(damage(lost.read_bytes()))
    assert "resuming after 6 texts" in prepare(f"{command} other", stop=1).err
    assert len(list((place / "other.part").glob("*.npz"))) == 2
    assert prepare(f"{command} other").code == 0
    assert contents(place / "other") == contents(place / "whole")


def test_what_was_begun_otherwise_is_begun_again(prepare: Callable[..., Result], place: Path) -> None:
    command = "text.txt --model model --output corpus"
    assert prepare(command, stop=3).code == 130
    changed = prepare(f"{command} --min-characters 4")
    assert changed.code == 0
    assert "corpus.part was made with other settings or another text; starting over" in changed.err
    assert len(Corpus.open(place / "corpus")) < len({line for line in LINES if line.strip("\u200d")})
    (place / "corpus").rename(place / "first")
    assert prepare(command, stop=3).code == 130
    (place / "text.txt").write_text("a dog\nthe man\nan apple\n")
    assert "starting over" in prepare(command).err
    assert len(Corpus.open(place / "corpus")) == 3


def test_held_out_sentences_or_code_that_changed_begin_it_again(prepare: Callable[..., Result], place: Path) -> None:
    """Rows from before the change would be cut by other code, or be trained on and held out at once."""
    (place / "cut.py").write_text("def words(text):\n    return [text]\n")
    command = "text.txt --model model --output corpus --heldout apart.txt --words cut.py:words"
    for file, content in (("apart.txt", "a man\n"), ("cut.py", "def words(text):\n    return list(text)\n")):
        (place / "apart.txt").write_text("a dog\n")
        assert prepare(command, stop=3).code == 130
        (place / file).write_text(content)
        changed = prepare(command)
        assert changed.code == 0, changed.err
        assert "corpus.part was made with other settings or another text; starting over" in changed.err
        (place / "corpus").rename(place / f"made without {file}")


def test_an_error_on_the_way_leaves_what_was_written_before(prepare: Callable[..., Result]) -> None:
    """A disk, or the network: the same command goes on when it is there again."""
    command = "text.txt --model model --output corpus"
    error = ValueError("text.txt cannot be read: Input/output error")
    error.__cause__ = OSError(5, "Input/output error")
    failed = prepare(command, 3, error)
    assert failed.code == 2
    assert "finished work is kept in corpus.part; the same command resumes from there" in failed.err
    gone_on = prepare(command)
    assert gone_on.code == 0, gone_on.err
    assert "resuming after 18 texts" in gone_on.err


def test_two_at_once_do_not_mix(run: Run, place: Path) -> None:
    with FileLock(place / "corpus.part.lock"):
        refused = run("prepare", "text.txt --model model --output corpus")
    assert refused.code == 2
    assert "another process is preparing corpus; wait for it, or choose another --output" in refused.err
    assert not (place / "corpus.part").exists()
    assert run("prepare", "text.txt --model model --output corpus").code == 0
    assert not list(place.glob("corpus.*"))


def test_what_is_not_ours_stays(run: Run, place: Path) -> None:
    """A user's folder or text that is called as the work in progress would be."""
    (place / "corpus.part").mkdir()
    (place / "corpus.part" / "photo.jpg").touch()
    (place / "other.part").write_text("a dog\n")
    before = contents(place)
    for command in ("text.txt --model model --output corpus", "other.part --model model --output other"):
        refused = run("prepare", command)
        assert refused.code == 2
        assert "but it holds other files; move them away" in refused.err
    assert contents(place) == before


def test_a_pattern_does_not_stand_for_what_it_makes(prepare: Callable[..., Result], place: Path) -> None:
    (place / "texts").mkdir()
    for name in ("a.txt", "z.txt"):
        (place / "texts" / name).write_text("\n".join(LINES), encoding="utf-8")
    command = "texts/** --model model --output texts/corpus --keep-repeated --workers 1"
    assert prepare(command, stop=3).code == 130
    (place / "texts" / "corpus.part.lock").touch()  # of a process that was killed
    gone_on = prepare(command)
    assert gone_on.code == 0, gone_on.err
    assert "resuming after 18 texts" in gone_on.err
    assert json.loads((place / "texts" / "corpus" / "report.json").read_text())["texts"] == 2 * len(LINES)


def test_a_line_that_cannot_be_read_leaves_nothing(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TEXTS_AT_ONCE", 2)
    (place / "text.txt").write_bytes("\n".join(LINES).encode() + b"\n\xff\n")
    before = contents(place)
    failed = run("prepare", "text.txt --model model --output corpus --workers 1")
    assert failed.code == 2
    assert f"text.txt, line {len(LINES) + 1}: not UTF-8" in failed.err
    assert contents(place) == before


@pytest.mark.slow
def test_no_worker_outlives_a_killed_preparation(place: Path) -> None:
    """SIGKILL, which nobody can catch; and what it had written is no hindrance."""
    (place / "text.txt").write_text("".join(f"the dog {number} is big\n" for number in range(400_000)))
    script = Path(__file__).parent.parent / "scripts" / "prepare.py"
    command = [sys.executable, str(script), "text.txt", "--model", "model", "--output", "corpus", "--workers", "2"]
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL)

    def workers() -> list[int]:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in found if is_worker(pid)]

    def is_worker(pid: int | str) -> bool:
        try:
            return "multiprocessing.spawn" in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:  # it has ended
            return False

    assert wait_until(lambda: len(workers()) == 2), "the premise"
    time.sleep(1)
    begun = workers()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        assert wait_until(lambda: not any(map(is_worker, begun)))
    finally:
        for pid in filter(is_worker, begun):
            os.kill(pid, signal.SIGKILL)
    again = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(Corpus.open(place / "corpus")) == 400_000 - 1000


# ---------------------------------------------------------------------------------------------------------------
# Order and report


def test_shuffle_draws_from_the_whole_text() -> None:
    lines = [f"the {word} {other}" for word in tiny.WORDS for other in tiny.WORDS]
    known = {tuple(Corpus.build([line], tiny.tokenizer()).token_ids): line for line in lines}

    def drawn(text: list[str], **settings: Any) -> list[str]:
        corpus, _ = build_corpora(Texts(text), "", TextConfig(heldout="0", **settings), tiny.tokenizer())
        places = zip(corpus.boundaries[:-1], corpus.boundaries[1:], strict=True)
        return [known[tuple(corpus.token_ids[first:last])] for first, last in places]

    assert drawn(lines, limit=50) == lines[:50]
    shuffled = drawn(lines, shuffle=True)
    assert sorted(shuffled) == sorted(lines)
    assert shuffled != lines
    assert drawn(lines[::-1], shuffle=True) == shuffled, "the order is that of a hash of the text"
    assert drawn(lines, shuffle=True, limit=50) == shuffled[:50]
    late = sum(lines.index(line) >= len(lines) // 2 for line in shuffled[:100])
    assert 30 < late < 70, "half of it comes from the second half: 4 standard errors"


def test_what_was_not_drawn_is_reported(prepare: Callable[..., Result], place: Path) -> None:
    assert prepare("text.txt --model model --output corpus --shuffle --limit 20 --heldout 2").code == 0
    report = json.loads((place / "corpus" / "report.json").read_text())
    assert report["kept"] == 20
    assert report["texts"] == report["kept"] + sum(report["left_out"].values())


def test_repeats_of_held_out_sentences_are_reported(run: Run, place: Path) -> None:
    (place / "text.txt").write_text("\n".join(tiny.SENTENCES * 3), encoding="utf-8")
    assert run("prepare", "text.txt --model model --output corpus --keep-repeated --heldout 2").code == 0
    report = json.loads((place / "corpus" / "report.json").read_text())
    assert report["left_out"] == {"repeats of held-out sentences": 4}
    assert report["kept"] == 3 * len(tiny.SENTENCES) - 4


def test_equal_sentences_are_not_drawn_together() -> None:
    lines = [f"the {word}" for word in tiny.WORDS] * 20
    settings = TextConfig(heldout="0", keep_repeated=True, shuffle=True, limit=len(tiny.WORDS))
    corpus, _ = build_corpora(Texts(lines), "", settings, tiny.tokenizer())
    places = zip(corpus.boundaries[:-1], corpus.boundaries[1:], strict=True)
    assert len({tuple(corpus.token_ids[first:last]) for first, last in places}) > len(tiny.WORDS) // 2


def test_a_limit_does_not_read_repeats_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    take = Texts.take

    def counted(self: Texts, most: int | None) -> list[str]:
        calls.append(most)
        return take(self, most)

    monkeypatch.setattr(Texts, "take", counted)
    rows = collected([*tiny.SENTENCES, *["a dog"] * 5000], limit=len(tiny.SENTENCES) + 2)
    assert len(rows) < len(tiny.SENTENCES) + 2
    assert len(calls) < 30


def test_the_report_says_what_became_of_the_text(prepare: Callable[..., Result], place: Path) -> None:
    prepared = prepare("text.txt --model model --output corpus --heldout 2 --min-characters 2")
    corpus = Corpus.open(place / "corpus")
    report = json.loads((place / "corpus" / "report.json").read_text())
    assert report["texts"] == len(LINES)
    assert report["kept"] == len(corpus) + 2
    assert report["texts"] == report["kept"] + sum(report["left_out"].values())
    assert set(report["left_out"]) == {"blank", "of fewer than 2 characters", "repeated"}
    lengths = Counter("8" if n <= 8 else "16" if n <= 16 else "32" for n in corpus.lengths.tolist())
    assert {name: count for name, count in report["tokens_at_most"].items() if count} == lengths
    assert len(lengths) == 3, "the premise"
    figures = corpus.counts
    assert figures is not None
    assert report["unknown_tokens"] == figures.unknown / figures.tokens > 0
    shares = ", ".join(f"{100 * lengths[most] / len(corpus):.0f} % up to {most}" for most in ("8", "16", "32"))
    assert f"tokens per sentence: {shares}, 0 % up to 64, 0 % up to 128, 0 % more; " in prepared.err


def test_rows_make_a_corpus_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TEXTS_AT_ONCE", 3)
    order = [5, 0, 7, 3, 1]
    made = Corpus.of(collected(tiny.SENTENCES), Work(tiny.tokenizer()), np.array(order))
    assert_equal(made, Corpus.build([tiny.SENTENCES[row] for row in order], tiny.tokenizer()))


def test_workers_are_counted() -> None:
    with pytest.raises(ValueError, match="--workers must be at least 1, got 0"):
        PrepareConfig(model="m", output="o", workers=0)
