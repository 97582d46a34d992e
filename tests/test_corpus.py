"""The corpus in memory and on disk: the same to all who read it, and never half of one."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers

from tests import tiny
from tests.tiny import assert_equal
from tsdae.dataset import DenoisingDataset
from tsdae.text import corpus as corpus_module
from tsdae.text.corpus import Corpus
from tsdae.text.marks import BEGINS_WORD, INSIDE, SPECIAL, tokenize
from tsdae.text.tokenization import fingerprint_of


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# ---------------------------------------------------------------------------------------------------------------
# In memory


@pytest.mark.parametrize("special_tokens", [True, False])
def test_marks_equal_those_of_a_loop_over_the_tokens(special_tokens: bool) -> None:
    tokenizer = tiny.tokenizer()
    if not special_tokens:
        tokenizer.backend_tokenizer.post_processor = None
    sentences = [*tiny.SENTENCES, "dog", "a [SEP] man[MASK] !", "unknown", "xyz"]
    tokens, marks_T = tokenize(sentences, tokenizer)
    expected = []
    for sentence in sentences:
        encoding = tokenizer.backend_tokenizer.encode(sentence)
        before: int | None = None
        for word, special in zip(encoding.word_ids, encoding.special_tokens_mask, strict=True):
            begins = word is None or word != before
            expected.append(SPECIAL if special else BEGINS_WORD if begins else INSIDE)
            before = word
    assert marks_T.tolist() == expected
    assert set(expected) == {INSIDE, BEGINS_WORD} | ({SPECIAL} if special_tokens else set()), "the premise"
    assert list(tokens.sentences()) == [tokenizer(s, add_special_tokens=special_tokens).input_ids for s in sentences]


def test_chunks_and_stretches_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [*tiny.SENTENCES, "", *tiny.SENTENCES[::-1]]
    whole = Corpus.build(sentences, tiny.tokenizer())
    longer = [int((whole.lengths > length).sum()) for length in range(25)]
    assert longer[0] == 16 > longer[6] > longer[24] == 0, "the premise: sentences of many lengths"
    monkeypatch.setattr(corpus_module, "CHUNK", 3)
    monkeypatch.setattr(corpus_module, "STRETCH", 3)
    rebuilt = Corpus.build(sentences, tiny.tokenizer())
    assert_equal(rebuilt, whole)
    assert rebuilt.without_words == whole.without_words == 1
    assert [whole.longer_than(length) for length in range(25)] == longer


# ---------------------------------------------------------------------------------------------------------------
# On disk


def test_a_mapped_corpus_is_the_one_that_was_written(tmp_path: Path) -> None:
    sentences = [*tiny.SENTENCES, "\u200d"]
    written = tiny.prepared(tmp_path / "new" / "corpus", sentences, heldout=["a red dog", "an apple !"])
    mapped = Corpus.open(tmp_path / "new" / "corpus")
    assert_equal(mapped, written)
    for name in ("without_words", "tokenizer", "made_from"):
        assert getattr(mapped, name) == getattr(written, name), name
    assert (len(mapped), mapped.without_words) == (8, 1)
    assert mapped.fingerprint() == written.fingerprint()
    assert mapped.lengths.tolist() == written.lengths.tolist()
    apart = Corpus.open(tmp_path / "new" / "corpus" / "heldout")
    assert_equal(apart, Corpus.build(["a red dog", "an apple !"], tiny.tokenizer()))
    assert apart.made_from == written.made_from
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["corpus"], "nothing is left beside it"


@pytest.mark.parametrize("noise", ["delete", "mask", "replace", "swap", "insert"])
def test_its_batches_are_the_same(tmp_path: Path, noise: str) -> None:
    written = tiny.prepared(tmp_path / "corpus")
    datasets = [
        DenoisingDataset(corpus, tiny.tokenizer(), noise, max_length=12)
        for corpus in (tiny.SENTENCES, written, Corpus.open(tmp_path / "corpus"))
    ]
    assert datasets[2].truncated == datasets[0].truncated > 0
    for position in (0, 5, 13):
        for first, *others in zip(*(data.batch(*data.order(position, 5))[:2] for data in datasets), strict=True):
            for other in others:
                assert other.token_ids_T.tolist() == first.token_ids_T.tolist()
                assert other.boundaries.tolist() == first.boundaries.tolist()
    assert datasets[2].text(3, epoch=1) == datasets[0].text(3, epoch=1)


def test_opening_reads_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored fingerprint is not computed again, and the arrays stay on the disk."""
    written = tiny.prepared(tmp_path / "corpus")
    with (tmp_path / "corpus" / "token_ids.npy").open("r+b") as file:
        file.seek(-4, 2)  # the last id
        file.write(np.int32(1).tobytes())
    mapped = Corpus.open(tmp_path / "corpus")
    assert mapped.fingerprint() == written.fingerprint()
    assert mapped.token_ids[-1] == 1 != written.token_ids[-1]
    for name in ("token_ids", "marks", "boundaries"):
        assert not getattr(mapped, name).flags.owndata
        assert not getattr(mapped, name).flags.writeable
        assert type(getattr(mapped, name)) is np.ndarray


