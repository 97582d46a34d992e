"""Slow tokenizers, which know no word ids: words from their pieces, the note, fingerprints, folders, training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from tokenizers import normalizers
from transformers import AutoTokenizer, BertJapaneseTokenizer, PhobertTokenizer, PreTrainedTokenizer

from tests import tiny
from tests.languages import SENTENCES, SPECIAL_TOKENS, trained
from tests.scripts import Run
from tsdae import DenoisingDataset, SentenceEncoder
from tsdae.bert import Bert
from tsdae.hub.model_folder import model_folder
from tsdae.text.corpus import Corpus
from tsdae.text.marks import BEGINS_WORD, SPECIAL, tokenize
from tsdae.text.tokenization import fingerprint_of, token_ids, vocabulary_of
from tsdae.text.word_boundaries import Words

ROOT = Path(__file__).parents[1]
# Two words of Vietnamese in one are joined by _ in the texts that PhoBERT reads.
VIETNAMESE = [
    "tôi là sinh_viên",
    "bạn tôi đi học buổi sáng ☃tuyết , rồi về nhà",
    "con mèo nhỏ ngủ trên ghế",
    "sinh_viên học tiếng Việt <mask> </s> mỗi ngày",
    "hôm_nay trời mưa to",
    "chúng_tôi ăn cơm với cá",
]
PIECES = [
    "tôi",
    "là",
    "sinh@@",
    "_viên",
    "đi",
    "học",
    "con",
    "m@@",
    "è@@",
    "o",
    "bạn",
    *"mèo_nhủỏtrêếábuổisgdlềàyệVờâúăơcvướxh,",
]
PIECES = [*dict.fromkeys([*PIECES, *(f"{letter}@@" for letter in PIECES[11:])])]
MERGES = ["s i", "si n", "sin h", "_ v", "_v i", "_vi ê", "_viê n</w>", "t ô", "tô i</w>", "l à</w>", "đ i</w>", "h ọ"]
MERGES += ["họ c</w>", "c o", "co n</w>", "n h", "n g", "ạ n</w>"]
JAPANESE = ["東京 大学 の 犬 は dogs を 見る", "犬は東京大学を見る", "[UNK] の 大学 犬", "dogs dogs 東京 ."]


def phobert(folder: Path, pieces: list[str] = PIECES, merges: list[str] = MERGES) -> Any:
    """A RoBERTa's tokenizer of Vietnamese: a piece that goes on ends in @@."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    (folder / "bpe.codes").write_text("".join(f"{merge} 1\n" for merge in merges))
    return PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def japanese(folder: Path, **settings: Any) -> Any:
    """A BERT's tokenizer of Japanese: a piece that goes on begins with ##. Words are split at spaces here."""
    folder.mkdir(exist_ok=True)
    pieces = "東京 大学 ##大 ##学 ##大学 の 犬 は を 見る ##は ##東京 ##を ##見る dog ##s . 東 京 大 学 見 る d o g s"
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS.values(), *pieces.split()]) + "\n")
    return BertJapaneseTokenizer(str(folder / "vocab.txt"), **settings)


class SlowTwin(PreTrainedTokenizer):
    """The vocabulary of a fast tokenizer behind the interface of a slow one."""

    def __init__(self, fast: Any) -> None:
        self.fast, self.ids = fast, fast.get_vocab()
        super().__init__(**{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()})

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return self.fast.backend_tokenizer.encode(text, add_special_tokens=False).tokens

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, self.ids["[UNK]"])

    def _convert_id_to_token(self, index: int) -> str:
        return self.fast.convert_ids_to_tokens(index)

    def build_inputs_with_special_tokens(self, ids: list[int], _pair: Any = None) -> list[int]:
        return [self.cls_token_id, *ids, self.sep_token_id]


class Letters(SlowTwin):
    """Its pieces are letters; the sign stands at the beginning of the text, and nowhere else."""

    def __init__(self, fast: Any, sign: str) -> None:
        self.sign = sign
        super().__init__(fast)

    def get_vocab(self) -> dict[str, int]:
        return {piece: number for piece, number in self.ids.items() if self.sign or "▁" not in piece}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [*([self.sign] if text[0] == "a" and self.sign else []), *text.replace(" ", "")]


