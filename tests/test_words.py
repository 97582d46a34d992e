"""Words in many scripts: what is deleted, where units begin, what cannot be a definition of words."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.languages import KINDS, SENTENCES, trained
from tests.scripts import Run
from tsdae.dataset import DenoisingDataset
from tsdae.text.corpus import Corpus
from tsdae.text.marks import BEGINS_WORD, INSIDE, SPECIAL, tokenize
from tsdae.text.word_boundaries import CHOICES, WITHOUT_SPACES, WordCounts, Words, notes

RATIO, EPOCHS = 0.6, 100
WORD_SPACES = "\u0f0b\u0f0c\u1361\u200b"  # marks between words
WITHOUT_WORDS = ("Thai", "Khmer", "Lao", "Burmese", "Chinese", "Japanese", "Tibetan", "Amharic with U+1361")
ALL = [sentence for group in SENTENCES.values() for sentence in group]
SPACES = [sentence for name, group in SENTENCES.items() for sentence in group if name not in WITHOUT_WORDS]
MIXED = [
    "The cat says แมว twice, “café”: 猫。 ok",
    "  two  spaces\tและ แท็บ  ",
    "\u0e48 a mark first, a\u0e31 mark on Latin, แ\u200bม\u200b ว",
    "ราคา 1,250 บาท 🇹🇭🇱🇦 👨‍👩‍👧 ok",
    "㍿½ﬁ ㌔ ｶﾞｷﾞ コーヒー・々",
    "中\u0301x\u0301 e\u0301文",
    "a",
    "dog ",
    "  กา",  # what stands between two sentences is no white space
    "家",
]
SPLITTERS = (
    "def pairs(text):\n    return [text[k : k + 2] for k in range(0, len(text), 2)]\n"
    "def with_spaces(text):\n    import re\n    return re.findall(r'\\S+\\s*|\\s+', text)\n"
    "def without_spaces(text):\n    return text.split()\n"
    "def whole(text):\n    return text\n"
    "def numbers(text):\n    return [len(text)]\n"
)


@functools.cache
def tokenizer_of(language: str, kind: str) -> Any:
    """Trained on the sentences of the language: most pieces are of one character or a few."""
    sentences = SENTENCES[language]
    letters = len(set("".join(sentences)))
    return trained(kind, sentences, {"WordPiece": 2 * letters + 10, "Unigram": 150, "bytes": 330}[kind])


@functools.cache
def tokenizer_of_all(kind: str) -> Any:
    tokenizer = trained(kind, [*ALL, *MIXED], 1200)
    if kind == "Unigram":  # as XLM-RoBERTa's: one character becomes several, which stay together
        tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


@pytest.fixture
def splitters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.py").write_text(SPLITTERS)
    monkeypatch.chdir(tmp_path)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """Without spaces and without the signs of a piece that goes on."""
    return "".join(tokenizer.decode(ids, skip_special_tokens=True).replace("##", "").split())


def word_id_marks(sentences: list[str], tokenizer: Any) -> list[int]:
    """The marks by word ids and nothing else."""
    marks = []
    for sentence in sentences:
        before: int | None = None
        for word in tokenizer.backend_tokenizer.encode(sentence).word_ids:
            marks.append(SPECIAL if word is None else INSIDE if word == before else BEGINS_WORD)
            before = word
    return marks


def deleted_share(corpus: Corpus, tokenizer: Any) -> float:
    """Of the characters, over all epochs; each noisy text is checked on the way."""
    dataset = DenoisingDataset(corpus, tokenizer, "delete", RATIO, max_length=1000)
    clean = [text_of(tokenizer, dataset[row].target_ids) for row in range(len(dataset))]
    left = 0
    for epoch in range(EPOCHS):
        pairs = dataset.__getitems__([(epoch, row) for row in range(len(dataset))])
        for pair, whole in zip(pairs, clean, strict=True):
            noisy = text_of(tokenizer, pair.noisy_ids)
            rest = iter(whole)
            assert "\ufffd" not in noisy, "a character is torn"
            assert all(letter in rest for letter in noisy), "the order is not kept"
            left += len(noisy)
    return 1 - left / (EPOCHS * sum(map(len, clean)))


def expected_share(corpus: Corpus, tokenizer: Any) -> tuple[float, float]:
    """(mean, standard deviation) by the exact law: of n units one stays with probability r^n, any of them alike."""
    kept = variance = total = 0.0
    for row in range(len(corpus)):
        tokens, word_T = corpus.rows(np.array([row]))
        sizes = [
            len(text_of(tokenizer, tokens.token_ids_T[word_T == word].tolist())) for word in range(word_T.max() + 1)
        ]
        kept += RATIO ** len(sizes) * sum(sizes) / len(sizes)
        variance += RATIO * (1 - RATIO) * sum(size**2 for size in sizes)
        total += sum(sizes)
    return RATIO - kept / total, float(np.sqrt(variance / EPOCHS) / total)


# ---------------------------------------------------------------------------------------------------------------
# What is deleted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", SENTENCES)
def test_deletion_deletes_the_ratio_in_every_script(language: str, kind: str) -> None:
    tokenizer = tokenizer_of(language, kind)
    corpus = Corpus.build(SENTENCES[language], tokenizer)
    mean, deviation = expected_share(corpus, tokenizer)
    assert mean > RATIO - 0.05, "the premise: words enough, so that the one that must stay counts for little"
    assert deviation < 0.02, "the premise: draws enough"
    assert abs(deleted_share(corpus, tokenizer) - mean) < 4 * deviation


@pytest.mark.parametrize("language", sorted(set(WITHOUT_WORDS) - {"Burmese", "Chinese", "Japanese"}))
def test_by_word_ids_alone_nothing_is_deleted(language: str) -> None:
    """The failure that `Words` is there for: a sentence is one word, and one word always stays."""
    tokenizer = tokenizer_of(language, "Unigram")
    corpus = Corpus.build(SENTENCES[language], tokenizer)
    alone = dataclasses.replace(corpus, marks=np.array(word_id_marks(SENTENCES[language], tokenizer), np.uint8))
    assert deleted_share(alone, tokenizer) == 0.0
    assert deleted_share(corpus, tokenizer) > 0.5


@pytest.mark.parametrize("words", ["tokens", "characters"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_definition_tears_a_character(kind: str, words: str) -> None:
    for language in ("Hindi", "Chinese"):
        tokenizer = tokenizer_of(language, kind)
        corpus = Corpus.build(SENTENCES[language], tokenizer, words)
        mean, deviation = expected_share(corpus, tokenizer)
        assert abs(deleted_share(corpus, tokenizer) - mean) < 4 * deviation
    if kind == "bytes":
        marks = np.where(corpus.marks == SPECIAL, SPECIAL, BEGINS_WORD).astype(np.uint8)
        with pytest.raises(AssertionError, match="is torn"):  # the premise: tokens that are parts of characters
            deleted_share(dataclasses.replace(corpus, marks=marks), tokenizer)


# ---------------------------------------------------------------------------------------------------------------
# Where units begin


def slow_borders(sentence: str, words: str) -> set[int]:
    """Where units of characters begin in a sentence, by an obvious loop."""
    ends = list(accumulate(len(cluster) for cluster in regex.findall(r"\X", sentence)))
    spaceless = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー・]"
    borders = set()
    for place in range(1, len(sentence)):
        before, here = sentence[place - 1], sentence[place]
        beside = before in WORD_SPACES or here in WORD_SPACES
        near = regex.match(spaceless, before) or regex.match(spaceless, here)
        if (
            words == "tokens"
            or (words == "characters" and place in ends)
            or (words == "auto" and place in ends and (near or beside))
            or (words == "whitespace" and ((here.isspace() and not before.isspace()) or beside))
            or (words == "cut.py:pairs" and place % 2 == 0)
            or (words == "cut.py:with_spaces" and before.isspace() and not here.isspace())
        ):
            while words != "tokens" and place and sentence[place - 1].isspace():
                place -= 1
            borders.add(place)
    return borders - {0}


def slow_marks(sentence: str, tokenizer: Any, words: str) -> list[int]:
    """The marks of a sentence, by a loop over its tokens."""
    encoding = tokenizer.backend_tokenizer.encode(sentence)
    borders = slow_borders(sentence, words)
    marks = []
    for k, (start, end) in enumerate(encoding.offsets):
        end_before = encoding.offsets[k - 1][1]
        begins = any(end_before <= border <= start for border in borders)
        begins &= words not in ("auto", "whitespace") or start == end or sentence[start:end].strip(WORD_SPACES) != ""
        begins |= k == 0 or encoding.special_tokens_mask[k - 1]
        begins |= words == "auto" and encoding.word_ids[k] != encoding.word_ids[k - 1]
        marks.append(SPECIAL if encoding.special_tokens_mask[k] else BEGINS_WORD if begins else INSIDE)
    return marks


@pytest.mark.usefixtures("splitters")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [*CHOICES, "cut.py:pairs", "cut.py:with_spaces"])
def test_marks_equal_those_of_a_slow_twin(words: str, kind: str) -> None:
    """Whatever stands beside a sentence: all are tokenised in one call, and each is looked at alone."""
    tokenizer = tokenizer_of_all(kind)
    sentences = [*MIXED, *ALL]
    tokens, marks_T = tokenize(sentences, tokenizer, Words(words))
    found: set[int] = set()
    for row, sentence in enumerate(sentences):
        got = marks_T[tokens.boundaries[row] : tokens.boundaries[row + 1]].tolist()
        assert got == slow_marks(sentence, tokenizer, words), sentence
        found |= set(got)
    assert found == {INSIDE, BEGINS_WORD, SPECIAL} or (words, kind) == ("tokens", "WordPiece"), "the premise"


@pytest.mark.parametrize(
    ("pieces", "units"),
    [
        ("dog· cat· red", "dog· cat· red"),  # at the end of a piece
        ("dog ·cat ·red", "dog ·cat ·red"),  # at the start of one
        ("dog · cat · red", "dog· cat· red"),  # a piece of its own: never a unit of its own
        ("do g · ca t", "dog· cat"),
        ("dog ·cat· red", "dog ·cat· red"),
        ("dog·c at· red", "dog·cat· red"),
        ("dog · · cat", "dog·· cat"),
        ("dog · ·cat", "dog· ·cat"),
        ("dog· ·cat", "dog· ·cat"),
    ],
)
def test_a_word_space_that_is_a_mark(pieces: str, units: str) -> None:
    for mark in WORD_SPACES:
        parts = pieces.replace("·", mark).split(" ")
        vocabulary = [("[UNK]", -99.0), *((part, -1.0) for part in sorted(set(parts)))]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(vocabulary, unk_id=0)))
        encoding = tokenizer.backend_tokenizer.encode("".join(parts))
        assert (encoding.tokens, set(encoding.word_ids)) == (parts, {0}), "the premise: one word to the tokenizer"
        for words in ("auto", "whitespace", "characters"):
            marks_T = tokenize(["".join(parts)], tokenizer, Words(words))[1].tolist()
            found = "".join(
                f" {part}" if is_a == BEGINS_WORD else part for is_a, part in zip(marks_T, parts, strict=True)
            )
            assert found[1:] == (pieces if words == "characters" else units).replace("·", mark)


@pytest.mark.parametrize("kind", KINDS)
def test_where_spaces_are_written_auto_is_what_the_tokenizer_says(kind: str) -> None:
    tokenizer = tokenizer_of_all(kind)
    sentences = [*SPACES, *tiny.SENTENCES, "“Déjà vu”, a naïve [SEP] Übung – 1 250 €…"]
    words = Words()
    assert tokenize(sentences, tokenizer, words)[1].tolist() == word_id_marks(sentences, tokenizer)
    assert len(words.cut(sentences)) == 0
    assert not +words.met


def test_scripts_are_those_of_unicode() -> None:
    """Up to U+FFFF: what lies above is rare and still grows. Signs that scripts share may stand among their own."""
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
    for name, ranges in WITHOUT_SPACES.items():
        ours = {chr(code) for first, last in ranges for code in range(first, last + 1) if code < 0x10000}
        theirs = set(regex.findall(rf"\p{{Script={name}}}", text))
        assert not {hex(ord(letter)) for letter in theirs - ours}, name
        others = [letter for letter in ours - theirs if regex.match(r"\p{L}|\p{M}", letter)]
        assert not [hex(ord(letter)) for letter in others if not regex.match(r"\p{Common}|\p{Inherited}", letter)]


# ---------------------------------------------------------------------------------------------------------------
# A segmenter of one's own, and what is no definition of words


@pytest.mark.usefixtures("splitters")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cut.py:without_spaces", "joined, the parts must equal the sentence, .* for 'a man is playing"),
        ("cut.py:whole", "must return a list of strings, it returned 'a man"),
        ("cut.py:numbers", r"must return a list of strings, it returned \[\d+\]"),
        ("cut.py:nothing", "cut.py has no function nothing"),
        ("nowhere:cut", "nowhere cannot be imported"),
        ("syllables", "must be one of auto, tokens, characters, whitespace, or module:function .* got 'syllables'"),
        ("", "must be one of auto"),
    ],
)
def test_what_is_no_definition_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingDataset(tiny.SENTENCES, tiny.tokenizer(), words=words)


@pytest.mark.usefixtures("splitters")
def test_a_segmenter_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are deleted whole; empty parts do no harm."""
    cut = {"แมวกินปลา": ["แมว", "", "กิน", "ปลา"], "หมา": ["หมา"]}
    monkeypatch.setattr(sys.modules[__name__], "cut", cut.__getitem__, raising=False)
    tokenizer = trained("bytes", list(cut), 265)
    dataset = DenoisingDataset(list(cut), tokenizer, noise_ratio=0.5, words=f"{__name__}:cut")
    seen = {dataset.text(0, epoch)[0] for epoch in range(100)}
    assert seen == {"แมวกินปลา", "แมวกิน", "แมวปลา", "กินปลา", "แมว", "กิน", "ปลา"}
    assert {dataset.text(1, epoch)[0] for epoch in range(9)} == {"หมา"}


