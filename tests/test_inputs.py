"""What users give as sentences in Python: columns and generators are taken, tables and mistakes are named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest

from tests import tiny
from tsdae import DenoisingDataset, evaluate_sts, load_sentences
from tsdae.evaluation.pairs import Pairs, TextPairs
from tsdae.text.corpus import Corpus
from tsdae.text.tokenization import texts_of

pandas = pytest.importorskip("pandas")  # comes with datasets

TEXTS = ["a man is playing a guitar", "dog", "a woman cooks bread", "a cat"]
TABLE = {"id": [0, 1, 2, 3], "text": TEXTS}
COLUMNS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "dict's values": lambda: dict(enumerate(TEXTS)).values(),
    "Series": lambda: pandas.Series(TEXTS, index=[3, 2, 1, 0]),
    "Series of objects": lambda: pandas.Series(TEXTS, dtype=object),
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "column of a Dataset": lambda: datasets.Dataset.from_dict(TABLE)["text"],
    "column of an IterableDataset": lambda: datasets.Dataset.from_dict(TABLE).to_iterable_dataset()["text"],
    "pyarrow": lambda: pyarrow.chunked_array([TEXTS[:1], TEXTS[1:]]),
}
TABLES: dict[str, tuple[Callable[[], Any], str]] = {
    "Dataset": (lambda: datasets.Dataset.from_dict(TABLE), r"is a Dataset with id, text; give its column of texts"),
    "IterableDataset": (lambda: datasets.Dataset.from_dict(TABLE).to_iterable_dataset(), "with id, text; give its"),
    "DatasetDict": (lambda: datasets.DatasetDict(train=datasets.Dataset.from_dict(TABLE)), "is a DatasetDict with"),
    "DataFrame": (lambda: pandas.DataFrame(TABLE), r"is a DataFrame with id, text; .*, such as \w+\['id'\]"),
    "dict": (lambda: TABLE, "is a dict with id, text; give its column of texts"),
    "Table": (lambda: pyarrow.table(TABLE), "is a Table with id, text; give its column of texts"),
    "string": (lambda: TEXTS[0], "is one string; give a list of sentences"),
    "bytes": (lambda: b"a dog", "is one string; give a list of sentences"),
    "path": (lambda: Path("text.txt"), "is a PosixPath; give a list of texts"),
    "set": (lambda: set(TEXTS), "is a set; give a list of texts, in an order that stays"),
    "array of two axes": (lambda: np.array([TEXTS]), "is a ndarray of 2 dimensions; give one of texts"),
    "rows": (lambda: [{"text": text} for text in TEXTS], "sentence 0 is dict, not text"),
    "pairs": (lambda: [(text, text) for text in TEXTS], "sentence 0 is tuple, not text"),
    "missing value": (lambda: pandas.Series([TEXTS[0], None]), "sentence 1 is (float|NoneType), not text"),
}


@pytest.mark.parametrize("made", COLUMNS.values(), ids=COLUMNS)
def test_columns_and_generators_are_lists(made: Callable[[], Any]) -> None:
    encoder = tiny.encoder()
    np.testing.assert_array_equal(encoder.encode(made()), encoder.encode(TEXTS))
    expected = Corpus.build(TEXTS, encoder.tokenizer).fingerprint()
    assert DenoisingDataset(made(), encoder.tokenizer).corpus.fingerprint() == expected
    assert Corpus.build(made(), encoder.tokenizer).fingerprint() == expected
    assert TextPairs(made(), made()) == TextPairs(TEXTS, TEXTS)


@pytest.mark.parametrize(("made", "message"), TABLES.values(), ids=TABLES)
def test_tables_and_mistakes_are_named(made: Callable[[], Any], message: str) -> None:
    encoder = tiny.encoder()
    for take in (
        encoder.encode,
        lambda given: DenoisingDataset(given, encoder.tokenizer),
        lambda given: TextPairs(TEXTS, given),
        encoder.add_tokens,  # of one string it would add the letters
    ):
        with pytest.raises(ValueError, match=message):
            take(made())


@pytest.mark.parametrize("kind", ["Dataset", "IterableDataset", "DataFrame", "dict", "Table"])
def test_a_column_of_a_table_by_its_name(kind: str) -> None:
    """What names no column of it is refused, and so is a column of what has none."""
    tokenizer, made = tiny.encoder().tokenizer, TABLES[kind][0]
    expected = Corpus.build(TEXTS, tokenizer).fingerprint()
    assert DenoisingDataset(made(), tokenizer, column="text").corpus.fingerprint() == expected
    with pytest.raises(ValueError, match=f"sentences is a {kind} without a column 'txt'; its columns are id, text"):
        DenoisingDataset(made(), tokenizer, column="txt")
    with pytest.raises(ValueError, match="sentence 0 is int, not text"):
        DenoisingDataset(made(), tokenizer, column="id")
    for given in (TEXTS, pandas.Series(TEXTS), (text for text in TEXTS)):
        with pytest.raises(ValueError, match=r"column 'text' is for a table, and sentences is a \w+; leave"):
            DenoisingDataset(given, tokenizer, column="text")
    with pytest.raises(ValueError, match="column 'text' is for a table, and a Corpus has none"):
        DenoisingDataset(Corpus.build(TEXTS, tokenizer), tokenizer, column="text")


def test_a_long_column_of_a_dataset_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one a million sentences take half a minute."""
    column = datasets.Dataset.from_dict(TABLE)["text"]
    monkeypatch.setattr(type(column), "__iter__", lambda self: iter(()))
    assert texts_of(column) == TEXTS


def test_texts_are_not_copied_in_vain() -> None:
    assert texts_of(TEXTS) is TEXTS


def test_other_mistakes_in_python_are_named(tmp_path: Path) -> None:
    tokenizer = tiny.encoder().tokenizer
    (tmp_path / "a.txt").write_text("a dog\n{}\n{not json}\n")
    assert load_sentences(tmp_path / "a.txt") == ["a dog", "{}", "{not json}"], "braces are text as well"
    mistakes: dict[str, Callable[[], Any]] = {
        "noise_ratio must be a number, got '0.6'": lambda: DenoisingDataset(TEXTS, tokenizer, noise_ratio="0.6"),
        "--limit must be a number, got '1'": lambda: load_sentences(tmp_path / "a.txt", limit="1"),
        "--limit must be at least 1, got 0": lambda: load_sentences(tmp_path / "a.txt", limit=0),
        "load_sentences reads a file, not a list; sentences": lambda: load_sentences(TEXTS),
        "no file https:/example.org/a.txt; it is an address": lambda: load_sentences("https://example.org/a.txt"),
        "no file ~/a.txt; write your home folder in full": lambda: load_sentences("~/a.txt"),
        "the tokenizer is a str; give one of Hugging Face": lambda: DenoisingDataset(TEXTS, "mini"),
    }
    for message, mistake in mistakes.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            mistake()


def test_pairs_of_a_data_frame_are_scored_as_lists() -> None:
    """The columns of a table can be added, which is something else."""
    frame = pandas.DataFrame({"a": TEXTS, "b": TEXTS[::-1], "score": [1, 2, 3, 4]})
    encode = tiny.encoder().encode
    expected = evaluate_sts(encode, Pairs(TEXTS, TEXTS[::-1], np.arange(1.0, 5)), intervals=False)
    assert evaluate_sts(encode, Pairs(frame["a"], frame["b"], frame["score"]), intervals=False) == expected
