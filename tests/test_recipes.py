"""Recipes and what a run says of itself: which defaults hold for which start, what is measured before and after."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.runs import rows
from tests.scripts import Run
from tsdae.ablation import runner as ablation
from tsdae.bert import BertConfig
from tsdae.commands import recipes, summary
from tsdae.commands.recipes import RECIPES, cut_in_the_dip, recipe_for, what_to_try
from tsdae.commands.summary import draw_curve
from tsdae.commands.train import run_training
from tsdae.config import DataConfig, MethodConfig, TrainConfig
from tsdae.evaluation.pairs import Pairs
from tsdae.evaluation.sts import evaluate_sts
from tsdae.objectives import MaskedLanguageModel, tsdae
from tsdae.run.resume import best_metric
from tsdae.training import train

FLAGS = "--corpus text.txt --model raw --heldout 3 --device cpu --precision fp32 --threads 1"


@pytest.fixture
def raw(place: Path) -> Path:
    """The model of the user's folder without what makes it a sentence model."""
    (place / "model").rename(place / "raw")
    (place / "raw" / "modules.json").unlink()
    return place


def settings_of(run: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((run / "config.json").read_text())
    return settings


@pytest.mark.parametrize(
    ("shape", "is_sentence_model", "name"),
    [
        ({"layers": 4, "width": 256, "feed_forward": 1024}, False, "small"),
        ({"layers": 6, "width": 384, "heads": 6, "feed_forward": 1536}, False, "small"),  # MiniLM's shape
        ({"layers": 6}, False, "paper"),  # DistilBERT's
        ({}, False, "paper"),  # BERT-base's
        ({}, True, "adapt"),
        ({"layers": 6, "width": 384, "heads": 6, "feed_forward": 1536}, True, "adapt"),
    ],
)
def test_which_recipe_a_start_gets(shape: dict[str, int], is_sentence_model: bool, name: str) -> None:
    assert (
        recipe_for(BertConfig(1000, **({"heads": 4} if shape.get("width") == 256 else {}), **shape), is_sentence_model)
        == name
    )


def test_a_raw_start_gets_its_recipe_and_flags_win(raw: Path, run: Run) -> None:
    """Everything that the line says is what the run does; what is resumed goes on with it."""
    result = run("train", f"{FLAGS} --epochs 2 --output run")
    assert result.code == 0, result.err
    small = RECIPES["small"]
    assert f"recipe small (raw is a small raw model): {small}" in result.err
    assert "overridden by flags: --epochs 2" in result.err
    assert "sentence model already" not in result.err
    decided = {"batch_size": 32, "learning_rate": 5e-4, "epochs": 2, "min_steps": 0, "steps": 1, "recipe": "small"}
    assert {name: settings_of(raw / "run")[name] for name in decided} == decided
    assert "epochs: 2, which is 1 step\n" in result.err
    assert "1 x 32 sentences may be too few" in result.err

    result = run("train", f"{FLAGS} --recipe paper --batch-size 2 --steps 3 --save-every 3 --output other")
    assert "recipe paper (chosen by --recipe): batches of 8, learning rate 3e-05" in result.err
    assert "overridden by flags: --batch-size 2 --steps 3" in result.err
    decided = {"batch_size": 2, "learning_rate": 3e-5, "epochs": None, "steps": 3, "recipe": "paper"}
    assert {name: settings_of(raw / "other")[name] for name in decided} == decided
    resumed = run("train", "--resume --output other --steps 4")
    assert resumed.code == 0, resumed.err
    assert "recipe" not in resumed.err
    assert {name: settings_of(raw / "other")[name] for name in decided} == decided | {"steps": 4}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 2 --epochs 1", "--steps and --epochs are both lengths of a run; give only one of them"),
        (
            "--recipe adapt",
            "--recipe adapt needs a sentence model, but raw is a raw model: its folder names no pooling; ",
        ),
    ],
)
def test_flags_that_contradict_are_refused(raw: Path, run: Run, flags: str, message: str) -> None:
    result = run("train", f"{FLAGS} {flags} --output run")
    assert (result.code, f"tsdae train: error: {message}" in result.err) == (2, True)
    assert not (raw / "run").exists()