def twins(kind: str) -> tuple[Any, SlowTwin]:
    """A fast tokenizer and a slow one that cut alike, and change no letter: what they change, pieces do not tell."""
    sentences = [sentence for group in SENTENCES.values() for sentence in group]
    fast = trained(kind, sentences, 900)
    if kind == "WordPiece":
        fast.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return fast, SlowTwin(fast)


def units(sentence: str, tokenizer: Any, words: str = "auto") -> list[str]:
    """The pieces of a sentence, those of a word together."""
    tokens, marks_T = tokenize([sentence], tokenizer, Words(words))
    parts = []
    for piece, is_a in zip(tokenizer.convert_ids_to_tokens(tokens.token_ids_T.tolist()), marks_T, strict=True):
        if is_a != SPECIAL:
            parts.append(f" {piece}" if is_a == BEGINS_WORD else f"+{piece}")
    return "".join(parts).split()


def slow_encoder(tokenizer: Any) -> SentenceEncoder:
    made = SentenceEncoder(Bert(tiny.config(vocabulary_size=vocabulary_of(tokenizer).size)), tokenizer)
    tiny.randomise(made)
    return made.eval()


# ---------------------------------------------------------------------------------------------------------------
# Words


def test_a_piece_that_goes_on_begins_no_word(tmp_path: Path) -> None:
    vietnamese, tokyo = phobert(tmp_path / "vi"), japanese(tmp_path / "ja")
    assert units(VIETNAMESE[0], vietnamese) == ["tôi", "là", "sinh@@+_viên"]
    assert units("con mèo đi", vietnamese) == ["con", "m@@+è@@+o", "đi"]
    # Unknown pieces go on as well, though their id does not say so; what is spelled out is a word like any other.
    assert units("☃đi tôi", vietnamese) == ["<unk>+đi", "tôi"]
    assert units("mèo<mask></s>tôi", vietnamese) == ["m@@+è@@+o", "<mask>", "</s>", "tôi"]
    assert units("東京 dogs [SEP] .", tokyo) == ["東京", "dog+##s", "[SEP]", "."]
    # Where a script writes no spaces, character clusters, as in every tokenizer; without them this were one word.
    assert units(JAPANESE[1], tokyo) == ["犬", "##は", "##東京", "##大学", "##を", "##見る"]
    assert units("dogs 東京大学", japanese(tmp_path / "ja", subword_tokenizer_type="character")) == list("dogs東京大学")


def test_vocabularies_of_other_signs() -> None:
    # Nothing but letters: each piece is a word.
    assert units("ab cd", Letters(trained("Unigram", ["abcd"], 20), sign="")) == ["a", "b", "c", "d"]
    # A token that was added is a word, and so is what stands behind it, though it lacks the sign.
    assert units("ab[SEP]cd", Letters(trained("Unigram", ["abcd"], 20), sign="▁")) == ["▁+a+b", "[SEP]", "c+d"]


@pytest.mark.parametrize("words", ["auto", "characters"])
@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_marks_are_those_of_the_fast_tokenizer(kind: str, words: str) -> None:
    fast, slow = twins(kind)
    for language, sentences in SENTENCES.items():
        for sentence in (*sentences, f" {sentences[0]}  , [SEP] “{sentences[1]}” जगत् गया", "", " "):
            expected, expected_T = tokenize([sentence], fast, Words(words))
            tokens, marks_T = tokenize([sentence], slow, Words(words))
            assert tokens.token_ids_T.tolist() == expected.token_ids_T.tolist(), "the premise"
            assert marks_T.tolist() == expected_T.tolist(), (language, sentence)
            tokens, marks_T = tokenize([sentence], slow, Words("tokens"))
            assert marks_T.tolist() == [SPECIAL, *[BEGINS_WORD] * (len(marks_T) - 2), SPECIAL]


def test_ids_and_special_tokens_are_those_of_its_own_call(tmp_path: Path) -> None:
    cases = [(phobert(tmp_path / "vi"), VIETNAMESE), (japanese(tmp_path / "ja"), JAPANESE)]
    for tokenizer, sentences in cases:
        tokenizer.padding_side, tokenizer.model_max_length = "left", 4
        plain = tokenizer([*sentences, ""], return_special_tokens_mask=True, verbose=False)
        tokens, marks_T = tokenize([*sentences, ""], tokenizer)
        assert [list(ids) for ids in tokens.sentences()] == plain["input_ids"]
        assert [list(ids) for ids in token_ids([*sentences, ""], tokenizer).sentences()] == plain["input_ids"]
        assert (marks_T == SPECIAL).tolist() == [bool(mark) for row in plain["special_tokens_mask"] for mark in row]
        cut = list(token_ids(sentences, tokenizer, max_length=5).sentences())[1]
        assert list(cut) == [*plain["input_ids"][1][:4], tokenizer.sep_token_id]