def changed(folder: Path, **values: Any) -> None:
    says = json.loads((folder / "corpus.json").read_text())
    assert says | values != says
    (folder / "corpus.json").write_text(json.dumps(says | values))


def saved(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / name, change(np.load(folder / name)))


DAMAGE = {
    "no corpus.json": (lambda f: (f / "corpus.json").unlink(), "is not a prepared corpus: it has no corpus.json"),
    "not JSON": (lambda f: (f / "corpus.json").write_text("{"), "not valid JSON"),
    "another format": (lambda f: changed(f, format=2), "of format 2, and only format 1 can be read; prepare it again"),
    "another corpus.json": (lambda f: (f / "corpus.json").write_text("{}"), "of format None"),
    "too few words": (lambda f: (f / "corpus.json").write_text('{"format": 1}'), "does not say 'rows'"),
    "rows": (lambda f: changed(f, rows=9), r"boundaries.npy holds int64 \(9,\), expected was int64 \(10,\)"),
    "no number": (lambda f: changed(f, rows="9"), "damaged"),
    "an array is missing": (lambda f: (f / "marks.npy").unlink(), "damaged: .*No such file"),
    "cut off": (lambda f: (f / "token_ids.npy").write_bytes((f / "token_ids.npy").read_bytes()[:-4]), "damaged"),
    "empty": (lambda f: (f / "marks.npy").write_bytes(b""), "damaged"),
    "no array": (lambda f: (f / "marks.npy").write_text("marks" * 99), "damaged"),
    "another type": (lambda f: saved(f, "marks.npy", lambda a: a.astype(np.int64)), "expected was uint8"),
    "one mark too many": (lambda f: saved(f, "marks.npy", lambda a: np.append(a, a[:1])), "marks.npy holds uint8"),
    "other boundaries": (lambda f: saved(f, "boundaries.npy", lambda a: 2 * a), "boundaries.npy does not run from 0"),
    "falling boundaries": (lambda f: saved(f, "boundaries.npy", lambda a: a[[0, 2, 1, *range(3, len(a))]]), "increase"),
    "made from nothing": (lambda f: changed(f, made_from=None), "made_from of corpus.json is not a JSON object"),
    "later boundaries": (lambda f: saved(f, "boundaries.npy", lambda a: a.clip(1)), "boundaries.npy does not run from"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    tiny.prepared(tmp_path / "corpus")
    damage(tmp_path / "corpus")
    with pytest.raises(ValueError, match=message) as error:
        Corpus.open(tmp_path / "corpus")
    assert str(tmp_path / "corpus") in str(error.value)


# ---------------------------------------------------------------------------------------------------------------
# Whose ids they are


def test_the_fingerprint_of_a_tokenizer() -> None:
    tokenizer, same, other_words, other_normalizer = (tiny.tokenizer() for _ in range(4))
    first = fingerprint_of(tokenizer)
    tokenizer(tiny.SENTENCES, padding=True, truncation=True, max_length=5)  # leaves its settings behind
    assert first == fingerprint_of(tokenizer) == fingerprint_of(same)
    other_words.add_tokens(["guitars"])
    other_normalizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    assert len({first, fingerprint_of(other_words), fingerprint_of(other_normalizer)}) == 3


def test_a_corpus_serves_only_the_tokenizer_that_made_it(tmp_path: Path) -> None:
    built = Corpus.build(tiny.SENTENCES, tiny.tokenizer())
    tiny.prepared(tmp_path / "corpus")
    other = tiny.tokenizer()
    other.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    for corpus, message in (
        (built, "this corpus was prepared, and the model has another tokenizer"),
        (
            Corpus.open(tmp_path / "corpus"),
            "prepared for bert-tiny, and the model has another tokenizer; .* prepare the text",
        ),
    ):
        assert len(DenoisingDataset(corpus, tiny.tokenizer())) == 8
        with pytest.raises(ValueError, match=message):
            DenoisingDataset(corpus, other)


# ---------------------------------------------------------------------------------------------------------------
# Never half of one


def test_only_a_corpus_is_overwritten(tmp_path: Path) -> None:
    first = tiny.prepared(tmp_path / "corpus", heldout=["a man"])
    second = Corpus.build(tiny.SENTENCES[:3], tiny.tokenizer())
    with pytest.raises(ValueError, match="already holds a corpus; choose another folder, or --overwrite it"):
        second.write(tmp_path / "corpus")
    assert_equal(Corpus.open(tmp_path / "corpus"), first)
    second.write(tmp_path / "corpus", overwrite=True)
    assert_equal(Corpus.open(tmp_path / "corpus"), second)
    assert not (tmp_path / "corpus" / "heldout").exists(), "nothing is left of the earlier one"

    (tmp_path / "corpus" / "thesis.txt").touch()
    (tmp_path / "other").mkdir()
    before = files(tmp_path)
    for place, message in (
        ("corpus", r"holds more than a corpus \(thesis.txt\)"),
        ("other", "exists and is not a prepared corpus"),
        ("corpus/thesis.txt", "is a file, not a folder"),
        ("corpus/thesis.txt/corpus", "is a file, not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            second.write(tmp_path / place, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("stop", ["marks.npy", "heldout", "corpus.json", "the second rename"])
def test_one_that_was_stopped_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str, overwrite: bool
) -> None:
    if overwrite:
        tiny.prepared(tmp_path / "corpus", heldout=["a man"])
    before = files(tmp_path)
    save, rename = np.save, Path.rename

    def stopped_save(path: Path, array: np.ndarray) -> None:
        save(path, array)
        if stop in path.parts:
            raise KeyboardInterrupt

    def stopped_rename(self: Path, target: Path) -> Path:
        if stop == "the second rename" and self.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(self, target)

    def stopped_json(path: Path, content: object) -> None:
        if stop in path.parts:
            raise KeyboardInterrupt

    corpus = Corpus.build(tiny.SENTENCES, tiny.tokenizer())
    monkeypatch.setattr(np, "save", stopped_save)
    monkeypatch.setattr(Path, "rename", stopped_rename)
    monkeypatch.setattr(corpus_module, "write_json", stopped_json)
    with pytest.raises(KeyboardInterrupt):
        corpus.write(tmp_path / "corpus", dataclasses.replace(corpus), overwrite)
    assert files(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs a system that can reserve space")
def test_a_full_disk_is_an_error_before_a_mapped_array_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing into a hole for which the disk has no room ends the process by SIGBUS, without a word."""

    def full(descriptor: int, offset: int, length: int) -> None:
        assert (offset, length) == (0, os.fstat(descriptor).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        corpus_module.new_array("token_ids", 10, tmp_path)
