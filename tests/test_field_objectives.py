"""The field's objectives against slow twins: value and gradient, one sentence and one number at a time, in fp64."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests import tiny
from tests.runs import assert_same_run
from tests.scripts import Run
from tests.tolerances import FLOAT64
from tests.twin import lists, twin_layer, twin_of
from tsdae import TSDAE, Batch, LossSum, train
from tsdae.config import MethodConfig
from tsdae.evaluation.validation import collapse
from tsdae.objectives import OBJECTIVES
from tsdae.objectives.interface import build, step_counts, try_out, views_of
from tsdae.ops import layout_of
from tsdae.utils.rng import draws

FIELD = [name for name in OBJECTIVES if name != "tsdae"]
settings = functools.partial(tiny.settings, steps=30, batch_size=8)


def vectors(model: TSDAE, sentences: list[list[int]]) -> Tensor:
    return torch.cat([twin_of(model).encode([ids]) for ids in sentences])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def own_among_all(score: Callable[[int, int], Tensor], size: int) -> Tensor:
    """The mean over i of - log(exp(score_ii) / sum_j exp(score_ij))."""
    losses = [-torch.stack([score(i, j) for j in range(size)]).log_softmax(0)[i] for i in range(size)]
    return torch.stack(losses).mean()


def simcse(objective: Any, model: TSDAE, batch: Batch) -> Tensor:
    head = [torch.tanh(objective.head[0](v)) for v in vectors(model, lists(batch.target))]
    return own_among_all(lambda i, j: cosine(head[i], head[j]) / 0.05, len(head))


def ct(objective: Any, model: TSDAE, batch: Batch) -> Tensor:
    first = vectors(model, lists(batch.target))
    second = vectors(TSDAE(objective.second), lists(batch.target))
    scale = objective.log_scale.exp()
    return (
        own_among_all(lambda i, j: scale * (first[i] * second[j]).sum(), len(first))
        + own_among_all(lambda i, j: scale * (second[i] * first[j]).sum(), len(first))
    ) / 2


def bag_of_words(objective: Any, model: TSDAE, batch: Batch) -> Tensor:
    losses = []
    for noisy, clean in zip(lists(batch.noisy), lists(batch.target), strict=True):
        log_V = twin_of(model).logits(vectors(model, [noisy])[0]).log_softmax(0)
        losses += [-log_V[word] for word in set(clean[1:-1])]
    return torch.stack(losses).mean()


def barlow_twins(objective: Any, model: TSDAE, batch: Batch) -> Tensor:
    first, second = (vectors(model, lists(view)) for view in batch.views)
    size, loss = len(first), torch.zeros((), dtype=torch.float64)
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
            spread = torch.sqrt((a.square().mean() + 1e-5) * (b.square().mean() + 1e-5))
            correlation = (a * b).sum() / size / spread
            loss = loss + ((1 - correlation) ** 2 if i == j else 0.005 * correlation**2)
    return loss


def mlm(ratio: float, model: TSDAE, batch: Batch) -> tuple[Tensor, list[list[int]]]:
    """The loss, and the masked sentences: which tokens are masked is tested in test_mlm."""
    objective = type(OBJECTIVES["mlm"])(ratio)
    noisy, chosen_C = objective.noised(batch.target, model.encoder.vocabulary, False)
    clean_T, masked = batch.target.token_ids_T, lists(noisy)
    places = [(b, t) for b, ids in enumerate(masked) for t in range(len(ids))]
    losses = []
    for chosen in chosen_C.tolist():
        b, t = places[chosen]
        hidden_D = hidden(model, masked[b])[t]
        losses.append(-twin_of(model).logits(hidden_D).log_softmax(0)[clean_T[chosen]])
    return torch.stack(losses).mean(), masked


def hidden(model: TSDAE, ids: list[int]) -> Tensor:
    twin = twin_of(model)
    twin.pooling = "none"
    return twin.encode([ids])[0]


def tsdae_mlm(objective: Any, model: TSDAE, batch: Batch) -> Tensor:
    return twin_of(model)(lists(batch.noisy), lists(batch.target)) + mlm(0.15, model, batch)[0]


def retromae(objective: Any, model: TSDAE, batch: Batch) -> Tensor:
    """Each position t asks with s + p_t, of s and of the tokens that it has drawn, never of itself."""
    masked_loss, masked = mlm(0.3, model, batch)
    clean, config, losses = lists(batch.target), model.encoder.bert.config, []
    longest, positions_LD = max(map(len, clean)), model.encoder.bert.embeddings.positions.weight
    seen_BLL = draws(len(clean) * longest**2, False, torch.device("cpu")).view(len(clean), longest, longest) >= 0.5
    twin, (attention, feed_forward) = twin_of(model), twin_layer(objective.layer, config)
    for b, ids in enumerate(clean):
        s, embedded = twin.encode([masked[b]])[0], twin.encoder.embed(torch.tensor([ids]))[0]
        for t in range(1, len(ids)):
            read = torch.stack([s, *(embedded[j] for j in range(1, len(ids)) if j != t and seen_BLL[b, t, j])])
            asks = s + positions_LD[config.position_offset + t]
            row = feed_forward(attention(asks[None, None], read[None], torch.ones(1, 1, dtype=torch.bool)))[0, 0]
            losses.append(-twin.logits(row).log_softmax(0)[ids[t]])
    return masked_loss + torch.stack(losses).mean()


TWINS = {each.__name__: each for each in (simcse, ct, bag_of_words, barlow_twins, tsdae_mlm, retromae)}
TWINS["mlm"] = lambda objective, model, batch: mlm(0.15, model, batch)[0]


def made(name: str, model: TSDAE) -> tuple[Any, Batch]:
    """The objective with every parameter random, not in training, and a ragged batch of as many views as it reads."""
    objective = build(OBJECTIVES[name], model)
    if isinstance(objective, nn.Module):
        tiny.randomise(objective, 7).double().eval()
    data = tiny.dataset()
    return objective, data.batch(*data.order(0, 5), views_of(objective))


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_value_and_gradient_are_those_of_the_slow_twin(name: str, pooling: str) -> None:
    model = tiny.model(pooling, layers=1)  # of more layers the twin is compared in test_twin
    objective, batch = made(name, model)
    loss = objective(model, batch)
    both = nn.ModuleList([model, objective] if isinstance(objective, nn.Module) else [model])
    loss.mean.backward()
    got = {place: weight.grad for place, weight in both.named_parameters()}
    both.zero_grad()
    expected = TWINS[name](objective, model, batch)
    torch.testing.assert_close(loss.mean, expected, **FLOAT64)
    expected.backward()
    for place, weight in both.named_parameters():
        want = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(torch.zeros_like(weight) if got[place] is None else got[place], want, **FLOAT64)
    assert objective.counts(batch) == loss.counts == step_counts(objective, [batch])


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_rows_that_are_no_tokens_change_no_loss_of_retromae(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all tokens seen, as nothing is drawn for them."""
    model = tiny.model(pooling, layers=1)
    objective, batch = made("retromae", model)
    objective.hidden = 0.0
    without = objective(model, batch).mean
    monkeypatch.setattr("tsdae.ops.common.new_lengths_cost", lambda device: True)
    assert layout_of(batch.target).rows > batch.target.token_count
    torch.testing.assert_close(objective(model, batch).mean, without, **FLOAT64)


