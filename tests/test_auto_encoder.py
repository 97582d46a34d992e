"""Models that are only read: families without a hand-written encoder, and what a model's name may stand for."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ElectraConfig, MPNetConfig, MPNetModel, T5Config, T5Model, XLNetConfig

from tests import tiny
from tests.scripts import Run
from tests.test_model_folders import add_modules, write
from tests.tolerances import FLOAT32
from tsdae.commands.evaluate import compare
from tsdae.commands.settings import CompareConfig
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation import sts
from tsdae.evaluation.pairs import load_pairs
from tsdae.hub.auto_encoder import AutoModelEncoder, load_encoder
from tsdae.hub.model_folder import encoder_folder

CPU = torch.device("cpu")
LONG = "the dog runs very slowly on " * 12


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a family that has no hand-written encoder here; mean-pooled, as all-mpnet-base-v2 is."""
    folder = tmp_path_factory.mktemp("mpnet")
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    model = MPNetModel(MPNetConfig(vocab_size=len(tiny.tokenizer()), max_position_embeddings=42, **shape))
    tiny.randomise(model).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    add_modules(folder, "Pooling", "Normalize", pooling={"pooling_mode_mean_tokens": True})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_automodel_gives_what_the_hand_written_encoder_gives(tmp_path: Path, pooling: str) -> None:
    """On a BERT, which both can read: padding, order, truncation and pooling agree."""
    ours = tiny.encoder(pooling, dtype=torch.float32)
    ours.normalize = pooling == "cls"  # of mean pooling it would hide a wrong divisor
    ours.save_pretrained(tmp_path)
    theirs = AutoModelEncoder(tmp_path, None, CPU)
    assert (theirs.pooling, theirs.normalize, theirs.max_length) == (pooling, pooling == "cls", 40)
    sentences = [*tiny.SENTENCES, LONG]
    expected = ours.encode(sentences)
    assert np.ptp(expected, axis=0).min() > 0.01, "the premise: sentences differ"
    np.testing.assert_allclose(theirs.encode(sentences, batch_size=4), expected, **FLOAT32)


def test_automodel_sentence_by_sentence(mpnet: Path) -> None:
    """A slow loop without padding: one sentence at a time, pooled by hand, cut to the folder's 30 tokens."""
    encoder = load_encoder(str(mpnet))
    assert isinstance(encoder, AutoModelEncoder)
    assert not encoder.model.training
    model, tokenizer = AutoModel.from_pretrained(mpnet).eval(), tiny.tokenizer()
    expected = []
    for sentence in [*tiny.SENTENCES, LONG]:
        ids = tokenizer(sentence)["input_ids"]
        ids = ids if len(ids) <= 30 else [*ids[:29], ids[-1]]
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    vectors = encoder.encode([*tiny.SENTENCES, LONG], batch_size=3)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, **FLOAT32)


