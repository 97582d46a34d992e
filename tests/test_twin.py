"""The packed package computes what `tsdae_in_one_file` does: the loss, the gradient of every parameter, training."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.scripts import SCRIPTS, Run
from tests.tolerances import FLOAT32, FLOAT64
from tests.twin import lists, one_file, twin_of
from tsdae import TSDAE, Batch, DenoisingDataset, LossSum, SentenceEncoder, TrainConfig, train
from tsdae.objectives import tsdae
from tsdae.packing import Layout

RAGGED = ["a woman cooks bread", "dog", "is the house very big ?", "unknown cats eating slowly"]
EQUALLY_LONG = ["the dog eats bread", "a cat is running", "an apple in house"]
SHAPES: dict[str, dict[str, Any]] = {
    "BERT": {},
    "RoBERTa, positions begin later": {"position_offset": 2, "token_types": 1},
    "DistilBERT, no token types": {"token_types": 0, "attention_output_dropout": False},
    "a coarse layer-norm epsilon": {"layer_norm_epsilon": 1e-2},
}


def batch_of(sentences: list[str], noise: str = "delete") -> Batch:
    data = tiny.dataset(sentences, noise=noise)
    return data.collate([data[row] for row in range(len(sentences))])


def loss_and_gradients(loss: Tensor, model: TSDAE) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.abs().max() > 1e-6, f"the gradient of {name} is zero: nothing would be compared"
    return {"loss": loss.detach()} | gradients


def assert_equal_to_twin(model: TSDAE, batch: Batch) -> None:
    assert not model.training, "dropout is on"
    fast = loss_and_gradients(model(batch).mean, model)
    slow = loss_and_gradients(twin_of(model)(lists(batch.noisy), lists(batch.target)), model)
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, **FLOAT64, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_every_way_to_tie_and_pool(tie: bool, pooling: str) -> None:
    batch = batch_of(RAGGED)
    assert len(set(batch.noisy.lengths_B.tolist())) > 1, "not ragged"
    assert_equal_to_twin(tiny.model(pooling, tie, layers=2), batch)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_a_decoder_of_one_layer(tie: bool) -> None:
    assert_equal_to_twin(tiny.model(tie=tie, decoder_layers=1, layers=2), batch_of(RAGGED))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_equally_long_sentences_which_need_no_padding(pooling: str) -> None:
    batch = batch_of(EQUALLY_LONG, noise="replace")  # which keeps the lengths
    assert Layout.of(batch.noisy).is_full
    assert Layout.of(batch.target).is_full
    assert_equal_to_twin(tiny.model(pooling, layers=2), batch)


def test_a_batch_of_one_sentence() -> None:
    assert_equal_to_twin(tiny.model(layers=2), batch_of(RAGGED[:1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str) -> None:
    assert_equal_to_twin(tiny.model(layers=2, **SHAPES[shape]), batch_of(RAGGED[:3]))


# ---------------------------------------------------------------------------------------------------------------
# The one file itself


def test_the_one_file_uses_no_padding_and_no_later_token() -> None:
    """One sentence at a time, and every prefix anew: what is padded, and what comes later, is not there."""
    twin, batch = twin_of(tiny.model()), batch_of(RAGGED)
    losses = []
    for noisy, clean in zip(lists(batch.noisy), lists(batch.target), strict=True):
        sentence_1D = twin.encode([noisy])
        for t in range(1, len(clean)):
            logits_V = twin.logits(twin.decode(torch.tensor([clean[:t]]), sentence_1D))[0, -1]
            losses.append(-torch.log(torch.exp(logits_V) / torch.exp(logits_V).sum())[clean[t]])
    expected = torch.stack(losses).sum() / len(losses)
    torch.testing.assert_close(twin(lists(batch.noisy), lists(batch.target)), expected, **FLOAT64)


def test_the_one_file_uses_no_model_of_the_package() -> None:
    tree = ast.parse((SCRIPTS / "tsdae_in_one_file.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in modules if name and name.startswith("tsdae")} == {"tsdae.evaluation.pairs"}


def test_words_go_whole_and_one_stays() -> None:
    ids, words = [2, 10, 11, 12, 13, 3], [None, 0, 1, 1, 2, None]
    texts = {tuple(one_file.delete_words(ids, words, 0.6, Random(seed))) for seed in range(200)}
    subsets = itertools.product([[], [10]], [[], [11, 12]], [[], [13]])
    assert texts == {(2, *itertools.chain(*kept), 3) for kept in subsets if any(kept)}
    kept = [len(one_file.delete_words(list(range(50)), list(range(50)), 0.8, Random(seed))) for seed in range(200)]
    assert 9 < sum(kept) / 200 < 11


def same_starts(dtype: torch.dtype) -> tuple[TSDAE, one_file.TSDAE]:
    """mini as the package loads it and as the one file does, without dropout; the random weights are the package's."""
    encoder = SentenceEncoder.from_pretrained("mini", pooling="cls")
    encoder.bert.set_dropout(0.0, 0.0)
    model, (own, _) = TSDAE(encoder), one_file.load()
    for ours, theirs in zip(own.crosses, model.crosses, strict=True):
        for name in ("value", "output", "norm"):
            ours.get_submodule(name).load_state_dict(theirs.get_submodule(name).state_dict())
    for module in own.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(dtype), own.to(dtype)


