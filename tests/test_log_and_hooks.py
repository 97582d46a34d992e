"""What a researcher sees of a run and changes in it: terms, own values, rows in memory, an optimiser, a hook."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.tolerances import FLOAT32
from tsdae import TSDAE, Batch, LossSum, TrainConfig, train

settings = functools.partial(tiny.settings, save_every=0, log_every=3)


def model() -> TSDAE:
    return tiny.model(dtype=torch.float32, dropout=0.0, attention_dropout=0.0)


def two_terms(model: TSDAE, batch: Batch) -> LossSum:
    sentence_BD = model.encode(batch.noisy)
    size = LossSum(sentence_BD.square().sum(), sentence_BD.numel(), "size")
    loss = model.reconstruction_loss(batch.target, sentence_BD) + 0.1 * size
    return loss.note("norm", sentence_BD.norm(dim=1)).note("sentences", len(batch.noisy))


two_terms.counts = lambda batch: {"reconstruction": batch.reconstructed, "size": 24 * len(batch.noisy)}


def rows(config: TrainConfig, **hooks: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    train(model(), tiny.dataset(), config, two_terms, on_row=seen.append, **hooks)
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_term_and_every_note_is_logged(accumulate: int, tmp_path: Path) -> None:
    """In memory and in metrics.jsonl alike; terms without their weights, notes averaged over batches and steps."""
    config = settings(accumulate=accumulate, output=str(tmp_path / "run"))
    seen = rows(config)
    assert seen == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in seen] == [3, 6]
    for row in seen:
        assert row["loss"] == pytest.approx(row["reconstruction_loss"] + 0.1 * row["size_loss"], **as_approx())
        assert row["sentences"] == 4


def as_approx() -> dict[str, float]:
    return {"rel": FLOAT32["rtol"], "abs": FLOAT32["atol"]}


def test_the_values_are_those_of_the_first_step() -> None:
    (row, *_) = rows(settings(log_every=1))
    fresh, data = model(), tiny.dataset()
    loss = two_terms(fresh, data.batch(*data.order(0, 4)))
    for name, value in (("norm", loss.notes["norm"]), ("size_loss", loss.terms["size"].total / loss.counts["size"])):
        assert row[name] == pytest.approx(float(value.detach()), **as_approx())


def test_one_term_is_the_loss_and_has_no_column_of_its_own() -> None:
    seen: list[dict[str, Any]] = []
    train(model(), tiny.dataset(), settings(), on_row=seen.append)
    assert {name for name in seen[0] if "loss" in name} == {"loss"}


def test_evaluations_are_rows_too() -> None:
    seen: list[dict[str, Any]] = []
    train(model(), tiny.dataset(), settings(eval_every=3), heldout=tiny.dataset(), on_row=seen.append)
    assert [row["step"] for row in seen if "heldout_loss" in row] == [0, 3, 6]


def test_a_note_has_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"note\('epoch'\): metrics.jsonl has a column of this name"):
        LossSum(torch.ones(()), 1).note("epoch", 1.0)


def test_notes_stay_with_a_loss_that_is_scaled_and_added() -> None:
    first, second = LossSum(torch.ones(()), 1).note("a", 1), LossSum(torch.ones(()), 1, "other").note("b", 2)
    assert {name: float(value) for name, value in (0.5 * first + second).notes.items()} == {"a": 1.0, "b": 2.0}


def by_layer(trained: nn.Module) -> torch.optim.Optimizer:
    """The embeddings stand still; the last layer learns ten times as fast as the others."""
    named = dict(trained.named_parameters())
    fast = [weight for name, weight in named.items() if ".layers.2." in name]
    still = [weight for name, weight in named.items() if ".embeddings." in name]
    ours = {id(weight) for weight in (*fast, *still)}
    others = [weight for weight in named.values() if id(weight) not in ours]
    groups = [{"params": fast, "lr": 1e-2}, {"params": still, "lr": 0.0}, {"params": others}]
    return torch.optim.SGD(groups, lr=1e-3)


def test_groups_of_an_optimiser_keep_their_ratio_under_a_schedule() -> None:
    """Against plain steps of gradient descent, the rates of which fall linearly."""
    got, expected, data = model(), model(), tiny.dataset()
    config = settings(steps=4, schedule="linear", clip=0.0)
    made: list[torch.optim.Optimizer] = []

    def optimizer(trained: nn.Module) -> torch.optim.Optimizer:
        made.append(by_layer(trained))
        return made[0]

    train(got, data, config, optimizer=optimizer)
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx([2.5e-3, 0.0, 2.5e-4])
    for step, batch in zip(range(4), data.batches(0, 4), strict=False):
        expected.zero_grad()
        expected(batch).mean.backward()
        with torch.no_grad():
            for name, weight in expected.named_parameters():
                times = 10 if ".layers.2." in name else 0 if ".embeddings." in name else 1
                if weight.grad is not None:
                    weight -= times * 1e-3 * (4 - step) / 4 * weight.grad
    start = model().state_dict()
    for name, weight in got.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], **FLOAT32)
        assert torch.equal(weight, start[name]) == (".embeddings." in name), name


class Average:
    """An exponential moving average of the weights, kept by a hook."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.steps: list[int] = []

    def __call__(self, model: TSDAE, step: int) -> None:
        self.steps.append(step)
        for name, weight in model.state_dict().items():
            before = self.weights.get(name, weight)
            self.weights[name] = (0.9 * before + 0.1 * weight).clone()

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"]


def test_a_hook_sees_every_step_and_its_state_is_resumed(tmp_path: Path) -> None:
    whole, first, second = Average(), Average(), Average()
    train(model(), tiny.dataset(), settings(output=str(tmp_path / "whole")), two_terms, after_step=whole)
    half = settings(output=str(tmp_path / "run"), steps=3, save_every=3)
    train(model(), tiny.dataset(), half, two_terms, after_step=first)
    rest = settings(output=str(tmp_path / "run"), resume=True)
    train(model(), tiny.dataset(), rest, two_terms, after_step=second)
    assert (whole.steps, first.steps, second.steps) == ([1, 2, 3, 4, 5, 6], [1, 2, 3], [4, 5, 6])
    for name, weight in whole.weights.items():
        assert torch.equal(weight, second.weights[name]), name
    assert any(not torch.equal(weight, first.weights[name]) for name, weight in whole.weights.items())


def test_terms_of_an_open_row_are_resumed(tmp_path: Path) -> None:
    """From a checkpoint between two rows: the row is that of the run which never stopped."""
    (whole,) = rows(settings(log_every=6, save_every=2, keep=3, output=str(tmp_path / "run")))
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    (last,) = rows(settings(log_every=6, output=str(tmp_path / "run"), resume=True))
    for name in ("loss", "size_loss", "norm", "sentences"):
        assert last[name] == whole[name]
