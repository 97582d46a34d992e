"""Pairs, batches and the endless order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from tokenizers import processors
from torch.utils.data import DataLoader

from tests import tiny
from tsdae import dataset
from tsdae.dataset import DenoisingDataset
from tsdae.packing import Batch
from tsdae.text.corpus import Corpus
from tsdae.text.tokenization import token_ids, truncate, vocabulary_of


def test_reading_a_row_equals_the_batch() -> None:
    data = tiny.dataset()
    epochs, rows = np.array([0, 2, 1, 0]), np.array([3, 0, 7, 2])
    batch = data.batch(epochs, rows)
    read = [data[(epoch, row)] for epoch, row in zip(epochs.tolist(), rows.tolist(), strict=True)]
    assert list(batch.noisy.sentences()) == [pair.noisy_ids for pair in read]
    assert list(batch.target.sentences()) == [pair.target_ids for pair in read]
    assert data[2] == data[(0, 2)]
    assert data[-1] == data[len(data) - 1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_targets_are_the_clean_sentences() -> None:
    data = tiny.dataset()
    for row, sentence in enumerate(tiny.SENTENCES):
        assert data[row].target_ids == tiny.tokenizer()(sentence).input_ids


def test_noise_changes_with_the_epoch_and_the_seed_only() -> None:
    assert tiny.dataset().text(5, 0) != tiny.dataset().text(5, 1)
    assert [tiny.dataset().text(5, 1)] * 2 == [tiny.dataset().text(5, 1), tiny.dataset(seed=0).text(5, 1)]
    assert tiny.dataset().text(5, 0) != tiny.dataset(seed=1).text(5, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_takes_it(workers: int) -> None:
    data = tiny.dataset()
    loader: DataLoader[Any] = DataLoader(data, batch_size=3, collate_fn=data.collate, num_workers=workers)
    batches = list(loader)
    assert [len(batch.target) for batch in batches] == [3, 3, 2]
    noisy = [ids for batch in batches for ids in batch.noisy.sentences()]
    assert noisy == [data[row].noisy_ids for row in range(len(data))]


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 1000])
def test_every_epoch_visits_every_row_once(rows: int) -> None:
    data = DenoisingDataset(["a man"] * rows, tiny.tokenizer(), seed=4)
    epoch_B, row_B = data.order(0, 3 * rows)
    assert epoch_B.tolist() == [epoch for epoch in range(3) for _ in range(rows)]
    orders = row_B.reshape(3, rows)
    assert (np.sort(orders, axis=1) == np.arange(rows)).all()
    if rows > 5:
        assert len({tuple(order) for order in orders.tolist()}) == 3, "each epoch has its own order"
        assert orders[0].tolist() != sorted(orders[0].tolist())


def test_the_order_is_one_stream_whatever_the_batch_size() -> None:
    data = tiny.dataset()
    whole = np.stack(data.order(0, 60))
    parts = np.concatenate([np.stack(data.order(start, 5)) for start in range(0, 60, 5)], axis=1)
    assert (whole == parts).all()


def test_the_order_is_uniform() -> None:
    """Over many epochs each row comes equally often at each place, and neighbours are no more often neighbours."""
    rows, epochs = 6, 6000
    data = DenoisingDataset(["a man"] * rows, tiny.tokenizer())
    orders = data.order(0, rows * epochs)[1].reshape(epochs, rows)
    counts = np.array([[(orders[:, place] == row).sum() for row in range(rows)] for place in range(rows)])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    follows = (np.diff(orders, axis=1) == 1).sum()  # row r + 1 right after row r
    assert stats.binomtest(int(follows), epochs * (rows - 1), 1 / rows).pvalue > 1e-3


def test_truncation_comes_after_the_noise_and_keeps_the_last_token() -> None:
    sentence = " ".join(tiny.WORDS[:30])
    data = DenoisingDataset([sentence], tiny.tokenizer(), max_length=10)
    assert data.truncated == 1
    later_words = set(tiny.tokenizer()(" ".join(tiny.WORDS[8:30]), add_special_tokens=False).input_ids)
    reached = set()
    for epoch in range(50):
        pair = data[(epoch, 0)]
        assert len(pair.target_ids) == 10
        assert pair.target_ids[-1] == 3
        assert pair.noisy_ids[-1] == 3
        assert len(pair.noisy_ids) <= 10
        reached |= later_words & set(pair.noisy_ids)
    assert reached, "words behind the cut get in when earlier ones are deleted"


def test_truncate_leaves_short_sentences_alone() -> None:
    tokens = tiny.dataset().noised(np.zeros(8, int), np.arange(8))[1]
    cut = truncate(tokens, 6, vocabulary_of(tiny.tokenizer()))
    for short, ids in zip(cut.sentences(), tokens.sentences(), strict=True):
        assert short == (ids if len(ids) <= 6 else [*ids[:5], ids[-1]])


def test_the_tokenizers_side_is_the_one_that_is_cut() -> None:
    """Ids of transformers' own truncation, in training and in encoding; one special token in front, two behind."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    ids = {}
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        expected = ids[side] = tokenizer(tiny.SENTENCES, truncation=True, max_length=7)["input_ids"]
        assert list(token_ids(tiny.SENTENCES, tokenizer, 7).sentences()) == expected
        data = DenoisingDataset(tiny.SENTENCES, tokenizer, noise_ratio=0.0, max_length=7)
        rows = np.arange(len(data))
        assert [list(map(list, packed.sentences())) for packed in data.noised(0 * rows, rows)] == [expected] * 2
    assert ids["right"] != ids["left"], "the premise: some sentences are longer"


