"""Ideas of one's own: noises that know the step or the corpus, parameters that are frozen, and what is wrong in one
line before anything is written.
"""

from __future__ import annotations

import contextlib
import functools
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from tqdm import tqdm

from tests import tiny
from tests.runs import assert_same_run
from tests.scripts import Run
from tests.test_pages import README, blocks
from tsdae import TSDAE, Batch, DenoisingDataset, LossSum, TrainConfig, train
from tsdae.commands.neighbours import digits_of
from tsdae.commands.summary import before_and_after
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig
from tsdae.freezing import freeze
from tsdae.noise import NOISES, delete
from tsdae.objectives import SimCSE, tsdae
from tsdae.objectives.interface import build, try_out
from tsdae.utils.progress import bars_about, paused, progress_bar

FLAGS = "--corpus text.txt --model model --steps 3 --batch-size 2 --heldout 2 --device cpu --threads 1 --output run"


settings = functools.partial(tiny.settings, save_every=0, log_every=1)


# ---------------------------------------------------------------------------------------------------------------
# Noises


def growing(tokens: Any, word_T: Any, draw: Any, ratio: float, vocabulary: Any) -> Any:
    """From nothing to ``ratio`` within four steps."""
    ratio_B = ratio * np.minimum(1, draw.step_B / 4)
    return delete(tokens, word_T, draw, ratio_B[draw.sentence_W], vocabulary)