def test_a_corpus_keeps_its_words(tmp_path: Path) -> None:
    corpus = Corpus.build(tiny.SENTENCES, tiny.tokenizer(), "tokens")
    assert corpus.marks.tolist() != Corpus.build(tiny.SENTENCES, tiny.tokenizer()).marks.tolist()
    corpus.write(tmp_path / "corpus")
    mapped = Corpus.open(tmp_path / "corpus")
    assert (mapped.words, mapped.counts) == ("tokens", corpus.counts)
    for words in (None, "tokens"):
        assert DenoisingDataset(mapped, tiny.tokenizer(), words=words)[3] == DenoisingDataset(
            tiny.SENTENCES, tiny.tokenizer(), words="tokens"
        )[3]  # fmt: skip
    for words in ("auto", "nowhere:cut"):
        with pytest.raises(ValueError, match=f"made with words 'tokens', not '{words}'"):
            DenoisingDataset(mapped, tiny.tokenizer(), words=words)


def test_a_corpus_of_an_earlier_version_has_the_tokenizers_words(tmp_path: Path) -> None:
    tiny.prepared(tmp_path / "corpus")
    path = tmp_path / "corpus" / "corpus.json"
    says = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in says.items() if name not in ("words", "figures")}))
    mapped = Corpus.open(tmp_path / "corpus")
    assert (mapped.words, mapped.counts, mapped.notes()) == ("auto", None, [])
    damaged: list[Any] = [
        [],
        "no",
        {"words": 1},
        says["figures"] | {"met": {"Thai": "1"}},
        says["figures"] | {"words": "a"},
    ]
    for figures in damaged:
        path.write_text(json.dumps(says | {"figures": figures}))
        with pytest.raises(ValueError, match="is damaged: counts of words cannot be"):
            Corpus.open(tmp_path / "corpus")


