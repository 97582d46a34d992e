"""Several noisings of a sentence, a decoder that reads masked words, and the trial of a user's objective."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.runs import assert_same_run
from tests.tolerances import FLOAT64
from tsdae import TSDAE, Batch, LossSum
from tsdae.config import TrainConfig
from tsdae.evaluation.validation import validate
from tsdae.objectives import MaskedLanguageModel, tsdae
from tsdae.objectives.interface import try_out
from tsdae.packing import Packed
from tsdae.training import train

ROWS = np.arange(8)


class TwoViews:
    """The paper's loss on both noisings, as two terms."""

    views = 2

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        self.seen.append(batch)
        other = tsdae(model, Batch(batch.views[1], batch.target)).terms["reconstruction"]
        return tsdae(model, batch) + LossSum(other.total, other.count, "second")


def test_each_view_is_a_noising_of_its_own() -> None:
    data = tiny.dataset()
    batch = data.batch(0 * ROWS, ROWS, views=3)
    plain = data.batch(0 * ROWS, ROWS)
    assert torch.equal(batch.noisy.token_ids_T, plain.noisy.token_ids_T), "the first is what it always was"
    assert plain.views == (plain.noisy,)
    texts = [list(view.sentences()) for view in batch.views]
    assert len({str(text) for text in texts}) == 3
    for sentences in zip(*texts, list(batch.target.sentences()), strict=True):
        *noisy, clean = sentences
        assert all(set(ids) <= set(clean) for ids in noisy)
    assert texts[1] == list(data.noised(0 * ROWS, ROWS, view=1)[0].sentences())
    assert texts[1] != list(data.noised(0 * ROWS + 1, ROWS, view=1)[0].sentences()), "another epoch, another noise"


def test_views_come_in_the_batches_of_the_stream_and_in_the_heldout_ones() -> None:
    data, objective = tiny.dataset(), TwoViews()
    settings = TrainConfig(steps=3, batch_size=3, device="cpu", precision="fp32", eval_every=3)
    train(tiny.model(dtype=torch.float32), data, settings, objective, heldout=tiny.dataset(tiny.SENTENCES[:2]))
    assert [len(batch.views) for batch in objective.seen] == [2, 2, 2, 2, 2]
    for step, batch in enumerate(objective.seen[1:4]):  # the first and the last are held out
        expected = data.batch(*data.order(3 * step, 3), views=2)
        for seen, wanted in zip(batch.views, expected.views, strict=True):
            assert torch.equal(seen.token_ids_T, wanted.token_ids_T)


def read_by_decoder(model: TSDAE, target: Packed[Tensor]) -> Tensor:
    """The ids that the decoder looks up."""
    seen: list[Tensor] = []
    words = model.decoder_bert.embeddings.words
    hook = words.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    vectors = torch.zeros(len(target), model.encoder.bert.config.width, dtype=torch.float64)
    model.decode(target, vectors)
    hook.remove()
    return seen[0][: target.token_count - len(target)]


def noisy_decoder(share: float, **settings: Any) -> TSDAE:
    made = TSDAE(tiny.encoder(**settings), decoder_input_noise=share)
    tiny.randomise(made)
    return made.double().eval()


def test_the_share_of_the_decoders_input_is_masked_and_never_its_first_token() -> None:
    target = Packed.from_lists([[2, *range(5, 35), 3]] * 50).to("cpu")
    prefix_T = target.without_last().token_ids_T
    masked = read_by_decoder(noisy_decoder(0.3), target) == 4
    assert not masked[target.without_last().boundaries[:-1]].any()
    assert torch.equal(read_by_decoder(noisy_decoder(0.3), target)[~masked], prefix_T[~masked])
    assert float(masked.double().sum() / (50 * 30)) == pytest.approx(0.3, abs=4 * (0.21 / 1500) ** 0.5)
    assert torch.equal(read_by_decoder(noisy_decoder(0.0), target), prefix_T)


def test_fully_masked_the_decoder_knows_only_the_vector_and_the_place() -> None:
    model = noisy_decoder(1.0)
    one, other = (Packed.from_lists([ids]).to("cpu") for ids in ([2, 5, 6, 7, 3], [2, 30, 20, 9, 3]))
    vector = torch.randn(1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.decode(one, vector), model.decode(other, vector), **FLOAT64)
    assert (model.decode(one, vector) - model.decode(one, 2 * vector)).abs().max() > 1e-3


