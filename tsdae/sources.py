"""Where text comes from: files of several formats, standard input and the Hugging Face hub -> sentences."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import re
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

ARTICLE_SPLIT = re.compile(r"\.\s?\n?")  # how the article splits web documents into sentences
LONGER_THAN = 10  # the article keeps split sentences of more than 10 characters
HUB_LIMIT = 100_000  # sentences taken from the hub unless told otherwise, as in the article
SPLITS = ("lines", "regex")
TEXT_COLUMNS = ("text", "sentence")  # taken without --column where a file has one of them
LONGEST_LINE = 2**26  # bytes; what is longer is no text, and has to fit into memory several times
PACKED_AT_MOST, UNPACKED_FREELY = (
    200,
    2**27,
)  # how often text can be its compressed size (logs: 100), from so many bytes
PARQUET_ROWS = 256  # read at a time, since a cell can be large
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def load_sentences(
    source: str | Path,
    column: str | None = None,
    limit: int | None = None,
    sentences: str | None = None,
    min_characters: int | None = None,
    notes: Callable[[str], None] | None = None,
) -> list[str]:
    """Reads a corpus and returns its sentences, stripped, in order.

    source: a text file; .jsonl, .csv, .tsv or .parquet; any of these but parquet with .gz; "-" for standard input;
        "hub:NAME" or "hub:NAME:CONFIG" for a dataset of the Hugging Face hub (its split "train", streamed); NAME may
        also be a folder that `datasets.load_dataset` reads.
    column: which column of a table holds the text; needed unless it is called text or sentence or is the only one.
    limit: stop after so many sentences; None: all of a file, 100,000 of the hub.
    sentences: "lines" (a line or cell is a sentence) or "regex" (documents, split by the article's ``\\.\\s?\\n?``);
        None: regex for the hub, lines otherwise.
    min_characters: leave out shorter sentences; None: 11 for split documents (the article's filter), else 1; 0 keeps
        blank lines as well.
    notes: called with one line that says how many sentences were read and what was left out.
    ValueError says which file and line cannot be read, and why.
    """
    source = str(source)
    from_hub = source.startswith("hub:")
    check_source(source, limit, sentences)
    split = sentences or ("regex" if from_hub else "lines")
    shortest = min_characters if min_characters is not None else (LONGER_THAN + 1 if split == "regex" else 1)
    limit = limit if limit is not None else (HUB_LIMIT if from_hub else None)

    if from_hub:
        _, name, *config = source.split(":")
        texts = _column(_hub_records(name, config), column, source)
    else:
        texts = _file_texts(source, column)
    kept: list[str] = []
    blank = short = 0
    for text in texts:
        for part in ARTICLE_SPLIT.split(text) if split == "regex" else (text,):
            sentence = part.strip()
            if len(sentence) >= shortest:
                kept.append(sentence)
            elif sentence:
                short += 1
            elif not text.strip():  # what follows the last full stop of a document is not a blank line
                blank += 1
            if len(kept) == limit:
                break
        if len(kept) == limit:
            break
    left_out = [f"{blank:,} blank"] * (blank > 0) + [f"{short:,} of fewer than {shortest} characters"] * (short > 0)
    if not any(kept):  # 0 for min_characters keeps blank lines, but nobody means a corpus of nothing else
        reason = f"left out: {', '.join(left_out)}" if left_out else "only blank lines" if kept else "it is empty"
        raise ValueError(f"{_name(source)} holds no sentence ({reason})")
    if notes:
        stopped = f", stopped at the limit of {limit:,}" if len(kept) == limit else ""
        without = f"; left out: {', '.join(left_out)}" if left_out else ""
        notes(f"read {len(kept):,} sentences from {_name(source)}{stopped}{without}")
    return kept


def check_source(source: str, limit: int | None = None, sentences: str | None = None) -> None:
    """ValueError if a corpus is named that cannot be there, or cannot be read like this; reads nothing yet."""
    if sentences is not None and sentences not in SPLITS:
        raise ValueError(f"--sentences must be one of {', '.join(SPLITS)}, got {sentences!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    if source.startswith("hub:"):
        if not 2 <= len(source.split(":")) <= 3 or not source.split(":")[1]:
            raise ValueError(f"{source!r} must have the form hub:NAME or hub:NAME:CONFIG")
    elif source != "-":
        check_file(Path(source))


def check_file(path: Path) -> None:
    """ValueError unless ``path`` is a file."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    if not path.exists():  # not is_file: a shell's <(command) is a pipe
        raise ValueError(f"no file {path}")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv, .tsv, .jsonl or .parquet file (also .gz) as dictionaries by column name."""
    suffix = _suffix(path)
    if suffix not in TABLES:
        raise ValueError(f"{path} is no table: its name must end in {', '.join(TABLES)}")
    if suffix == ".parquet":
        yield from _parquet_records(path)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_records(path)
    else:
        yield from _separated_records(path, suffix)


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in numbered_lines(str(path)):
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


def _separated_records(path: Path, suffix: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)  # the default refuses cells of more than 128 KiB
    # Tab-separated files are not quoted as a rule: a quote in a sentence is a quote. In csv, strict: a quote that is
    # never closed would otherwise swallow the rest of the file without a word.
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    reader = csv.DictReader((line for _, line in numbered_lines(str(path))), **style)
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


def _file_texts(source: str, column: str | None) -> Iterator[str]:
    if source == "-" or _suffix(Path(source)) not in TABLES:
        if column is not None:
            raise ValueError(f"--column {column} is for tables ({', '.join(TABLES)}); {_name(source)} is plain text")
        yield from (line for _, line in numbered_lines(source))
    else:
        yield from _column(read_records(Path(source)), column, source)


def _column(records: Iterable[dict[str, Any]], column: str | None, source: str) -> Iterator[str]:
    """The texts of one column; cells that are empty or null count as blank."""
    records = iter(records)
    first = next(records, None)
    if first is None:
        return
    columns = list(first)
    if column is None:
        known = [name for name in TEXT_COLUMNS if name in columns] or (columns if len(columns) == 1 else [])
        if not known:
            raise ValueError(f"{_name(source)} has the columns {', '.join(columns)}; choose one with --column")
        column = known[0]
    for number, record in enumerate(itertools.chain([first], records), start=1):
        if column not in record:
            raise ValueError(f"{_name(source)}, record {number}: no column {column!r}; there are {', '.join(record)}")
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{_name(source)}, record {number}: column {column!r} holds {type(text).__name__}, not text"
            )
        yield text or ""


def numbered_lines(source: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, decoded as UTF-8 one by one, so that an error can name the line."""
    number = 0
    try:
        with _open(source) as file:
            # By how much a compressed file may grow is looked up once: there are millions of lines.
            unpacked, most = 0, _most_unpacked(Path(source)) if source.endswith(".gz") else math.inf
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(raw) > LONGEST_LINE:
                    raise ValueError(
                        f"{_name(source)}, line {number}: longer than {LONGEST_LINE / 2**20:.0f} MiB; is this text?"
                    )
                unpacked += len(raw)
                if unpacked > most:
                    raise _unpacks_to_too_much(Path(source))
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]  # not of raw: a byte-order mark is left out of the count
                    raise ValueError(
                        f"{_name(source)}, line {number}: not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); "
                        "convert the file first"
                    ) from error
                yield number, line
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{_name(source)} cannot be read after line {number}: {error}") from error


def _most_unpacked(path: Path) -> int:
    """Bytes that a compressed file of text can hold; more, and a few bytes are meant to fill the memory."""
    return max(UNPACKED_FREELY, PACKED_AT_MOST * path.stat().st_size)


def _unpacks_to_too_much(path: Path) -> ValueError:
    return ValueError(
        f"{path} unpacks to more than {PACKED_AT_MOST} times its size; if that is meant, unpack it beforehand"
    )


@contextlib.contextmanager
def _open(source: str) -> Iterator[BinaryIO | io.BufferedIOBase]:
    if source == "-":
        yield sys.stdin.buffer
    elif source.endswith(".gz"):
        with gzip.open(source, "rb") as file:
            yield file
    else:
        with open(source, "rb") as file:
            yield file


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            unpacked, most = 0, _most_unpacked(path)
            for batch in file.iter_batches(PARQUET_ROWS):
                unpacked += batch.nbytes
                if unpacked > most:
                    raise _unpacks_to_too_much(path)
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error


def reach_hub(name: str) -> None:
    """Asks the Hugging Face hub for a dataset: its own client would try for half a minute where there is no network."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)


def _hub_records(name: str, config: list[str]) -> Iterator[dict[str, Any]]:
    """Streams a dataset of the hub through `datasets`; nothing is stored."""
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


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _name(source: str) -> str:
    return "standard input" if source == "-" else source