def test_without_a_length_a_run_is_as_long_as_the_dip(raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"small": recipes.Recipe("a small raw model", 2, 1e-3, min_steps=7)}
    monkeypatch.setattr(recipes, "RECIPES", short)
    result = run("train", f"{FLAGS} --output run")
    assert result.code == 0, result.err
    assert settings_of(raw / "run")["steps"] == 7
    assert "may be too few" not in result.err
    assert "epochs: 1, which is 3 steps, fewer than the minimum of 7\n" in result.err
    result = run("train", f"{FLAGS} --batch-size 1 --output smaller")
    assert settings_of(raw / "smaller")["steps"] == 14, "as many sentences"
    assert "may be too few" not in result.err
    result = run("train", f"{FLAGS} --early-stop noisy_retrieval --output never")
    assert "--early-stop cannot end this run: evaluations before step 7 do not count" in result.err
    result = run("train", f"{FLAGS} --min-steps 5 --output least")
    assert (settings_of(raw / "least")["steps"], "overridden by flags: --min-steps 5" in result.err) == (5, True)
    (raw / "long.txt").write_text("\n".join(f"{a} {b}" for a in tiny.WORDS for b in tiny.WORDS[:1]))
    result = run("train", f"{FLAGS.replace('text.txt', 'long.txt')} --output long")
    rows_of_long = settings_of(raw / "long")["training_sentences"]
    assert settings_of(raw / "long")["steps"] == -(-rows_of_long // 2) > 7


def test_a_finished_sentence_model_is_held_on_to(place: Path, run: Run) -> None:
    flags = FLAGS.replace("--model raw", "--model model")
    result = run("train", f"{flags} --steps 2 --output run")
    assert result.code == 0, result.err
    assert "recipe adapt (model is a finished sentence model)" in result.err
    assert "similarity distillation from the initial model" in result.err
    assert settings_of(place / "run")["hold_on"] == 100
    result = run("train", f"{flags} --steps 2 --hold-on 0 --output plain")
    assert "overridden by flags: --hold-on 0 --steps 2" in result.err
    assert settings_of(place / "plain")["hold_on"] == 0
    result = run("train", f"{flags} --steps 2 --objective mlm --output mlm")
    assert (result.code, settings_of(place / "mlm")["hold_on"]) == (0, 0), result.err
    assert ", no --hold-on with the objective mlm\n" in result.err
    result = run("train", f"{flags} --steps 2 --recipe small --output small")
    assert "may be too few" not in result.err, "its vectors are not those of a raw model"
    result = run("train", f"{flags} --steps 2 --batch-size 1 --output one")
    expected = "--hold-on 100 compares the sentences of a batch: --batch-size must be at least 2"
    assert (result.code, expected in result.err) == (2, True), result.err


def test_an_unknown_recipe_and_one_as_an_axis_are_refused(raw: Path, run: Run) -> None:
    result = run("train", f"{FLAGS} --recipe smal --output run")
    assert (result.code, "--recipe" in result.err and "'small'" in result.err) == (2, True), result.err
    result = run("ablate", f"{FLAGS} --evaluate pairs.tsv --grid recipe=small --output made")
    assert (result.code, "'recipe' cannot be an axis; an axis is a flag of" in result.err) == (2, True), result.err


def test_an_ablation_compares_with_what_train_makes_of_the_same_flags(
    raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run, with its own settings: an axis is chosen by the user, as a flag is."""
    monkeypatch.setattr(recipes, "RECIPES", {"small": recipes.Recipe("a small raw model", 2, 1e-3, min_steps=4)})
    monkeypatch.setattr(ablation, "estimate", lambda *_: (0.0, {}))
    flags = f"{FLAGS} --evaluate pairs.tsv --seeds 1 --no-intervals --eval-every 0 --output made"
    result = run("ablate", f"{flags} --grid steps=1 batch_size=2,4")
    assert result.code == 0, result.err
    assert "recipe small (raw is a small raw model): batches of 2, learning rate 0.001" in result.err
    assert "may be too few" not in result.err
    result = run("ablate", f"{flags.replace('made', 'cut')} --steps 1 --grid batch_size=2 --dry-run")
    assert "1 x 2 sentences may be too few" in result.err, result.err
    made = {
        row["arm"]: (row["steps"], row["config"]["batch_size"], row["config"]["learning_rate"])
        for row in map(json.loads, (raw / "made" / "results.jsonl").read_text().splitlines())
    }
    assert made == {
        "untrained": (0, 2, 1e-3),
        "base": (4, 2, 1e-3),
        "steps=1": (1, 2, 1e-3),
        "batch_size=4": (4, 4, 1e-3),
    }


def test_who_is_told_that_a_run_may_end_in_the_dip() -> None:
    small, of_small = RECIPES["small"], MethodConfig(recipe="small")
    needed = small.min_steps * small.batch_size
    assert cut_in_the_dip("raw", of_small, small.min_steps, 32) is None
    line = cut_in_the_dip("raw", of_small, 1000, 8)
    assert line is not None
    assert f"at least {needed // 8:,} steps" in line
    line = cut_in_the_dip("raw", of_small, small.min_steps // 2 - 1, 4 * small.batch_size)
    assert line is not None
    assert f"at least {small.min_steps // 2:,} steps" in line, "four times the batch, half the steps"
    assert cut_in_the_dip("mini", of_small, 1500, 32) is None, "its dip is short: the default run is long enough"
    assert cut_in_the_dip("raw", of_small, 1500, 32) is not None
    assert cut_in_the_dip("model", MethodConfig(recipe="adapt"), 1, 8) is None, "longer does not lift a finished model"


def test_measures_are_taken_before_the_first_step(tmp_path: Path) -> None:
    """And best/ may be the start itself, when training only harms."""
    heldout = tiny.dataset([f"{a} {b} {c}" for a in tiny.WORDS[:4] for b in tiny.WORDS[4:8] for c in tiny.WORDS[8:10]])
    model = tiny.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainConfig(
        steps=4, eval_every=2, learning_rate=0.5, clip=0.0, precision="fp64", device="cpu", output=str(tmp_path / "run")
    )
    train(model, tiny.dataset(), config, heldout=heldout)
    log = summary.measured(tmp_path / "run")
    assert [row["step"] for row in log] == [0, 2, 4]
    assert log[0]["noisy_retrieval"] > max(row["noisy_retrieval"] for row in log[1:]), "the premise: it harms"
    assert settings_of(tmp_path / "run")["best"] == "noisy_retrieval"
    measures = json.loads((tmp_path / "run" / "best" / "measures.json").read_text())
    assert measures["step"] == 0
    best = type(model).from_pretrained(tmp_path / "run" / "best").double().state_dict()
    for name, value in before.items():
        np.testing.assert_allclose(best[name].numpy(), value.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    line = summary.harm(log, tmp_path / "run", "Try another.")
    assert line is not None
    assert line.startswith("WARNING: noisy_retrieval fell from")
    assert line.endswith(f" The model of the best evaluation is {tmp_path / 'run' / 'best'}.")
    assert summary.harm(log[:1], tmp_path, "") is None
    assert summary.harm([log[1], log[0]], tmp_path, "") is None, "what rises is no harm"
    for rank, warns in ((95.0, False), (60.0, False), (49.0, True)):
        line = summary.harm([{"effective_rank": 100.0}, {"effective_rank": rank}], tmp_path, "")
        assert line is not None
        assert line.startswith("WARNING") == warns
        assert f"effective_rank fell from 100 to {rank:g}" in line
    for cosine, advice in (
        (0.98, "Try another."),
        (1.0, "Try a lower learning rate, larger batches or another objective."),
    ):
        log = [{"noisy_retrieval": 9.0}, {"noisy_retrieval": 2.0, "mean_cosine": cosine}]
        line = summary.harm(log, tmp_path, "Try another.")
        assert line is not None
        assert line.endswith(advice)


def test_what_to_try_is_what_the_run_has_not_tried() -> None:
    longer = "Train longer: the vectors of a raw model get worse before they get better."
    for settings, is_sentence_model, advice in (
        ({}, False, f"{longer} Or try --pooling mean."),
        ({"pooling": "mean"}, False, longer),
        ({"objective": "simcse"}, False, "Train longer, or try a lower learning rate."),
        ({}, True, "Try --hold-on 100 or fewer steps."),
        ({"hold_on": 100.0}, True, "Try a lower learning rate or fewer steps."),
        ({"objective": "simcse"}, True, "Try a lower learning rate or fewer steps."),
    ):
        assert what_to_try(MethodConfig(**settings), is_sentence_model) == advice


@pytest.mark.parametrize("sentences", [1, 10])
def test_a_tiny_text_ends_as_any_other(sentences: int, raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sentence held out, and one, of which neither retrieval nor rank can be had."""
    monkeypatch.setattr(summary, "draw_curve", draw_curve)
    (raw / "text.txt").write_text("".join(f"{word} dog\n" for word in tiny.WORDS[:sentences]))
    result = run("train", f"{FLAGS.replace(' --heldout 3', '')} --steps 2 --output run")
    assert result.code == 0, result.err
    assert "The trained encoder is run/encoder" in result.out
    assert "curve" not in result.out
    nothing = "no sentences are held out: best/ is not written" in result.err
    assert nothing == (sentences == 1)
    assert "fewer than 8 sentences are held out: whether the run harms is not judged" in result.err
    assert f"{'1 sentence' if sentences == 1 else '9 sentences'} to train on" in result.err


def test_harm_is_judged_on_eight_sentences_or_more(raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "harm", lambda *_: "it harms")
    (raw / "held.txt").write_text("".join(f"{word} walks\n" for word in tiny.WORDS[:8]))
    for held_out, flags, judged in (("3", "", False), ("held.txt", "", True), ("held.txt", "--objective mlm", False)):
        command = f"{FLAGS.replace('--heldout 3', f'--heldout {held_out}')} --steps 1 {flags} --overwrite --output run"
        result = run("train", command)
        assert (result.code, "it harms" in result.out) == (0, judged), result.err


def test_a_reader_who_has_read_enough_is_no_error(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(rows: Any) -> str:
        raise BrokenPipeError

    monkeypatch.setattr(summary, "before_and_after", closed)
    config = TrainConfig(steps=1, output="run", device="cpu", precision="fp32")
    with pytest.raises(BrokenPipeError):
        run_training(DataConfig(corpus="text.txt"), MethodConfig(model="raw"), config)


def test_ctrl_c_after_the_last_step_says_how_to_resume(raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(summary, "gains", interrupt)
        result = run("train", f"{FLAGS} --steps 2 --evaluate pairs.tsv --output run")
    assert result.code == 130
    assert result.err.splitlines()[-1] == "interrupted; resume with: tsdae train --resume --output run"
    assert run("train", "--resume --output run").code == 0
    assert (raw / "run" / "evaluation.json").is_file()


def test_the_measure_that_chooses_the_best_fits_the_objective(tmp_path: Path) -> None:
    assert best_metric(TrainConfig(), tsdae, tiny.dataset()) == "noisy_retrieval"
    assert best_metric(TrainConfig(), MaskedLanguageModel(), tiny.dataset()) == "heldout_loss"
    assert best_metric(TrainConfig(), tsdae, tiny.dataset(["dog"])) == "heldout_loss", "nothing to be told from"
    assert best_metric(TrainConfig(best="mean_cosine"), tsdae, None) == "mean_cosine"
    (tmp_path / "config.json").write_text('{"learning_rate": 1, "best": "heldout_loss"}')  # of an older version
    assert best_metric(TrainConfig(resume=True, output=str(tmp_path)), tsdae, tiny.dataset()) == "heldout_loss"


def test_a_run_is_not_stopped_early_in_its_dip(tmp_path: Path) -> None:
    values = iter(range(100, 0, -1))  # never better than at the start
    config = TrainConfig(
        epochs=1, min_steps=6, eval_every=1, early_stop="score", patience=2, batch_size=8, save_every=0,
        precision="fp64", device="cpu", output=str(tmp_path / "run"),
    )  # fmt: skip
    assert config.steps_for(80) == 10
    assert config.steps_for(8) == 6
    data = tiny.dataset(tiny.SENTENCES * 10)
    train(tiny.model(), data, config, evaluate=lambda _: {"score": next(values)})
    assert [row["step"] for row in rows(tmp_path / "run")][-1] == 7, "two evaluations from step 6 on"


def test_the_end_of_a_run_compares_it_with_its_start(raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without labels: a table. With labels: scores over the steps, and the paired difference from both poolings."""
    monkeypatch.setattr(summary, "draw_curve", draw_curve)
    result = run("train", f"{FLAGS} --steps 4 --eval-every 2 --evaluate pairs.tsv --learning-rate 1e-2 --output run")
    assert result.code == 0, result.err
    log = summary.measured(raw / "run")
    table = summary.before_and_after(log)
    assert table in result.out
    assert f"{log[0]['effective_rank']:>12.4g}{log[-1]['effective_rank']:>12.4g}" in table
    assert "mean_cosine (lower is better)" in table
    assert "pairs over the steps: " + f"{log[0]['pairs']:.1f} at 0" in result.out
    entries = json.loads((raw / "run" / "evaluation.json").read_text())
    assert [entry["pooling"] for entry in entries] == ["mean", "cls", "cls"]
    first, last = (entry["pairs"]["spearman"] for entry in entries[1:])
    assert f"{last - first:+.1f} [" in result.out
    assert "against the untrained [CLS] vector" in result.out
    assert (raw / "run" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_gain_is_paired() -> None:
    """One interval over differences on the same resamples, not two intervals beside each other."""
    pairs = Pairs(tiny.SENTENCES[:-1], tiny.SENTENCES[1:], np.arange(7.0))
    first, second = (evaluate_sts(tiny.encoder(seed=seed), pairs) for seed in (0, 1))
    low, high = np.nanpercentile(second.values_S["spearman"] - first.values_S["spearman"], (2.5, 97.5))
    found = summary.gains({"dev": first, "test": second}, {"mean": {"dev": second, "test": first}})
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    expected = (
        f"{verdict}, {second.spearman - first.spearman:+.1f} [{low:+.2f}, {high:+.2f}] against the untrained mean"
    )
    assert summary.gain_line("TSDAE", found).startswith(f"TSDAE, Spearman on test: {expected}")
    assert found["mean"]["verdict"] == verdict
    constant = dataclasses.replace(first, values={"spearman": math.nan, "pearson": math.nan}, values_S={})
    undefined = summary.gains({"test": constant}, {"mean": {"test": first}})
    assert "not defined against the untrained mean" in summary.gain_line("TSDAE", undefined)
    json.dumps(undefined, allow_nan=False)


def test_the_dip_is_named() -> None:
    log = [{"step": step, "stsb_dev": value} for step, value in ((0, 56.18), (500, 49.0), (1000, 57.8))]
    assert summary.over_the_steps(log) == "stsb_dev over the steps: 56.2 at 0, 49.0 at 500 (the dip), 57.8 at 1,000"
    assert "dip" not in str(summary.over_the_steps(log[1:])), "nothing fell"
    assert summary.over_the_steps([{"step": 0, "noisy_retrieval": 3.0}]) is None
