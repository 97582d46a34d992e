"""Read the lines of text files, also packed ones, and of standard input; refuse what is no text, by name."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import sys
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSED = (".gz", ".zst")
LONGEST_LINE = 2**26  # bytes; a longer line is no text, and would be in memory several times
PACKED_AT_MOST = 200  # times its compressed size that text can have (log files: 100)
UNPACKED_FREELY = 2**27  # bytes that any compressed file may have
BLOCK = 2**20  # bytes read at a time
FIRST = 2**13  # bytes in which a NUL shows that a file is binary, as for git
WIDE = (b"\xff\xfe", b"\xfe\xff")  # marks of UTF-16, whose letters hold NULs: refused as what it is
LFS = b"version https://git-lfs.github.com/spec/"
HTML = (b"<!doctype html", b"<html", b"<?xml")  # how pages start, in any case
PAGES = (".html", ".htm", ".xhtml", ".xml")  # that start with any other tag
UNPACK = "; unpack it, and give its files (a pattern in quotes takes several)"
# How files begin that are often taken for text: what they are, and what to do. A tar archive says it at byte 257.
BEGINNINGS = {
    LFS: " is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"PK\x03\x04": f" is a zip archive (as .xlsx and .docx are), not text{UNPACK}, or export it as text or .csv",
    b"%PDF-": " is a PDF, not text; extract its text first",
    b"\x1f\x8b": " is gzip-compressed; give it a name that ends in .gz",
    b"\x28\xb5\x2f\xfd": " is zstd-compressed; give it a name that ends in .zst",
    b"BZh": f" is bzip2-compressed, which is not supported{UNPACK}",
    b"\xfd7zXZ\x00": f" is xz-compressed, which is not supported{UNPACK}",
    b"PAR1": " is a parquet file; give it a name that ends in .parquet",
    b"ARROW1": " is an Arrow file; give it a name that ends in .arrow",
    b"\xff\xff\xff\xff": " is binary, perhaps an Arrow stream; the name of one must end in .arrow",
    b"{\\rtf": " is an RTF document, not text; save it as plain text",
}


@dataclass
class Meter:
    """Counts how many bytes of a source's files were read, as they are on disk.

    size: of all files; 0: not known. finished: of the files that were read to their end. file: the one being read.
    column: of a table, where it was taken for being the only one.
    """

    size: int = 0
    finished: int = 0
    file: BinaryIO | None = None
    column: str | None = None

    @property
    def done(self) -> int:
        """Return the bytes read so far."""
        return self.finished + (self.file.tell() if self.file else 0)


def numbered_lines(source: str, meter: Meter | None = None) -> Generator[tuple[int, str]]:
    """Yield the lines of a file (also .gz, .zst) or of "-" with their numbers, decoded as UTF-8 one by one.

    A line ends in LF, CR LF or CR alone, as in Python's text mode; its end is kept.
    ValueError, with the line, for bytes that are not UTF-8, a line of more than 64 MiB, a damaged file, one that
    unpacks to more than 200 times its size, and one that is no text.
    """
    number = 0
    try:
        with open_bytes(source, meter) as raw, _unpacked(raw, source) as file:
            for number, line in enumerate(_lines(file, source), start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]  # not of the line: a byte-order mark is left out of the count
                    raise ValueError(
                        f"{name_of(source)}, line {number}: not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); "
                        "convert the file first"
                    ) from error
                yield number, text
    except (EOFError, OSError, zlib.error) as error:
        after = f" after line {number:,}" if number else ""
        raise ValueError(f"{name_of(source)} cannot be read{after}: {error}") from error


def _lines(file: Any, source: str) -> Iterator[bytes]:
    """Yield lines with their ends."""
    is_packed, size = source.lower().endswith(COMPRESSED), 0
    rest, number = b"", 0  # of a line without its end yet; lines before it
    block = file.read1(BLOCK)
    while block and len(block) < FIRST and (more := file.read1(BLOCK)):  # a pipe gives as little as it likes
        block += more
    check_content(source, block[:FIRST])
    while block:
        size += len(block)
        if is_packed:
            check_unpacked(Path(source), size)
        lines = (rest + block).splitlines(keepends=True)  # of bytes: at LF, CR LF and CR
        rest = lines.pop() if not lines[-1].endswith(b"\n") else b""  # CR may be the first half of CR LF
        for line in lines:
            number += 1
            _check_length(line, number, source)
            yield line
        _check_length(rest, number + 1, source)
        block = file.read1(BLOCK)
    if rest:
        yield rest


def _check_length(line: bytes, number: int, source: str) -> None:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{name_of(source)}, line {number}: longer than {LONGEST_LINE / 2**20:.0f} MiB; is this text?")


def check_content(source: str, first: bytes) -> None:
    """Raise ValueError if the first bytes of a source are those of something else than text."""
    beginning = next((mark for mark in BEGINNINGS if first.startswith(mark)), None)
    if beginning is not None:
        raise ValueError(name_of(source) + BEGINNINGS[beginning])
    start = first.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith(HTML) or (start.startswith(b"<") and suffix_of(Path(source)) in PAGES):
        raise ValueError(
            f"{name_of(source)} is a page of HTML or XML, whose tags would be read as text; extract its text first "
            "(the package trafilatura does), or fetch the file itself if a page came in its place"
        )
    if first[257:262] == b"ustar":
        raise ValueError(f"{name_of(source)} is a tar archive, not text{UNPACK}")
    if b"\0" in first and not first.startswith(WIDE):
        raise ValueError(f"{name_of(source)} is binary, not text: it has a NUL byte at {first.index(0):,}")


def check_unpacked(path: Path, size: int) -> None:
    """Raise ValueError if a compressed file unpacks to more bytes than text can: a few could fill the memory."""
    if size > max(UNPACKED_FREELY, PACKED_AT_MOST * path.stat().st_size):
        raise ValueError(
            f"{path} unpacks to more than {PACKED_AT_MOST} times its size; if that is intended, unpack it beforehand"
        )


@contextlib.contextmanager
def open_bytes(source: str, meter: Meter | None) -> Iterator[BinaryIO]:
    """Open the bytes of a file or of standard input, and let the meter follow the file."""
    if source == "-":
        yield sys.stdin.buffer
        return
    with open(source, "rb") as raw:
        if raw.peek(len(LFS)).startswith(LFS):  # whatever the name says that is in it
            check_content(source, LFS)
        meter, size = meter or Meter(), os.fstat(raw.fileno()).st_size
        meter.file = raw
        try:
            yield raw
        finally:
            meter.finished, meter.file = meter.finished + size, None


def _unpacked(raw: BinaryIO, source: str) -> contextlib.AbstractContextManager[BinaryIO | io.BufferedIOBase]:
    """Return the unpacked bytes; not by fsspec, whose zstd needs a package more and whose gzip is this one."""
    if source.lower().endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    if source.lower().endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return contextlib.nullcontext(raw)


def suffix_of(path: Path) -> str:
    """Return the suffix of a file's name in lower case, without .gz or .zst."""
    name = path.name.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def name_of(source: str) -> str:
    """Return what a source is called in messages."""
    return "standard input" if source == "-" else source