# ---------------------------------------------------------------------------------------------------------------
# What is refused


def test_what_pieces_do_not_tell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "cut", str.split, raising=False)
    tokenizer = phobert(tmp_path / "vi")
    for words in ("whitespace", f"{__name__}:cut"):
        with pytest.raises(
            ValueError, match=f"words '{words}' needs .* PhobertTokenizer, a slow .* auto, tokens, char"
        ):
            DenoisingDataset(VIETNAMESE, tokenizer, words=words)
    with pytest.raises(ValueError, match=r"SlowTwin is a slow byte-level tokenizer .* use its fast version"):
        tokenize(VIETNAMESE, SlowTwin(trained("bytes", VIETNAMESE, 300)))
    no_text: list[Any] = ["a", 3]
    for function in (tokenize, token_ids):
        with pytest.raises(ValueError, match="sentence 0 holds half of a surrogate pair"):
            function(["\ud83d"], tokenizer)
        with pytest.raises(ValueError, match="sentence 1 is int, not text: 3"):
            function(no_text, tokenizer)


def test_text_that_has_to_be_lowered_first_is_refused(tmp_path: Path) -> None:
    slow_encoder(phobert(tmp_path / "vi")).save_pretrained(tmp_path / "saved")
    settings = tmp_path / "saved" / "sentence_bert_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_lower_case": True}))
    with pytest.raises(ValueError, match=r"asks for lower-case text .* slow tokenizer PhobertTokenizer cannot"):
        SentenceEncoder.from_pretrained(tmp_path / "saved")


# ---------------------------------------------------------------------------------------------------------------
# Fingerprints, folders, new words


MAKERS: dict[str, Callable[[Path], Any]] = {"@@": phobert, "##": japanese}


@pytest.mark.parametrize("sign", MAKERS)
def test_a_folder_gives_the_same_tokenizer_again(sign: str, tmp_path: Path) -> None:
    tokenizer = MAKERS[sign](tmp_path / "source")
    sentences = VIETNAMESE if sign == "@@" else JAPANESE
    short, long = ("mèo", "học_sinh") if sign == "@@" else ("dogs", "東京大学")
    encoder = slow_encoder(tokenizer)
    assert encoder.add_tokens([short, long]) == [short, long]
    vectors = encoder.encode(sentences)
    encoder.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "sentence_bert_config.json").read_text())["do_lower_case"] is False
    again = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert type(again.tokenizer) is type(tokenizer)
    np.testing.assert_array_equal(again.encode(sentences), vectors)
    assert units(f"{long} {short} .", again.tokenizer)[:2] == [long, short]
    assert short not in again.tokenizer.tokenize(f"x{short} {short}x")
    assert again.vocabulary.size == encoder.vocabulary.size == len(tokenizer)
    assert fingerprint_of(again.tokenizer) == fingerprint_of(tokenizer)
    again.save_pretrained(tmp_path / "twice")
    assert fingerprint_of(AutoTokenizer.from_pretrained(tmp_path / "twice")) == fingerprint_of(tokenizer)


@pytest.mark.slow  # a process that imports transformers
def test_the_fingerprint_is_that_of_any_process(tmp_path: Path) -> None:
    code = "import sys, tsdae.hub.model_folder as f, tsdae.text.tokenization as t; from pathlib import Path\n"
    code += "print([t.fingerprint_of(f.load_tokenizer(Path(name))) for name in sys.argv[1:]])"
    made = [phobert(tmp_path / "vi"), japanese(tmp_path / "ja")]
    for tokenizer, name in zip(made, ("vi", "ja"), strict=True):
        tokenizer.save_pretrained(tmp_path / name)
    command = [sys.executable, "-c", code, str(tmp_path / "vi"), str(tmp_path / "ja")]
    other = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert other.stdout.strip() == str([fingerprint_of(tokenizer) for tokenizer in made])


