"""Reconstruction: greedy decoding beside a slow and obvious loop, and the script that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch import Tensor

from tests import tiny
from tests.scripts import Run as Script
from tsdae import TSDAE, Batch, SentenceEncoder, TrainConfig, train
from tsdae.bert import Bert
from tsdae.commands.reconstruct import show
from tsdae.commands.settings import ReconstructConfig
from tsdae.packing import Packed
from tsdae.run.folder import Run
from tsdae.text.tokenization import decoded

FIRST, CLOSING = 2, 3  # of the tiny tokenizer: [CLS] and [SEP]
SENTENCES = tiny.SENTENCES
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie": False},
    "one-layer": {"decoder_layers": 1},
    "mean": {"pooling": "mean"},
    "roberta": {"position_offset": 2, "token_types": 1},
    "input-noise": {"decoder_input_noise": 0.5},
}


def talkative(decoder_input_noise: float = 0.0, normalize: bool = True, **changes: Any) -> TSDAE:
    """A random model whose decoder does not say one word for ever.

    What it says depends on sentence and prefix, and some sentences end early. Its encoder's `encode` normalises.
    """
    model = tiny.model(**changes)
    model.decoder_input_noise, model.encoder.normalize = decoder_input_noise, normalize
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter *= 0.1
            if "project" in name:
                parameter *= 2.0
        for cross in model.crosses:
            cross.output.weight *= 0.3
        model.decoder_bert.embeddings.positions.weight *= 5.0
        model.head.bias[CLOSING] += 2.5
    return model


def two_closing_tokens(model: TSDAE) -> TSDAE:
    """[MASK] opens a sentence and [SEP] [UNK] close it, as tokenizers of other families have other marks."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[MASK] $A [SEP] [UNK]", special_tokens=[("[MASK]", 4), ("[SEP]", 3), ("[UNK]", 1)]
    )
    model.encoder = SentenceEncoder(model.encoder.bert, tokenizer, model.encoder.pooling, normalize=True).eval()
    return model


@torch.no_grad()
def slowly(model: TSDAE, sentence: str, longest: int, first: int = FIRST) -> list[int]:
    """One sentence, token by token."""
    vector_1D = model.encode(packed(model, sentence))
    ids = [first]
    while len(ids) < longest and (len(ids) == 1 or ids[-1] != CLOSING):
        unread = 0
        hidden_TD = model.decode(Packed.from_lists([[*ids, unread]]).to("cpu"), vector_1D)
        ids.append(int(model.logits(hidden_TD)[-1].argmax()))
    return ids


def packed(model: TSDAE, sentence: str) -> Packed[Tensor]:
    return Packed.from_lists([model.encoder.tokenizer(sentence)["input_ids"]]).to("cpu")


