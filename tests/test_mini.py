"""The built-in model: there without a network, in every command, whole, raw, and what transformers reads of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests import tiny
from tests.scripts import Run
from tests.tolerances import FLOAT32
from tsdae import SentenceEncoder
from tsdae.hub import downloads as assets
from tsdae.hub.downloads import MINI_FOLDER
from tsdae.hub.model_folder import model_folder, read_sentence_settings

SENTENCES = [*tiny.SENTENCES, "Zwölf Boxkämpfer: naïve café, 3.5 %!", ""]
FLAGS = "--model mini --device cpu --threads 1 --precision fp32"


def test_it_is_a_raw_model_of_its_card_and_small() -> None:
    encoder = SentenceEncoder.from_pretrained("mini")
    config = encoder.bert.config
    assert (config.layers, config.width, config.heads, config.feed_forward) == (4, 256, 4, 1024)
    assert (config.positions, config.vocabulary_size, encoder.max_length, encoder.pooling) == (128, 8000, 128, "cls")
    assert read_sentence_settings(MINI_FOLDER).pooling is None, "it is no sentence model"
    assert encoder.pretrained.head is not None, "masked-language modelling goes on from its own head"
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir()) < 12_000_000
    card = (MINI_FOLDER / "README.md").read_text("utf-8")
    assert "never tuned for sentences" in card
    assert card.startswith("---\n"), "what the hub reads of a card"


def test_transformers_reads_the_same_vectors_and_ids() -> None:
    """And the ids are those of tokenizer.json itself, whatever class transformers makes of it."""
    from tokenizers import Tokenizer

    encoder = SentenceEncoder.from_pretrained("mini")
    tokenizer = AutoTokenizer.from_pretrained(MINI_FOLDER)
    model = AutoModel.from_pretrained(MINI_FOLDER, dtype=torch.float32).eval()
    own = Tokenizer.from_file(str(MINI_FOLDER / "tokenizer.json"))
    for sentence in SENTENCES:
        features = tokenizer(sentence, return_tensors="pt")
        assert features["input_ids"][0].tolist() == own.encode(sentence).ids
        with torch.no_grad():
            expected = model(**features).last_hidden_state[0, 0].numpy()
        np.testing.assert_allclose(encoder.encode([sentence])[0], expected, **FLOAT32)


def test_it_has_learned_english() -> None:
    """The word that fits is among the five likeliest of 8,000; a damaged head or matrix would give noise."""
    tokenizer = AutoTokenizer.from_pretrained(MINI_FOLDER)
    model = AutoModelForMaskedLM.from_pretrained(MINI_FOLDER, dtype=torch.float32).eval()
    for sentence, word in (
        ("she opened the [MASK] and walked into the room .", "door"),
        ("the president of the united [MASK] .", "states"),
        ("thank you very [MASK] .", "much"),
    ):
        features = tokenizer(sentence, return_tensors="pt")
        place = features["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            best = model(**features).logits[0, place].topk(5).indices
        assert word in tokenizer.convert_ids_to_tokens(best.tolist()), sentence


@pytest.mark.slow
def test_every_command_knows_it(place: Path, run: Run) -> None:
    for script, arguments in (
        ("train", f"{FLAGS} --corpus text.txt --heldout 2 --steps 2 --output run"),
        ("train", f"{FLAGS} --corpus text.txt --heldout 2 --steps 2 --pooling mean --objective mlm --output modelled"),
        ("train", f"{FLAGS} --corpus text.txt --heldout 2 --steps 2 --add-tokens new.txt --output added"),
        ("evaluate", "mini run --pairs pairs.tsv --device cpu"),
        ("encode", "mini --input text.txt --output vectors.npy --device cpu"),
        ("neighbours", "mini run --corpus text.txt --device cpu"),
        ("prepare", "text.txt --model mini --output prepared"),
        ("train", f"{FLAGS} --corpus prepared --steps 2 --output from-prepared"),
        ("ablate", f"{FLAGS} --corpus text.txt --evaluate pairs.tsv --grid noise=mask --dry-run --output ablation"),
    ):
        (place / "new.txt").write_text("kubernetes\n")
        result = run(script, arguments)
        assert result.code == 0, result.err
    assert np.load(place / "vectors.npy").shape == (len(tiny.SENTENCES), 256)
    assert "recipe small (mini is a small raw model)" in run("train", f"{FLAGS} --corpus text.txt --steps 1").err
    settings = json.loads((place / "run" / "config.json").read_text())
    assert settings["model"] == "mini"


def test_its_name_goes_before_a_folder_of_that_name(place: Path, run: Run) -> None:
    shutil.copytree("model", "mini")
    packaged = run("encode", "mini --input text.txt --output packaged.npy --device cpu")
    assert "mini is the built-in model; to use the folder mini that is here, write ./mini" in packaged.err
    assert run("encode", "./mini --input text.txt --output folder.npy --device cpu").code == 0
    assert (np.load("packaged.npy").shape[1], np.load("folder.npy").shape[1]) == (256, 24)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_file_is_named_with_the_mend(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mini"
    shutil.copytree(MINI_FOLDER, copy)
    if damage == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes((copy / name).read_bytes()[:-7])
    monkeypatch.setattr(assets, "MINI_FOLDER", copy)
    with pytest.raises(ValueError, match="the built-in model mini is damaged") as caught:
        model_folder("mini")
    assert f"{copy / name} is missing or not as it was released; install tsdae again" in str(caught.value)
    assert "\n" not in str(caught.value)
