"""The lines and rows of one file: text or table, packed or not, decoded as it is read; errors name file and line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 2**26  # bytes; what is longer is no text, and has to fit into memory several times
PACKED_AT_MOST = 200  # times its compressed size that text can be (logs: 100)
UNPACKED_FREELY = 2**27  # bytes that any compressed file may hold
PARQUET_ROWS = 256  # read at a time, since a cell can be large
COMPRESSED = (".gz", ".zst")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


@dataclass
class Meter:
    """How much of a source's files was read, in bytes as they lie on the disk."""

    size: int = 0  # 0: not known
    finished: int = 0
    file: BinaryIO | None = None

    @property
    def done(self) -> int:
        being_read = self.file is not None and not self.file.closed and self.size > 0
        return self.finished + (self.file.tell() if self.file and being_read else 0)


def check_file(path: Path) -> None:
    """ValueError unless ``path`` is a file."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    if not path.exists():  # not is_file: a shell's <(command) is a pipe
        raise ValueError(f"no file {path}")


def read_records(path: Path, meter: Meter | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a .csv, .tsv, .jsonl or .parquet file (also .gz, .zst) as dictionaries by column name."""
    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise ValueError(f"{path} is no table: its name must end in {', '.join(TABLES)}")
    if suffix == ".parquet":
        yield from _parquet_records(path, meter)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_records(path, meter)
    else:
        yield from _separated_records(path, suffix, meter)


def _json_records(path: Path, meter: Meter | None) -> Iterator[dict[str, Any]]:
    for number, line in numbered_lines(str(path), meter):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            what = error.msg.removesuffix(" at")
            raise ValueError(f"{path}, line {number}: not valid JSON at column {error.colno}: {what}") from error
        except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
            raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: a JSON object was expected, not {type(record).__name__}")
        # JSON can spell half of a surrogate pair (a cut-off emoji), which is no text: no tokenizer takes it.
        yield {
            name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for name, value in record.items()
        }


def _separated_records(path: Path, suffix: str, meter: Meter | None) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)  # the default refuses cells of more than 128 KiB
    # Tab-separated files are not quoted as a rule: a quote in a sentence is a quote. In csv, strict: a quote that is
    # never closed would otherwise swallow the rest of the file without a word.
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    reader = csv.DictReader((line for _, line in numbered_lines(str(path), meter)), **style)
    begins = 1  # the line on which the record being read begins
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: the header names {len(reader.fieldnames or [])} columns, "
                    "this row has a different number"
                )
            yield row
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: the record that begins on line {begins} is not valid {suffix}: {error}") from error


def _parquet_records(path: Path, meter: Meter | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _metered(str(path), meter) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            unpacked, most = 0, _most_unpacked(path)
            for batch in file.iter_batches(PARQUET_ROWS):
                unpacked += batch.nbytes
                if unpacked > most:
                    raise _unpacks_to_too_much(path)
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error


def numbered_lines(source: str, meter: Meter | None = None) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, decoded as UTF-8 one by one, so that an error can name the line."""
    number = 0
    try:
        with _open(source, meter) as file:
            # By how much a compressed file may grow is looked up once: there are millions of lines.
            unpacked, most = 0, _most_unpacked(Path(source)) if source.endswith(COMPRESSED) else math.inf
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(raw) > LONGEST_LINE:
                    raise ValueError(
                        f"{name_of(source)}, line {number}: longer than {LONGEST_LINE / 2**20:.0f} MiB; is this text?"
                    )
                unpacked += len(raw)
                if unpacked > most:
                    raise _unpacks_to_too_much(Path(source))
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]  # not of raw: a byte-order mark is left out of the count
                    raise ValueError(
                        f"{name_of(source)}, line {number}: not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); "
                        "convert the file first"
                    ) from error
                yield number, line
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{name_of(source)} cannot be read after line {number}: {error}") from error


def _most_unpacked(path: Path) -> int:
    """Bytes that a compressed file of text can hold; more, and a few bytes are meant to fill the memory."""
    return max(UNPACKED_FREELY, PACKED_AT_MOST * path.stat().st_size)


def _unpacks_to_too_much(path: Path) -> ValueError:
    return ValueError(
        f"{path} unpacks to more than {PACKED_AT_MOST} times its size; if that is meant, unpack it beforehand"
    )


@contextlib.contextmanager
def _open(source: str, meter: Meter | None = None) -> Iterator[BinaryIO | io.BufferedIOBase]:
    if source == "-":
        yield sys.stdin.buffer
        return
    with _metered(source, meter) as raw:
        if source.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as file:
                yield file
        elif source.endswith(".zst"):
            import pyarrow

            with io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd")) as unpacked:
                yield unpacked
        else:
            yield raw


@contextlib.contextmanager
def _metered(source: str, meter: Meter | None) -> Iterator[BinaryIO]:
    """The file, watched by the meter."""
    with open(source, "rb") as raw:
        if meter is not None:
            meter.file = raw
        yield raw
        if meter is not None:
            meter.finished, meter.file = meter.finished + os.stat(source).st_size, None


def suffix_of(path: Path) -> str:
    name = path.name
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return Path(name).suffix.lower()


def name_of(source: str) -> str:
    return "standard input" if source == "-" else source