def test_dropout_is_the_only_noise_of_simcse() -> None:
    model = tiny.model(dropout=0.3).train()
    objective, batch = made("simcse", model)
    assert len({float(objective(model, batch).mean.detach()) for _ in range(3)}) == 3
    other = Batch(batch.target, batch.target)
    torch.manual_seed(0)
    first = objective(model, batch).mean
    torch.manual_seed(0)
    assert torch.equal(first, objective(model, other).mean), "the batch's own noise has no part in it"


def test_the_second_encoder_of_ct_starts_equal_and_goes_its_own_way() -> None:
    model = tiny.model(dtype=torch.float32)
    objective = build(OBJECTIVES["ct"], model)
    before = copy.deepcopy(model.encoder.state_dict())
    for name, weight in objective.second.state_dict().items():
        assert torch.equal(weight, before[name])
    train(model, tiny.dataset(), settings(batch_size=4, steps=3), objective)
    moved = [not torch.equal(w, objective.second.state_dict()[n]) for n, w in model.encoder.state_dict().items()]
    assert any(moved)
    assert any(not torch.equal(w, before[n]) for n, w in objective.second.state_dict().items())


@pytest.mark.parametrize("name", FIELD)
def test_training_lowers_it_from_a_seed(name: str) -> None:
    """By name or by class, with weights from the seed: two runs end bit for bit alike."""
    ends: list[dict[str, Tensor]] = []
    for _ in range(2):
        torch.manual_seed(len(ends))  # of no consequence
        model, data = tiny.model(dtype=torch.float32, layers=1, dropout=0.0, attention_dropout=0.0), tiny.dataset()
        objective = build(OBJECTIVES[name], model, 3)
        batch = data.batch(*data.order(0, 8), views_of(objective))
        before = objective(model, batch).mean.item()
        train(model, data, settings(steps=12), objective)
        assert objective(model, batch).mean.item() < before
        ends.append(model.encoder.state_dict())
    for place, weight in ends[0].items():
        assert torch.equal(weight, ends[1][place]), place