def test_sentences_that_tokenise_to_nothing_are_counted() -> None:
    corpus = Corpus.build(["a man", "", "‍", "dog"], tiny.tokenizer())
    assert len(corpus) == 2
    assert corpus.without_words == 2
    with pytest.raises(ValueError, match="has a word"):
        Corpus.build(["", " "], tiny.tokenizer())


def test_the_fingerprint_tells_corpora_apart() -> None:
    first = Corpus.build(["a man", "dog"], tiny.tokenizer())
    assert first.fingerprint() == Corpus.build(["a man", "dog"], tiny.tokenizer()).fingerprint()
    assert first.fingerprint() != Corpus.build(["dog", "a man"], tiny.tokenizer()).fingerprint()


def test_a_batch_from_texts() -> None:
    tokenizer = tiny.tokenizer()
    batch = Batch.from_texts(["man", "dog runs"], ["a man", "the dog runs fast"], tokenizer)
    assert list(batch.noisy.sentences()) == tokenizer(["man", "dog runs"]).input_ids
    assert list(batch.target.sentences()) == tokenizer(["a man", "the dog runs fast"]).input_ids
    with pytest.raises(ValueError, match="1 noisy sentences for 2"):
        Batch.from_texts(["man"], ["a man", "dog"], tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_ratio": 1.0}, r"\[0, 1\)"),
        ({"noise_ratio": -0.1}, r"\[0, 1\)"),
        ({"noise": "erase"}, "unknown noise 'erase'"),
        ({"max_length": 2}, "at least 3"),
        ({"words": "syllables"}, "words must be one of auto, tokens, characters, whitespace, or module:function"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.dataset(**settings)


def test_one_string_is_not_a_corpus() -> None:
    with pytest.raises(ValueError, match="list of sentences"):
        DenoisingDataset("a man", tiny.tokenizer())


def test_the_stream_of_batches_is_the_order_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are noised at once, and wherever the stream is entered."""
    data = tiny.dataset(seed=5)
    for at_once, tokens in ((1, 2**20), (7, 2**20), (1024, 2**20), (1024, 50), (1024, 1)):
        monkeypatch.setattr(dataset, "NOISED_AT_ONCE", at_once)
        monkeypatch.setattr(dataset, "TOKENS_AT_ONCE", tokens)
        for position in (0, 6):
            stream = data.batches(position, 3)
            for number in range(9):
                expected = data.batch(*data.order(position + 3 * number, 3))
                found = next(stream)
                for side in ("noisy", "target"):
                    assert list(getattr(found, side).sentences()) == list(getattr(expected, side).sentences())