def test_evaluation_masks_the_same_words_each_time_and_training_others() -> None:
    model, target = noisy_decoder(0.5), tiny.batch().target
    first = read_by_decoder(model, target)
    assert torch.equal(first, read_by_decoder(model, target))
    assert not torch.equal(first, read_by_decoder(model.train(), target))


def test_it_is_saved_with_the_decoder(tmp_path: Path) -> None:
    model = noisy_decoder(0.5)
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.save_decoder(tmp_path / "decoder.safetensors")
    assert TSDAE.from_pretrained(tmp_path).decoder_input_noise == 0.5


def test_a_run_with_it_repeats(tmp_path: Path) -> None:
    """Its draws are the step's own, like dropout's: nothing outside decides about them."""
    for name in ("one", "two"):
        torch.rand(len(name) + 5 * (name == "two"))
        settings = TrainConfig(
            steps=4, batch_size=3, device="cpu", precision="fp32", output=str(tmp_path / name), log_every=2
        )
        train(noisy_decoder(0.5), tiny.dataset(), settings)
    assert_same_run(tmp_path / "one", tmp_path / "two", best=False)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"decoder_input_noise must be in \[0, 1\]"):
        TSDAE(tiny.encoder(), decoder_input_noise=share)


def detached(model: TSDAE, batch: Batch) -> LossSum:
    with torch.no_grad():
        return tsdae(model, batch)


def decoder_only(model: TSDAE, batch: Batch) -> LossSum:
    loss_T = model.head.bias.exp()
    return LossSum(loss_T.sum(), len(loss_T))


def miscounted(model: TSDAE, batch: Batch) -> LossSum:
    return tsdae(model, batch)


miscounted.counts = lambda batch: {"reconstruction": 3}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda model, batch: tsdae(model, batch).mean, "must return a LossSum, it returned Tensor"),
        (detached, "has no gradient for the encoder"),
        (decoder_only, "has no gradient for the encoder"),
        (miscounted, r"counts\(batch\) returns {'reconstruction': 3}, but its loss has the counts"),
    ],
)
def test_an_objective_that_cannot_be_trained_on_is_found_by_its_trial(objective: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        try_out(objective, tiny.model(), tiny.batch())


def test_a_vector_that_was_detached_is_noticed_by_the_trial(capsys: pytest.CaptureFixture[str]) -> None:
    """Under tying the decoder's gradient reaches the encoder all the same, so it is a note and no error."""

    def cut(model: TSDAE, batch: Batch) -> LossSum:
        hidden_TD = model.decode(batch.target, model.encode(batch.noisy).detach())
        loss_T = model.token_loss(hidden_TD, batch.target.without_first().token_ids_T)
        return LossSum(loss_T.sum(), len(loss_T))

    try_out(cut, tiny.model(), tiny.batch())
    assert "gives no gradient to the vectors of model.encode" in capsys.readouterr().err
    for objective in (tsdae, MaskedLanguageModel()):
        try_out(objective, tiny.model(), tiny.batch())
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda model, batch: tsdae(model, batch).mean, "must return a LossSum, it returned Tensor"),
        (detached, "the objective's loss has no gradient"),
    ],
)
def test_training_says_what_is_wrong_with_an_objective(objective: Any, message: str) -> None:
    """`train` called from Python, where nothing was tried before."""
    with pytest.raises(ValueError, match=message):
        train(tiny.model(), tiny.dataset(), TrainConfig(steps=1, device="cpu"), objective)


class Scaled(nn.Module):
    """The paper's loss, its weight learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        return self.scale.exp() * tsdae(model, batch)


def test_a_learned_weight_is_measured_as_a_number() -> None:
    model, objective = tiny.model(), Scaled()
    loss = validate(model, objective, None, tiny.dataset())["heldout_loss"]
    assert type(loss) is float, "it goes into the log"
    plain = validate(model, tsdae, None, tiny.dataset())["heldout_loss"]
    assert loss == pytest.approx(math.exp(0.5) * plain)


def test_the_trial_leaves_nothing_behind() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, model: TSDAE, batch: Batch) -> LossSum:
            self.calls.add_(1)
            return LossSum(self.scale * tsdae(model, batch).terms["reconstruction"].total, 5, "scaled")

    objective, model = Counting(), tiny.model()
    assert list(try_out(objective, model, tiny.batch()).terms) == ["scaled"]
    assert objective.calls == 0
    assert all(part.grad is None for part in (*objective.parameters(), *model.parameters()))
