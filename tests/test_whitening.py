"""What `evaluate` scores without training: whitened vectors, first and last layer; and several files of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests import tiny
from tests.scripts import PAIRS, Run
from tests.tolerances import FLOAT32, FLOAT64
from tsdae.evaluation.pairs import load_pairs
from tsdae.evaluation.scores import mean_of
from tsdae.evaluation.sts import evaluate_sts
from tsdae.evaluation.whitening import Whitening
from tsdae.hub.auto_encoder import AutoModelEncoder, load_encoder


def vectors(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Far from the origin, of unlike spread along directions that are no axes."""
    generator = np.random.default_rng(seed)
    spread = generator.normal(size=(size, size)) * np.geomspace(0.1, 3, size)
    return (generator.normal(size=(count, size)) @ spread + 5).astype(np.float32)


def test_whitened_vectors_are_centred_and_vary_alike() -> None:
    fitted, others = vectors(400, 12), vectors(5, 12, seed=1)
    whitening = Whitening(fitted)
    white = whitening(fitted)
    assert white.dtype == np.float32
    assert (white.shape, whitening.axes) == ((400, 12), 12)
    np.testing.assert_allclose(white.mean(0), np.zeros(12), atol=1e-4)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(12), atol=1e-3)
    # Between any two texts the whitened product is Mahalanobis', whatever the axes are.
    centred = others.astype(np.float64) - fitted.mean(0, dtype=np.float64)
    expected = centred @ np.linalg.inv(np.cov(fitted.astype(np.float64), rowvar=False)) @ centred.T
    np.testing.assert_allclose(whitening(others) @ whitening(others).T, expected, rtol=1e-3)


def test_axes_without_variation_are_left_out() -> None:
    """Fewer sentences than dimensions, and a dimension that is the same in all."""
    few = vectors(5, 12)
    assert Whitening(few)(few).shape == (5, 4)
    flat = vectors(100, 12)
    flat[:, 3] = 0.1
    assert Whitening(flat).axes == 11
    assert np.isfinite(Whitening(flat)(flat)).all()


@pytest.mark.parametrize(
    ("value", "message"), [(0.1, "all vectors of its text are equal"), (np.nan, "vectors have NaN or infinite values")]
)
def test_what_cannot_be_whitened(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Whitening(np.full((10, 8), value, dtype=np.float32))


def test_whitened_beside_the_model_as_it_is(run: Run, place: Path) -> None:
    found = run("evaluate", "model --pairs pairs.tsv --whiten text.txt --pooling mean --json a.json --device cpu")
    assert found.code == 0, found.err
    plain, white = json.loads((place / "a.json").read_text())
    assert (plain["pooling"], white["pooling"]) == ("mean", "mean, whitened")
    encoder, pairs = load_encoder("model", "mean"), load_pairs("pairs.tsv")
    whitening = Whitening(encoder.encode(tiny.SENTENCES))
    assert plain["pairs"] == evaluate_sts(encoder, pairs).row()
    assert white["pairs"] == evaluate_sts(lambda sentences: whitening(encoder.encode(sentences)), pairs).row()
    assert white["pairs"]["spearman"] != plain["pairs"]["spearman"]
    assert white["difference"]["from"] == "model"
    assert "8 sentences span 7 of 24 dimensions" in found.err
    assert "model (mean, whitened)  pairs Spearman" in found.out


def test_first_last_mean_is_that_of_transformers(tmp_path: Path) -> None:
    """hidden_states[1] is the first layer's output, in a model of both kinds, one sentence at a time."""
    tiny.encoder("cls", dtype=torch.float32).save_pretrained(tmp_path)
    ours = load_encoder(str(tmp_path), "first-last-mean")
    general = AutoModelEncoder(tmp_path, "first-last-mean", torch.device("cpu"))
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), tiny.tokenizer()
    expected = []
    for sentence in tiny.SENTENCES:
        with torch.inference_mode():
            states = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states
        assert len(states) == 4, "the premise: three layers and the embeddings"
        expected.append(((states[1] + states[3]) / 2)[0].mean(0).numpy())
    assert ours.pooling == general.pooling == "first-last-mean"
    for encoder in (ours, general):
        np.testing.assert_allclose(encoder.encode(tiny.SENTENCES, batch_size=3), expected, **FLOAT32)


def test_several_files_of_pairs_have_a_column_each_and_a_mean(run: Run, place: Path) -> None:
    header = "sentence1\tsentence2\tscore\n"
    (place / "STS12.tsv").write_text(header + "".join(PAIRS[:4]))
    (place / "STS13.en.tsv").write_text(header + "".join(PAIRS[2:]))
    tiny.encoder(seed=1).save_pretrained(place / "other")
    found = run("evaluate", "model other --pairs STS12.tsv STS13.en.tsv --json a.json --device cpu")
    assert found.code == 0, found.err
    first, second = json.loads((place / "a.json").read_text())
    scores = {}
    for name in ("model", "other"):
        scores[name] = [evaluate_sts(load_encoder(name), load_pairs(file)) for file in ("STS12.tsv", "STS13.en.tsv")]
        mean = mean_of(scores[name])
        np.testing.assert_allclose(mean.spearman, np.mean([one.spearman for one in scores[name]]), **FLOAT64)
        of_sets = np.mean([one.values_S["spearman"] for one in scores[name]], axis=0)
        np.testing.assert_allclose(mean.ci95, np.nanpercentile(of_sets, (2.5, 97.5)), **FLOAT64)
    assert first["STS12"] == scores["model"][0].row()
    assert first["STS13"] == scores["model"][1].row()
    assert first["mean"] == mean_of(scores["model"]).row()
    assert first["mean"]["sets"] == 2
    assert second["difference"]["mean"] == mean_of(scores["other"]).minus(mean_of(scores["model"])).row()
    heading = found.out.splitlines()[0].split("  ")
    assert [cell.strip() for cell in heading if cell.strip()] == ["STS12 Spearman", "STS13 Spearman", "mean Spearman"]


def test_two_files_of_one_name(run: Run, place: Path) -> None:
    (place / "more").mkdir()
    (place / "more" / "pairs.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,2\ne,f,3\n")
    found = run("evaluate", "model --pairs pairs.tsv more/pairs.csv")
    assert found.code == 2
    assert "--pairs more/pairs.csv: another file is also called pairs in the table; rename one" in found.err
