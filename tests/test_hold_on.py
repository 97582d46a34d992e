"""Holding on to the model that training began with: the term against a slow loop; the start stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests import tiny
from tests.runs import assert_same_run, rows
from tests.scripts import Run
from tests.tolerances import FLOAT64
from tsdae import Batch
from tsdae.config import MethodConfig
from tsdae.objectives import HoldOn, tsdae

FLAGS = "--corpus text.txt --model model --batch-size 3 --heldout 2 --precision fp32"
EVERY = " --eval-every 2 --save-every 2 --log-every 2"


def one_by_one(encoder: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """The vector of each noisy sentence, encoded alone."""
    sizes = range(len(batch.noisy))
    return [encoder(type(batch.noisy).from_lists([list(batch.noisy.sentences())[k]]).to("cpu"))[0] for k in sizes]


@pytest.mark.parametrize(("pooling", "own"), [("cls", "mean"), ("mean", "mean"), ("cls", "cls")])
def test_the_term_and_its_gradient_are_a_loop_over_pairs(pooling: str, own: str) -> None:
    model, start, batch = tiny.model(pooling), tiny.encoder(own, seed=5), tiny.batch()
    loss = HoldOn(start, 300.0)(model, batch)
    new, old = one_by_one(model.encoder, batch), one_by_one(start, batch)
    squares = [
        (F.cosine_similarity(new[i], new[j], 0) - F.cosine_similarity(old[i], old[j], 0)) ** 2
        for i in range(len(new))
        for j in range(len(new))
        if i != j
    ]
    expected = tsdae(model, batch).mean + 300.0 * torch.stack(squares).mean()
    torch.testing.assert_close(loss.mean, expected, **FLOAT64)
    assert float(torch.stack(squares).detach().mean()) > 1e-3, "the premise: the two models differ"
    assert HoldOn(start, 300.0).counts(batch) == loss.counts
    loss.mean.backward()
    got = {name: weight.grad for name, weight in model.encoder.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, weight in model.encoder.named_parameters():
        torch.testing.assert_close(got[name], weight.grad, **FLOAT64)
    assert all(weight.grad is None for weight in start.parameters())


def test_a_sentence_alone_has_no_pairs() -> None:
    objective, batch = HoldOn(tiny.encoder("mean", seed=5), 1.0), tiny.batch(1)
    loss = objective(tiny.model(), batch)
    assert loss.counts == objective.counts(batch) == tsdae(tiny.model(), batch).counts


def test_the_start_has_no_dropout() -> None:
    start = tiny.encoder("mean", seed=5, dropout=0.5).train()
    objective, model, batch = HoldOn(start, 1.0), tiny.model(), tiny.batch()
    assert len({float(objective(model, batch).mean.detach()) for _ in range(3)}) == 1


def test_under_autocast_similarities_are_not_rounded_to_bfloat16() -> None:
    model, start, batch = tiny.model(dtype=torch.float32), tiny.encoder("mean", 5, torch.float32), tiny.batch()
    with torch.autocast("cpu", torch.bfloat16):
        total = HoldOn(start, 1.0)(model, batch).terms["holding_on"].total
        new_BD, old_BD = model.encode(batch.noisy).double(), start(batch.noisy).double()
    new_BD, old_BD = F.normalize(new_BD, dim=1), F.normalize(old_BD, dim=1)
    expected = (new_BD @ new_BD.T - old_BD @ old_BD.T).square().sum()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_run_holds_on_to_its_start_and_goes_on_so_after_a_stop(run: Run, place: Path) -> None:
    whole = run("train", f"{FLAGS}{EVERY} --hold-on 50 --steps 8 --output whole")
    assert whole.code == 0, whole.err
    assert "similarity distillation from the initial model (cls pooling)" in whole.err
    assert run("train", f"{FLAGS}{EVERY} --hold-on 50 --steps 4 --output other").code == 0
    assert run("train", "--resume --output other --steps 8").code == 0
    assert_same_run(place / "whole", place / "other")
    assert run("train", f"{FLAGS}{EVERY} --steps 8 --output free --learning-rate 1e-3").code == 0
    assert run("train", f"{FLAGS}{EVERY} --steps 8 --output held --learning-rate 1e-3 --hold-on 1000").code == 0
    drift = [row["heldout_holding_on_loss"] for row in rows(place / "held") if "heldout_holding_on_loss" in row]
    assert len(drift) == 5, "it is among what is measured"
    assert drift[0] == pytest.approx(0, abs=1e-6), "nothing has moved yet"
    assert all(0 < value < 1 for value in drift[1:]), "the start does not move with the model"


def test_the_start_is_read_by_its_own_pooling(run: Run, place: Path) -> None:
    """The folder says cls: a model that reads by cls agrees with that at once, one that reads by mean does not."""
    for pooling in ("cls", "mean"):
        flags = f"{FLAGS}{EVERY} --pooling {pooling} --hold-on 1 --steps 2 --learning-rate 1e-12"
        held = run("train", f"{flags} --dropout 0 --attention-dropout 0 --output {pooling}")
        assert held.code == 0, held.err
        assert "(cls pooling)" in held.err
        drift = next(
            row["heldout_holding_on_loss"] for row in rows(place / pooling) if "heldout_holding_on_loss" in row
        )
        assert (drift > 1e-6) == (pooling == "mean")


def test_a_raw_language_model_is_nothing_to_hold_on_to(run: Run, place: Path) -> None:
    for path in ("modules.json", "1_Pooling/config.json"):
        (place / "model" / path).unlink()
    result = run("train", "--corpus text.txt --model model --output o --hold-on 1")
    assert result.code == 2
    assert "--hold-on needs a sentence model, but model is a raw model" in result.err


def test_the_advice_of_a_run_names_it_once(run: Run, place: Path) -> None:
    plain = run("train", "--corpus text.txt --model model --output o --steps 1 --heldout 2 --hold-on 0")
    assert "model is already a sentence model" in plain.err
    assert "--hold-on 100 loses less" in plain.err
    assert MethodConfig().hold_on == 0.0
    other = run("train", "--corpus text.txt --model model --output other --steps 1 --heldout 2 --objective mlm")
    assert "model is already a sentence model" in other.err
    assert "--hold-on 100" not in other.err, "which this objective refuses"
