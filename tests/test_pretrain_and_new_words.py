"""Words added to a vocabulary, and from nothing but text to an encoder: both load again in the usual libraries."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests import tiny
from tests.languages import SENTENCES, trained
from tests.scripts import Run, contents
from tests.tolerances import FLOAT32
from tsdae import TSDAE, SentenceEncoder, TrainConfig, train
from tsdae.commands import pretrain as pretraining
from tsdae.commands.tokenizer import train_tokenizer
from tsdae.config import TextConfig
from tsdae.text.added_tokens import add_words
from tsdae.text.corpus import Corpus
from tsdae.text.preparation import build_corpora, sentences_of
from tsdae.text.reading import open_texts
from tsdae.text.tokenization import decoded
from tsdae.utils.signals import Interrupted


def test_a_new_word_begins_as_the_mean_of_its_pieces() -> None:
    encoder = tiny.encoder()
    before = encoder.bert.embeddings.words.weight.detach().clone()
    ids = encoder.tokenizer("walking", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    encoder.pretrained.head = {"bias": torch.arange(len(before), dtype=torch.float64)}
    assert encoder.add_tokens(["walking", "dog", "walking", "unknown"]) == ["walking", "unknown"]
    weight = encoder.bert.embeddings.words.weight
    assert weight.shape == (len(before) + 2, 24)
    assert torch.equal(weight[: len(before)], before)
    torch.testing.assert_close(weight[encoder.tokenizer.convert_tokens_to_ids("walking")], before[ids].mean(0))
    bias = encoder.pretrained.head["bias"]
    assert bias[encoder.tokenizer.convert_tokens_to_ids("walking")] == sum(ids) / 2
    # Only as a whole word: within another one its letters stay with the pieces that they had.
    assert encoder.tokenizer.tokenize("a walking dog") == ["a", "walking", "dog"]
    assert "walking" not in encoder.tokenizer.tokenize("xwalkings")


def test_words_that_are_one_to_the_tokenizer_are_one_token() -> None:
    """Which of two tokens of one normal form is found would be a matter of chance, another one after each loading."""
    encoder = tiny.encoder()
    assert encoder.add_tokens(["Walking", "walking", "WALKING"]) == ["Walking"]
    assert encoder.add_tokens(["walkinG"]) == []
    assert encoder.tokenizer("a walking dog")["input_ids"] == encoder.tokenizer("a Walking dog")["input_ids"]
    assert len(encoder.tokenizer("walking", add_special_tokens=False)["input_ids"]) == 1


TEXT = [
    "the kinase binds the enzyme",
    "a kinase of the kin",
    "the base of the case",
    "zymes and enzymes",
    "bind it",
] * 20


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "bytes"])
def test_within_a_text_a_new_word_is_one_token_and_nothing_else_changes(kind: str) -> None:
    """Of a tokenizer whose tokens carry the space before them it takes that space: none is left as a token."""
    tokenizer = trained(kind, TEXT, {"WordPiece": 60, "Unigram": 40, "bytes": 330}[kind])

    def tokens(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])

    space = {"WordPiece": "", "Unigram": "\u2581", "bytes": "\u0120"}[kind]
    the, before = tokens("the"), tokens("the enzyme binds it")
    assert before[: len(the) + 1] == [*the, f"{space}enzyme"], "the premise: it is one token already"
    cut = tokens("the basezyme")[len(the) :]
    pieces = add_words(tokenizer, ["enzyme", "basezyme"])
    assert {word: tokenizer.convert_ids_to_tokens(ids) for word, ids in pieces.items()} == {"basezyme": cut}
    assert tokens("the basezyme binds it") == [*the, "basezyme", *before[len(the) + 1 :]]
    assert tokens("the enzyme binds it") == before
    assert "basezyme" not in tokens("the basezymes")


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "bytes"])
def test_new_words_come_back_with_their_spaces(kind: str) -> None:
    tokenizer = trained(kind, TEXT, {"WordPiece": 60, "Unigram": 40, "bytes": 330}[kind])
    add_words(tokenizer, ["basezyme"])
    for text in ("the basezyme binds it", "basezyme binds the basezyme"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.convert_tokens_to_ids("basezyme") in ids
        assert decoded(ids, tokenizer) == text
    read = decoded(tokenizer("the [MASK] binds it")["input_ids"], tokenizer, skip_special_tokens=False)
    assert read.split("[MASK]")[1].strip().startswith("binds it")


def test_a_piece_that_stands_apart_from_its_space_is_no_token_yet() -> None:
    """Unigram cuts "the zyme" into the, a bare space, zyme: as a word of its own zyme is new."""
    tokenizer = trained("Unigram", [*TEXT, *["enzyme azyme ozyme izyme"] * 20], 40)
    cut = tokenizer.tokenize("the zyme")
    assert cut[-2:] == ["\u2581", "zyme"], "the premise"
    assert add_words(tokenizer, ["zyme"]) == {"zyme": tokenizer.convert_tokens_to_ids(["zyme"])}


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_where_no_spaces_are_written_a_new_word_is_found_among_letters(kind: str) -> None:
    thai = SENTENCES["Thai"]
    word = "".join(regex.findall(r"\X", thai[0])[3:7])
    tokenizer = trained(kind, thai, 120)
    pieces = add_words(tokenizer, [word])[word]
    assert "\u2581" not in tokenizer.convert_ids_to_tokens(pieces)
    ids = tokenizer(thai[0])["input_ids"]
    assert tokenizer.convert_tokens_to_ids(word) in ids


@pytest.mark.parametrize(
    ("word", "message"),
    [("two words", "one word, without spaces"), ("", "one word"), ("§§", "no piece that this vocabulary knows")],
)
def test_what_cannot_be_added(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.encoder().add_tokens([word])


def test_the_encoder_in_memory_is_what_is_trained_and_saved(tmp_path: Path) -> None:
    encoder = tiny.encoder(dtype=torch.float32)
    encoder.add_tokens(["walking", "unknown"])
    start = encoder.bert.embeddings.words.weight.detach().clone()
    data = tiny.dataset()
    data = type(data)(tiny.SENTENCES, encoder.tokenizer)
    train(TSDAE(encoder), data, TrainConfig(steps=4, learning_rate=1e-2, output=str(tmp_path / "run"), device="cpu"))
    new = encoder.tokenizer.convert_tokens_to_ids("walking")
    assert not torch.equal(encoder.bert.embeddings.words.weight[new], start[new])
    folder = tmp_path / "run" / "encoder"
    vectors = encoder.encode(tiny.SENTENCES)
    again = SentenceEncoder.from_pretrained(folder)
    assert again.tokenizer.tokenize("a walking dog") == ["a", "walking", "dog"]
    np.testing.assert_array_equal(again.encode(tiny.SENTENCES), vectors)
    assert TSDAE.from_pretrained(tmp_path / "run").encoder.vocabulary.size == len(start)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(**tokenizer([tiny.SENTENCES[2]], return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(hidden[0, 0].numpy(), vectors[2], **FLOAT32)


def test_new_words_from_the_command_line(place: Path, run: Run) -> None:
    """The same run from the text and from a prepared corpus; a corpus prepared without them is refused."""
    (place / "new.txt").write_text("walking\ndog\nunknown\n")
    prepared = run("prepare", "text.txt --model model --add-tokens new.txt --heldout 2 --output corpus")
    assert prepared.code == 0, prepared.err
    assert "--add-tokens new.txt" in prepared.out
    flags = "--model model --add-tokens new.txt --steps 2 --batch-size 2 --device cpu --threads 1"
    for corpus, output in (("corpus", "one"), ("text.txt --heldout 2", "two")):
        result = run("train", f"--corpus {corpus} {flags} --output {output}")
        assert result.code == 0, result.err
        assert "2 new tokens of new.txt" in result.err
    first, second = ((place / name / "encoder" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    assert SentenceEncoder.from_pretrained(place / "one" / "encoder").tokenizer.tokenize("walking") == ["walking"]
    without = run("train", f"--corpus corpus {flags.replace('--add-tokens new.txt', '')} --output three")
    assert (without.code, "prepared for model with --add-tokens new.txt, and model has" in without.err) == (2, True)
    assert "no file old.txt" in run("train", "--corpus text.txt --model model --add-tokens old.txt").err


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_tokenizer_of_ones_own(kind: str) -> None:
    tokenizer = train_tokenizer(lambda: tiny.SENTENCES * 3, kind, 60)
    assert len(tokenizer) == 60
    ids = tokenizer("A man is playing")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a man is playing"
    cased = train_tokenizer(
        lambda: ["Ein Mann", "Eine Frau", "Éin"] * 30, kind, {"wordpiece": 24, "unigram": 18}[kind], cased=True
    )
    assert "É" in "".join(cased.tokenize("Éin"))


def test_a_wordpiece_tokenizer_is_the_same_from_the_same_text() -> None:
    """Many of its pieces are equally frequent; among them the library would choose by the order of a hash map."""
    text = ["".join(chr(97 + (7 * i + j * j) % 26) for j in range(9)) for i in range(60)]
    first, *others = (train_tokenizer(lambda: text, "wordpiece", 120).backend_tokenizer for _ in range(5))
    assert [other.get_vocab() for other in others] == [first.get_vocab()] * 4
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [token.content for token in first.get_added_tokens_decoder().values()] == special, "no pieces among them"


def test_a_stopped_stage_says_what_goes_on(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(signal.SIGINT, "stopped after step 3; resume with: tsdae train")

    monkeypatch.setattr(pretraining, "run_training", stopped)
    (place / "words.txt").write_text("\n".join(f"{word} {other}" for word in tiny.WORDS for other in tiny.WORDS))
    result = run("pretrain", "words.txt --output made --layers 1 --width 64 --vocabulary-size 100 --device cpu")
    assert result.code == 130, result.err
    assert result.err.endswith("stopped in made/mlm; the same command resumes it\n")


def test_from_nothing_but_text(place: Path, run: Run) -> None:
    """All stages, twice: the second time nothing is left to do. The raw model's head is the one that was trained."""
    text = " ".join(tiny.WORDS)
    lines = [text[k : k + 60] for k in range(0, len(text) - 60, 3)]
    (place / "words.txt").write_text("\n".join(lines))
    shape = "--layers 1 --width 128 --vocabulary-size 100 --positions 32 --threads 1 --device cpu"
    command = f"words.txt --output made --mlm-steps 40 --tsdae-steps 3 --heldout 5 --seed 3 --pooling mean {shape}"
    command += " --mlm-ratio 0.3 --mlm-learning-rate 0.002 --report-to tensorboard"
    first = run("pretrain", command)
    assert first.code == 0, first.err
    decided = {
        "mlm": {"objective": "mlm", "schedule": "linear", "warmup_steps": 2, "weight_decay": 0.01, "steps": 40},
        "tsdae": {"objective": "tsdae", "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "steps": 3},
    }
    decided["mlm"] |= {"mlm_ratio": 0.3, "learning_rate": 0.002}
    decided["tsdae"] |= {"learning_rate": 5e-4}  # the preset's, untouched
    for name, expected in decided.items():
        settings = json.loads((place / "made" / name / "config.json").read_text())
        expected |= {"seed": 3, "pooling": "mean", "model": {"mlm": "made/start", "tsdae": "made/raw"}[name]}
        assert {key: settings[key] for key in expected} == expected
        assert list((place / "made" / name).glob("tensorboard/*"))
    shape_of = json.loads((place / "made" / "raw" / "config.json").read_text())
    assert (shape_of["num_attention_heads"], shape_of["intermediate_size"]) == (2, 512)
    trained = TSDAE.from_pretrained(place / "made" / "mlm")
    raw = AutoModelForMaskedLM.from_pretrained(place / "made" / "raw")
    torch.testing.assert_close(raw.cls.predictions.transform.dense.weight, trained.head.transform.weight)
    torch.testing.assert_close(raw.bert.embeddings.word_embeddings.weight, trained.encoder.bert.embeddings.words.weight)
    start = SentenceEncoder.from_pretrained(place / "made" / "start")
    assert not torch.equal(start.bert.embeddings.words.weight, trained.encoder.bert.embeddings.words.weight)
    loaded = SentenceEncoder.from_pretrained(place / "made" / "raw")
    assert loaded.pretrained.head is not None
    torch.testing.assert_close(loaded.pretrained.head["bias"], trained.head.bias.detach())

    before = (place / "made" / "tsdae" / "encoder" / "model.safetensors").read_bytes()
    again = run("pretrain", f"./{command}")  # the same text by another name
    assert again.code == 0
    assert "steps of batch" not in again.err
    assert (place / "made" / "tsdae" / "encoder" / "model.safetensors").read_bytes() == before
    begun = json.loads((place / "made" / "pretrain.json").read_text())
    del begun["mlm_ratio"], begun["mlm_learning_rate"]  # as an older version wrote it: then they were the defaults
    (place / "made" / "pretrain.json").write_text(json.dumps(begun))
    older = run("pretrain", command.replace(" --mlm-ratio 0.3 --mlm-learning-rate 0.002", ""))
    assert older.code == 0, older.err
    other = run("pretrain", command.replace("--mlm-steps 40", "--mlm-steps 5"))
    assert (other.code, "was started with --mlm-steps 40, now it is 5" in other.err) == (2, True), other.err


def test_a_drawn_text_makes_the_tokenizer_too(place: Path) -> None:
    """--shuffle --limit draws from the whole text, for the tokenizer as for the corpus."""
    lines = [f"the {word} {other}" for word in tiny.WORDS for other in tiny.WORDS]
    (place / "many.txt").write_text("\n".join(lines * 2))
    settings = TextConfig(shuffle=True, limit=50, heldout="0")
    drawn = list(sentences_of("many.txt", settings))
    corpus, _ = build_corpora(open_texts("many.txt"), "many.txt", settings, tiny.tokenizer())
    expected = Corpus.build(drawn, tiny.tokenizer())
    assert len(drawn) == 50
    np.testing.assert_array_equal(corpus.token_ids, expected.token_ids)
    assert len(list(sentences_of("many.txt", TextConfig(shuffle=True)))) == 2 * len(lines)
    assert list(sentences_of("many.txt", TextConfig(limit=50))) == lines[:50]


def test_a_pattern_does_not_stand_for_the_stages(place: Path, run: Run) -> None:
    (place / "texts").mkdir()
    lines = [f"{word} {other}" for word in tiny.WORDS for other in tiny.WORDS]
    (place / "texts" / "words.txt").write_text("\n".join(lines))
    (place / "texts" / "made" / "start.part").mkdir(parents=True)  # of a process that was killed
    (place / "texts" / "made" / "start.part" / "left.txt").write_text("þþþ\n" * 500)
    shape = "--layers 1 --width 64 --vocabulary-size 100 --positions 16 --threads 1 --device cpu --heldout 5"
    result = run("pretrain", f"texts/**/* --output texts/made --mlm-steps 1 --tsdae-steps 0 {shape}")
    assert result.code == 0, result.err
    report = json.loads((place / "texts" / "made" / "corpus" / "report.json").read_text())
    assert report["texts"] == len(lines)
    assert "þ" not in "".join(AutoTokenizer.from_pretrained("texts/made/start").get_vocab())


def test_what_cannot_be_read_twice_is_refused(place: Path, run: Run) -> None:
    tiny.prepared(place / "prepared")
    for source, message in (("-", "the text is read twice"), ("prepared", "is tokenised already")):
        result = run("pretrain", f"{source} --output made")
        assert (result.code, message in result.err) == (2, True), result.err
        assert not (place / "made").exists()


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_more_letters_than_pieces(kind: str) -> None:
    with pytest.raises(ValueError, match=r"is too small|vocabulary is not large enough"):
        train_tokenizer(lambda: [chr(0x4E00 + k) for k in range(300)], kind, 120)


def test_what_reads_the_text_says_what_is_wrong_with_it() -> None:
    def sentences() -> Iterator[str]:
        yield "a dog"
        raise ValueError("line 2: not UTF-8")

    with pytest.raises(ValueError, match=r"^line 2: not UTF-8"):
        train_tokenizer(sentences, "wordpiece", 100)


def test_a_sentence_without_spaces_is_not_unknown_and_keeps_its_vowel_signs() -> None:
    thai = ["ที่นี่มีแมวดำ" * 12, "แมวอยู่ที่นี่", "हिन्दी में कुत्ता"]
    tokenizer = train_tokenizer(lambda: thai * 5, "wordpiece", 60)
    for sentence in thai:
        assert tokenizer.unk_token not in tokenizer.tokenize(sentence)
        pieces = [piece.removeprefix("##") for piece in tokenizer.tokenize(sentence)]
        assert "".join(pieces) == sentence.replace(" ", "")
    assert len(thai[0]) > 100, "the premise: BERT would not know it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--width 100", "--width must be a multiple of 64, got 100"),
        ("--vocabulary-size 9", "--vocabulary-size must be at least 100, got 9"),
        ("--vocabulary-size 5000", "the text supports"),
        ("--mlm-ratio 1", "--mlm-ratio must be in (0, 1), got 1.0"),
        ("--mlm-learning-rate 0", "--mlm-learning-rate must be above 0"),
        ("--tsdae-steps -1", "--tsdae-steps must be at least 0"),
        ("--output model", "exists and is not an output of"),
        ("--width -64", "--width must be a multiple of 64, got -64"),
        ("--evaluate no.tsv", "no file no.tsv"),
        ("--precision fp16 --device cpu", "fp16"),
        ("--heldout no.txt", "no file no.txt"),
        ("--modle x", "unknown argument --modle"),
    ],
)
def test_bad_input_gets_one_line(place: Path, run: Run, flags: str, message: str) -> None:
    before = contents(place)
    result = run("pretrain", f"text.txt --output made {flags}" if "--output" not in flags else f"text.txt {flags}")
    assert (result.code, message in result.err) == (2, True), result.err
    assert contents(place) == before, "so that the same --output can be given again"
