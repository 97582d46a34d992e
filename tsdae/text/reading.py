"""Read text from files of several formats, from standard input and from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import glob
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tsdae.text.cleaning import Cleaning
from tsdae.text.lines import Meter, name_of, numbered_lines, suffix_of
from tsdae.text.tables import TABLES, WITH_HEADER, looks_like_data, read_records
from tsdae.utils.checks import check_range

HUB_LIMIT = 100_000  # default number of sentences taken from the hub, as in the article
TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = 2048, 2**22  # most texts and characters of a chunk
TEXT_COLUMNS = ("text", "sentence")  # the columns that are taken without --column, also in capitals


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

    source: a text file; .jsonl, .json, .csv, .tsv or .parquet; any of these but parquet with .gz or .zst; a pattern of
        such files ("texts/**/*.txt", in the order of their names); "-" for standard input; "hub:NAME" or
        "hub:NAME:CONFIG" for a dataset of the Hugging Face hub (its split "train", streamed); NAME may also be a folder
        that `datasets.load_dataset` reads.
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
        notes(what_was_read(source, len(kept), limit, left_out, texts.meter.column))
    return kept


def split_for(source: str, sentences: str | None) -> str:
    """Return how a source's texts are split into sentences; None takes the default for this kind of source."""
    return sentences or ("regex" if source.startswith("hub:") else "lines")


def limit_for(source: str, limit: int | None) -> int | None:
    """Return the most sentences to take from a source; None: all."""
    return HUB_LIMIT if limit is None and source.startswith("hub:") else limit


def what_was_read(source: str, count: int, limit: int | None, left_out: Counter[str], column: str | None = None) -> str:
    """Return a line for the user: how many sentences were read, and what was left out. column: that was guessed."""
    guessed = f" (column {column!r})" if column else ""
    stopped = f", stopped at the limit of {limit:,}" if count == limit else ""
    without = f"; left out: {in_words(left_out)}" if left_out else ""
    return f"read {count:,} sentences from {name_of(source)}{guessed}{stopped}{without}"


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
    if limit is not None:
        check_range("--limit", limit, "[1, inf)")
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
    names = sorted({*_matches(path)}, key=str)  # ** twice finds twice
    excluded = [path.resolve() for path in outside]
    found = [path for path in names if not any(path.resolve().is_relative_to(other) for other in excluded)]
    files = [path for path in found if not path.is_dir()]
    if not files:
        only = f"; it matches folders only, {found[0]} among them" if found else ""
        raise ValueError(f"no file matches {source}{only}")
    return files


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


def _matches(pattern: Path) -> list[Path]:
    """Return what a pattern matches; the names of folders that are there are no patterns, as in data[2]/*.txt."""
    parts, folder = pattern.parts, Path()
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder, parts = folder / parts[0], parts[1:]
    return [folder / name for name in glob.glob(str(Path(*parts)), root_dir=folder, recursive=True)]


def open_texts(source: str, column: str | None = None, outside: Sequence[Path] = ()) -> Texts:
    """Return the texts of a source (see `load_sentences`), read only when taken. outside: see `files_of`."""
    if source.startswith("hub:"):
        _, name, *config = source.split(":")
        meter = Meter()
        return Texts(_cells(_hub_records(name, config), column, source, meter), meter)
    if source == "-":
        return Texts(_file_texts(source, column))
    files = files_of(source, outside)
    meter = Meter(sum(path.stat().st_size for path in files) if all(path.is_file() for path in files) else 0)
    return Texts((text for path in files for text in _file_texts(str(path), column, meter)), meter)


def _file_texts(source: str, column: str | None, meter: Meter | None = None) -> Iterator[str]:
    if source == "-" or suffix_of(Path(source)) not in TABLES:
        if column is not None:
            raise ValueError(f"--column {column} is for tables ({', '.join(TABLES)}); {name_of(source)} is plain text")
        yield from (line for _, line in numbered_lines(source, meter))
    else:
        yield from _cells(read_records(Path(source), meter), column, source, meter or Meter())


def _cells(records: Generator[dict[str, Any]], column: str | None, source: str, meter: Meter) -> Iterator[str]:
    """Yield the texts of one column; cells that are empty or null are blank. meter: takes the name of the only one."""
    name, only = name_of(source), False
    with contextlib.closing(records):  # an error must not leave the file open
        for number, record in enumerate(records, start=1):
            if column is None or (only and len(record) > 1):
                column = _column_of(record, name, only)
                only = column.strip().lower() not in TEXT_COLUMNS
                meter.column = column if only else None
            if column not in record:
                raise ValueError(f"{name}, record {number}: no column {column!r}; there are {', '.join(record)}")
            text = record[column]
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{name}, record {number}: column {column!r} holds {type(text).__name__}, not text")
            yield text or ""


def _column_of(record: dict[str, Any], name: str, only: bool) -> str:
    """Return the column of texts: one that is called so, or the only one that has a name; ValueError if none is.

    only: another row had one column only.
    """
    named = [column for column in record if column.strip()]  # pandas writes its index without a name
    known = {column.strip().lower(): column for column in named[::-1]}
    texts = [known[column] for column in TEXT_COLUMNS if column in known]
    if (only or not texts) and len(named) != 1:
        raise ValueError(f"{name} has the columns {', '.join(record)}; choose one with --column")
    if texts:
        return texts[0]
    if suffix_of(Path(name)) in WITH_HEADER and looks_like_data(named[0]):
        raise ValueError(
            f"{name}: the first line of a table names its columns, and {named[0][:80]!r} looks like a text; put a line "
            "before it that says: text (or choose it with --column)"
        )
    return named[0]


def reach_hub(name: str) -> None:
    """Ask the Hugging Face hub for a dataset: its own client would try for half a minute without a network."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)


def _hub_records(name: str, config: list[str]) -> Generator[dict[str, Any]]:
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
