"""Files as other tools write them: each is read as its tool means it, or refused in one line that names it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.scripts import Run
from tsdae import load_sentences
from tsdae.evaluation.pairs import load_pairs
from tsdae.text import lines, tables

pandas = pytest.importorskip("pandas")  # comes with datasets

# What pandas puts in quotes: tabs, separators, line ends, quotes. The last needs none.
TEXTS = ['He said "no"', 'a\tb, c; d | "e"', "line one\nline two", '"', "plain"]
RECORDS = [{"id": str(i), "text": text, "n": "x"} for i, text in enumerate(TEXTS)]


def sentences_of(source: str | Path, **options: Any) -> list[str]:
    try:
        return load_sentences(source, **options)
    except ValueError as error:
        raise AssertionError(f"it should be read: {error}") from error


def read(folder: Path, name: str, content: bytes | str, **options: Any) -> list[str]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return sentences_of(folder / name, **options)


def refused(folder: Path, name: str, content: bytes | str, message: str, **options: Any) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_sentences(folder / name, **options)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def tar(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def zipped(content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.txt", content)
    return sink.getvalue()


# ---------------------------------------------------------------------------------------------------------------
# Lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [1, 2, 3, 2**20])
def test_a_line_ends_as_in_pythons_text_mode(
    end: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK", block)
    monkeypatch.setattr(lines, "FIRST", 1)
    content = end.join(["one", "", "two\x0b\x1c\u2028still two", "three"]) + end
    (tmp_path / "a.txt").write_bytes(content.encode())
    with (tmp_path / "a.txt").open(encoding="utf-8") as file:
        expected = [line.strip() for line in file.read().split("\n")[:-1]]
    assert load_sentences(tmp_path / "a.txt", min_characters=0) == expected
    assert [number for number, _ in lines.numbered_lines(str(tmp_path / "a.txt"))] == [1, 2, 3, 4]
    assert read(tmp_path, "a.csv", f"id,text{end}1,one{end}") == ["one"]
    assert read(tmp_path, "a.tsv", f"id\ttext{end}1\tone{end}") == ["one"]
    assert read(tmp_path, "a.jsonl", f'{{"text": "one"}}{end}{{"text": "two"}}') == ["one", "two"]


def test_a_pipe_that_gives_little_at_a_time(tmp_path: Path) -> None:
    """The first bytes are looked at together, however they come."""
    for name, parts, message in (("a.txt", [b"one\r", b"\ntwo\n"], None), ("b.txt", [b"o", b"n\0e"], "is binary")):
        os.mkfifo(tmp_path / name)

        def write(path: Path = tmp_path / name, parts: list[bytes] = parts) -> None:
            with path.open("wb", buffering=0) as file:
                for part in parts:
                    file.write(part)

        writer = threading.Thread(target=write)
        writer.start()
        if message is None:
            assert load_sentences(tmp_path / name) == ["one", "two"]
        else:
            with pytest.raises(ValueError, match=message):
                load_sentences(tmp_path / name)
        writer.join()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NO_TEXT: dict[str, tuple[str, bytes, str]] = {
    "tar.gz": ("x.tar.gz", gzip.compress(tar(a=b"one\ntwo\n")), " is a tar archive, not text; unpack it"),
    "tar under another name": ("x.txt", tar(a=b"one\ntwo\n"), " is a tar archive, not text; unpack it"),
    "zip": ("x.txt", zipped(b"one\n"), " is a zip archive (as .xlsx and .docx are), not text"),
    "gzip without its name": ("x.txt", gzip.compress(b"one\n"), "give it a name that ends in .gz"),
    "zstd without its name": ("x.txt", pyarrow.compress(b"one\n", "zstd", asbytes=True), "that ends in .zst"),
    "html": (
        "x.txt",
        b"<!DOCTYPE html>\n<html>\n",
        " is a page of HTML or XML, whose tags would be read as text; extract",
    ),
    "html after a mark": ("x.txt", b"\xef\xbb\xbf\r\n <HTML lang=en>\n<p>a dog\n", " is a page of HTML or XML"),
    "html by its name": ("x.htm", b"<!-- made by hand -->\n<p>a dog</p>\n", " is a page of HTML or XML"),
    "html in place of a table": (
        "x.csv",
        b"<html><title>404 Not Found</title>\n",
        "fetch the file itself if a page came",
    ),
    "xml": ("x.tmx", b'<?xml version="1.0"?>\n<tmx/>\n', " is a page of HTML or XML"),
    "json lines": (
        "x.txt",
        b'{"text": "a dog"}\n{"text": "a cat"}\n',
        " holds JSON, whose names and brackets would be read",
    ),
    "pdf": ("x.txt", b"%PDF-1.7\n%abc\n", " is a PDF, not text"),
    "binary": ("x.dat", b"one\ntwo\0three\n", " is binary, not text: it has a NUL byte at 7"),
    "binary csv": ("x.csv", b"text\na\0b\n", " is binary, not text: it has a NUL byte at 6"),
    "utf-16 without a mark": ("x.txt", "one".encode("utf-16-le"), " is binary, not text: it has a NUL byte at 1"),
    "utf-16": ("x.txt", "one".encode("utf-16"), ", line 1: not UTF-8 (byte 0xff at column 1)"),
    **{
        f"lfs {name}": (name, LFS, " is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
        for name in ("x.txt", "x.csv", "x.jsonl", "x.json", "x.parquet", "x.txt.gz", "x.csv.zst")
    },
}


@pytest.mark.parametrize(("name", "content", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_no_text_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    refused(tmp_path, name, content, message)
    if name.endswith(tables.TABLES):
        with pytest.raises(ValueError, match=re.escape(message)):
            load_pairs(tmp_path / name)


def test_a_nul_behind_the_first_block_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a.txt", b"dog\n" * 2048 + b"a\0b\n")[-1] == "a\0b"


# ---------------------------------------------------------------------------------------------------------------
# JSON

ARRAY = [{"id": 0, "text": "one"}, {"id": 1, "text": "two\n[3]"}]


@pytest.mark.parametrize(
    "content",
    [
        "".join(json.dumps(record) + "\n" for record in ARRAY),
        "\n" + json.dumps(ARRAY),
        json.dumps(ARRAY, indent=2),
        json.dumps([record["text"] for record in ARRAY], indent=2),
    ],
    ids=["lines", "array", "indented array", "array of texts"],
)
def test_a_json_file_is_lines_or_an_array(content: str, tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", content) == ["one", "two\n[3]"]
    assert read(tmp_path, "a.json.gz", gzip.compress(content.encode())) == ["one", "two\n[3]"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{\n "text": ["one"]\n}', "line 1: not valid JSON at column 1"),
        ("a.json", '{\n "text": ["one"]\n}', "a .json file must hold one object a line, or an array of objects"),
        ("a.json", '[\n {"text": "one"},\n {"text": \n]', "a.json: not valid JSON at line 4, column 1"),
        ("a.json", '[{"text": "one"}, 2]', "a.json, item 2: a JSON object was expected, not int"),
        ("a.jsonl", '[\n {"text": "one"}\n]', "an array of objects is read if its name ends in .json"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}', "line 2: a key occurs twice in the object"),
    ],
)
def test_other_json_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path, name, content, message)


def test_a_name_twice_in_a_nested_object_is_no_matter(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", '{"text": "a", "n": {"x": 1, "x": 2}}') == ["a"]


# ---------------------------------------------------------------------------------------------------------------
# Separators, quotes, names of columns


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_is_seen(separator: str, tmp_path: Path) -> None:
    written = pandas.DataFrame(RECORDS).to_csv(sep=separator, index=False)
    assert read(tmp_path, "a.csv", written) == TEXTS
    assert read(tmp_path, "a.csv", f"sep={separator}\r\n{written}") == TEXTS, "as Excel reads and writes it"


def test_a_header_with_two_separators_is_split_as_its_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "nr;text, raw\n1;a, b, c\n", column="text, raw") == ["a, b, c"]
    assert read(tmp_path, "a.csv", "nr;x,text\n1,a; b\n", column="text") == ["a; b"]
    assert read(tmp_path, "a.csv", "text\na; b | c\n") == ["a; b | c"], "one column"
    assert read(tmp_path, "a.tsv", "id,text\n1,a\n") == ["a"], "commas in a .tsv"
    refused(tmp_path, "a.csv", "id,text\n1,a\n2;b\n", "line 3: the header names 2 columns, this row has a different")


@pytest.mark.parametrize("quoting", [0, 1, 2])  # minimal, all, non-numeric
def test_quotes_that_pandas_writes_are_followed(quoting: int, tmp_path: Path) -> None:
    for records in (RECORDS, [{"text": record["text"], "id": record["id"]} for record in RECORDS]):
        written = pandas.DataFrame(records).to_csv(sep="\t", index=False, quoting=quoting)
        assert read(tmp_path, "a.tsv", written) == TEXTS


def test_quotes_of_a_file_without_quoting_stay(tmp_path: Path) -> None:
    sentences = ['"I came.', "I saw.", 'I won."', 'a "word"', '"all of it"', '""', '"open']
    raw = "id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(sentences))
    assert read(tmp_path, "a.tsv", raw) == sentences
    refused(tmp_path, "a.tsv", 'id\ttext\n1\t"a\nb" c\n', "cells in quotes that hold line breaks or tabs are")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), sink)
    for name, content in (
        ("a.csv", b"text,id,text\na,1,b\n"),
        ("a.tsv", b"text\ttext\na\tb\n"),
        ("a.parquet", sink.getvalue()),
    ):
        refused(tmp_path, name, content, "two columns are called 'text'; give each a name of its own")
    assert read(tmp_path, "a.csv", "text;;\na;;\n") == ["a"], "columns without a name, as spreadsheets leave them"


def test_the_only_column_is_named_and_must_not_look_like_a_text(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read(tmp_path, "a.csv", "comment\none\n", notes=notes.append) == ["one"]
    assert notes == [f"read 1 sentence from {tmp_path / 'a.csv'} (column 'comment')"]
    for first in ("A dog runs.", "the dog runs over the lawn", "12,5"):
        name, text = ("a.tsv", f"{first}\na cat\n")
        refused(tmp_path, name, text, f"the first line of a table names its columns, and {first!r} looks like a text")
        assert read(tmp_path, name, text, column=first) == ["a cat"], "it may be what it is called"
    assert read(tmp_path, "a.jsonl", '{"What does the dog do?": "runs"}') == ["runs"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", "id,Text\n1,one\n", ["one"]),
        ("a.csv", "id, text\n1,one\n", ["one"]),
        ("a.csv", "SENTENCE,TEXT\na,b\n", ["b"]),
        ("a.csv", ",body\n0,one\n1,two\n", ["one", "two"]),  # as pandas writes its index
        ("a.CSV", "id,text\n1,one\n   \n", ["one"]),
        ("a.csv.GZ", gzip.compress(b"id,text\n1,one\n", mtime=0), ["one"]),
        ("a.jsonl", '{"body": "one"}\n{"body": "two"}\n', ["one", "two"]),
    ],
)
def test_what_need_not_be_refused(name: str, content: bytes | str, found: list[str], tmp_path: Path) -> None:
    assert read(tmp_path, name, content) == found


def test_all_rows_decide_which_column_is_the_only_one(tmp_path: Path) -> None:
    rows = '{"title": "one"}\n{"title": "two", "text": "a text"}\n'
    refused(tmp_path, "a.jsonl", rows, "has the columns title, text; choose one with --column")
    assert read(tmp_path, "a.jsonl", rows, column="title") == ["one", "two"]
    read(tmp_path, "b.csv", "id,text\n1,three\n")
    (tmp_path / "a.jsonl").write_text('{"title": "one"}')
    assert load_sentences(f"{tmp_path}/*") == ["one", "three"], "each file by itself"


def test_lines_with_commas_are_no_table(tmp_path: Path) -> None:
    refused(tmp_path, "a.csv", "text\nHello, world\n", "if each line is a text, let its name end in .txt")


def test_a_folder_with_brackets_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data[2] ?" / "deep").mkdir(parents=True)
    (tmp_path / "data[2] ?" / "deep" / "a.txt").write_text("one\n")
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "a.txt").write_text("another\n")
    assert sentences_of(f"{tmp_path}/data[2] ?/**/*.txt") == ["one"]
    monkeypatch.chdir(tmp_path)
    assert sentences_of("data[2] ?/deep/*") == ["one"]
    assert sentences_of("data[2]/*.txt") == ["another"], "a pattern where no folder is called so"


def test_a_command_says_what_it_will_not_read(run: Run, place: Path) -> None:
    (place / "x.txt").write_bytes(LFS)
    for command in (
        "encode model --input x.txt --output x.npy",
        "prepare x.txt --model model --output corpus",
        "train --corpus x.txt --model model",
        "train --corpus text.txt --heldout x.txt --model model",
        "train --corpus text.txt --add-tokens x.txt --model model",
        "neighbours model model --corpus x.txt",
    ):
        script, arguments = command.split(" ", 1)
        result = run(script, arguments)
        assert result.code == 2
        assert "x.txt is a Git LFS pointer" in result.err.splitlines()[-1], command