@pytest.mark.parametrize("name", FIELD)
def test_the_script_trains_scores_and_resumes_it(name: str, run: Run, place: Path) -> None:
    flags = f"--corpus text.txt --model model --objective {name} --batch-size 4 --heldout 4 --precision fp32"
    flags += " --eval-every 2 --save-every 2 --log-every 2 --accumulate 2"
    assert run("train", f"{flags} --steps 4 --output whole").code == 0
    assert run("train", f"{flags} --steps 2 --output run").code == 0
    assert run("train", "--resume --output run --steps 4").code == 0
    assert_same_run(place / "whole", place / "run")
    saved = json.loads((place / "run" / "config.json").read_text())
    assert saved["objective"] == name
    first, last = (load_file(folder / "model.safetensors") for folder in (place / "model", place / "run" / "encoder"))
    assert last.keys() <= first.keys(), "nothing of the objective's own weights is in the encoder"


@pytest.mark.parametrize("name", ["simcse", "ct", "barlow_twins"])
def test_a_batch_of_one_sentence_is_refused_before_training(name: str, run: Run, place: Path) -> None:
    result = run("train", f"--corpus text.txt --model model --objective {name} --batch-size 1 --output run")
    assert result.code == 2
    assert f"--objective {name} compares the sentences of a batch: --batch-size must be at least 2" in result.err
    assert not (place / "run").exists()
    with pytest.raises(ValueError, match="compares the sentences of a batch"):
        train(tiny.model(), tiny.dataset(), settings(batch_size=1), OBJECTIVES[name])


@pytest.mark.parametrize("name", FIELD)
def test_settings_that_have_no_part_in_it_are_refused(name: str) -> None:
    values: dict[str, Any] = {"noise_ratio": 0.3, "noise": "mask", "tie": False, "decoder_layers": 1}
    values |= {"decoder_input_noise": 0.5, "hold_on": 1.0, "mlm_ratio": 0.3}
    used = {"noise_ratio", "noise"} if name in ("bag_of_words", "barlow_twins", "tsdae_mlm") else set()
    if name == "tsdae_mlm":
        used |= {"decoder_layers", "decoder_input_noise"}
    if name in ("mlm", "tsdae_mlm"):
        used |= {"mlm_ratio"}
    for setting, value in values.items():
        if setting not in used:
            why = "masks tokens by --mlm-ratio" if name == "mlm" and setting.startswith("noise") else "does not use it"
            flag = "no-tie" if setting == "tie" else setting.replace("_", "-")
            with pytest.raises(ValueError, match=f"--{flag}: the objective {name} {why}"):
                MethodConfig(objective=name, **{setting: value})
        else:
            MethodConfig(objective=name, **{setting: value})


