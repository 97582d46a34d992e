"""The training loop: what one step does, and what must not change it."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.runs import rows
from tests.tolerances import FLOAT64
from tsdae.autoencoder import TSDAE
from tsdae.bert import Bert, Layer
from tsdae.encoder import SentenceEncoder
from tsdae.losses import LossSum
from tsdae.objectives import tsdae
from tsdae.packing import Batch
from tsdae.run.step_metrics import NonFiniteLoss, StepMetrics
from tsdae.training import train
from tsdae.utils import signals
from tsdae.utils.signals import Interrupted

config = functools.partial(tiny.settings, precision="fp64", learning_rate=1e-2)


def weights(model: TSDAE) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], exactly: bool = True) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], **({"rtol": 0, "atol": 0} if exactly else FLOAT64), msg=name
        )


def no_dropout(**changes: Any) -> TSDAE:
    return tiny.model(dropout=0.0, attention_dropout=0.0, **changes)


def test_twenty_steps_equal_a_plain_loop() -> None:
    """PyTorch's unfused AdamW, the loss of one batch at a time, clipping written out."""
    model, data = no_dropout(), tiny.dataset()
    twin = copy.deepcopy(model)
    before = weights(model)
    train(model, data, config(steps=20, clip=0.5, weight_decay=0.1))

    decayed = [p for p in twin.parameters() if p.dim() > 1]
    others = [p for p in twin.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2, foreach=False
    )
    clipped = 0
    for step in range(20):
        loss = twin(data.batch(*data.order(step * 4, 4))).mean
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters() if p.grad is not None))
        if norm > 0.5:
            clipped += 1
            for parameter in twin.parameters():
                if parameter.grad is not None:
                    parameter.grad *= 0.5 / (norm + 1e-6)
        optimizer.step()
    assert clipped > 0
    assert any((before[name] != value).any() for name, value in weights(model).items())
    assert_same(weights(model), weights(twin), exactly=False)


def test_accumulation_is_one_large_batch() -> None:
    """2 x 4 = 1 x 8, though the halves have different numbers of tokens: normalised once, by the step's tokens."""
    whole, halves = no_dropout(), no_dropout()
    data = tiny.dataset()
    first, second = data.batch(*data.order(0, 4)), data.batch(*data.order(4, 4))
    assert first.target.token_count != second.target.token_count
    train(whole, data, config(batch_size=8))
    train(halves, data, config(batch_size=4, accumulate=2))
    key_biases = [f"encoder.bert.layers.{i}.attention.project.bias" for i in range(3)]  # true gradient zero
    first_weights, second_weights = weights(whole), weights(halves)
    for name in key_biases:
        for states in (first_weights, second_weights):
            states[name][24:48] = 0.0
    assert_same(first_weights, second_weights, exactly=False)


def test_training_learns() -> None:
    model = TSDAE(SentenceEncoder(Bert(tiny.config(layers=1)), tiny.tokenizer()))
    data = tiny.dataset()
    batch = data.batch(*data.order(0, 8))
    before = model.eval()(batch).mean.item()
    train(model, data, config(steps=60, batch_size=8, precision="fp32", learning_rate=3e-3))
    assert abs(before - math.log(len(tiny.tokenizer()))) < 0.2, "an untrained model guesses uniformly"
    assert model(batch).mean.item() < before - 1.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_repeats_bit_for_bit_and_evaluation_does_not_change_it(precision: str) -> None:
    """Dropout is on; an evaluation that draws random numbers, or leaves the model in evaluation mode, would show."""

    def noisy_evaluation(encoder: SentenceEncoder) -> dict[str, float]:
        assert not encoder.training
        return {"noise": float(torch.rand(()))}

    def trained(seed: int = 0, eval_every: int = 0) -> dict[str, Tensor]:
        model = tiny.model(dtype=torch.float32)
        settings = config(precision=precision, seed=seed, eval_every=eval_every)
        train(model, tiny.dataset(), settings, evaluate=noisy_evaluation, heldout=tiny.dataset(tiny.SENTENCES[:3]))
        return weights(model)

    assert_same(trained(), trained(eval_every=1))
    assert any((value != trained(seed=1)[name]).any() for name, value in trained().items())


