"""Files of search and re-ranking: a folder in BEIR's layout (Thakur et al. 2021), and queries with their candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsdae.evaluation.pairs import score_of
from tsdae.text.lines import numbered_lines
from tsdae.text.reading import check_file
from tsdae.text.tables import numbered_json

HEADER = ["query-id", "corpus-id", "score"]
SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and how relevant a document is to a query.

        collection = load_beir("scifact")
        print(len(collection), len(collection.documents))  # judged queries, documents
        evaluate_search(encoder.encode, collection).ndcg_at_10

    documents, queries: texts by id; only queries that have a relevant document.
    gains: {query's id: {document's id: gain above 0}}; what is not named is not relevant.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    gains: dict[str, dict[str, float]]

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def texts(self) -> list[str]:
        """Return all texts, those of the queries first."""
        return [*self.queries.values(), *self.documents.values()]


@dataclass(frozen=True)
class Reranking:
    """Queries, each with candidates of its own: the texts that answer it, and those that do not.

    reranking = Reranking(["how to mount a disk"], [["mounting drives"]], [["printing", "fonts"]])
    evaluate_reranking(encoder.encode, reranking).map
    """

    queries: list[str] = field(default_factory=list)
    positive: list[list[str]] = field(default_factory=list)
    negative: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def texts(self) -> list[str]:
        """Return all texts, those of the queries first."""
        sides = (self.positive, self.negative)
        return self.queries + [text for side in sides for candidates in side for text in candidates]


def load_beir(folder: str | Path, notes: Callable[[str], None] | None = None) -> Collection:
    """Read corpus.jsonl, queries.jsonl and qrels/test.tsv of a folder, each of them also with .gz or .zst.

    A document's text is its title and its text. Queries without a document of a gain above 0 are left out.
    notes: if given, it is called with one line that says what was read.
    ValueError, with file and line, for what cannot be used: ids that are not there or there twice, queries without
    text, another header, gains that are not numbers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    corpus, queries, qrels = (_file(folder, name) for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"))
    documents = {key: text for _, key, text in _texts(corpus)}
    asked = {}
    for where, key, text in _texts(queries):
        if not text:
            raise ValueError(f"{where}: the query {key!r} has no text")
        asked[key] = text
    judged: set[str] = set()
    gains: dict[str, dict[str, float]] = {}
    for query, document, gain in _judgements(qrels, asked, documents):
        judged.add(query)
        if gain > 0:
            gains.setdefault(query, {})[document] = gain
    if not gains:
        raise ValueError(f"{qrels} names no relevant document: it has no score above 0")
    if notes:
        without = f"; left out: {len(judged) - len(gains):,} without a relevant document"
        notes(
            f"{folder}: {len(documents):,} documents, {len(gains):,} queries with relevant documents"
            + (without if len(judged) > len(gains) else "")
        )
    return Collection(documents, {key: asked[key] for key in gains}, gains)


def _file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}{packed}" for packed in ("", ".gz", ".zst")):
        if path.is_file():
            return path
    raise ValueError(f"{folder} has no {name} (or {name}.gz), which BEIR's layout requires")


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield where a text is, its id, and the text itself with its title before it."""
    first_line: dict[str, int] = {}
    for number, record in numbered_json(path):
        where = f"{path}, line {number}"
        missing = [name for name in ("_id", "text") if name not in record]
        if missing:
            raise ValueError(f"{where}: no {' and no '.join(missing)}; its fields are {', '.join(record) or 'none'}")
        if not isinstance(record["_id"], str | int):
            raise ValueError(f"{where}: the _id {record['_id']!r} is not text")
        key = str(record["_id"])
        if key in first_line:
            raise ValueError(f"{where}: the _id {key!r} is on line {first_line[key]} already")
        first_line[key] = number
        parts = [_text(record.get(name, ""), name, where) for name in ("title", "text")]
        yield where, key, " ".join(part for part in parts if part)
    if not first_line:
        raise ValueError(f"{path} is empty")


def _text(value: Any, name: str, where: str) -> str:
    """Return a text without white space around it; None, as some corpora have for a title, is an empty one."""
    if not isinstance(value, str | None):
        raise ValueError(f"{where}: {name} holds {type(value).__name__}, not text")
    return (value or "").strip().encode("utf-8", "replace").decode()  # half a surrogate pair, in a list


def _judgements(path: Path, queries: dict[str, str], documents: dict[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield query's id, document's id and gain of each line."""
    first_line: dict[tuple[str, str], int] = {}
    lines = numbered_lines(str(path))
    header = next(lines, (1, ""))[1].rstrip("\r\n").split("\t")
    if header != HEADER:
        found = ", ".join(header)
        raise ValueError(f"{path}, line 1: the header must be {', '.join(HEADER)} (with tabs), not {found!r}")
    for number, line in lines:
        if not line.strip():
            continue
        where, cells = f"{path}, line {number}", line.rstrip("\r\n").split("\t")
        if len(cells) != len(HEADER):
            raise ValueError(f"{where}: {len(cells)} columns, there must be {', '.join(HEADER)} (with tabs)")
        query, document, score = cells
        for key, known, kind in ((query, queries, "query"), (document, documents, "document")):
            if key not in known:
                raise ValueError(f"{where}: no {kind} has the _id {key!r}")
        if (query, document) in first_line:
            before = first_line[query, document]
            raise ValueError(f"{where}: query {query!r} and document {document!r} are on line {before} already")
        first_line[query, document] = number
        yield query, document, score_of(score, where)


def load_reranking(path: str | Path, notes: Callable[[str], None] | None = None) -> Reranking:
    """Read queries with their candidates: jsonl (also .gz, .zst) of query, positive and negative.

    positive, negative: lists of texts, or one text. A query that has none on one side cannot be ranked wrongly or
    rightly and is left out. notes: if given, it is called with one line that says so.
    ValueError, with file and line, for what cannot be used.
    """
    path, left_out, found = Path(path), 0, Reranking()
    check_file(path)
    for number, record in numbered_json(path):
        where = f"{path}, line {number}"
        missing = [name for name in ("query", *SIDES) if name not in record]
        if missing:
            raise ValueError(f"{where}: no {' and no '.join(missing)}; its fields are {', '.join(record) or 'none'}")
        query = _text(record["query"], "query", where)
        if not query:
            raise ValueError(f"{where}: the query has no text")
        positive, negative = (_candidates(record[side], side, where) for side in SIDES)
        if not positive or not negative:
            left_out += 1
            continue
        found.queries.append(query)
        found.positive.append(positive)
        found.negative.append(negative)
    if not found.queries:
        raise ValueError(f"{path} holds no query with both positive and negative texts")
    if notes and left_out:
        notes(f"{path}: queries left out, without a positive or without a negative text: {left_out:,}")
    return found


def _candidates(value: Any, name: str, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [_text(text, name, where) for text in texts]