@pytest.mark.parametrize("position", [0, 12])
def test_a_noise_is_told_the_step(position: int) -> None:
    """Steps of two batches of three; each is what deletion with that step's ratio makes, from any position on."""
    data = tiny.dataset(noise=growing, noise_ratio=0.8, seed=5)
    stream = data.batches(position, 3, step_size=6)
    for place, batch in zip(range(position, position + 30, 3), stream, strict=False):
        fixed = tiny.dataset(noise_ratio=0.8 * min(1, place // 6 / 4), seed=5)
        assert torch.equal(batch.noisy.token_ids_T, fixed.batch(*data.order(place, 3)).noisy.token_ids_T)
        assert torch.equal(batch.noisy.token_ids_T, batch.target.token_ids_T) == (place < 6)


@pytest.mark.parametrize("name", NOISES)
def test_a_ratio_may_be_one_for_each_word(name: str) -> None:
    def each(tokens: Any, word_T: Any, draw: Any, ratio: float, vocabulary: Any) -> Any:
        return NOISES[name](tokens, word_T, draw, np.full(len(draw.sentence_W), ratio), vocabulary)

    assert tiny.dataset(noise=each).text(2) == tiny.dataset(noise=name).text(2)


def test_a_noise_of_the_step_is_resumed_and_outside_training_the_step_is_zero(tmp_path: Path) -> None:
    data = tiny.dataset(noise=growing)
    for folder, steps in (("whole", [6]), ("run", [3, 6])):
        for length in steps:
            config = settings(
                steps=length, save_every=3, accumulate=2, output=str(tmp_path / folder), resume=length != steps[0]
            )
            train(tiny.model(dtype=torch.float32), data, config)
    assert_same_run(tmp_path / "whole", tmp_path / "run", best=False)
    assert data.text(2) == tiny.dataset(noise_ratio=0.0).text(2)


class Rare:
    """Deletes no word whose first token is among the most frequent half of the corpus."""

    def __init__(self, dataset: DenoisingDataset) -> None:
        count_V = np.bincount(dataset.corpus.token_ids, minlength=dataset.vocabulary.size)
        self.often_V = count_V > np.median(count_V[count_V > 0])

    def __call__(self, tokens: Any, word_T: Any, draw: Any, ratio: float, vocabulary: Any) -> Any:
        often_W = self.often_V[tokens.token_ids_T[draw.first_W]]
        return delete(tokens, word_T, draw, np.where(often_W, 0.0, ratio), vocabulary)


class Made:
    """An object that makes its noise."""

    def build(self, dataset: DenoisingDataset) -> Rare:
        return Rare(dataset)


@pytest.mark.parametrize("noise", [Rare, Made()])
def test_a_noise_is_made_from_the_corpus(noise: Any) -> None:
    data = tiny.dataset(noise=noise, noise_ratio=0.99)
    assert isinstance(data.noise, Rare)
    noisy, clean = data.text(5)
    assert "the" in noisy.split()
    assert len(noisy.split()) < len(clean.split())


def test_the_held_out_sentences_get_the_noise_of_the_text(place: Path, run: Run) -> None:
    code = "from tests.test_own_code_in_training import Rare\n\n\nclass Mine(Rare):\n    def __init__(self, dataset):\n"
    (place / "mine.py").write_text(
        f"{code}        print(f'of {{len(dataset)}} sentences')\n        super().__init__(dataset)\n"
    )
    result = run("train", f"{FLAGS} --noise mine.py:Mine")
    assert result.code == 0, result.err
    assert result.out.count("of 6 sentences") == 1
    assert "of 2 sentences" not in result.out


# ---------------------------------------------------------------------------------------------------------------
# What is wrong, in one line

WRONG = """
class Scores:
    def __init__(self, encoder): self.encoder = encoder
class NoArguments:
    pass
def two(tokens, ratio): return tokens
def late(tokens, word_T, draw, ratio, vocabulary):
    if len(tokens) > 2: raise ValueError("too many sentences at once")
    return tokens
"""


CANNOT_WORK = [
    ("--evaluate mine.py:Scores", "evaluate 'mine.py:Scores' is a class; name a function (encoder)"),
    ("--words mine.py:Scores", "words 'mine.py:Scores' is a class; name a function (text)"),
    ("--noise mine.py:NoArguments", "noise 'mine.py:NoArguments' is a class, which must take (dataset)"),
    ("--objective mine.py:NoArguments", "objective 'mine.py:NoArguments' is a class, which must take (model)"),
    ("--noise mine.py:two", "noise 'mine.py:two' must take (tokens, word_T, draw, ratio, vocabulary)"),
    ("--noise mine.py:late", "too many sentences at once"),
    ("--noise mine.py:Scores", "which cannot be called with (tokens, word_T"),
    ("--freeze *.nothing", "--freeze '*.nothing' matches no parameter; a name is, for example, encoder.bert."),
    ("--freeze *", "--freeze '*' matches all"),
]


def test_code_that_cannot_work_gets_one_line_and_leaves_no_run(place: Path, run: Run) -> None:
    (place / "mine.py").write_text(WRONG)
    for flags, message in CANNOT_WORK:
        result = run("train", f"{FLAGS} {flags}")
        assert (result.code, message in result.err) == (2, True), result.err
        if flags.startswith(("--freeze", "--objective")):
            assert "sentences to train on" not in result.err, "it is said before a large text is read"
        assert not [path for path in (place / "run").glob("*") if path.name != ".lock"]
    assert run("train", FLAGS).code == 0, "the folder is free"


def copied(model: TSDAE, batch: Batch) -> LossSum:
    """Sound in fp32; under autocast the product is bf16 and the table is not."""
    sentence_BD = model.encode(batch.noisy)
    table_BB = torch.zeros(len(sentence_BD), len(sentence_BD))
    table_BB = table_BB.index_put((torch.arange(len(sentence_BD)),), sentence_BD @ sentence_BD.T)
    return LossSum(table_BB.sum(), len(table_BB))


def test_an_objective_is_tried_in_the_precision_of_training(place: Path) -> None:
    model = tiny.model(dtype=torch.float32)
    assert try_out(copied, model, tiny.batch()).counts == {"reconstruction": 8}
    with pytest.raises(RuntimeError, match="dtypes match"):
        try_out(copied, model, tiny.batch(), "bf16")
    data = DataConfig(corpus="text.txt", heldout="2", evaluate="none")
    method = MethodConfig(model="model", objective="tests.test_own_code_in_training:copied")
    for precision, fails in (("bf16", True), ("fp32", False)):
        config = TrainConfig(steps=1, batch_size=2, precision=precision, device="cpu", output="run", threads=1)
        with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
            run_training(data, method, config)
        assert (place / "run").exists() != fails


def test_a_run_that_ended_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    def wrong(model: TSDAE, batch: Batch) -> LossSum:
        if model.training:
            raise ValueError("only in training")
        return tsdae(model, batch)

    config = settings(output=str(tmp_path / "run"), eval_every=1)
    with pytest.raises(ValueError, match="only in training"):
        train(tiny.model(dtype=torch.float32), tiny.dataset(), config, wrong, heldout=tiny.dataset())
    assert list((tmp_path / "run").iterdir()) == []

    def later(model: TSDAE, batch: Batch) -> LossSum:
        loss = tsdae(model, batch)
        seen.append(1)
        if len(seen) > 2:
            raise ValueError("in the third step")
        return loss

    seen: list[int] = []
    with pytest.raises(ValueError, match="in the third step"):
        train(tiny.model(dtype=torch.float32), tiny.dataset(), settings(output=str(tmp_path / "run")), later)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_rows_and_targets_of_token_loss_belong_together() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match=r"token_loss has 12 rows of hidden_TD for 10 targets"):
        model.token_loss(torch.zeros(12, 24, dtype=torch.float64), torch.zeros(10, dtype=torch.int64))


# ---------------------------------------------------------------------------------------------------------------
# Freezing


def test_frozen_parameters_stay_and_have_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are what training makes of them with the frozen ones' gradient thrown away; resumed exactly."""
    patterns = "encoder.bert.embeddings.*, *.layers.0.*"
    folders = []
    for name, lengths in (("whole", [4]), ("run", [2, 4])):
        for steps in lengths:
            model = tiny.model(dtype=torch.float32, dropout=0.1)
            before = {name: weight.clone() for name, weight in model.named_parameters()}
            config = settings(steps=steps, save_every=2, freeze=patterns, output=str(tmp_path / name))
            train(model, tiny.dataset(), TrainConfig(**(vars(config) | {"resume": steps != lengths[0]})))
        folders.append(tmp_path / name)
    assert_same_run(*folders, best=False)
    frozen = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    expected = {name for name in before if ".embeddings." in name or ".layers.0." in name}
    assert expected <= frozen
    assert frozen - expected == set()
    assert all(weight.grad is None for name, weight in model.named_parameters() if name in frozen)
    state = torch.load(next(folders[0].glob("checkpoints/*4/state.pt")), weights_only=True)
    assert len(state["optimizer"]["state"]) == len(before) - len(expected)
    count = sum(before[name].numel() for name in before)
    left = count - sum(before[name].numel() for name in expected)
    assert f"--freeze: {left:,} of {count:,} parameters are trained" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_other_parameters_frozen(tmp_path: Path) -> None:
    config = settings(steps=2, save_every=2, output=str(tmp_path / "run"), freeze="*.bias")
    train(tiny.model(dtype=torch.float32), tiny.dataset(), config)
    other = settings(steps=4, output=str(tmp_path / "run"), resume=True)
    with pytest.raises(ValueError, match=r"--freeze is None, and the run was started with \*\.bias"):
        train(tiny.model(dtype=torch.float32), tiny.dataset(), other)


def test_only_biases_are_trained_and_an_objective_has_names_too() -> None:
    model = tiny.model(dtype=torch.float32)
    train(model, tiny.dataset(), settings(steps=2, freeze="*weight*"))
    objective = build(SimCSE, model)
    freeze(model, objective, "objective.head.*")
    assert not any(weight.requires_grad for weight in objective.parameters())


# ---------------------------------------------------------------------------------------------------------------
# What is shown


def test_the_contrastive_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bf16 autocast its cosines are as exact as the vectors, and its two views differ."""
    names: dict[str, Any] = {}
    exec(blocks(README)[1], names)
    alike, model = names["alike"], tiny.model(dtype=torch.float32)
    with torch.no_grad():
        for weight in model.encoder.bert.parameters():
            weight.mul_(0.3)  # cosines near 1, as those of a raw model
    batch = tiny.dataset(noise=names["mask_tokens"], noise_ratio=0.3).batch(np.zeros(8, int), np.arange(8), alike.views)
    assert not torch.equal(batch.views[0].token_ids_T, batch.views[1].token_ids_T)
    kept: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda module, read, vector_BD: kept.append(vector_BD))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        term = alike(model, batch).terms["alike"]
    distance_B = 1 - F.cosine_similarity(kept[0].double(), kept[1].double())
    assert float(term.total) == pytest.approx(float(distance_B.sum()), rel=1e-3)
    assert term.count == 8
    coarse_B = 1 - F.cosine_similarity(kept[0].bfloat16(), kept[1].bfloat16())
    assert float(coarse_B.float().sum()) != pytest.approx(float(distance_B.sum()), rel=1e-3), "the premise"


@pytest.mark.parametrize(
    ("cosines", "digits"),
    [([[0.9, 0.7], [0.8, 0.6]], 3), ([[0.99992, 0.99990], [0.99996, 0.99994]], 5), ([[0.9998]], 4), ([[1.0, 1.0]], 6)],
)
def test_as_many_digits_of_a_cosine_as_tell_neighbours_apart(cosines: list[list[float]], digits: int) -> None:
    assert digits_of(np.array(cosines)) == digits


def test_a_decoder_that_does_not_read_its_vector_says_so(place: Path, run: Run) -> None:
    assert run("train", f"{FLAGS} --eval-every 0").code == 0
    model = TSDAE.from_pretrained(place / "run")
    with torch.no_grad():
        for cross in model.crosses:
            for weight in cross.parameters():
                weight.zero_()
    model.save_decoder(place / "run" / "decoder.safetensors")
    result = run("reconstruct", "run --device cpu dog cat")
    assert "the decoder writes the same for every vector" in result.err, result.err


def test_evaluations_are_no_part_of_the_bars_rate_and_bars_have_names() -> None:
    bar = tqdm(total=10, desc="training", file=io.StringIO())
    time.sleep(0.01)
    started = bar.start_t
    with paused(bar, "evaluating"):
        assert bar.desc.startswith("evaluating")
        time.sleep(0.2)
    assert bar.desc.startswith("training")
    assert bar.start_t - started >= 0.2
    with paused(tqdm(total=1, disable=True), "evaluating"), paused(None, "evaluating"):
        pass
    with bars_about("STS-B dev"):
        named = progress_bar(1, "encoding", "x")
    assert named.desc.startswith("encoding STS-B dev")
    assert progress_bar(1, "encoding", "x").desc == "encoding"


def test_one_number_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = []
    train(
        tiny.model(dtype=torch.float32),
        tiny.dataset(),
        settings(eval_every=3),
        heldout=tiny.dataset(),
        on_row=rows.append,
    )
    err = capsys.readouterr().err
    assert "heldout_loss" in err
    assert "reconstruction_loss" not in err
    evaluated = [row for row in rows if "heldout_loss" in row]
    assert all(row["heldout_loss"] == row["reconstruction_loss"] for row in evaluated), "the log has both"
    assert "reconstruction_loss" not in before_and_after(evaluated)
    apart = [row | {"heldout_loss": 9.0} for row in evaluated]
    assert "reconstruction_loss" in before_and_after(apart)


def test_the_pages_of_help_say_what_is_returned() -> None:
    assert ".mean" in str(TSDAE.forward.__doc__)
