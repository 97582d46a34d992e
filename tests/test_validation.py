"""Validation metrics without labels against slow loops and known geometries; which way of each is better."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny
from tsdae import LossSum
from tsdae.evaluation.validation import (
    GEOMETRY,
    RECONSTRUCTION,
    BestSoFar,
    effective_rank,
    geometry,
    label_free,
    validate,
    with_fixed_noise,
)
from tsdae.objectives import MaskedLanguageModel, tsdae


def vectors(rows: int = 12, hidden_size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, hidden_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_geometry_is_that_of_a_loop_over_pairs() -> None:
    noisy, clean = vectors() + 0.4 * vectors(seed=1), vectors()
    a, b = ([row / np.linalg.norm(row) for row in side.numpy()] for side in (noisy, clean))
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    found = [max(range(12), key=lambda j: a[i] @ b[j]) == i for i in range(12)]
    expected = {
        "noisy_retrieval": 100 * sum(found) / 12,
        "alignment": sum(np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)) / 12,
        "uniformity": math.log(sum(math.exp(-2 * np.sum((b[i] - b[j]) ** 2)) for i, j in pairs) / len(pairs)),
        "mean_cosine": sum(b[i] @ b[j] for i, j in pairs) / len(pairs),
    }
    measured = geometry(noisy, clean)
    assert 0 < expected["noisy_retrieval"] < 100
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    assert measured.keys() == set(GEOMETRY)


def test_orthogonal_and_collapsed_vectors() -> None:
    spread = geometry(torch.eye(6), 3.0 * torch.eye(6))
    assert spread == pytest.approx(
        {"noisy_retrieval": 100, "alignment": 0, "uniformity": -4, "effective_rank": 5, "mean_cosine": 0}, abs=1e-6
    )
    collapsed = geometry(torch.ones(6, 4), torch.ones(6, 4))
    assert collapsed["mean_cosine"] == pytest.approx(1)
    assert collapsed["uniformity"] == pytest.approx(0, abs=1e-6)
    assert collapsed["effective_rank"] == 0
    assert collapsed["noisy_retrieval"] <= 100 / 6 + 1e-6


def test_the_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([1.0, 1e-9])) == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_the_reconstruction_loss_is_that_of_each_sentence_alone() -> None:
    model, heldout = tiny.model(), with_fixed_noise(tiny.dataset())
    terms = [tsdae(model, heldout.batch(np.array([0]), np.array([row]))).terms["reconstruction"] for row in range(8)]
    expected = float(sum(term.total for term in terms)) / sum(term.count for term in terms)
    measured = label_free(model, heldout)
    assert list(measured) == [*RECONSTRUCTION, *GEOMETRY]
    assert measured["reconstruction_loss"] == pytest.approx(expected)
    assert measured["perplexity"] == pytest.approx(math.exp(expected))
    vectors = [
        torch.cat([model.encode(heldout.batch(np.array([0]), np.array([row]))[side]) for row in range(8)])
        for side in (0, 1)
    ]
    assert {name: measured[name] for name in GEOMETRY} == pytest.approx(geometry(*vectors))


def test_runs_of_other_noise_and_seeds_are_validated_on_the_same_sentences() -> None:
    """Else their metrics could not be compared."""
    model = tiny.model()
    runs = [tiny.dataset(noise="mask", noise_ratio=0.9, seed=4), tiny.dataset(noise_ratio=0.1), tiny.dataset()]
    first, *others = (validate(model, tsdae, None, heldout) for heldout in runs)
    assert len({first["heldout_loss"], *(other["heldout_loss"] for other in others)}) == 3
    for name in (*RECONSTRUCTION, *GEOMETRY):
        assert all(other[name] == pytest.approx(first[name]) for other in others), name
    assert with_fixed_noise(runs[2]) is runs[2]


def test_what_says_nothing_is_left_out() -> None:
    """A decoder that is not trained, vectors of a single sentence; and each term of several has its own loss."""
    model, heldout = tiny.model(), tiny.dataset()
    assert list(validate(model, MaskedLanguageModel(), None, heldout)) == ["heldout_loss", *GEOMETRY]
    assert list(validate(model, tsdae, None, tiny.dataset(["a dog runs"]))) == ["heldout_loss"]

    def twice(model: object, batch: object) -> LossSum:
        loss = tsdae(model, batch)
        return loss + 0.5 * LossSum(loss.terms["reconstruction"].total, 7, "again")

    metrics = validate(model, twice, None, heldout)
    parts = metrics["heldout_reconstruction_loss"], metrics["heldout_again_loss"]
    assert metrics["heldout_loss"] == pytest.approx(parts[0] + 0.5 * parts[1])
    assert parts[0] != parts[1]


@pytest.mark.parametrize(("name", "falls"), [("mean_cosine", True), ("my_loss", True), ("noisy_retrieval", False)])
def test_which_way_is_better(name: str, falls: bool) -> None:
    best = BestSoFar(name)
    assert best.update({name: 2.0})
    assert best.update({name: 1.0}) == falls
