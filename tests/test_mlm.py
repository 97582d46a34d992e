"""Masked-language modelling: which tokens are chosen, what becomes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import tiny
from tests.scripts import Run
from tsdae import Batch
from tsdae.objectives import MaskedLanguageModel
from tsdae.packing import Packed
from tsdae.text.tokenization import Vocabulary, vocabulary_of

VOCABULARY = vocabulary_of(tiny.tokenizer())
SPECIAL = {2, 3}  # [CLS], [SEP]


def many(sentences: int = 400, length: int = 20) -> Packed[Tensor]:
    """Sentences of ordinary tokens between [CLS] and [SEP]."""
    generator = torch.Generator().manual_seed(1)
    ordinary = torch.as_tensor(VOCABULARY.ordinary_ids)
    inner = ordinary[torch.randint(len(ordinary), (sentences, length - 2), generator=generator)]
    ids = F.pad(F.pad(inner, (1, 0), value=2), (0, 1), value=3)
    return Packed.from_lists(list(ids.numpy())).to("cpu")


@pytest.mark.parametrize("ratio", [0.15, 0.5, 1.0])
def test_it_chooses_the_ratio_of_each_sentence_and_no_special_token(ratio: float) -> None:
    clean = tiny.batch().target
    _, chosen_C = MaskedLanguageModel(ratio).noised(clean, VOCABULARY, training=True)
    assert len(set(chosen_C.tolist())) == len(chosen_C)
    assert not SPECIAL & set(clean.token_ids_T[chosen_C].tolist())
    for start, end in zip(clean.boundaries[:-1].tolist(), clean.boundaries[1:].tolist(), strict=True):
        chosen = int(((chosen_C >= start) & (chosen_C < end)).sum())
        assert chosen == min(max(1, round(ratio * (end - start))), end - start - 2)


def test_of_several_special_tokens_none_is_chosen() -> None:
    _, chosen_C = MaskedLanguageModel(0.5).noised(many(), VOCABULARY._replace(front=3, tail=2), training=True)
    assert set((chosen_C % 20).tolist()) == set(range(3, 18))


def test_eighty_ten_ten() -> None:
    clean = many()
    noisy, chosen_C = MaskedLanguageModel(0.5).noised(clean, VOCABULARY, training=True)
    before_C, after_C = clean.token_ids_T[chosen_C], noisy.token_ids_T[chosen_C]
    masked, same = float((after_C == VOCABULARY.mask_id).double().mean()), float((after_C == before_C).double().mean())
    assert len(chosen_C) == 400 * 10
    kept = 0.1 + 0.1 / len(VOCABULARY.ordinary_ids)
    for found, expected in ((masked, 0.8), (same, kept)):
        assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(chosen_C)) ** 0.5)
    drawn = after_C[(after_C != before_C) & (after_C != VOCABULARY.mask_id)].tolist()
    assert set(drawn) <= set(VOCABULARY.ordinary_ids.tolist())
    assert len(set(drawn)) > 0.9 * len(VOCABULARY.ordinary_ids), "any of them, and not one"
    others = torch.ones(len(clean.token_ids_T), dtype=torch.bool)
    others[chosen_C] = False
    assert torch.equal(noisy.token_ids_T[others], clean.token_ids_T[others])


def test_every_place_is_chosen_equally_often() -> None:
    _, chosen_C = MaskedLanguageModel(0.15).noised(many(2000, 12), VOCABULARY, training=True)
    share = torch.bincount(chosen_C % 12, minlength=12).double()[1:-1] / 2000  # two of ten in each sentence
    assert (share - 0.2).abs().max() < 4 * (0.16 / 2000) ** 0.5


def test_evaluation_draws_the_same_and_training_does_not() -> None:
    clean = tiny.batch().target
    mlm = MaskedLanguageModel()
    first, second, other = (mlm.noised(clean, VOCABULARY, training) for training in (False, False, True))
    assert first[1].tolist() == second[1].tolist()
    assert first[0].token_ids_T.tolist() == second[0].token_ids_T.tolist()
    assert first[1].tolist() != other[1].tolist()


def test_what_it_cannot_do_is_said() -> None:
    batch: Batch = tiny.batch()
    with pytest.raises(ValueError, match="needs a tied model"):
        MaskedLanguageModel()(tiny.model(tie=False), batch)
    with pytest.raises(ValueError, match="needs a mask token"):
        MaskedLanguageModel().noised(batch.target, Vocabulary(9, None, VOCABULARY.ordinary_ids, 1), True)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 0.0"):
        MaskedLanguageModel(0.0)


@pytest.mark.parametrize("flags", ["--objective mlm --noise-ratio 0.6", "--mlm-ratio 0.15"])
def test_what_has_no_use_is_refused_also_as_it_is_by_default(flags: str, run: Run, place: Path) -> None:
    result = run("train", f"--corpus text.txt --model model --output run {flags}")
    assert result.code == 2
    assert "-ratio: the objective" in result.err
    assert not (place / "run").exists()