def test_weights_stay_fp32_under_bf16() -> None:
    model = tiny.model(dtype=torch.float32)
    seen = set()

    def objective(model: TSDAE, batch: Batch) -> LossSum:
        seen.add(model.logits(model.decode(batch.target, model.encode(batch.noisy))).dtype)
        return tsdae(model, batch)

    train(model, tiny.dataset(), config(precision="bf16"), objective)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_never_reaches_the_weights() -> None:
    """It is met at step 3, seen at step 5, named, and the weights are those of a run that skipped it."""
    data = tiny.dataset()

    def bad_at(step: int | None) -> Any:
        calls = iter(range(1, 100))

        def objective(model: TSDAE, batch: Batch) -> LossSum:
            loss = tsdae(model, batch)
            return (math.nan if next(calls) == step else 1.0) * loss

        return objective

    with pytest.raises(NonFiniteLoss) as raised:
        train(model := no_dropout(), data, config(steps=8, log_every=5), bad_at(3))
    assert "step 3 " in str(raised.value)
    for row in data.order(8, 4)[1].tolist():
        assert f"row {row} {data.text(row)[1]!r}" in str(raised.value)
    assert all(torch.isfinite(value).all() for value in weights(model).values())

    # Skipping step 3 by hand: its update, and nothing else of it, is missing.
    twin = no_dropout()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    for step in (0, 1, 3, 4):
        twin(data.batch(*data.order(step * 4, 4))).mean.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(weights(model), weights(twin), exactly=False)


def test_a_run_folder_holds_the_last_and_the_best_model(tmp_path: Path) -> None:
    model, data = tiny.model(dtype=torch.float32), tiny.dataset()
    values = iter([1.0, 5.0, 9.0, 7.0])
    states = []

    def evaluate(encoder: SentenceEncoder) -> dict[str, float]:
        states.append(encoder.encode(tiny.SENTENCES))
        return {"quality": next(values)}

    settings = config(precision="fp32", eval_every=2, log_every=2, best="quality", output=str(tmp_path / "run"))
    train(model, data, settings, evaluate=evaluate, settings={"corpus": "here"})
    log = rows(tmp_path / "run")
    assert [row["step"] for row in log] == [0, 2, 2, 4, 4, 6, 6]
    assert [row["quality"] for row in log if "quality" in row] == [1.0, 5.0, 9.0, 7.0]
    assert all(row["loss"] > 0 for row in log if "loss" in row)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["steps"] == 6
    assert written["corpus"] == "here"

    batch = tiny.batch()
    last = TSDAE.from_pretrained(tmp_path / "run").eval()
    assert last(batch).mean.item() == model(batch).mean.item()
    best = TSDAE.from_pretrained(tmp_path / "run" / "best").eval()
    assert (best.encoder.encode(tiny.SENTENCES) == states[2]).all()
    assert json.loads((tmp_path / "run" / "best" / "measures.json").read_text()) == {"step": 4, "quality": 9.0}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best", "checkpoints", "config.json", "decoder.safetensors", "encoder", "metrics.jsonl"]  # fmt: skip


def test_the_logged_loss_is_the_loss_of_the_steps(tmp_path: Path) -> None:
    data, losses = tiny.dataset(), []

    def objective(model: TSDAE, batch: Batch) -> LossSum:
        losses.append(tsdae(model, batch))
        return losses[-1]

    train(no_dropout(), data, config(output=str(tmp_path / "run"), log_every=3), objective)
    log = rows(tmp_path / "run")
    means = [loss.mean.item() for loss in losses]
    assert [row["loss"] for row in log] == pytest.approx([sum(means[:3]) / 3, sum(means[3:]) / 3])