def test_steps_of_mini_lose_the_same() -> None:
    """On the package's batches: clipping, AdamW and the averages are the same too."""
    model, own = same_starts(torch.float64)
    batches: list[Batch] = []
    losses: list[float] = []

    def recording(model: TSDAE, batch: Batch) -> LossSum:
        loss = tsdae(model, batch)
        batches.append(batch)
        losses.append(loss.mean.item())
        return loss

    data = DenoisingDataset(tiny.SENTENCES, model.encoder.tokenizer)
    train(
        model, data, TrainConfig(steps=4, batch_size=4, learning_rate=5e-4, precision="fp64", eval_every=0), recording
    )
    optimizer = one_file.adamw(own, 5e-4)
    own_losses = [one_file.step(own, optimizer, lists(batch.noisy), lists(batch.target)) for batch in batches]
    assert losses[-1] < losses[0]
    torch.testing.assert_close(torch.tensor(own_losses), torch.tensor(losses), **FLOAT32)


def test_the_one_file_trains(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = one_file.load()
    first, second = tiny.SENTENCES[:4], tiny.SENTENCES[4:]
    before = one_file.spearman(model, tokenizer, first, second, [1, 2, 3, 4])
    losses = one_file.train(model, tokenizer, tiny.SENTENCES, steps=50, batch_size=4)
    assert len(losses) == 50
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert capsys.readouterr().out == f"step    50: loss {sum(losses) / 50:.3f}\n"
    again, _ = one_file.load()
    assert one_file.train(again, tokenizer, tiny.SENTENCES, steps=3, batch_size=4) == losses[:3]
    assert abs(before) <= 100


@pytest.mark.real
@pytest.mark.slow
def test_mini_on_stsb_loses_as_much_as_in_the_package(run: Run) -> None:
    """With noise, order and dropout of their own."""
    sentences, dev = one_file.stsb()
    encoder = SentenceEncoder.from_pretrained("mini", pooling="cls")
    model, losses = TSDAE(encoder), list[float]()

    def recording(model: TSDAE, batch: Batch) -> LossSum:
        loss = tsdae(model, batch)
        losses.append(loss.mean.item())
        return loss

    config = TrainConfig(steps=200, batch_size=16, learning_rate=5e-4, precision="fp32", eval_every=0)
    train(model, DenoisingDataset(sentences, encoder.tokenizer), config, recording)
    own, tokenizer = one_file.load()
    own_losses = one_file.train(own, tokenizer, sentences, steps=200, batch_size=16)
    for part in (slice(50, 100), slice(100, 200)):
        assert sum(own_losses[part]) == pytest.approx(sum(losses[part]), rel=0.04)
    vectors = [torch.tensor(encoder.encode(list(side))) for side in (dev.first, dev.second)]
    theirs = 100 * one_file.spearmanr(torch.cosine_similarity(*vectors), dev.scores).statistic
    assert one_file.spearman(own, tokenizer, dev.first, dev.second, dev.scores) == pytest.approx(theirs, abs=6)


@pytest.mark.real
def test_the_one_file_as_a_script(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("\n".join(tiny.SENTENCES))
    result = run("tsdae_in_one_file", f"--steps 1 --corpus {tmp_path / 'my.txt'}")
    assert result.code == 0
    assert "Spearman of the [CLS] vectors: 48.30 before" in result.out