def text(model: TSDAE, ids: list[int]) -> str:
    return str(model.encoder.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_is_a_slow_and_obvious_loop(variant: str) -> None:
    model = talkative(**VARIANTS[variant])
    for longest, sentences, batch_sizes in (
        (2, SENTENCES, [3]),
        (20, SENTENCES, [1, 3, 64]),
        (1000, SENTENCES[:3], [2]),
    ):
        allowed = min(longest, model.encoder.bert.config.longest_sentence)
        slow = [slowly(model, sentence, allowed) for sentence in sentences]
        if longest == 20:
            assert 0 < sum(ids[-1] == CLOSING for ids in slow) < len(slow), "the premise: some end, some do not"
            assert len({len(ids) for ids in slow}) > 1, "the premise: ragged"
            assert len({tuple(ids) for ids in slow}) > 2, "the premise: they depend on the sentence"
            assert max(len(set(ids)) for ids in slow) > 4, "the premise: and on the prefix"
        expected = [text(model, ids) for ids in slow]
        for batch_size in batch_sizes:
            assert model.reconstruct(sentences, longest, batch_size) == expected


def test_the_tokenizers_own_marks_open_and_close() -> None:
    model = two_closing_tokens(talkative())
    assert model.encoder.vocabulary.tail == 2
    slow = [slowly(model, sentence, 20, first=4) for sentence in SENTENCES]
    assert 0 < sum(ids[-1] == CLOSING for ids in slow) < len(slow), "the premise: some end, some do not"
    assert slow != [[4, *slowly(model, sentence, 20)[1:]] for sentence in SENTENCES], "the premise: the first matters"
    assert model.reconstruct(SENTENCES, 20) == [text(model, ids) for ids in slow]


def test_vectors_in_place_of_texts() -> None:
    model = talkative()
    with torch.no_grad():
        vectors = [model.encode(packed(model, sentence)) for sentence in SENTENCES]
    sentence_BD = torch.cat(vectors)
    expected = model.reconstruct(SENTENCES)
    assert model.reconstruct(sentence_BD) == expected
    assert model.reconstruct(sentence_BD.numpy()) == expected
    assert model.reconstruct(sentence_BD.flip(0).requires_grad_()) == expected[::-1]
    assert model.reconstruct(torch.nn.functional.normalize(sentence_BD)) != expected, "the premise: length matters"
    assert model.reconstruct([]) == model.reconstruct(sentence_BD[:0]) == []


def test_what_a_sentence_becomes_does_not_depend_on_the_batch() -> None:
    """Not even where the decoder's own input is masked at random places of the batch."""
    model = talkative(decoder_input_noise=0.5)
    together = model.reconstruct(SENTENCES)
    assert together == [model.reconstruct([sentence])[0] for sentence in SENTENCES]
    model.decoder_input_noise = 0.0
    assert together != model.reconstruct(SENTENCES), "the premise: the masks matter"


def test_an_overfitted_model_rebuilds_its_sentences_from_the_vector_alone() -> None:
    sentences = ["a man is eating bread in the morning", "a man is playing the flute"]
    bert = Bert(tiny.config(width=48, layers=1, dropout=0.0, attention_dropout=0.0))
    model = TSDAE(SentenceEncoder(bert, tiny.tokenizer()))
    assert model.reconstruct(sentences) != sentences
    config = TrainConfig(steps=80, batch_size=2, learning_rate=5e-3, precision="fp32", device="cpu")
    train(model, tiny.dataset(sentences), config)
    assert model.reconstruct(sentences) == sentences
    vectors = model.encoder.encode(sentences, normalize=False)
    assert model.reconstruct(vectors[[1, 0, 1]]) == [sentences[1], sentences[0], sentences[1]]


def test_it_works_without_dropout_or_autocast_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talkative(dtype=torch.float32)
    expected = model.reconstruct(SENTENCES)
    seen, decode = [], model.decode

    def watched(target: Packed[Tensor], sentence_BD: Tensor) -> Tensor:
        seen.append((model.training, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return decode(target, sentence_BD)

    monkeypatch.setattr(model, "decode", watched)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.reconstruct(SENTENCES) == expected
    assert set(seen) == {(False, False, False)}
    assert all(part.training for part in model.modules())
    model.eval().reconstruct(SENTENCES)
    assert not model.training
    model.train()
    monkeypatch.setattr(model, "decode", None)
    with pytest.raises(TypeError, match="not callable"):
        model.reconstruct(SENTENCES)
    assert all(part.training for part in model.modules()), "after an error too"


def test_bad_input_is_named() -> None:
    model = tiny.model()
    for given, settings, message in (
        ("a dog", {}, "takes a list of sentences, not one string"),
        (["a dog", 3], {}, "sentence 1 is int, not text"),
        (torch.zeros(2, 25), {}, r"must have the shape \[B, 24\], got \[2, 25\]"),
        (np.zeros(24), {}, r"must have the shape \[B, 24\], got \[24\]"),
        (np.array(["a dog"]), {}, r"got \[1\]; texts are given as a list"),
        (["a dog"], {"max_length": 1}, "max_length must be at least 2"),
        (["a dog"], {"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.reconstruct(given, **settings)


# ---------------------------------------------------------------------------------------------------------------
# The script


SHOWN = ["a man is playing a guitar in the morning.", "an apple!"]
POOLINGS = ("cls", "mean", "max")
MARKS_ITS_RUN = "import pathlib\npathlib.Path('ran').touch()\ndef f(tokens, *others):\n    return tokens\n"
SETTINGS = {"learning_rate": 3e-5, "noise": "mask", "noise_ratio": 0.5, "objective": "tsdae"}  # of a run's config.json


@pytest.fixture
def trained(place: Path) -> TSDAE:
    """A run in the user's folder, and its model."""
    model = talkative(dtype=torch.float32, normalize=False)
    Run("run", SETTINGS).save_last(model)
    return model


def test_each_line_is_what_the_parts_compute(trained: TSDAE, capsys: pytest.CaptureFixture[str]) -> None:
    show("run", SHOWN, ReconstructConfig(noisings=2, seed=7, max_length=15, device="cpu"))
    printed = capsys.readouterr()
    head, *blocks = printed.out.split("\n\n")
    assert head.startswith("noise: mask, ratio 0.5.")
    assert printed.err == ""
    data = tiny.dataset(SHOWN, noise="mask", noise_ratio=0.5, seed=7, max_length=15)
    for row, (block, sentence) in enumerate(zip(blocks, SHOWN, strict=True)):
        pairs = [data[(epoch, row)] for epoch in range(2)]
        target = pairs[0].target_ids
        expected = [sentence]
        for name, ids in (("clean", target), ("noisy 1", pairs[0].noisy_ids), ("noisy 2", pairs[1].noisy_ids)):
            batch = Batch(*(Packed.from_lists([each]).to("cpu") for each in (ids, target)))
            with torch.no_grad():
                loss, vector_1D = trained(batch).mean.item(), trained.encode(batch.noisy)
            (written,) = trained.reconstruct(vector_1D, 15)
            read = trained.encoder.tokenizer.decode(ids[1:-1])
            expected += [f"  {name:9}         {read}", f"    -> loss {loss:6.2f}  {written}".rstrip()]
        assert block.splitlines() == expected
        assert "[MASK]" in block, "what was masked is shown"
        assert row > 0 or len(set(expected)) == len(expected), "the premise: noisings and losses differ"


def test_words_and_length_are_those_of_the_run(trained: TSDAE, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """From its settings; of a run on a prepared corpus, from the corpus. What is given comes before both."""
    settings = SETTINGS | {"max_length": 6}
    tiny.prepared(place / "corpus", words="tokens")
    Run("words", settings | {"words": "auto"}).save_last(trained)
    Run("tokens", settings | {"words": "tokens"}).save_last(trained)
    Run("mapped", settings | {"words": None, "corpus": "corpus"}).save_last(trained)
    (place / "damaged").mkdir()
    (place / "damaged" / "corpus.json").write_text("{")
    Run("moved", settings | {"words": None, "corpus": "damaged"}).save_last(trained)
    given = {"words": "tokens", "max_length": 6}
    sentence, shown = "unknown cats eating slowly", {}
    for name, flags in (("words", {}), ("tokens", {}), ("mapped", {}), ("moved", given), ("run", given)):
        show(name, [sentence], ReconstructConfig(noisings=4, device="cpu", **flags))
        shown[name] = capsys.readouterr().out
    assert shown["words"] != shown["tokens"] == shown["mapped"] == shown["moved"] == shown["run"]
    for name, words in (("words", "auto"), ("tokens", "tokens")):
        data = tiny.dataset([sentence], noise="mask", noise_ratio=0.5, max_length=6, words=words)
        for epoch in range(4):
            read = decoded(data[(epoch, 0)].noisy_ids[1:-1], trained.encoder.tokenizer, skip_special_tokens=False)
            assert f"  noisy {epoch + 1}           {read}\n" in shown[name]


def test_a_run_and_a_model(trained: TSDAE, run: Script, place: Path) -> None:
    shown = run("reconstruct", "run an.apple dog --noise delete --noise-ratio 0.4 --noisings 1 --device cpu")
    assert (shown.code, shown.err) == (0, "")
    assert "noise: delete, ratio 0.4" in shown.out
    assert [line for line in shown.out.splitlines() if line and line[0] != " "][1:] == ["an.apple", "dog"]
    assert shown.out.count("  clean  ") == shown.out.count("  noisy 1  ") == shown.out.count("noisy") == 2

    Run("mlm", SETTINGS | {"objective": "mlm"}).save_best(trained, {})
    shown = run("reconstruct", "mlm/best dog --noisings 0 --device cpu")
    assert shown.err == "mlm/best was trained by --objective mlm; its decoder is untrained\n"
    assert "noise: mask, ratio 0.5" in shown.out, "of the run whose best/ it is"
    assert "noisy" not in shown.out

    shown = run("reconstruct", "model dog --pooling mean --device cpu")
    assert shown.err == "model has no decoder.safetensors: its decoder is new and untrained\n"
    assert "noise: delete, ratio 0.6" in shown.out


def test_the_built_in_model_is_not_a_run_of_its_name(trained: TSDAE, run: Script, place: Path) -> None:
    (place / "run").rename(place / "mini")
    shown = run("reconstruct", "mini dog --noisings 0 --device cpu")
    note = "mini is the built-in model; to use the folder mini that is here, write ./mini"
    assert sorted(shown.err.splitlines()) == [
        "mini has no decoder.safetensors: its decoder is new and untrained",
        note,
    ], "each once"
    assert "noise: delete" in shown.out
    assert "noise: mask" in run("reconstruct", "./mini dog --noisings 0 --device cpu").out
    refused = run("explore", "mini --static page.html --device cpu")
    assert (refused.code, "mini has no config.json of a run" in refused.err) == (2, True), refused.err


def test_a_run_is_found_by_any_of_its_names(
    trained: TSDAE, run: Script, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is called best is no best/ of a run; ~ is the user's folder."""
    (place / "run").rename(place / "best")
    assert "noise: mask" in run("reconstruct", "best dog --noisings 0 --device cpu").out
    monkeypatch.setenv("HOME", str(place))
    shown = run("reconstruct", "~/best dog --noisings 0 --device cpu")
    assert ("noise: mask" in shown.out, shown.err) == (True, "")
    nobody = run("reconstruct", "~nobody-of-this-name/run dog --device cpu")
    expected = "~nobody-of-this-name/run does not exist: there is no user nobody-of-this-name"
    assert (nobody.code, nobody.err) == (2, f"tsdae reconstruct: error: {expected}\n")


def test_pooling_as_told(trained: TSDAE, run: Script) -> None:
    shown = {pooling: run("reconstruct", f"run an.apple --noisings 0 --pooling {pooling}").out for pooling in POOLINGS}
    assert len(set(shown.values())) == 3
    assert "--zzz" in run("reconstruct", "run --noisings 0 -- --zzz").out, "what follows -- is no flag"
    assert shown["cls"] == run("reconstruct", "run an.apple --noisings 0").out


@pytest.mark.parametrize("shadow", [False, True], ids=["plain", "file-of-that-name"])
def test_code_that_a_strangers_run_names_is_not_run(shadow: bool, trained: TSDAE, run: Script, place: Path) -> None:
    (place / "evil.py").write_text(MARKS_ITS_RUN)
    if shadow:
        (place / "evil.py:f").touch()
    Run("stranger", SETTINGS | {"noise": "evil.py:f"}).save_last(trained)
    refused = run("reconstruct", "stranger dog")
    assert refused.code == 2
    assert "the run's --noise is 'evil.py:f', which is code and runs only if you name it: give --noise" in refused.err
    assert not (place / "ran").exists()
    assert run("reconstruct", "stranger dog --noise evil.py:f").code == 0
    assert (place / "ran").exists(), "the premise: it would have left a mark"


BAD = [
    ("", "the following arguments are required: RUN, SENTENCE"),
    ("run", "the following arguments are required: SENTENCE"),
    ("run dog --noising 3", "unknown argument --noising; did you mean --noisings?"),
    ("run dog --noisings -1", "--noisings must be at least 0"),
    ("run dog --noise-ratio 1", "--noise-ratio must be in [0, 1), got 1.0"),
    ("run dog --seed -1", "--seed must be in [0, 9223372036854775808), got -1"),
    ("run dog --max-length 2", "max_length must be at least 3"),
    ("run dog --noise scramble", "unknown noise 'scramble'"),
    ("run dog --device abacus", "--device abacus is not available"),
    ("run dog \u200d", "a sentence has no words: it tokenises to nothing"),
    ("./nowhere dog", "the model ./nowhere does not exist"),
    ("text.txt dog", "the model text.txt is not a folder"),
    ("stopped dog", "stopped is an unfinished run"),
    ("damaged dog", "damaged/decoder.safetensors cannot be read as a decoder"),
    ("other dog", "other/decoder.safetensors does not match other/encoder: head.bias"),
    ("edited dog", "the run's noise_ratio is 'much', which is not valid; was its config.json edited?"),
    ("segmented dog", "the run's --words is 'evil.py:f', which is code and runs only if you name it: give --words"),
]


def test_bad_arguments_get_one_line(trained: TSDAE, run: Script, place: Path) -> None:
    changed = {"damaged": {}, "other": {}, "edited": {"noise_ratio": "much"}, "segmented": {"words": "evil.py:f"}}
    for name, settings in changed.items():
        Run(name, SETTINGS | settings).save_last(trained)
    (place / "damaged" / "decoder.safetensors").write_bytes(b"half of it")
    wider = tiny.model(dtype=torch.float32, vocabulary_size=100)
    wider.save_decoder(place / "other" / "decoder.safetensors")
    Run("stopped", SETTINGS)
    for arguments, message in BAD:
        result = run("reconstruct", arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("tsdae reconstruct: error: ")
        assert message in result.err
    assert result.err.count("\n") == 1


def test_an_empty_sentence_is_named(trained: TSDAE) -> None:
    with pytest.raises(ValueError, match="sentence 2 is empty"):
        show("run", ["dog", " "], ReconstructConfig())
