"""Masked-language modelling: which tokens are chosen, what becomes of them, and the loss against a slow twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import tiny
from tests.scripts import Run
from tests.tolerances import FLOAT64
from tsdae import Batch
from tsdae.config import MethodConfig, TrainConfig
from tsdae.objectives import MaskedLanguageModel
from tsdae.objectives.interface import step_counts
from tsdae.packing import Packed
from tsdae.text.tokenization import Vocabulary, vocabulary_of
from tsdae.training import train

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


def test_the_loss_is_that_of_a_loop_over_sentences() -> None:
    """One sentence at a time, all logits, and the cross-entropy of the clean token at each chosen place."""
    model, mlm, batch = tiny.model(), MaskedLanguageModel(0.3), tiny.batch()
    noisy, chosen_C = mlm.noised(batch.target, VOCABULARY, training=False)
    clean_T = batch.target.token_ids_T
    total, count = torch.zeros((), dtype=torch.float64), 0
    for start, end in zip(noisy.boundaries[:-1].tolist(), noisy.boundaries[1:].tolist(), strict=True):
        alone = Packed.from_lists([noisy.token_ids_T[start:end].tolist()]).to("cpu")
        logits_TV = model.head(model.encoder.bert(alone), model.encoder.bert.embeddings.words.weight)
        for place in range(start, end):
            if place in chosen_C.tolist():
                total = total - torch.log_softmax(logits_TV[place - start], 0)[clean_T[place]]
                count += 1
    loss = mlm(model, batch)
    assert loss.counts == {"mlm": count} == step_counts(mlm, [batch])
    torch.testing.assert_close(loss.mean, total / count, **FLOAT64)
    loss.mean.backward()
    assert model.encoder.bert.embeddings.words.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.crosses.parameters()), "the decoder has no part in it"


def test_training_by_it_learns() -> None:
    model, data = tiny.model(dtype=torch.float32), tiny.dataset()
    batch = data.batch(*data.order(0, 8))
    model.eval()
    before = MaskedLanguageModel()(model, batch).mean.item()
    settings = TrainConfig(steps=40, learning_rate=3e-3, device="cpu", precision="fp32", accumulate=2, eval_every=0)
    train(model, data, settings, MaskedLanguageModel())
    assert MaskedLanguageModel()(model, batch).mean.item() < before - 0.5


def test_what_it_cannot_do_is_said() -> None:
    batch: Batch = tiny.batch()
    with pytest.raises(ValueError, match="needs a tied model"):
        MaskedLanguageModel()(tiny.model(tie=False), batch)
    with pytest.raises(ValueError, match="needs a mask token"):
        MaskedLanguageModel().noised(batch.target, Vocabulary(9, None, VOCABULARY.ordinary_ids, 1), True)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 0.0"):
        MaskedLanguageModel(0.0)


@pytest.mark.parametrize(
    "settings",
    [{"noise_ratio": 0.3}, {"noise": "mask"}, {"tie": False}, {"decoder_layers": 1}, {"decoder_input_noise": 0.5}],
)
def test_what_it_has_no_use_for_is_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    why = "masks tokens by --mlm-ratio" if name.startswith("noise") else "does not use it"
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: the objective mlm {why}"):
        MethodConfig(objective="mlm", **settings)
    MethodConfig(**settings)
    with pytest.raises(ValueError, match="--mlm-ratio: the objective tsdae does not use it"):
        MethodConfig(mlm_ratio=0.3)


@pytest.mark.parametrize("flags", ["--objective mlm --noise-ratio 0.6", "--mlm-ratio 0.15"])
def test_what_has_no_use_is_refused_also_as_it_is_by_default(flags: str, run: Run, place: Path) -> None:
    result = run("train", f"--corpus text.txt --model model --output run {flags}")
    assert result.code == 2
    assert "-ratio: the objective" in result.err
    assert not (place / "run").exists()
