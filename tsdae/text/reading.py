"""Read text from files of several formats, from standard input and from the Hugging Face hub.

Text, JSON and CSV are read here and not by `datasets`, whose readers infer types, turn "NA" into NaN and split lines at
a lone CR. Parquet is read by pyarrow itself: `datasets` yields its rows 12 times as slowly (version 5.2, measured) and
fails on an empty table.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import os
import sys
import textwrap
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tsdae.text.cleaning import Cleaning

HUB_LIMIT = 100_000  # default number of sentences taken from the hub, as in the article
TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = 2048, 2**22  # most texts and characters of a chunk
TEXT_COLUMNS = ("text", "sentence")  # the columns that are taken without --column
COMPRESSED = (".gz", ".zst")
LONGEST_LINE = 2**26  # bytes; a longer line is no text, and would be in memory several times
PACKED_AT_MOST = 200  # times its compressed size that text can have (log files: 100)
UNPACKED_FREELY = 2**27  # bytes that any compressed file may have
PARQUET_ROWS = 256  # read at a time, since a cell can be large


def load_sentences(
    source: str | Path,
    column: str | None = None,
    limit: int | None = None,
    sentences: str | None = None,
    min_characters: int | None = None,
    max_characters: int | None = None,
    min_letters: float = 0.0,
    notes: Callable[[str], None] | None = None,
) -> list[str]:
    """Read a text and return its sentences in order, without white space around them.

    >>> load_sentences("text.txt", limit=2)
    ['a man is playing a guitar in the morning .', 'dog']

    source: a text file; .jsonl, .csv, .tsv or .parquet; any of these but parquet with .gz or .zst; a pattern of such
        files ("texts/**/*.txt", in the order of their names); "-" for standard input; "hub:NAME" or "hub:NAME:CONFIG"
        for a dataset of the Hugging Face hub (its split "train", streamed); NAME may also be a folder that
        `datasets.load_dataset` reads.
    column: the column of a table that holds the text; needed unless it is called text or sentence or is the only one.
    limit: most sentences to return; None: all of a file, 100,000 of the hub.
    sentences: "lines" (a line or cell is a sentence); documents are split by "regex" (the article's), "icu",
        "icu:LANGUAGE" or module:function, see `cleaning.Cleaning`; None: regex for the hub, lines otherwise.
    min_characters: leave out shorter sentences; None: 11 with regex (the article's filter), else 1; 0 keeps blank lines
        as well.
    max_characters, min_letters: further filters, see `cleaning.Cleaning`.
    notes: called with one line that says how many sentences were read and what was left out.

    ValueError for a file that cannot be read, with file, line and reason, and for a text without any sentence.

        sentences = load_sentences("reviews.csv.gz", column="body", sentences="icu:en")
        dataset = DenoisingDataset(sentences, encoder.tokenizer)
        noisy, clean = dataset.text(0)
    """
    source = str(source)
    check_source(source, limit)
    cleaning = Cleaning(split_for(source, sentences), min_characters, max_characters, min_letters)
    limit = missing = limit_for(source, limit)
    kept: list[str] = []
    left_out: Counter[str] = Counter()
    texts = open_texts(source, column)
    while chunk := texts.take(missing):
        found, dropped = cleaning(chunk)
        kept += found[:missing]
        left_out += dropped
        missing = None if limit is None else limit - len(kept)
    if not any(kept):  # min_characters=0 keeps blank lines, but a corpus of nothing else is a mistake
        raise no_sentence(source, left_out if not kept else None)
    if notes:
        notes(what_was_read(source, len(kept), limit, left_out))
    return kept


def split_for(source: str, sentences: str | None) -> str:
    """Return how a source's texts are split into sentences; None takes the default for this kind of source."""
    return sentences or ("regex" if source.startswith("hub:") else "lines")


def limit_for(source: str, limit: int | None) -> int | None:
    """Return the most sentences to take from a source; None: all."""
    return HUB_LIMIT if limit is None and source.startswith("hub:") else limit


def what_was_read(source: str, count: int, limit: int | None, left_out: Counter[str]) -> str:
    """Return a line for the user: how many sentences were read, and what was left out."""
    stopped = f", stopped at the limit of {limit:,}" if count == limit else ""
    without = f"; left out: {in_words(left_out)}" if left_out else ""
    return f"read {count:,} sentences from {name_of(source)}{stopped}{without}"


def in_words(left_out: Counter[str]) -> str:
    """Return how many sentences were left out for which reason, as text."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))


def no_sentence(source: str, left_out: Counter[str] | None) -> ValueError:
    """Return the error for a source without sentences. left_out: None if blank lines were kept and are all it has."""
    reasons = f"left out: {in_words(left_out)}" if left_out else "it is empty"
    return ValueError(f"{name_of(source)} holds no sentence ({'only blank lines' if left_out is None else reasons})")


# ---------------------------------------------------------------------------------------------------------------
# Sources


def check_source(source: str, limit: int | None = None) -> None:
    """Raise ValueError for a source that does not exist or cannot be read; reads nothing."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    if source.startswith("hub:"):
        if not 2 <= len(source.split(":")) <= 3 or not source.split(":")[1]:
            raise ValueError(f"{source!r} must have the form hub:NAME or hub:NAME:CONFIG")
    elif source != "-":
        files_of(source)


def check_file(path: Path) -> None:
    """Raise ValueError unless ``path`` is a file or a pipe."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    if not path.exists():  # not is_file: a shell's <(command) is a pipe
        raise ValueError(f"no file {path}")


def is_stream(source: str) -> bool:
    """True if a source can be read only once: standard input or a named pipe."""
    return source == "-" or Path(source).is_fifo()


def is_pattern(source: str) -> bool:
    """True if a source is a pattern of files, and not the name of one."""
    return glob.has_magic(source) and not Path(source).exists()


def files_of(source: str, outside: Sequence[Path] = ()) -> list[Path]:
    """Return the files that a name or a pattern matches, in the order of their names; ValueError if there is none.

    outside: files and folders that a pattern does not match.
    """
    path = Path(source)
    if not is_pattern(source):
        if path.is_dir():
            raise ValueError(f"{source} is a folder; give a file, or a pattern in quotes such as '{source}/**/*.txt'")
        check_file(path)
        return [path]
    names = [Path(name) for name in sorted({*glob.glob(source, recursive=True)})]  # ** twice finds twice
    excluded = [path.resolve() for path in outside]
    found = [path for path in names if not any(path.resolve().is_relative_to(other) for other in excluded)]
    files = [path for path in found if not path.is_dir()]
    if not files:
        only = f"; it matches folders only, {found[0]} among them" if found else ""
        raise ValueError(f"no file matches {source}{only}")
    return files


@dataclass
class Meter:
    """Counts how many bytes of a source's files were read, as they are on disk.

    size: of all files; 0: not known. finished: of the files that were read to their end. file: the one being read.
    """

    size: int = 0
    finished: int = 0
    file: BinaryIO | None = None

    @property
    def done(self) -> int:
        """Bytes read so far."""
        return self.finished + (self.file.tell() if self.file else 0)


class Texts:
    """The texts of a source, taken in chunks.

    texts: lines, cells of a table, or sentences. meter: how much of the source's files was read.
    """

    def __init__(self, texts: Iterable[str], meter: Meter | None = None) -> None:
        self._texts = self._source = iter(texts)
        self.meter = meter or Meter()
        self._asked = self._missing = 0

    def close(self) -> None:
        """Close the open file: nothing more is taken."""
        if isinstance(self._source, Generator):
            self._source.close()

    def look(self) -> None:
        """Read the first text already, for the errors that it may have."""
        first = list(itertools.islice(self._texts, 1))
        self._texts = itertools.chain(first, self._texts)

    def skip(self, count: int) -> None:
        """Read so many texts without returning them."""
        next(itertools.islice(self._texts, count, count), None)

    def take(self, missing: int | None = None) -> list[str]:
        """Return the next chunk of texts; empty at the end.

        missing: how many sentences are still needed: no more texts are read, so that none is read in vain; but twice as
            many as at the last call if less than half of those were kept, so that a text of repeated sentences is not
            read one by one. None: no limit.
        """
        most = TEXTS_AT_ONCE
        if missing is not None:
            few = 2 * (self._missing - missing) < self._asked
            self._asked, self._missing = max(missing, 2 * self._asked if few else 0), missing
            most = min(most, self._asked) if missing else 0
        chunk: list[str] = []
        characters = 0
        for text in itertools.islice(self._texts, most):
            chunk.append(text)
            characters += len(text)
            if characters >= CHARACTERS_AT_ONCE:
                break
        return chunk


def open_texts(source: str, column: str | None = None, outside: Sequence[Path] = ()) -> Texts:
    """Return the texts of a source (see `load_sentences`), read only when taken. outside: see `files_of`."""
    if source.startswith("hub:"):
        _, name, *config = source.split(":")
        return Texts(_cells(_hub_records(name, config), column, source))
    if source == "-":
        return Texts(_file_texts(source, column))
    files = files_of(source, outside)
    meter = Meter(sum(path.stat().st_size for path in files)) if all(path.is_file() for path in files) else None
    return Texts((text for path in files for text in _file_texts(str(path), column, meter)), meter)


def _file_texts(source: str, column: str | None, meter: Meter | None = None) -> Iterator[str]:
    if source == "-" or suffix_of(Path(source)) not in TABLES:
        if column is not None:
            raise ValueError(f"--column {column} is for tables ({', '.join(TABLES)}); {name_of(source)} is plain text")
        yield from (line for _, line in numbered_lines(source, meter))
    else:
        yield from _cells(read_records(Path(source), meter), column, source)


def _cells(records: Iterable[dict[str, Any]], column: str | None, source: str) -> Iterator[str]:
    """Yield the texts of one column; cells that are empty or null are blank."""
    for number, record in enumerate(records, start=1):
        if column is None:
            names = [name for name in TEXT_COLUMNS if name in record] or (list(record) if len(record) == 1 else [])
            if not names:
                raise ValueError(f"{name_of(source)} has the columns {', '.join(record)}; choose one with --column")
            column = names[0]
        if column not in record:
            raise ValueError(f"{name_of(source)}, record {number}: no column {column!r}; there are {', '.join(record)}")
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{name_of(source)}, record {number}: column {column!r} holds {type(text).__name__}, not text"
            )
        yield text or ""


def reach_hub(name: str) -> None:
    """Ask the Hugging Face hub for a dataset: its own client would try for half a minute without a network."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)


def _hub_records(name: str, config: list[str]) -> Iterator[dict[str, Any]]:
    """Stream a dataset of the hub, or a folder, through `datasets`; nothing is stored."""
    try:
        if not Path(name).is_dir():
            reach_hub(name)
        import datasets

        yield from datasets.load_dataset(name, *config, split="train", streaming=True)
    except Exception as error:  # the hub client has many kinds: no network, no such name, a gated dataset
        reason = textwrap.shorten(str(error), 400) or type(error).__name__
        raise ValueError(
            f"the dataset {name} of the Hugging Face hub cannot be read ({reason}); check name and network"
        ) from error


# ---------------------------------------------------------------------------------------------------------------
# Tables


def read_records(path: Path, meter: Meter | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .csv, .tsv, .jsonl or .parquet file (also .gz, .zst) as dictionaries by column name.

    ValueError, with file and line, for a file that cannot be read.
    """
    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise ValueError(f"{path} is no table: its name must end in {', '.join(TABLES)}")
    yield from _READERS[suffix](path, meter)


def numbered_json(path: Path, meter: Meter | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a .jsonl file (also .gz, .zst) with the numbers of their lines; blank lines are none.

    ValueError, with file and line, for what is not a JSON object.
    """
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
        yield (
            number,
            {
                name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
                for name, value in record.items()
            },
        )


def _json_records(path: Path, meter: Meter | None) -> Iterator[dict[str, Any]]:
    return (record for _, record in numbered_json(path, meter))


def _separated_records(path: Path, meter: Meter | None) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)  # the default refuses cells of more than 128 KiB
    # Tab-separated files are not quoted as a rule: a quote in a sentence is a quote. In csv, strict: a quote that is
    # never closed would otherwise swallow the rest of the file without a word.
    suffix = suffix_of(path)
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    reader = csv.DictReader((line for _, line in numbered_lines(str(path), meter)), **style)
    first_line = 1  # of the record being read
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: the header names {len(reader.fieldnames or [])} columns, "
                    "this row has a different number"
                )
            yield row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: the record that starts on line {first_line} is not valid {suffix}: {error}"
        ) from error


