"""Read tables: rows of JSON, CSV, TSV, parquet and Arrow files as dictionaries by column name.

JSON and CSV are read here and not by `datasets`, whose readers infer types and turn "NA" into NaN. Parquet and Arrow
are read by pyarrow itself: `datasets` yields rows 12 times as slowly (5.2, measured) and fails on an empty table.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tsdae.text import lines
from tsdae.text.lines import Meter, check_unpacked, numbered_lines, open_bytes, suffix_of
from tsdae.utils.plural import counted

ARROW_FILE = b"ARROW1"  # how an Arrow file starts, and an Arrow stream does not
PARQUET_ROWS = 256  # read at a time, since a cell can be large
SEPARATORS = ",;\t|"  # of a .csv file: what Excel writes depends on the country
AHEAD = 100  # lines in which the cell of a .tsv file may close that a line has opened
WORDS_OF_A_NAME, LETTERS_OF_A_NAME = 4, 40  # at most, in the name of a column
Lines = Iterator[tuple[int, str]]  # numbered
Row = tuple[int, list[str]]  # the number of its last line, and its cells


def read_records(path: Path, meter: Meter | None = None) -> Generator[dict[str, Any]]:
    """Yield the rows of a .csv, .tsv, .json, .jsonl (also .gz, .zst), .parquet or .arrow file, each by column names.

    ValueError, with file and line, for a file that cannot be read, and for two columns of one name.
    """
    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise ValueError(f"{path} is not a table: its name must end in {', '.join(TABLES)}")
    if suffix in BY_COLUMN:
        yield from _column_records(path, meter)
        return
    with contextlib.closing(numbered_lines(str(path), meter)) as numbered:  # an error must not leave the file open
        yield from _READERS[suffix](path, numbered)


def check_names(names: Sequence[str], where: str) -> None:
    """Raise ValueError if two columns have one name; empty ones are no names."""
    twice = next((name for number, name in enumerate(names) if name and name in names[:number]), None)
    if twice is not None:
        raise ValueError(f"{where}: two columns are called {twice!r}; give each a name of its own")


def looks_like_data(name: str) -> bool:
    """True if the name of a column is rather a text or a number: the first line of a file is perhaps no header."""
    return (
        len(name) > LETTERS_OF_A_NAME
        or len(name.split()) > WORDS_OF_A_NAME
        or name.strip().endswith((".", "!", "?", "\u3002", "\uff01", "\uff1f"))
        or re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?\s*", name) is not None
    )


# ---------------------------------------------------------------------------------------------------------------
# JSON


class _Repeated(dict[str, Any]):
    """A JSON object that names a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else _Repeated(record)


def _parsed(text: str, where: str, hint: str = "") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        what = error.msg.removesuffix(" at") + hint
        raise ValueError(f"{where}: not valid JSON at {place}column {error.colno}: {what}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        raise ValueError(f"{where}: not valid JSON: {error}") from error


def is_json_object(line: str) -> bool:
    """True if a line is a whole JSON object with a name in it."""
    if not line.lstrip().startswith("{"):
        return False
    try:
        return bool(_parsed(line, ""))
    except ValueError:
        return False


def _json_records(path: Path, numbered: Lines) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines, or of a .json file that is one array (also of texts: the column text)."""
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        return
    is_json = suffix_of(path) == ".json"
    if is_json and first[1].lstrip().startswith("["):
        array = _parsed("".join([first[1], *(line for _, line in numbered)]), str(path))
        for number, item in enumerate(array, start=1):
            yield _record({"text": item} if isinstance(item, str) else item, f"{path}, item {number}")
        return
    hint = "; an array of objects is read if its name ends in .json" if first[1].lstrip().startswith("[") else ""
    if is_json and first[1].lstrip().startswith("{"):
        hint = "; a .json file must hold one object a line, or an array of objects"
    for number, line in itertools.chain([first], numbered):
        if line.strip():
            where = f"{path}, line {number}"
            yield _record(_parsed(line, where, hint if number == first[0] else ""), where)


def numbered_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a .jsonl file (also .gz, .zst) with the numbers of their lines; blank lines are none.

    ValueError, with file and line, for what is not a JSON object.
    """
    for number, line in numbered_lines(str(path)):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, _record(_parsed(line, where), where)


def _record(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object was expected, not {type(record).__name__}")
    if isinstance(record, _Repeated):
        raise ValueError(f"{where}: a key occurs twice in the object; its keys are {', '.join(record)}")
    # JSON can spell half of a surrogate pair (a cut-off emoji), which is no text: no tokenizer takes it.
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in record.items()
    }


# ---------------------------------------------------------------------------------------------------------------
# CSV and TSV


def _separated_records(path: Path, numbered: Lines) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(lines.LONGEST_LINE)  # the default refuses cells of more than 128 KiB
    suffix = suffix_of(path)
    header: list[str] = []
    for number, cells in _rows(path, suffix, numbered):
        if not header:
            check_names(cells, str(path))
            header = cells
        elif len(cells) != len(header) and (len(cells) > 1 or cells[0].strip()):
            raise ValueError(
                f"{path}, line {number}: the header names {counted(len(header), 'column')}, this row has a different "
                f"number: {len(cells)}{_reason(cells, len(header), suffix)}"
            )
        elif len(cells) == len(header):
            yield dict(zip(header, cells, strict=True))


def _reason(cells: list[str], columns: int, suffix: str) -> str:
    """Return what may be behind a wrong number of cells."""
    if suffix == ".tsv" and any(cell.count('"') % 2 for cell in cells):
        return "; cells in quotes that hold line breaks or tabs are read from a .csv file"
    if columns == 1:
        return f"; if each line is a text, let its name end in .txt instead of {suffix}"
    return "; does it use the separator of the header?" if len(cells) == 1 else ""


def _rows(path: Path, suffix: str, numbered: Lines) -> Iterator[Row]:
    ahead = list(itertools.islice(((number, line) for number, line in numbered if line.strip()), 2))
    if not ahead:
        return
    named = re.fullmatch(r'"?sep=(.)"?\s*', ahead[0][1]) if suffix == ".csv" else None  # written by and for Excel
    separator = named[1] if named else _separator([line for _, line in ahead], suffix)
    following = itertools.chain(ahead[1:] if named else ahead, numbered)
    # Tab-separated files are not quoted as a rule: a quote in a sentence is a quote, unless all names are quoted.
    quoted = all(len(name) > 1 and name[0] == name[-1] == '"' for name in ahead[0][1].strip().split("\t"))
    if suffix == ".tsv" and separator == "\t" and not quoted:
        yield from _tab_rows(following)
        return
    read = [0]  # the number of the line that was read last
    first_line = 1  # of the record being read
    try:
        # strict: a quote that is never closed would otherwise swallow the rest of the file without a word.
        for cells in csv.reader(_noted(following, read), delimiter=separator, strict=True):
            if cells:
                yield read[0], cells
            first_line = read[0] + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: the record that starts on line {first_line} is not valid {suffix}: {error}"
        ) from error