def test_the_speed_is_that_of_the_steps_since_the_clock_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation within a row of the log takes its time out, and the steps before it as well."""
    now = [0.0]
    monkeypatch.setattr("tsdae.run.step_metrics.time.perf_counter", lambda: now[0])
    window, batch, one = StepMetrics(torch.device("cpu")), tiny.batch(), torch.ones(())
    tokens = batch.noisy.token_count + batch.target.token_count
    for step in range(1, 6):
        now[0] += 2.0
        window.add({"loss": one}, one, [batch])
        if step == 3:
            now[0] += 100.0
            window.restart_clock()
    assert window.close(5, False, str)["tokens_per_second"] == pytest.approx(tokens / 2.0)


def test_a_second_ctrl_c_quits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a note cannot be printed, since stderr is being written to in that very moment."""

    def reentrant(line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(signals, "print_note", reentrant)
    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(Interrupted), signals.catch_signals(True) as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise Interrupted(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_while_the_last_model_is_written_stops_what_comes_after() -> None:
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    with contextlib.suppress(KeyboardInterrupt):
        with signals.catch_signals(True):
            signal.raise_signal(signal.SIGINT)
            done.append("written")
        done.append("what comes after")
    signal.signal(signal.SIGINT, before)
    assert done == ["written"]


def test_a_lower_loss_is_better_and_a_nan_never_is(tmp_path: Path) -> None:
    values = iter([math.nan, math.nan, 3.0, 2.0, 4.0])
    settings = config(steps=4, eval_every=1, best="my_loss", output=str(tmp_path / "run"))
    train(tiny.model(), tiny.dataset(), settings, evaluate=lambda _: {"my_loss": next(values)})
    assert json.loads((tmp_path / "run" / "best" / "measures.json").read_text())["step"] == 3


def test_the_heldout_loss_is_the_mean_over_its_tokens_under_fixed_noise(tmp_path: Path) -> None:
    model, heldout = no_dropout(), tiny.dataset(tiny.SENTENCES[2:7])
    settings = config(steps=1, eval_every=1, learning_rate=1e-12, output=str(tmp_path / "run"))
    expected = model(heldout.batch(*heldout.order(0, 5))).mean.item()
    train(model, tiny.dataset(), settings, heldout=heldout)
    log = rows(tmp_path / "run")
    assert log[-1]["heldout_loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_writes_the_model(tmp_path: Path, number: int) -> None:
    model, calls = tiny.model(dtype=torch.float32), []

    def objective(model: TSDAE, batch: Batch) -> LossSum:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return tsdae(model, batch)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        train(model, tiny.dataset(), config(precision="fp32", output=str(tmp_path / "run")), objective)
    assert stopped.value.signal == number
    assert str(stopped.value) == f"stopped after step 3 of 6; checkpoint and model are in {tmp_path / 'run'}"
    assert len(calls) == 3
    assert signal.getsignal(number) is before
    assert TSDAE.from_pretrained(tmp_path / "run").eval()(tiny.batch()).mean.item() == model(tiny.batch()).mean.item()


def test_an_output_folder_with_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    settings = config(steps=1, output=str(tmp_path))
    train(tiny.model(), tiny.dataset(), settings)
    kept = (tmp_path / "decoder.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        train(tiny.model(seed=1), tiny.dataset(), settings)
    assert (tmp_path / "decoder.safetensors").read_bytes() == kept
    (tmp_path / "evaluation.json").write_text("[]")  # the old run's table must not stand beside the new model
    train(tiny.model(seed=1), tiny.dataset(), config(steps=1, output=str(tmp_path), overwrite=True))
    assert not (tmp_path / "evaluation.json").exists()
    assert (tmp_path / "decoder.safetensors").read_bytes() != kept


def test_an_objective_without_counts_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    settings = config(accumulate=2, output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="needs an attribute `counts"):
        train(tiny.model(), tiny.dataset(), settings, lambda model, batch: tsdae(model, batch))
    assert not (tmp_path / "run").exists()


def test_learning_rate_schedules() -> None:
    constant = config(steps=10, learning_rate=1.0, warmup_steps=4)
    assert [constant.learning_rate_at(step, 10) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    linear = config(steps=10, learning_rate=1.0, schedule="linear")
    assert [linear.learning_rate_at(step, 10) for step in (0, 5, 9)] == pytest.approx([1.0, 0.5, 0.1])
    both = config(steps=10, learning_rate=1.0, schedule="linear", warmup_steps=2)
    assert [both.learning_rate_at(step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1 / 2, 1 / 8]
    )


def test_epochs_replace_steps() -> None:
    assert config(epochs=1.0, batch_size=8).steps_for(17) == 3
    assert config(epochs=0.5, batch_size=4, accumulate=2).steps_for(100) == 7
    assert config(steps=9).steps_for(17) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"learning_rate": math.nan}, "--learning-rate must be above 0"),
        ({"clip": -1.0}, "--clip must be at least 0"),
        ({"schedule": "cosine"}, "--schedule must be one of constant, linear"),
        ({"precision": "fp8"}, "--precision must be one of"),
        ({"epochs": 0.0}, "--epochs must be above 0"),
        ({"log_every": 51}, r"--log-every must be in \[1, 50\]"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.slow  # a C++ compiler's
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own doing
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_layers_train_as_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile, run without its code generator: that needs a C++ compiler and a minute."""
    compiled, original = [], Layer.compile

    def traced(part: Layer, **options: Any) -> None:
        compiled.append(part)
        original(part, backend="eager", **options)

    monkeypatch.setattr(Layer, "compile", traced)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    found = []
    for compile in (False, True):
        model = no_dropout()
        train(model, tiny.dataset(), config(compile=compile))
        found.append(weights(model))
    assert len(compiled) == 3
    assert_same(*found, exactly=False)


def test_a_log_file_is_not_filled_with_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal a bar is drawn at its begin, its end, and every 30 seconds."""
    train(tiny.model(), tiny.dataset(), config(steps=20, log_every=1))
    assert 1 <= capsys.readouterr().err.count("training:") <= 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: RssAnon")
def test_memory_stays_flat_over_5000_steps_and_their_evaluations() -> None:
    from benchmarks.workers import memory_of_process  # planted bugs are tested without the benchmarks

    memory: list[float] = []

    def evaluate(encoder: SentenceEncoder) -> dict[str, float]:
        encoder.encode(tiny.SENTENCES * 20)
        memory.append(memory_of_process("RssAnon"))
        return {}

    sentences = [" ".join(tiny.WORDS[i : i + 1 + i % 17]) for i in range(40)]  # batches of ever other lengths
    settings = config(steps=5000, eval_every=500, precision="fp32")
    train(tiny.model(dtype=torch.float32), tiny.dataset(sentences), settings, evaluate=evaluate)
    assert len(memory) == 11
    assert memory[-1] < 1.02 * memory[1], memory  # the first is of before training