# ---------------------------------------------------------------------------------------------------------------
# What is said


def test_the_figures_are_counted() -> None:
    sentences = ["a man xyz", "unknown dogs", "[UNK] guitar"]  # xyz is unknown, and the text may spell the token out
    corpus = Corpus.build([*sentences, ""], tiny.tokenizer())
    assert corpus.counts == WordCounts(words=7, tokens=9, characters=29, unknown=2, met={})
    thai = Corpus.build([*SENTENCES["Thai"], "the ปลา", "dog", *SENTENCES["Tibetan"]], tokenizer_of("Thai", "bytes"))
    assert thai.counts
    assert thai.counts.met == {"Thai": 6, "tsheg": 5}


def test_the_notes() -> None:
    figures = WordCounts(1000, 1234, 2300, 246, {"Thai": 1997})
    (line,) = notes("auto", figures)
    assert line == (
        "words: the tokenizer's own; in 1,997 sentences with Thai, character clusters; "
        "a word has 2.3 characters and 1.2 tokens on average"
    )
    (line,) = notes("auto", figures._replace(met={"tsheg": 3, "Han": 2000, "Hiragana": 1}))
    assert "own; in 2,000 sentences with Han, 1 with Hiragana, character clusters; in 3 sentences words end" in line
    assert notes("tokens", figures._replace(met={}))[0].startswith("words: every token is one; a word has")
    assert notes("jieba:lcut", figures._replace(met={}))[0].startswith("words: as jieba:lcut cuts; a word has")
    _, warning = notes("auto", figures._replace(unknown=420))
    assert warning == (
        "34 % of the tokens are unknown to this vocabulary; choose a model whose tokenizer knows the language (for "
        "example xlm-roberta-base), or make one from this text (tsdae pretrain)"
    )


