"""Hostile text and files: each ends in training that goes on, or in one line that says what is wrong."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.runs import rows
from tests.scripts import Run
from tests.tables import arrow, parquet
from tsdae import load_sentences
from tsdae.dataset import DenoisingDataset
from tsdae.evaluation.pairs import load_pairs
from tsdae.noise import NOISES
from tsdae.text import lines
from tsdae.text.corpus import Corpus
from tsdae.text.marks import SPECIAL

# Unchanging examples, and a folder of the test's own for all of them: a file is written anew each time.
FUZZ = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def byte_pairs() -> PreTrainedTokenizerFast:
    """A RoBERTa-like tokenizer that knows bytes and nothing else: every character is text to it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(specials + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
    )


TOKENIZERS = {"word pieces": tiny.tokenizer(), "byte pairs": byte_pairs()}

# What has broken readers, tokenizers and terminals before.
TEXTS = {
    "NUL": "a \x00 dog \x00",
    "byte-order mark inside": "a \ufeff dog",
    "right-to-left": "\u202ba dog\u202c \u200f שלום",
    "zero-width joiners": "a\u200ddog \u200d\u200d",
    "an emoji of seven parts": "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 dog",
    "stacked marks": "d" + "\u0301" * 500 + "og",
    "private use and unassigned": "\ue000 \U0010ffff \u0378 dog",
    "separators": "a\u2028dog\u2029is\x0bbig\x0c.\x85!",
    "terminal escapes": "\x1b[31m dog \x1b]0;title\x07",
    "one character repeated": "a" * 5000,
    "punctuation only": "?!... --- ,,, ''",
    "unknown tokens only": "犬 猫 鳥",
    "special tokens spelled out": "[CLS] dog [SEP] [MASK] <s> </s> <mask> [PAD]",
    "more tokens than positions": "dog cat " * 300,
    "one word": "dog",
    "nothing but marks": "\u200d\u200e",
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
@FUZZ
@given(sentences=st.lists(ANY_TEXT, min_size=1, max_size=6), seed=st.integers(0, 2**31))
@example(sentences=list(TEXTS.values()), seed=0)
def test_any_text_becomes_batches(tokenizer: Any, sentences: list[str], seed: int) -> None:
    """Every sentence is trained on or counted, ids exist, and both sides keep their special tokens under any noise."""
    corpus = Corpus.build([*sentences, "dog"], tokenizer)
    assert len(corpus) + corpus.without_words == len(sentences) + 1
    assert (np.diff(corpus.boundaries) >= 3).all(), "a token between the special ones"
    rows = np.arange(len(corpus))
    datasets = [DenoisingDataset(corpus, tokenizer, noise, seed=seed, max_length=20) for noise in NOISES]
    for side in itertools.chain.from_iterable(each.noised(np.zeros_like(rows), rows) for each in datasets):
        assert side.token_ids_T.min() >= 0
        assert side.token_ids_T.max() < len(tokenizer)
        assert side.lengths_B.min() >= 3
        assert side.lengths_B.max() <= 20
        assert (side.token_ids_T[side.boundaries[:-1]] == tokenizer.cls_token_id).all()
        assert (side.token_ids_T[side.boundaries[1:] - 1] == tokenizer.sep_token_id).all()
    assert (corpus.marks[corpus.boundaries[:-1]] == SPECIAL).all()


@FUZZ
@given(lines=st.lists(ANY_TEXT, max_size=8), end=st.sampled_from(["\n", "\r\n"]), mark=st.booleans())
def test_every_line_is_read_or_counted(tmp_path: Path, lines: list[str], end: str, mark: bool) -> None:
    lines = [line.replace("\n", " ").replace("\0", "") for line in lines]
    content = ("\ufeff" if mark else "") + end.join([*lines, "the end"])
    text = io.TextIOWrapper(io.BytesIO(content.encode()), "utf-8-sig")  # Python's text mode
    expected = [line.strip() for line in text.read().split("\n")]
    notes: list[str] = []
    for name, data in (("a.txt", content.encode()), ("a.txt.gz", gzip.compress(content.encode()))):
        (tmp_path / name).write_bytes(data)
        assert load_sentences(tmp_path / name, notes=notes.append) == [line for line in expected if line]
        blank = len([line for line in expected if not line])
        assert (f"left out: {blank:,} blank" in notes[-1]) == (blank > 0)


@FUZZ
@given(texts=st.lists(st.none() | st.text(max_size=40), max_size=6))
@example(texts=["half an emoji \ud83d", "\udc00"])
def test_every_record_is_read_or_counted(tmp_path: Path, texts: list[str | None]) -> None:
    """In JSON any string can be spelled, halves of surrogate pairs too."""
    records = [{"text": text} for text in [*texts, "the end"]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    expected = [(text or "").encode("utf-8", "replace").decode().strip() for text in [*texts, "the end"]]
    assert load_sentences(tmp_path / "a.jsonl") == [text for text in expected if text]
    Corpus.build(load_sentences(tmp_path / "a.jsonl"), TOKENIZERS["word pieces"])


def is_one_line_about(path: Path, error: ValueError) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


SEEDS = {
    "a.txt": b"a dog\n\xe7\x8a\xac\r\x01\n",
    "a.txt.gz": gzip.compress(b"a dog\nand a cat\n"),
    "a.jsonl": b'{"text": "a dog", "n": [1, {"b": null}]}\n{"text": "\\ud83d\\udc15"}\n',
    "a.csv": b'text,n\n"a ""dog""\nruns",1\ncat,2\n',
    "a.tsv": b"text\tn\na dog\t1\n",
    "a.parquet": parquet(text=["a dog", None, "cat"]),
    "a.arrow": arrow(text=["a dog", None, "cat"]),
}


@pytest.mark.parametrize("name", SEEDS)
@FUZZ
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Bytes changed, cut out, repeated: sentences, or a ValueError of one line that names the file; nothing else."""
    content = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(place, min(len(content), place + 8)))
        content[place:end] = data.draw(st.binary(max_size=8) | st.sampled_from([b'"', b"\n", b"\r", b"\x00", b"{["]))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        sentences = load_sentences(path)
    except ValueError as error:
        is_one_line_about(path, error)
    else:
        assert sentences
        assert all(isinstance(sentence, str) and sentence == sentence.strip() for sentence in sentences)
        Corpus.build([*sentences, "dog"], TOKENIZERS["word pieces"])


@FUZZ
@given(content=st.binary(max_size=80) | st.text(alphabet='a0.5\t\n\r"{}', max_size=80).map(str.encode))
def test_labelled_pairs_are_read_or_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n" + content)
    try:
        assert len(load_pairs(path)) >= 2
    except ValueError as error:
        is_one_line_about(path, error)


# ---------------------------------------------------------------------------------------------------------------
# Through the whole of a run


FIRST_BLOCK = "a dog\n" * 2000
CORPORA: dict[str, tuple[str, bytes, str]] = {
    # A file that begins with a NUL is taken for a binary one.
    "all texts": (
        "a.txt",
        (FIRST_BLOCK + "\n".join(TEXTS.values())).encode(),
        "sentences left out, as they tokenise to nothing: 1",
    ),
    "a line of a megabyte": ("a.txt", b"dog cat " * 2**17 + b"\nbig dog\n", "truncated to 40 tokens"),
    "a word of a megabyte": ("a.txt", b"x" * 2**20 + b"\nbig dog\n", ""),
    "the text beside nested columns": ("a.parquet", parquet(text=["a dog", "cat"], more=[{"a": [1]}, None]), ""),
}
TRAIN = "--model model --device cpu --precision fp32 --epochs 1 --batch-size 4 --heldout 0 --output run --save-every 0"


@pytest.mark.parametrize(("name", "content", "note"), CORPORA.values(), ids=CORPORA.keys())
def test_training_goes_on(name: str, content: bytes, note: str, run: Run, place: Path) -> None:
    (place / name).write_bytes(content)
    result = run("train", f"--corpus {name} {TRAIN}")
    assert result.code == 0, result.err
    assert note in result.err
    assert [math.isfinite(row["loss"]) for row in rows(place / "run")] == [True], "every sentence was in a step"


# ---------------------------------------------------------------------------------------------------------------
# Too much of it


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.csv.gz", "a.parquet"])
def test_a_few_bytes_that_unpack_to_much_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "UNPACKED_FREELY", 2**15)
    content = {
        "a.txt.gz": gzip.compress(b"dog\n" * 2**17),
        "a.txt.zst": pyarrow.compress(b"dog\n" * 2**17, "zstd", asbytes=True),
        "a.jsonl.gz": gzip.compress(b'{"text": "dog"}\n' * 2**15),
        "a.csv.gz": gzip.compress(b"text\n" + b"dog\n" * 2**17),
        "a.parquet": parquet(text=["dog" * 1000] * 2000),
    }[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="unpacks to more than 200 times its size; if that is intended, unpack it"):
        load_sentences(tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(lines, "UNPACKED_FREELY", 2**27)
        assert set(load_sentences(tmp_path / name)) <= {"dog", "dog" * 1000}


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv"])
def test_a_line_without_an_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    content = b"text\n" + b"x" * 1001
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ValueError, match="line 2: longer than 0 MiB; is this text?" if name != "a.jsonl" else "line 1"):
        load_sentences(tmp_path / name)
    (tmp_path / "a.csv").write_bytes(b'text\n"' + b"dog\n" * 300 + b'"\n')
    with pytest.raises(ValueError, match="field larger than field limit"):
        load_sentences(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["a dog", "half \ud83d"], r"sentence 1 holds half of a surrogate pair \(a cut-off emoji\)"),
        (["a dog", None], "sentence 1 is NoneType, not text: None"),
        ([b"a dog"], "sentence 0 is bytes, not text"),
    ],
)
def test_sentences_that_are_no_text(sentences: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.dataset(sentences)
    with pytest.raises(ValueError, match=message):
        tiny.encoder().encode(sentences)
