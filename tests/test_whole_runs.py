"""Whole runs from their settings, on tiny models: what is held out, what is printed, what is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.tiny import assert_equal
from tsdae.commands import train as recipe
from tsdae.commands.prepare import prepare
from tsdae.commands.train import run_training, sample_sentences
from tsdae.config import DataConfig, MethodConfig, PrepareConfig, TextConfig, TrainConfig
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import Pairs
from tsdae.evaluation.sts import evaluate_sts
from tsdae.run.folder import next_run_folder
from tsdae.text.building import hashes_of
from tsdae.text.corpus import Corpus
from tsdae.text.preparation import build_corpora, split_heldout
from tsdae.text.reading import Texts


def pairs(first: list[str], second: list[str]) -> Pairs:
    return Pairs(first, second, np.linspace(0.0, 5.0, len(first)))


@pytest.fixture
def stsb() -> dict[str, Pairs]:
    sentences = [
        f"the {a} {b} is {c} . " for a in ("big", "small", "red") for b in ("dog", "cat") for c in ("green", "red")
    ]
    return {
        "train": pairs(sentences, sentences[::-1]),
        "dev": pairs(tiny.SENTENCES[:5], tiny.SENTENCES[3:]),
        "test": pairs([*tiny.SENTENCES[:3], sentences[0]], tiny.SENTENCES[4:]),
    }


@pytest.fixture
def model_folder(tmp_path: Path) -> str:
    """A tiny model that says of itself that it is mean-pooled, as MiniLM does."""
    tiny.encoder("mean").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_sample_corpus_shares_no_sentence_with_dev_or_test(stsb: dict[str, Pairs]) -> None:
    sentences = sample_sentences(stsb)
    assert len(sentences) == len(set(sentences)) == 11, "twelve distinct ones, of which one is in test"
    assert not set(sentences) & set(stsb["test"].first + stsb["dev"].second)


def test_a_part_of_the_sample_is_drawn_from_all_of_it(stsb: dict[str, Pairs]) -> None:
    whole, drawn = sample_sentences(stsb), sample_sentences(stsb, 5)
    assert len(drawn) == 5
    assert drawn == [sentence for sentence in whole if sentence in drawn], "in their order"
    assert drawn != whole[:5]
    assert sample_sentences(stsb, 5) == drawn


def test_run_folders_are_numbered_behind_the_last(tmp_path: Path) -> None:
    for name in ("002", "005", "mine"):
        (tmp_path / name).mkdir()
    assert next_run_folder(tmp_path) == tmp_path / "006"


def parts(sentences: list[str], wanted: int | None) -> tuple[list[str], list[str]]:
    training, heldout = split_heldout(hashes_of(sentences), wanted)
    return [sentences[row] for row in training], [sentences[row] for row in heldout]


def test_held_out_sentences_are_never_trained_on() -> None:
    sentences = [f"sentence {i % 300}" for i in range(600)]  # every sentence twice
    training, heldout = parts(sentences, None)
    assert len(heldout) == len(set(heldout)) == 30, "10 % of the distinct sentences"
    assert training == [sentence for sentence in sentences if sentence not in heldout]
    assert parts(list(reversed(sentences)), None)[1] == heldout, "chosen by content, not by place"
    assert len(parts([f"{i}" for i in range(50_000)], None)[1]) == 1000
    assert len(parts(sentences, 7)[1]) == 7
    assert parts(sentences, 0) == (sentences, [])
    with pytest.raises(ValueError, match="leaves none"):
        parts(sentences, 300)


def test_which_sentences_are_held_out_does_not_change() -> None:
    """Scores of earlier runs were taken on others otherwise: those of the smallest BLAKE2b, in its order."""
    sentences = [f"sentence {i}" for i in range(100)]
    by_hash = sorted(sentences, key=lambda text: hashlib.blake2b(text.encode()).digest())
    assert parts(sentences, None)[1] == by_hash[:10]


def test_held_out_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "apart.txt").write_text("a dog\nthe guitar\n")
    text = TextConfig(heldout=str(tmp_path / "apart.txt"))
    training, heldout = build_corpora(Texts(["a man", "a dog", "an apple"]), "", text, tiny.tokenizer())
    assert_equal(training, Corpus.build(["a man", "an apple"], tiny.tokenizer()))
    assert heldout is not None
    assert_equal(heldout, Corpus.build(["a dog", "the guitar"], tiny.tokenizer()))
    with pytest.raises(ValueError, match="all sentences of the corpus are held out"):
        build_corpora(Texts(["a dog"]), "", text, tiny.tokenizer())


def test_the_sample_run_prints_three_rows_and_says_what_it_shows(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    stsb: dict[str, Pairs],
    model_folder: str,
) -> None:
    monkeypatch.setattr(recipe, "load_stsb", lambda: stsb)
    monkeypatch.setattr(recipe, "model_folder", lambda name: Path(model_folder))
    monkeypatch.chdir(tmp_path)
    run = run_training(DataConfig(), MethodConfig(), TrainConfig(steps=3, precision="fp32", device="cpu", batch_size=2))
    assert run == Path("runs/001")
    out, err = capsys.readouterr()
    assert "mean, untrained" in out
    assert "cls, untrained" in out
    assert "cls, after TSDAE" in out
    assert "For orientation, published scores on STS-B test (not measured here)" in out
    assert "runs/001/encoder" in out.replace("\\", "/")
    assert "3 steps x 2 = 6 sentences (epochs: 0.6); --epochs 1 reads each sentence once" in err
    assert "precision fp32" in err
    settings = json.loads((run / "config.json").read_text())
    training, heldout = parts(sample_sentences(stsb), None)  # as they stand, white space and all
    assert settings["corpus_fingerprint"] == Corpus.build(training, tiny.tokenizer()).fingerprint()
    assert len(heldout) == 1
    assert "mini is already a sentence model, and further training can make it worse" in err

    rows = json.loads((run / "evaluation.json").read_text())
    assert [row["pooling"] for row in rows] == ["mean", "cls", "cls"]
    assert rows[1]["dev"] != rows[2]["dev"], "training changed the scores"
    loaded = SentenceEncoder.from_pretrained(run / "encoder")
    assert loaded.pooling == "cls"
    expected = evaluate_sts(loaded, stsb["dev"]).row()
    assert rows[2]["dev"]["spearman"] == pytest.approx(expected["spearman"], abs=1e-3)
    settings = json.loads((run / "config.json").read_text())
    assert settings["noise_ratio"] == 0.6
    assert settings["model"] == "mini"
    measures = json.loads((run / "best" / "measures.json").read_text())
    assert {"heldout_loss", "stsb_dev"} < measures.keys()


def test_training_on_own_text_goes_on_without_stsb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model_folder: str
) -> None:
    def unreachable() -> dict[str, Pairs]:
        raise ValueError("STS-B could not be loaded: no network")

    monkeypatch.setattr(recipe, "load_stsb", unreachable)
    (tmp_path / "text.txt").write_text("\n".join(tiny.SENTENCES * 3) + "\n\n")
    data = DataConfig(corpus=str(tmp_path / "text.txt"), evaluate="stsb", heldout="2")
    settings = TrainConfig(steps=2, precision="fp32", device="cpu", batch_size=2, output=str(tmp_path / "run"))
    run_training(data, MethodConfig(model=model_folder), settings)
    out, err = capsys.readouterr()
    assert "no network; continuing without it" in err
    assert "left out: 1 blank" in err
    assert "Spearman" not in out
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()
    assert "heldout_loss" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("heldout", [None, "0", "7", "apart.txt"])
def test_a_prepared_text_gives_the_batches_of_the_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: str, heldout: str | None
) -> None:
    """What `train` is called with, from the folder and from the text: every batch of two epochs, noise included."""
    monkeypatch.chdir(tmp_path)
    lines = [*tiny.SENTENCES, "", "\u200d", *(f"{word} and {word}" for word in tiny.WORDS), *tiny.SENTENCES[:3]]
    Path("text.txt").write_text("\n".join(lines), encoding="utf-8")
    Path("apart.txt").write_text("dog\na fast cat\nred and red\n")
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(recipe, "train", lambda *arguments, **_: calls.append(arguments))
    prepare("text.txt", PrepareConfig(model=model_folder, output="prepared", limit=50, heldout=heldout))
    method, config = MethodConfig(model=model_folder), TrainConfig(output="run", seed=3)
    run_training(DataConfig(corpus="text.txt", limit=50, heldout=heldout), method, config)
    run_training(DataConfig(corpus="prepared"), method, config)
    (_, by_text, _, _, _, heldout_by_text, _), (_, by_folder, _, _, _, heldout_by_folder, _) = calls
    assert (heldout_by_text is None) == (heldout_by_folder is None) == (heldout == "0")
    expected = {None: 5, "0": 0, "7": 7, "apart.txt": 3}[heldout]
    assert len(heldout_by_folder or []) == expected
    for first, second in ((by_text, by_folder), (heldout_by_text, heldout_by_folder)):
        if first is None:
            continue
        assert len(first) == len(second)
        for position in range(0, 2 * len(first), 8):
            batches = [data.batch(*data.order(position, 8))[:2] for data in (first, second)]
            for ours, theirs in zip(*batches, strict=True):
                assert list(ours.sentences()) == list(theirs.sentences())


def test_a_flag_changes_the_run(tmp_path: Path, model_folder: str) -> None:
    """Every setting of the method arrives: the runs all differ from each other."""
    (tmp_path / "text.txt").write_text("\n".join(tiny.SENTENCES * 3))
    vectors = []
    changes: list[dict[str, Any]] = [
        {},
        {"noise": "mask"},
        {"noise_ratio": 0.1},
        {"pooling": "max"},
        {"tie": False},
        {"decoder_layers": 1},
        {"dropout": 0.0},
        {"attention_dropout": 0.0},
    ]
    for number, change in enumerate(changes):
        settings = TrainConfig(
            steps=2, precision="fp32", device="cpu", batch_size=4, output=str(tmp_path / str(number)), eval_every=0,
            learning_rate=1e-3,
        )  # fmt: skip
        data = DataConfig(corpus=str(tmp_path / "text.txt"), heldout="0")
        run = run_training(data, MethodConfig(model=model_folder, **change), settings)
        encoder = SentenceEncoder.from_pretrained(run / "encoder", pooling="cls")
        vectors.append(encoder.encode(tiny.SENTENCES))
        assert not (run / "best").exists(), "nothing was held out, so nothing was measured"
    for i in range(len(vectors)):
        for j in range(i):
            assert np.abs(vectors[i] - vectors[j]).max() > 1e-7, f"{changes[i]} and {changes[j]} gave the same encoder"
