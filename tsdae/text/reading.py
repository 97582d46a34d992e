"""Where text comes from: files of several formats, standard input and the Hugging Face hub -> sentences."""

from __future__ import annotations

import glob
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tsdae.text.cleaning import LONGER_THAN, Cleaning
from tsdae.text.formats import TABLES, Meter, check_file, name_of, numbered_lines, read_records, suffix_of

HUB_LIMIT = 100_000  # sentences taken from the hub unless told otherwise, as in the article
TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = 2048, 2**22  # cleaned in one call, and later tokenised in one
TEXT_COLUMNS = ("text", "sentence")  # taken without --column where a file has one of them


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
    """Reads a corpus and returns its sentences, stripped, in order.

    source: a text file; .jsonl, .csv, .tsv or .parquet; any of these but parquet with .gz or .zst; a pattern of such
        files ("texts/**/*.txt", in the order of their names); "-" for standard input; "hub:NAME" or "hub:NAME:CONFIG"
        for a dataset of the Hugging Face hub (its split "train", streamed); NAME may also be a folder that
        `datasets.load_dataset` reads.
    column: which column of a table holds the text; needed unless it is called text or sentence or is the only one.
    limit: stop after so many sentences; None: all of a file, 100,000 of the hub.
    sentences: "lines" (a line or cell is a sentence); documents are split by "regex" (the article's), "icu",
        "icu:LANGUAGE" or module:function, see `cleaning.Cleaning`; None: regex for the hub, lines otherwise.
    min_characters: leave out shorter sentences; None: 11 with regex (the article's filter), else 1; 0 keeps blank lines
        as well.
    max_characters, min_letters: further filters, see `cleaning.Cleaning`.
    notes: called with one line that says how many sentences were read and what was left out.
    ValueError says which file and line cannot be read, and why.
    """
    source = str(source)
    check_source(source, limit)
    cleaning = cleaning_for(source, sentences, min_characters, max_characters, min_letters)
    limit = limit_for(source, limit)
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    texts, wanted = open_texts(source, column), Wanted(limit)
    while chunk := texts.take(wanted(len(kept))):
        sentences_of_it, dropped_of_it = cleaning(chunk)
        kept += sentences_of_it
        dropped += dropped_of_it
        if limit is not None and len(kept) >= limit:
            del kept[limit:]
            break
    if not any(kept):  # 0 for min_characters keeps blank lines, but nobody means a corpus of nothing else
        raise nothing_left(source, dropped if not kept else None)
    if notes:
        notes(what_was_read(source, len(kept), limit, dropped))
    return kept


def cleaning_for(
    source: str,
    sentences: str | None = None,
    min_characters: int | None = None,
    max_characters: int | None = None,
    min_letters: float | None = None,
) -> Cleaning:
    """What is done to the texts of this source; what is None gets the default of its kind. ValueError as `Cleaning`."""
    split = sentences or ("regex" if source.startswith("hub:") else "lines")
    shortest = min_characters if min_characters is not None else (LONGER_THAN + 1 if split == "regex" else 1)
    return Cleaning(split, shortest, max_characters, min_letters or 0.0)


def limit_for(source: str, limit: int | None) -> int | None:
    """How many sentences are taken of this source at most."""
    return HUB_LIMIT if limit is None and source.startswith("hub:") else limit


def what_was_read(source: str, count: int, limit: int | None, dropped: Counter[str]) -> str:
    """One line for the user."""
    stopped = f", stopped at the limit of {limit:,}" if count == limit else ""
    without = f"; left out: {left_out(dropped)}" if dropped else ""
    return f"read {count:,} sentences from {name_of(source)}{stopped}{without}"


def left_out(dropped: Counter[str]) -> str:
    """How many for which reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))


def nothing_left(source: str, dropped: Counter[str] | None) -> ValueError:
    """dropped: what was left out; None: there are blank lines, and they were to be kept."""
    reasons = f"left out: {left_out(dropped)}" if dropped else "it is empty"
    return ValueError(f"{name_of(source)} holds no sentence ({'only blank lines' if dropped is None else reasons})")


def check_source(source: str, limit: int | None = None) -> None:
    """ValueError if a corpus is named that cannot be there, or cannot be read like this; reads nothing yet."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    if source.startswith("hub:"):
        if not 2 <= len(source.split(":")) <= 3 or not source.split(":")[1]:
            raise ValueError(f"{source!r} must have the form hub:NAME or hub:NAME:CONFIG")
    elif source != "-":
        files_of(source)