def _parquet_records(path: Path, meter: Meter | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _open(str(path), meter) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            size_limit = _SizeLimit(path)
            for batch in file.iter_batches(PARQUET_ROWS):
                size_limit.add(batch.nbytes)
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error


_READERS = {
    ".jsonl": _json_records,
    ".ndjson": _json_records,
    ".csv": _separated_records,
    ".tsv": _separated_records,
    ".parquet": _parquet_records,
}
TABLES = tuple(_READERS)  # the suffixes of tables


# ---------------------------------------------------------------------------------------------------------------
# Lines


def numbered_lines(source: str, meter: Meter | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file (also .gz, .zst) or of "-" with their numbers, decoded as UTF-8 one by one.

    ValueError, with the line, for bytes that are not UTF-8, a line of more than 64 MiB, a damaged file, and one that
    unpacks to more than 200 times its size.
    """
    number = 0
    size_limit = _SizeLimit(Path(source)) if source.endswith(COMPRESSED) else None
    try:
        with _open(source, meter) as raw, _unpacked(raw, source) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(line) > LONGEST_LINE:
                    raise ValueError(
                        f"{name_of(source)}, line {number}: longer than {LONGEST_LINE / 2**20:.0f} MiB; is this text?"
                    )
                if size_limit is not None:
                    size_limit.add(len(line))
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
        raise ValueError(f"{name_of(source)} cannot be read after line {number}: {error}") from error


class _SizeLimit:
    """Refuses a compressed file that unpacks to more than text can: a few bytes could fill the memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, max(UNPACKED_FREELY, PACKED_AT_MOST * path.stat().st_size)

    def add(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(
                f"{self._path} unpacks to more than {PACKED_AT_MOST} times its size; if that is meant, unpack it "
                "beforehand"
            )


@contextlib.contextmanager
def _open(source: str, meter: Meter | None) -> Iterator[BinaryIO]:
    """Open the bytes of a file or of standard input, and let the meter follow the file."""
    if source == "-":
        yield sys.stdin.buffer
        return
    with open(source, "rb") as raw:
        meter, size = meter or Meter(), os.fstat(raw.fileno()).st_size
        meter.file = raw
        try:
            yield raw
        finally:
            meter.finished, meter.file = meter.finished + size, None


def _unpacked(raw: BinaryIO, source: str) -> contextlib.AbstractContextManager[BinaryIO | io.BufferedIOBase]:
    """Return the unpacked bytes; not by fsspec, whose zstd needs a package more and whose gzip is this one."""
    if source.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    if source.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return contextlib.nullcontext(raw)


def suffix_of(path: Path) -> str:
    """Return the suffix of a file's name in lower case, without .gz or .zst."""
    name = path.name
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return Path(name).suffix.lower()


def name_of(source: str) -> str:
    """Return what a source is called in messages."""
    return "standard input" if source == "-" else source