# ---------------------------------------------------------------------------------------------------------------
# On the command line

STEPS = "--steps 2 --batch-size 2 --eval-every 0 --evaluate none --device cpu --precision fp32"


def test_training_and_preparing_take_words(run: Run, place: Path) -> None:
    trained_run = run("train", f"--corpus text.txt --model model --heldout 1 --output runs/a {STEPS}")
    assert trained_run.code == 0, trained_run.err
    assert "words: the tokenizer's own; a word has " in trained_run.err
    assert json.loads((place / "runs" / "a" / "config.json").read_text())["words"] == "auto"
    prepared = run("prepare", "text.txt --model model --heldout 1 --words characters --output prepared")
    assert prepared.code == 0, prepared.err
    assert "words: character clusters; a word has " in prepared.err
    assert json.loads((place / "prepared" / "heldout" / "corpus.json").read_text())["words"] == "characters"
    from_it = run("train", f"--corpus prepared --model model --output runs/b {STEPS}")
    assert from_it.code == 0, from_it.err
    assert "words: character clusters; a word has " in from_it.err
    again = run("train", "--resume --output runs/b --steps 3")
    assert again.code == 0, again.err


def test_a_run_with_a_segmenter_names_it_again(run: Run, place: Path) -> None:
    (place / "cut.py").write_text(SPLITTERS)
    text = "--corpus text.txt --model model --heldout 1 --words cut.py:with_spaces"
    assert run("train", f"{text} --output runs/a {STEPS}").code == 0
    assert json.loads((place / "runs" / "a" / "config.json").read_text())["words"] == "cut.py:with_spaces"
    refused = run("train", "--resume --output runs/a --steps 3")
    assert (
        refused.code,
        "the run's --words is code of your own, which is not run unasked; give --words cut.py:with" in refused.err,
    ) == (2, True)
    resumed = run("train", "--resume --output runs/a --steps 3 --words cut.py:with_spaces")
    assert resumed.code == 0, resumed.err
    other = run("train", "--resume --output runs/a --steps 4 --words tokens")
    assert (other.code, "--words is tokens, and the run was started with cut.py:with" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train", "--words syllables", "words must be one of auto, tokens, characters, whitespace"),
        ("train", "--corpus text.txt --model ./nowhere --words syllables", "words must be one of auto, tokens"),
        ("train", "--corpus text.txt --model ./nowhere --words nowhere:cut", "nowhere cannot be imported"),
        ("train", "--corpus text.txt --model ./nowhere --words cut.py:nothing", "cut.py has no function nothing"),
        ("train", "--corpus text.txt --model model --words cut.py:without_spaces", "for 'a man is playing"),
        ("train", "--corpus prepared --model model --words auto", "--words applies when a text is prepared"),
        ("prepare", "text.txt --model ./nowhere --output new --words letters", "words must be one of auto, tokens"),
        ("prepare", "text.txt --model ./nowhere --output new --words cut.py:nothing", "has no function nothing"),
        ("prepare", "text.txt --model model --output new --words cut.py:whole", "must return a list of strings"),
    ],
)
def test_a_bad_definition_ends_in_one_line(run: Run, place: Path, script: str, arguments: str, message: str) -> None:
    (place / "cut.py").write_text(SPLITTERS)
    Corpus.build(tiny.SENTENCES, tiny.tokenizer(), "tokens").write(place / "prepared")
    before = sorted(path.name for path in place.iterdir() if path.name != "__pycache__")
    result = run(script, arguments)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
    assert result.err.count("error") == 1
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == before