def _noted(numbered: Lines, read: list[int]) -> Iterator[str]:
    for read[0], line in numbered:
        yield line


def _separator(first_lines: list[str], suffix: str) -> str:
    """Return what separates the cells of the header, and as many of the line after it."""
    usual = "\t" if suffix == ".tsv" else ","
    if suffix == ".tsv" and not re.fullmatch(r'"?[^\W\d]\w*"?([,;|]"?[^\W\d]\w*"?)+\s*', first_lines[0]):
        return usual
    found = []
    for separator in dict.fromkeys(usual + SEPARATORS):
        try:
            counts = [len(row) for row in csv.reader(first_lines, delimiter=separator) if row]
        except csv.Error:
            continue
        if counts and counts[0] > 1:
            found.append((len(set(counts)) > 1, separator))
    return min(found, key=lambda each: each[0])[1] if found else usual


def _tab_rows(numbered: Lines) -> Iterator[Row]:
    """Yield the rows of a file without quotes, or of one in which only the cells are quoted that need it (pandas)."""
    rest, ahead = iter(numbered), deque[tuple[int, str]]()
    columns = 0
    while following := ahead.popleft() if ahead else next(rest, None):
        number, line = following
        if not line.strip("\r\n"):
            continue
        cells = _tab_cells(line)
        if line.count('"') % 2 and any(cell.startswith('"') for cell in cells):  # a cell that goes on, or a stray quote
            ahead.extend(itertools.islice(rest, AHEAD - len(ahead)))
            parts = [line, *_until_closed(ahead)]
            joined = _unquoted("".join(parts))
            # Where each line is a row by itself, these are sentences that begin and end with quotes.
            if joined and len(joined) == columns and any(len(_tab_cells(part)) != columns for part in parts):
                cells = joined
                number = [ahead.popleft()[0] for _ in parts[1:]][-1]
        elif '"' in line:
            cells = _unquoted(line) or cells
        columns = columns or len(cells)
        yield number, cells


def _until_closed(ahead: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield these lines, up to the one that closes an open quote."""
    for _, line in ahead:
        yield line
        if line.count('"') % 2:
            return


def _tab_cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _unquoted(text: str) -> list[str] | None:
    """Return the cells of a row if it is quoted just as Python and pandas quote it; None if it is not."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return None
    again = io.StringIO()
    csv.writer(again, delimiter="\t", lineterminator="\r\n").writerows(rows)
    return rows[0] if len(rows) == 1 and again.getvalue().rstrip("\r\n") == text.rstrip("\r\n") else None


# ---------------------------------------------------------------------------------------------------------------
# Parquet and Arrow


def _column_records(path: Path, meter: Meter | None) -> Iterator[dict[str, Any]]:
    import pyarrow

    batches = _parquet_batches if suffix_of(path) == ".parquet" else _arrow_batches
    size = 0
    try:
        with open_bytes(str(path), meter) as raw:
            for batch in batches(raw, str(path)):
                size += batch.nbytes
                check_unpacked(path, size)
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as {suffix_of(path)[1:]}: {' '.join(str(error).split())}") from error


def _parquet_batches(raw: BinaryIO, name: str) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(raw) as file:
        check_names(file.schema_arrow.names, name)
        yield from file.iter_batches(PARQUET_ROWS)


def _arrow_batches(raw: BinaryIO, name: str) -> Iterator[Any]:
    """Yield the batches of an Arrow file, or of an Arrow stream, which is what `datasets` writes."""
    import pyarrow.ipc

    if raw.read(len(ARROW_FILE)) == ARROW_FILE:
        file = pyarrow.ipc.open_file(raw)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        raw.seek(0)
        file = pyarrow.ipc.open_stream(raw)
        batches = iter(file)
    check_names(file.schema.names, name)
    for batch in batches:
        batch.validate(full=True)  # pyarrow trusts the offsets in a file, and a damaged one could end the process
        yield batch


_READERS = {
    ".jsonl": _json_records,
    ".ndjson": _json_records,
    ".json": _json_records,
    ".csv": _separated_records,
    ".tsv": _separated_records,
}
BY_COLUMN = (".parquet", ".arrow")  # of tables that are no text
TABLES = (*_READERS, *BY_COLUMN)  # the suffixes of tables
WITH_HEADER = (".csv", ".tsv")  # whose first line names the columns