class Scaled(nn.Module):
    """A user's objective that is given as a class: it needs the model's width."""

    def __init__(self, model: TSDAE) -> None:
        super().__init__()
        self.matrix = nn.Linear(model.encoder.bert.config.width, 1)

    def forward(self, model: TSDAE, batch: Batch) -> Any:
        return (1.0 + self.matrix(model.encode(batch.noisy)).mean().sigmoid()) * model(batch)


def test_a_class_is_made_from_the_model_and_the_seed() -> None:
    """Two runs of one seed end alike, whatever was drawn before; another seed ends elsewhere."""
    ends = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(before)
        model = tiny.model(dtype=torch.float32)
        train(model, tiny.dataset(seed=0), settings(seed=seed, steps=3), Scaled)
        ends.append(model.state_dict())
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
    assert any(not torch.equal(weight, ends[2][name]) for name, weight in ends[0].items())


@pytest.mark.parametrize("name", ["simcse", "retromae"])
def test_its_new_weights_differ_from_seed_to_seed(name: str) -> None:
    first, again, other = (build(OBJECTIVES[name], tiny.model(), seed).state_dict() for seed in (1, 1, 2))
    matrices = [key for key, weight in first.items() if weight.dim() == 2]
    assert matrices
    assert all(torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key]) for key in matrices)


class Late(nn.Module):
    """An objective whose parameters come too late for the optimiser."""

    def forward(self, model: TSDAE, batch: Batch) -> Any:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        return self.scale * model(batch)


def test_parameters_that_the_first_call_makes_are_refused() -> None:
    with pytest.raises(ValueError, match="created the parameters scale in its first call, too late to be trained"):
        try_out(Late(), tiny.model(), tiny.batch())


def test_the_heldout_loss_compares_as_many_sentences_as_training(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = tiny.model(dtype=torch.float32), tiny.dataset()
    objective = build(OBJECTIVES["simcse"], model)
    batches = [data.batch(*data.order(start, 2)) for start in range(0, 8, 2)]
    expected = sum(objective.eval()(model, batch).mean.item() for batch in batches) / 4
    train(model, data, settings(batch_size=2, steps=1, eval_every=1), objective, heldout=tiny.dataset())
    assert f"step 0: heldout_loss {expected:.4g}" in capsys.readouterr().err


def test_a_few_sentences_span_few_dimensions_and_have_not_collapsed() -> None:
    on_a_line = {"mean_cosine": 0.5, "effective_rank": 1.0}
    assert collapse(on_a_line, 2) is None
    assert "lie nearly along one line (effective_rank 1)" in (collapse(on_a_line, 8) or "")


def towards_one_vector(model: TSDAE, batch: Batch) -> LossSum:
    return LossSum((model.encode(batch.noisy) - torch.linspace(-2, 2, 24)).square().sum(), len(batch.noisy), "distance")


def test_vectors_that_become_one_are_a_warning_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"learning_rate": 0.02, "steps": 60, "eval_every": 30, "best": "heldout_loss"}
    model, data = tiny.model(dtype=torch.float32), tiny.dataset()
    train(model, data, settings(**changes), towards_one_vector, heldout=data)
    first, *later = (line for line in capsys.readouterr().err.splitlines() if line.startswith(("step", "WARNING")))
    assert "WARNING" not in first, "the model as it was is not collapsed"
    warning = "WARNING: the vectors of different sentences are nearly the same (mean_cosine "
    assert sum(warning in line for line in later) == 1, "said when it happens"
    train(model, data, settings(**changes), towards_one_vector, heldout=data)
    assert warning not in capsys.readouterr().err, "it was so from the start"