def test_automodel_is_read_in_float32(mpnet: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(mpnet).half().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert isinstance(encoder, AutoModelEncoder)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16", "the premise: stored as half"
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert encoder.max_length == 40, "positions minus the two that the family leaves unused"
    assert np.isfinite(encoder.encode([LONG * 3])).all()


def test_automodel_reads_as_many_tokens_as_the_model_has_positions(tmp_path: Path) -> None:
    """ELECTRA counts from 0; XLNet has no table at all; the tokenizer's own limit counts where there is one."""
    shape = {"vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    electra = ElectraConfig(**shape, embedding_size=24, intermediate_size=40, max_position_embeddings=40)
    xlnet = XLNetConfig(vocab_size=90, d_model=24, n_layer=1, n_head=2, d_inner=40)
    longest = {}
    for config, limit in ((electra, None), (electra, 30), (xlnet, None)):
        folder = tmp_path / f"{config.model_type}-{limit}"
        AutoModel.from_config(config).save_pretrained(folder)
        tokenizer = tiny.tokenizer()
        tokenizer.model_max_length = limit or tokenizer.model_max_length
        tokenizer.save_pretrained(folder)
        encoder = load_encoder(str(folder))
        assert isinstance(encoder, AutoModelEncoder)
        longest[folder.name] = encoder.max_length
        assert np.isfinite(encoder.encode([LONG * 3, "a dog"])).all()
    assert longest == {"electra-None": 40, "electra-30": 30, "xlnet-None": 512}


def test_cls_is_the_first_token_and_not_the_padding_before_it(tmp_path: Path) -> None:
    """As XLNet's tokenizer pads: on the left."""
    ours = tiny.encoder("cls", dtype=torch.float32)
    ours.save_pretrained(tmp_path)
    padding_left, padding_right = (AutoModelEncoder(tmp_path, None, CPU) for _ in range(2))
    padding_left.tokenizer.padding_side = "left"
    before = padding_left.model.embeddings.position_embeddings.weight
    with torch.no_grad():
        for encoder in (padding_left, padding_right):  # by padding on the left positions move: here they say nothing
            encoder.model.embeddings.position_embeddings.weight.zero_()
    assert before.abs().max() == 0, "the premise"
    expected = padding_right.encode(tiny.SENTENCES)
    np.testing.assert_allclose(padding_left.encode(tiny.SENTENCES), expected, **FLOAT32)


def test_an_encoder_with_a_decoder_is_refused_by_name(tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=90, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds T5Model, which is not an encoder only"):
        load_encoder(str(tmp_path))


def test_compare_takes_every_family(
    mpnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.encoder().save_pretrained("bert")
    seconds = [*tiny.SENTENCES[1:], LONG]
    rows = [f"{a}\t{b}\t{i}\n" for i, (a, b) in enumerate(zip(tiny.SENTENCES, seconds, strict=True))]
    Path("pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    compared = compare(["bert", str(mpnet)], CompareConfig(pairs=["pairs.tsv"], device="cpu"))
    assert [name for name, _ in compared] == ["bert (cls)", f"{mpnet} (mean)"]
    assert all(np.isfinite(scores["pairs"].spearman) for _, scores in compared)
    assert capsys.readouterr().err.count("sentences truncated to") == 2


def test_missing_weights_are_no_random_numbers(mpnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    shutil.copytree(mpnet, tmp_path / "model")
    weights = load_file(mpnet / "model.safetensors")
    without_pooler = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(without_pooler) < len(weights), "the premise: AutoModel's class has a pooler"
    save_file(without_pooler, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert isinstance(load_encoder(str(tmp_path / "model")), AutoModelEncoder), "nothing here uses a pooler"
    del without_pooler["encoder.layer.1.output.dense.weight"]
    save_file(without_pooler, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack encoder\.layer\.1\.output\.dense\.weight$"):
        load_encoder(str(tmp_path / "model"))
    assert not said, "AutoModel's own report is not shown"
    AutoModel.from_pretrained(tmp_path / "model")
    assert said, "the premise: it would have been"


def test_what_automodel_cannot_read_is_named(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read by AutoModel") as caught:
        load_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_broken_model_is_known_before_the_first_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("whole", "broken"):
        tiny.encoder().save_pretrained(name)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"half of it")
    Path("pairs.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,2\ne,f,3\n")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as weights"):
        compare(["whole", "broken"], CompareConfig(pairs=["pairs.csv"]))
    assert "3 pairs" not in capsys.readouterr().err


def test_a_run_stands_for_its_encoder(tmp_path: Path) -> None:
    for name in ("run/encoder", "run/best/encoder", "model"):
        tiny.encoder().save_pretrained(tmp_path / name)
    (tmp_path / "run" / "config.json").write_text('{"steps": 3}')
    assert encoder_folder(str(tmp_path / "run")) == tmp_path / "run" / "encoder"
    assert encoder_folder(str(tmp_path / "run" / "best")) == tmp_path / "run" / "best" / "encoder"
    assert encoder_folder(str(tmp_path / "model")) == tmp_path / "model"
    assert isinstance(load_encoder(str(tmp_path / "run")), SentenceEncoder)


def test_a_run_that_was_stopped_before_its_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"learning_rate": 3e-05, "steps": 10}')
    with pytest.raises(ValueError, match="is an unfinished run"):
        encoder_folder(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------
# Differences between models


def test_differences_from_the_first_model(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed and in JSON; each model's pairs are resampled once; the same model twice differs by exactly nothing."""
    tiny.encoder(seed=1).save_pretrained(place / "other")
    drawn: list[int] = []
    resamples = sts.resamples

    def watched(size: int, seed: int) -> Iterator[np.ndarray]:
        drawn.append(size)
        return resamples(size, seed)

    monkeypatch.setattr(sts, "resamples", watched)
    compared = run("evaluate", "model other model --pairs pairs.tsv --json a.json --device cpu")
    assert compared.code == 0, compared.err
    assert drawn == [7] * 3
    first, second, third = json.loads((place / "a.json").read_text())
    assert first.keys() == {"model", "pooling", "pairs"}
    assert second.keys() == third.keys() == {"model", "pooling", "pairs", "difference"}
    assert third["difference"] == {"from": "model", "pairs": {"spearman": 0.0, "ci95": [0.0, 0.0]}}
    assert third["pairs"] == first["pairs"]
    pairs = load_pairs("pairs.tsv")
    of_each = [
        sts.resampled_correlations(sts.cosines(load_encoder(name).encode, pairs), pairs.scores)[0]
        for name in ("model", "other")
    ]
    low, high = np.nanpercentile(of_each[1] - of_each[0], (2.5, 97.5))
    apart = second["pairs"]["spearman"] - first["pairs"]["spearman"]
    assert second["difference"].keys() == {"from", "pairs"}
    assert second["difference"]["pairs"]["spearman"] == pytest.approx(apart, abs=2e-4)
    assert second["difference"]["pairs"]["ci95"] == pytest.approx([low, high], abs=1e-3)
    assert apart != 0, "the premise: the models differ"
    *_, caption, of_other, of_model, note = compared.out.splitlines()
    assert caption.startswith("Difference from model (cls)")
    assert re.split(r"\s{2,}| (?=\[)", of_other) == [
        "other (cls)",
        "pairs Spearman",
        f"{apart:+.2f}",
        f"[{low:+.2f}, {high:+.2f}]",
        "no difference shown",
    ]
    assert of_model.split() == "model (cls) pairs Spearman +0.00 [+0.00, +0.00] no difference shown".split()
    assert "tsdae ablate" in note


def test_one_model_is_compared_with_nothing(run: Run, place: Path) -> None:
    alone = run("evaluate", "model --pairs pairs.tsv --json a.json")
    assert "ifference" not in alone.out + (place / "a.json").read_text()
    assert len(alone.out.splitlines()) == 4


def test_pairs_without_scores_are_retrieved(run: Run, place: Path) -> None:
    tiny.encoder(seed=1).save_pretrained(place / "other")
    rows = [f"{a}\t{b}\n" for a, b in zip(tiny.SENTENCES, [*tiny.SENTENCES[1:], LONG], strict=True)]
    (place / "qa.tsv").write_text("title\tbody\n" + "".join(rows) + "nothing\t\n")
    found = run("evaluate", "model other model --pairs qa.tsv --json a.json")
    assert found.code == 0, found.err
    assert "evaluating retrieval: 'title' must find its 'body'; left out: 1 with an empty text" in found.err
    assert found.err.count("sentences truncated to") == 3
    entries = json.loads((place / "a.json").read_text())
    for entry in entries:
        assert entry["retrieval"].keys() == {"accuracy_at_1", "ci95", "mrr", "mrr_ci95", "n", "candidates"}
        assert (entry["retrieval"]["n"], entry["retrieval"]["candidates"]) == (8, 8)
    assert [entry.keys() - {"model", "pooling", "retrieval"} for entry in entries] == [set()] + [{"difference"}] * 2
    nothing = {"accuracy_at_1": 0.0, "ci95": [0.0, 0.0], "mrr": 0.0, "mrr_ci95": [0.0, 0.0]}
    assert entries[2]["difference"] == {"from": "model", "retrieval": nothing}
    assert entries[1]["difference"]["retrieval"]["mrr"] == pytest.approx(
        entries[1]["retrieval"]["mrr"] - entries[0]["retrieval"]["mrr"], abs=2e-4
    )
    lines = found.out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["retrieval accuracy@1", "retrieval MRR"]
    figures = entries[0]["retrieval"]
    assert lines[1].split() == ["model", "(cls)", f"{figures['accuracy_at_1']:.2f}", f"{figures['mrr']:.2f}"]
    assert [line.split("  ")[1] for line in lines[-5:-1]] == ["retrieval accuracy@1", "retrieval MRR"] * 2