def is_stream(source: str) -> bool:
    """Whether it can be read only once: standard input, or a named pipe."""
    return source == "-" or Path(source).is_fifo()


def is_pattern(source: str) -> bool:
    """Whether it stands for files, and is not the name of one."""
    return glob.has_magic(source) and not Path(source).exists()


def files_of(source: str, outside: Sequence[Path] = ()) -> list[Path]:
    """The files that a name or a pattern stands for, in the order of their names; ValueError if there is none.

    outside: files and folders that a pattern does not stand for.
    """
    path = Path(source)
    if not is_pattern(source):
        if path.is_dir():
            raise ValueError(f"{source} is a folder; give a file, or a pattern in quotes such as '{source}/**/*.txt'")
        check_file(path)
        return [path]
    names = [Path(name) for name in sorted({*glob.glob(source, recursive=True)})]  # ** twice finds twice
    left_alone = [path.resolve() for path in outside]
    found = [path for path in names if not any(path.resolve().is_relative_to(other) for other in left_alone)]
    files = [path for path in found if not path.is_dir()]
    if not files:
        only = f"; it stands for folders only, {found[0]} among them" if found else ""
        raise ValueError(f"no file matches {source}{only}")
    return files


class Texts:
    """What stands in a source, text by text, and how far it was read."""

    def __init__(self, texts: Iterable[str], meter: Meter | None = None) -> None:
        self._texts = self._source = iter(texts)
        self.meter = meter or Meter()

    def close(self) -> None:
        """Nothing more will be taken: an open file is closed."""
        if isinstance(self._source, Generator):
            self._source.close()

    def look(self) -> None:
        """Reads the first text already, for the errors that this can have."""
        first = next(self._texts, None)
        self._texts = itertools.chain([] if first is None else [first], self._texts)

    def take(self, most: int | None = None) -> list[str]:
        """The next texts, as many as are worked on at once; empty at the end."""
        chunk: list[str] = []
        characters = 0
        most = TEXTS_AT_ONCE if most is None else min(most, TEXTS_AT_ONCE)
        while len(chunk) < most and characters < CHARACTERS_AT_ONCE:
            text = next(self._texts, None)
            if text is None:
                break
            chunk.append(text)
            characters += len(text)
        return chunk


class Wanted:
    """How many texts to read at once where a limit ends it: as many as sentences are missing, so that none is read in
    vain; twice as many as before where few of them were kept, so that a text of repeats is not read one by one."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._asked = self._rows = 0

    def __call__(self, rows: int) -> int | None:
        """rows: how many sentences there are by now. None: no limit."""
        if self._limit is None:
            return None
        few = 2 * (rows - self._rows) < self._asked
        self._asked, self._rows = max(self._limit - rows, 2 * self._asked if few else 0), rows
        return self._asked


def open_texts(source: str, column: str | None = None, outside: Sequence[Path] = ()) -> Texts:
    """The texts of a source (see `load_sentences`), read when they are taken. outside: see `files_of`."""
    meter = Meter()
    if source.startswith("hub:"):
        _, name, *config = source.split(":")
        return Texts(_column(_hub_records(name, config), column, source), meter)
    if source == "-":
        return Texts(_file_texts(source, column, meter), meter)
    files = files_of(source, outside)
    if all(path.is_file() for path in files):  # of a pipe nobody knows where it ends
        meter.size = sum(path.stat().st_size for path in files)
    return Texts((text for path in files for text in _file_texts(str(path), column, meter)), meter)


def _file_texts(source: str, column: str | None, meter: Meter) -> Iterator[str]:
    if source == "-" or suffix_of(Path(source)) not in TABLES:
        if column is not None:
            raise ValueError(f"--column {column} is for tables ({', '.join(TABLES)}); {name_of(source)} is plain text")
        yield from (line for _, line in numbered_lines(source, meter))
    else:
        yield from _column(read_records(Path(source), meter), column, source)


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
            raise ValueError(f"{name_of(source)} has the columns {', '.join(columns)}; choose one with --column")
        column = known[0]
    for number, record in enumerate(itertools.chain([first], records), start=1):
        if column not in record:
            raise ValueError(f"{name_of(source)}, record {number}: no column {column!r}; there are {', '.join(record)}")
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{name_of(source)}, record {number}: column {column!r} holds {type(text).__name__}, not text"
            )
        yield text or ""


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