def test_the_fingerprint_knows_all_that_makes_the_ids(tmp_path: Path) -> None:
    class Other(PhobertTokenizer):
        pass

    files = [str(tmp_path / "vi" / name) for name in ("vocab.txt", "bpe.codes")]
    made = [phobert(tmp_path / "vi"), Other(*files), phobert(tmp_path / "vi", merges=[*MERGES[1:], MERGES[0]])]
    made += [phobert(tmp_path / "vi", [*PIECES[1:], PIECES[0]]), phobert(tmp_path / "vi"), phobert(tmp_path / "vi")]
    made[-1].add_tokens(["walking"])
    made[-2].add_tokens(["walking"], special_tokens=True)
    made += [japanese(tmp_path / "ja", **settings) for settings in ({}, {"do_lower_case": True})]
    made += [japanese(tmp_path / "ja", subword_tokenizer_type="character")]
    assert len({fingerprint_of(tokenizer) for tokenizer in made}) == len(made)
    # Where its files lie is no part of it.
    assert fingerprint_of(phobert(tmp_path / "elsewhere")) == fingerprint_of(made[0])
    assert fingerprint_of(japanese(tmp_path / "ja", spm_file="not/used")) == fingerprint_of(japanese(tmp_path / "ja"))


def test_a_new_word_is_written_as_it_was_given(tmp_path: Path) -> None:
    """A slow tokenizer that lowers text would lower the word as well: its vector would go to the unknown token."""
    encoder = slow_encoder(japanese(tmp_path / "ja", do_lower_case=True))
    assert encoder.add_tokens(["DOGS", "dog"]) == ["DOGS"]
    assert encoder.tokenizer.convert_tokens_to_ids("DOGS") == encoder.vocabulary.size - 1
    assert units("DOGS dogs", encoder.tokenizer) == ["DOGS", "dog+##s"]


def test_all_files_of_it_are_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        (tmp_path / name).touch()
    fetched: list[str] = []

    def download(_name: str, allow_patterns: list[str], **_: Any) -> str:
        fetched.extend(filter_repo_objects(["bpe.codes", "vocab.txt", "picture.png"], allow_patterns=allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model_folder("vinai/phobert-base")
    assert fetched == ["bpe.codes", "vocab.txt"]


# ---------------------------------------------------------------------------------------------------------------
# Training


def test_a_corpus_says_where_its_words_come_from(tmp_path: Path) -> None:
    for words in ("auto", "tokens"):
        corpus = Corpus.build(VIETNAMESE, phobert(tmp_path / "vi"), words)
        note = "PhobertTokenizer is a slow tokenizer without word ids: words are taken from its pieces"
        assert corpus.notes()[1:] == [note]
        assert corpus.counts
        assert corpus.counts.met == {"slow tokenizer PhobertTokenizer": len(VIETNAMESE)}
    assert not any("slow" in line for line in Corpus.build(tiny.SENTENCES, tiny.tokenizer()).notes())


def test_training_with_a_slow_tokenizer(place: Path, run: Run) -> None:
    """From a prepared corpus and from the text the same run, which is resumed; its encoder loads again."""
    slow_encoder(phobert(place / "vi")).save_pretrained(place / "slow")
    (place / "vi.txt").write_text("\n".join(VIETNAMESE))
    prepared = run("prepare", "vi.txt --model slow --heldout 1 --output corpus --workers 1")
    assert prepared.code == 0, prepared.err
    assert "PhobertTokenizer is a slow tokenizer without word ids" in prepared.err
    flags = "--model slow --steps 10 --batch-size 2 --eval-every 0 --evaluate none --device cpu --precision fp32"
    for corpus, output in (("corpus", "one"), ("vi.txt --heldout 1", "two")):
        result = run("train", f"--corpus {corpus} {flags} --output {output}")
        assert result.code == 0, result.err
        assert "PhobertTokenizer is a slow tokenizer without word ids: words are taken from its pieces" in result.err
    first, second = ((place / name / "encoder" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    assert first != (place / "slow" / "model.safetensors").read_bytes()
    resumed = run("train", "--resume --output one --steps 12")
    assert resumed.code == 0, resumed.err
    vectors = SentenceEncoder.from_pretrained(place / "one" / "encoder").encode(VIETNAMESE)
    assert np.isfinite(vectors).all()
    refused = run("train", f"--corpus vi.txt {flags} --words whitespace --output three")
    assert (refused.code, "words 'whitespace' needs the offset" in refused.err.splitlines()[-1]) == (2, True)
