"""Reading sentences: every format gives the same text, every broken file says what is wrong and where."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.ipc
import pytest
from huggingface_hub import HfApi

from tests.tables import arrow, parquet
from tsdae import load_sentences
from tsdae.text.cleaning import LONGER_THAN
from tsdae.text.reading import HUB_LIMIT, open_texts

# What a careless reader breaks: quotes, separators, an emoji (two UTF-16 units), a line separator that is no line end.
SENTENCES = ["A dog runs.", 'He said "no", twice', '"Stray', "Ünïcode, 犬 🐕", "one\u2028line"]


def rows(**other: Any) -> list[dict[str, Any]]:
    return [{"id": i, "text": text} | other for i, text in enumerate(SENTENCES)]


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def as_csv(cells: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(cells)
    return text.getvalue().encode()


LINES = "\n".join(SENTENCES).encode()
FILES = {
    "lines.txt": LINES,
    "no_suffix": LINES,
    "crlf.txt": LINES.replace(b"\n", b"\r\n"),
    "bom.txt": b"\xef\xbb\xbf" + LINES,
    "records.jsonl": jsonl(rows()),
    "escaped.ndjson": "\n\n".join(json.dumps(row) for row in rows()).encode(),
    "cells.csv": as_csv([["id", "text"], *([str(i), text] for i, text in enumerate(SENTENCES))]),
    "bom.csv": b"\xef\xbb\xbf" + as_csv([["text"], *([text] for text in SENTENCES)]),
    "unquoted.tsv": ("id\ttext\r\n" + "".join(f"{i}\t{text}\r\n" for i, text in enumerate(SENTENCES))).encode(),
    "columns.parquet": parquet(id=range(5), text=SENTENCES),
    "file.arrow": arrow(pyarrow.ipc.new_file, id=range(5), text=SENTENCES),
    "stream.arrow": arrow(id=range(5), text=SENTENCES),
}
PLAIN = {name: content for name, content in FILES.items() if not name.endswith((".parquet", ".arrow"))}
ZIPPED = {f"{name}.gz": gzip.compress(content) for name, content in PLAIN.items()}
ZIPPED |= {f"{name}.zst": pyarrow.compress(content, "zstd", asbytes=True) for name, content in PLAIN.items()}


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("name", "content"), (FILES | ZIPPED).items(), ids=lambda x: x if isinstance(x, str) else "")
def test_every_format_gives_the_same_sentences(tmp_path: Path, name: str, content: bytes) -> None:
    assert load_sentences(written(tmp_path, name, content)) == SENTENCES


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINES), encoding="ascii"))
    assert load_sentences("-") == SENTENCES


def test_a_cell_of_csv_may_hold_line_ends_and_be_long(tmp_path: Path) -> None:
    long = "word " * 40_000  # more than the csv module allows by default
    cells = [["text", "id"], ["first line\r\nsecond", "1"], [long, "2"], ["last", "3"]]
    assert load_sentences(written(tmp_path, "a.csv", as_csv(cells))) == ["first line\r\nsecond", long.strip(), "last"]


def test_a_packed_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    two = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert load_sentences(written(tmp_path, "a.txt.gz", two)) == ["one", "two"]
    two = b"".join(pyarrow.compress(text, "zstd", asbytes=True) for text in (b"one\n", b"two\n"))
    assert load_sentences(written(tmp_path, "a.txt.zst", two)) == ["one", "two"]


def test_a_pattern_stands_for_its_files(tmp_path: Path) -> None:
    """In the order of their names, each by its own kind; a file whose own name looks like a pattern is that file."""
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name, content in {
        "b/one.txt": b"second\n",
        "a.txt": b"first\n",
        "b/deep/two.txt.gz": gzip.compress(b"packed\n"),
        "b/deep/x.csv": b"text,id\nin a cell,1\n",
        "c[1].txt": b"brackets\n",
    }.items():
        written(tmp_path, name, content)
    assert load_sentences(f"{tmp_path}/**/*.txt") == ["first", "second", "brackets"]
    assert load_sentences(f"{tmp_path}/**/**/*.txt") == ["first", "second", "brackets"], "each file once"
    assert load_sentences(f"{tmp_path}/b/**/*") == ["packed", "in a cell", "second"]
    assert load_sentences(f"{tmp_path}/c[1].txt") == ["brackets"]
    notes: list[str] = []
    load_sentences(f"{tmp_path}/**/*.txt", limit=2, notes=notes.append)
    assert notes == [f"read 2 sentences from {tmp_path}/**/*.txt, stopped at the limit of 2"]
    with pytest.raises(ValueError, match=r"no file matches .*\*\.tex"):
        load_sentences(f"{tmp_path}/**/*.tex")
    with pytest.raises(ValueError, match=r"no file matches .*; it matches only folders, such as .*/b/deep"):
        load_sentences(f"{tmp_path}/b/d*")
    written(tmp_path, "b/deep/three.txt", b"fine\n\xff\n")
    with pytest.raises(ValueError, match=r"three.txt, line 2: not UTF-8"):
        load_sentences(f"{tmp_path}/**/*.txt")


@pytest.mark.parametrize(
    "name", ["lines.txt", "lines.txt.gz", "lines.txt.zst", "cells.csv", "columns.parquet", "stream.arrow"]
)
def test_how_far_a_source_was_read(tmp_path: Path, name: str) -> None:
    """In bytes of its files, from nothing to all."""
    size = len((FILES | ZIPPED)[name])
    for number in range(2):
        written(tmp_path, f"{number}{name}", (FILES | ZIPPED)[name])
    texts = open_texts(f"{tmp_path}/*{name}")
    assert (texts.meter.size, texts.meter.done) == (2 * size, 0)
    first = texts.take(len(SENTENCES))
    assert 0 < texts.meter.done <= size
    assert [text.strip() for text in first + texts.take()] == 2 * SENTENCES
    assert texts.take() == []
    assert texts.meter.done == 2 * size


def test_half_a_surrogate_pair_in_json_becomes_text(tmp_path: Path) -> None:
    (sentence,) = load_sentences(written(tmp_path, "a.jsonl", r'{"text": "a dog \ud83d runs"}'))
    assert sentence == "a dog ? runs"


def test_the_articles_split_and_filter(tmp_path: Path) -> None:
    """Splits at full stops with what follows them, and keeps what has *more than* ten characters once stripped."""
    text = "Exactly 10. Eleven char. \n A third one,no space.A fourth sentence. Version 1.5 of it.\n"
    path = written(tmp_path, "a.txt", text)
    assert len("Exactly 10") == LONGER_THAN
    assert load_sentences(path, sentences="regex") == ["Eleven char", "A third one,no space", "A fourth sentence"]
    assert load_sentences(path, sentences="regex", min_characters=4)[-1] == "5 of it"


def test_limit_stops_reading(tmp_path: Path) -> None:
    notes: list[str] = []
    path = written(tmp_path, "a.txt", b"one\ntwo\nthree\n\xff\n")  # the broken line is never reached
    assert load_sentences(path, limit=2, notes=notes.append) == ["one", "two"]
    assert notes == [f"read 2 sentences from {path}, stopped at the limit of 2"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    notes: list[str] = []
    path = written(tmp_path, "a.txt", "a longer one\n\n  \t\nshort\n\u3000\nanother long one\n")
    assert len(load_sentences(path, min_characters=6, notes=notes.append)) == 2
    assert notes == [f"read 2 sentences from {path}; left out: 3 blank, 1 of fewer than 6 characters"]
    assert len(load_sentences(path, min_characters=0)) == 6


def test_only_blank_documents_count_as_blank(tmp_path: Path) -> None:
    notes: list[str] = []
    load_sentences(written(tmp_path, "a.txt", "A long sentence.\n\n"), sentences="regex", notes=notes.append)
    assert notes[0].endswith("left out: 1 blank")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": null}\n{"text": ""}\n{"text": "two"}\n'),
        ("a.csv", b"id,text\n1,one\n2,\n3,\n4,two\n"),
        ("a.parquet", parquet(id=range(4), text=["one", None, "", "two"])),
    ],
)
def test_null_and_empty_cells_are_blank(tmp_path: Path, name: str, content: bytes) -> None:
    notes: list[str] = []
    path = written(tmp_path, name, content)
    assert load_sentences(path, column="text", notes=notes.append) == ["one", "two"]
    assert notes[0].endswith("left out: 2 blank")
    assert load_sentences(path, column="text", min_characters=0) == ["one", "", "", "two"]  # one row per record


def test_the_column_is_chosen_by_name_or_by_being_the_only_one(tmp_path: Path) -> None:
    two = written(tmp_path, "two.csv", "text,title\nbody,heading\n")
    assert load_sentences(two) == ["body"]
    assert load_sentences(two, column="title") == ["heading"]
    assert load_sentences(written(tmp_path, "one.csv", "anything\nbody\n")) == ["body"]


# ---------------------------------------------------------------------------------------------------------------
# The hub


@pytest.fixture(autouse=True)
def _own_datasets_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def stands_for_the_hub(monkeypatch: pytest.MonkeyPatch, records: list[Any]) -> list[tuple[Any, ...]]:
    """Puts ``records`` in place of any dataset of the hub; returns the calls, of the hub itself and of `datasets`."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None, *, split: str, streaming: bool) -> Any:
        calls.append((path, name, split, streaming))
        return datasets.Dataset.from_list(records).to_iterable_dataset()

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, timeout: calls.append((name, timeout)))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_streams_a_folder_of_records(tmp_path: Path) -> None:
    """`datasets` itself reads a local folder as it reads the hub; documents are split, as in the article."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    written(folder, "train.jsonl", jsonl([{"text": "A first sentence. A second one. No.", "n": 1}, {"text": None}]))
    notes: list[str] = []
    assert load_sentences(f"hub:{folder}", notes=notes.append) == ["A first sentence", "A second one"]
    assert "left out: 1 blank, 1 of fewer than 11 characters" in notes[0]
    assert load_sentences(f"hub:{folder}", sentences="lines", limit=1) == ["A first sentence. A second one. No."]


def test_hub_name_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stands_for_the_hub(monkeypatch, [{"title": "short", "body": "A sentence of the body"}])
    assert load_sentences("hub:some/name:en", column="body") == ["A sentence of the body"]
    assert load_sentences("hub:name", column="title", min_characters=1) == ["short"]
    # The hub is asked first: `datasets` would try for half a minute where there is no network.
    assert calls == [("some/name", 10), ("some/name", "en", "train", True), ("name", 10), ("name", None, "train", True)]
    with pytest.raises(ValueError, match="has the columns title, body; choose one with --column"):
        load_sentences("hub:name")


def test_hub_is_limited_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    stands_for_the_hub(monkeypatch, [{"text": "This is repeated. " * 1000}] * 101)
    assert len(load_sentences("hub:name")) == HUB_LIMIT == 100_000


def test_hub_out_of_reach_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"the dataset some/name of the Hugging Face hub cannot be read \(.+\); check"):
        load_sentences("hub:some/name")


def test_a_long_message_of_the_hubs_client_becomes_one_line(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
    )
    for name in ("en.jsonl", "de.jsonl"):
        written(tmp_path, name, jsonl(rows()))
    assert load_sentences(f"hub:{tmp_path}:de", sentences="lines") == SENTENCES
    with pytest.raises(ValueError, match=r"Config name is missing.*en.*de") as caught:
        load_sentences(f"hub:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["hub:", "hub::en", "hub:a:b:c"])
def test_hub_form(source: str) -> None:
    with pytest.raises(ValueError, match="must have the form hub:NAME or hub:NAME:CONFIG"):
        load_sentences(source)


# ---------------------------------------------------------------------------------------------------------------
# What bad input gets

BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b"", "a.txt holds no sentence (it is empty)"),
    "only blank lines": ("a.txt", b"\n  \n\r\n", "a.txt holds no sentence (left out: 3 blank)"),
    "only short lines": ("a.txt", b"\n", "a.txt holds no sentence (left out: 1 blank)"),
    "empty table": ("a.csv", b"text\n", "a.csv holds no sentence (it is empty)"),
    "empty parquet": ("a.parquet", parquet(id=[], text=[]), "a.parquet holds no sentence (it is empty)"),
    "latin-1": ("a.txt", b"one\ncaf\xe9\n", "a.txt, line 2: not UTF-8 (byte 0xe9 at column 4); convert the file first"),
    "latin-1 after a mark": ("a.txt", b"\xef\xbb\xbfcaf\xe9\n", "line 1: not UTF-8 (byte 0xe9 at column 4)"),
    "utf-16": ("a.txt", "one".encode("utf-16"), "a.txt, line 1: not UTF-8 (byte 0xff at column 1)"),
    "latin-1 in csv": ("a.csv", b"text\none\ncaf\xe9\n", "a.csv, line 3: not UTF-8"),
    "broken json": (
        "a.jsonl",
        b'{"text": "one"}\n\n{"text": "tw\n',
        "a.jsonl, line 3: not valid JSON at column 13: Invalid",
    ),
    "json, but no object": ("a.jsonl", b'{"text": "one"}\n["two"]\n', "line 2: a JSON object was expected, not list"),
    "a number for text": ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "record 2: column 'text' holds int, not text"),
    "a deep line": ("a.jsonl", b'{"text": ' + b"[" * 200_000, "a.jsonl, line 1: not valid JSON"),
    "a number of a million digits": ("a.jsonl", b'{"text": ' + b"1" * 10**6 + b"}", "a.jsonl, line 1: not valid JSON"),
    "a nested column": ("a.parquet", parquet(text=[["a", "dog"]]), "record 1: column 'text' holds list, not text"),
    "a column that goes missing": (
        "a.jsonl",
        b'{"text": "a"}\n{"txt": "b", "n": 1}\n',
        "a.jsonl, record 2: no column 'text'; its columns are txt, n",
    ),
    "no column to guess": ("a.csv", b"a,b\n1,2\n", "a.csv has the columns a, b; choose one with --column"),
    "a short row": ("a.csv", b"text,id\none,1\ntwo\n", "a.csv, line 3: the header names 2 columns, this row has"),
    "a long row": ("a.tsv", b"text\tid\none\t1\tx\n", "a.tsv, line 2: the header names 2 columns, this row has"),
    "an open quote": (
        "a.csv",
        b'text,id\none,1\n"two,2\nthree,3\n',
        "a.csv: the record that starts on line 3 is not valid .csv: unexpected end of data",
    ),
    "half a gzip": ("a.txt.gz", gzip.compress(LINES)[:-9], "a.txt.gz cannot be read"),
    "a damaged gzip": ("a.txt.gz", gzip.compress(LINES)[:10] + b"\xff" * 40, "a.txt.gz cannot be read: Error"),
    "not a gzip": ("a.txt.gz", b"one\ntwo\n", "a.txt.gz cannot be read: Not a gzipped file"),
    "empty arrow": ("a.arrow", arrow(id=[], text=[]), "a.arrow holds no sentence (it is empty)"),
    "half an arrow": (
        "a.arrow",
        arrow(id=range(5), text=SENTENCES)[:600],
        "a.arrow cannot be read as arrow: Expected to read",
    ),
    "arrow by another name": (
        "a.txt",
        arrow(id=range(5), text=SENTENCES),
        "a.txt is binary, perhaps an Arrow stream; the name of one must end in .arrow",
    ),
    "not a parquet": ("a.parquet", b"one\ntwo\n", "a.parquet cannot be read as parquet"),
}
assert sys.getrecursionlimit() < 200_000, "the premise of the deep line"


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_sentences(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value), "it says which file"


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no file {tmp_path / 'nowhere.txt'}")):
        load_sentences(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is a folder; give a file")):
        load_sentences(tmp_path)


@pytest.mark.parametrize("name", ["lines.txt", "records.jsonl", "cells.csv", "columns.parquet"])
def test_an_unknown_column_names_the_columns(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, FILES[name])
    message = "--column txt is for tables" if name == "lines.txt" else "no column 'txt'; its columns are id, text"
    with pytest.raises(ValueError, match=message):
        load_sentences(path, column="txt")


def test_a_pipe_is_as_good_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's <(command) is no regular file."""
    path = written(tmp_path, "pipe", LINES)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    assert load_sentences(path) == SENTENCES
