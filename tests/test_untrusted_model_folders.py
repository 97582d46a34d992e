"""Model folders with one setting changed: each is used, or refused in one line that names it; nothing else, no hang."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MPNetConfig, MPNetModel

from tests import tiny
from tsdae.encoder import SentenceEncoder
from tsdae.hub.auto_encoder import AutoModelEncoder, load_encoder
from tsdae.hub.model_folder import load_tokenizer
from tsdae.training import TrainConfig, train

HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 2.5, 10**9, -(10**30), math.nan, math.inf, "", "a\nb\0c", "x" * 5000, [], {}, [[1]]),
    *({"a": {"b": None}}, ["../..", 7]),
)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # read by other libraries, whose words are passed on


def tried(folder: Path) -> None:
    """Load, encode, save and load again."""
    load_encoder(str(folder)).encode(["a dog", *tiny.SENTENCES])


def model(folder: Path, family: str) -> Path:
    """A sentence-transformers folder with every file that is read."""
    encoder = tiny.encoder("mean", dtype=torch.float32)
    encoder.normalize, encoder.include_prompt = True, False
    encoder.described = {"prompts": {"query": "query: "}, "default_prompt_name": None, "similarity_fn_name": "dot"}
    encoder.save_pretrained(folder)
    if family == "mpnet":
        shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
        MPNetModel(MPNetConfig(vocab_size=90, max_position_embeddings=42, **shape)).save_pretrained(folder)
    return folder


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each setting of a JSON file; of long tables and lists the first three entries."""
    entries = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in entries[: 3 if len(path) > 1 else None]:
        yield (*path, key)
        if isinstance(value, (dict, list)) and len(path) < 3:
            yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


CASES = {
    "bert": (
        *("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
        *("config_sentence_transformers.json", *TOKENIZER),
    ),
    "mpnet": ("config.json",),
}


def wrong(folder: Path, file: str, every: int, start: int) -> list[str]:
    """Change one setting at a time; return what ended in anything but success or one line that names the file."""
    path, found = folder / file, []
    content = json.loads(path.read_text())
    cases = [(place, value) for place in places(content) for value in HOSTILE]
    for place, value in cases[start::every]:
        path.write_text(json.dumps(changed(content, place, value)))
        where = f"{file}: {'/'.join(map(str, place))} = {str(value)[:40]!r}"
        try:
            tried(folder)
        except ValueError as error:
            named = folder if file in TOKENIZER or file == "config.json" else path
            if str(named) not in str(error) or "\n" in str(error):
                found.append(f"{where}: {error}")
        except BaseException as error:  # pyo3's panics are no Exceptions
            if isinstance(error, KeyboardInterrupt):
                raise
            found.append(f"{where}: {type(error).__name__}: {error}")
    path.write_text(json.dumps(content))
    return found


FILES = [(family, file) for family, files in CASES.items() for file in files]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "file"), FILES, ids=["-".join(case) for case in FILES])
def test_a_setting_of_a_stranger_is_used_or_named(family: str, file: str, tmp_path: Path) -> None:
    """A sample; all of them in the slow test below."""
    folder = model(tmp_path / "m", family)
    every = {"config.json": 41, "tokenizer.json": 97, "tokenizer_config.json": 29}.get(file, 17)
    assert wrong(folder, file, every, start=5) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "file"), FILES, ids=["-".join(case) for case in FILES])
def test_every_setting_of_a_stranger_is_used_or_named(family: str, file: str, tmp_path: Path) -> None:
    assert wrong(model(tmp_path / "m", family), file, 1, 0) == []


# ---------------------------------------------------------------------------------------------------------------
# What is found in a vector, in a tokenizer, in a class


def test_a_vector_that_is_not_finite_is_an_error_that_names_its_sentence(tmp_path: Path) -> None:
    encoder = tiny.encoder("mean", dtype=torch.float32)
    with torch.no_grad():
        encoder.bert.embeddings.words.weight[encoder.tokenizer.convert_tokens_to_ids("dog")] = math.nan
    message = r"^the vector of sentence 1 is not finite \(1 of 2 are not\): 'the dog runs'"
    with pytest.raises(ValueError, match=message):
        encoder.encode(["a cat", "the dog runs"], batch_size=1)
    assert np.isfinite(encoder.encode(["a cat"])).all()
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoModelEncoder(tmp_path, None, torch.device("cpu")).encode(["a cat", "the dog runs"], batch_size=1)


def test_prompts_and_similarity_are_written_back_as_they_were_read(tmp_path: Path) -> None:
    description = {"prompts": {"query": "query: "}, "similarity_fn_name": "dot", "of the author": [1]}
    source = model(tmp_path / "source", "bert")
    (source / "config_sentence_transformers.json").write_text(json.dumps(description))
    SentenceEncoder.from_pretrained(source).save_pretrained(tmp_path / "saved")
    for file in ("config_sentence_transformers.json", "1_Pooling/config.json"):
        before, saved = (json.loads((tmp_path / side / file).read_text()) for side in ("source", "saved"))
        assert saved == before
    assert saved["include_prompt"] is False
    assert SentenceEncoder.from_pretrained(tmp_path / "saved").described["prompts"] == {"query": "query: "}
    tiny.encoder().save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own" / "config_sentence_transformers.json").exists(), "only where there was one"


def unigram(folder: Path) -> Path:
    """A model whose tokenizer.json is a Unigram one, under a class that transformers builds as byte-level BPE."""
    tiny.encoder(dtype=torch.float32, position_offset=1).save_pretrained(folder)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [(token, 0.0) for token in specials] + [(f"▁{word}", -2.0) for word in tiny.WORDS]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz▁"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    settings = {f"{name}_token": token for name, token in names.items()} | {"tokenizer_class": "RobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_other_ids_than_those_of_tokenizer_json_are_refused_with_the_mend(tmp_path: Path) -> None:
    folder = unigram(tmp_path / "unigram")
    with pytest.raises(ValueError, match=rf"^{folder}: RobertaTokenizer, .* gives other ids than .*PreTrainedToken"):
        load_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    mended = settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(mended))
    ids = load_tokenizer(folder)("the dog", add_special_tokens=False)["input_ids"]
    assert ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode("the dog").ids


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": True}, {}], ids=str)
def test_other_ids_that_the_settings_ask_for_are_used(settings: dict[str, Any], tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | settings))
    unknown = load_tokenizer(tmp_path)("DOG", add_special_tokens=False)["input_ids"] == [1]
    assert unknown == (settings.get("do_lower_case") is False)


def test_lower_case_that_no_setting_asks_for_is_refused(tmp_path: Path) -> None:
    """A cased tokenizer.json, and a class whose default is to lower the text."""
    tiny.tokenizer().save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["normalizer"]["lowercase"] = False
    state["model"]["vocab"]["Fox"] = len(state["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ValueError, match=r"BertTokenizer, .* gives other ids than its own tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_pointer_in_place_of_a_tokenizer_is_named(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"tokenizer\.json is a Git LFS pointer"):
        load_tokenizer(tmp_path)


class Attentive(SentenceEncoder):
    """Another pooling, with a weight of its own."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.query_D = torch.nn.Parameter(torch.zeros(24))


class Saved(Attentive):
    def save_pretrained(self, folder: str | Path) -> None:
        super().save_pretrained(folder)
        torch.save({"query_D": self.query_D}, Path(folder) / "query.pt")


class Helpful(SentenceEncoder):
    def first(self, sentence: str) -> float:
        return float(self.encode([sentence])[0, 0])


def test_a_class_with_a_pooling_of_its_own_is_not_saved_as_cls(tmp_path: Path) -> None:
    plain = tiny.encoder(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^Attentive defines its own query_D, which a model folder cannot store"):
        Attentive(plain.bert, plain.tokenizer).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    run = tiny.model(dtype=torch.float32)
    run.encoder = Attentive(plain.bert, plain.tokenizer)
    with pytest.raises(ValueError, match=r"^Attentive defines its own query_D"):
        train(run, tiny.dataset(), TrainConfig(steps=1, batch_size=2, device="cpu", output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists(), "before the first step"
    for kind in (Saved, Helpful):
        kind(plain.bert, plain.tokenizer).save_pretrained(tmp_path / kind.__name__)
        assert (tmp_path / kind.__name__ / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Pooling", "module 1 must be a table of settings, got 'Pooling'$"),
        ({"type": ["a"]}, r"module 1: type must be text, got \['a'\]$"),
        ({"type": "sentence_transformers.models.Pooling", "path": {"a": 1}}, "module 1: path must be text, got"),
        ({"type": "my_code.Pooling", "path": ""}, "the module 'my_code.Pooling' is not implemented"),
        ({"type": "sentence_transformers.models.Transformer"}, "'Transformer' is not implemented a second time$"),
        ({"type": "sentence_transformers.models.Pooling", "path": "a\0b"}, "points outside of the folder$"),
    ],
)
def test_entries_of_modules_json(entry: Any, message: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "bert")
    path = folder / "modules.json"
    path.write_text(json.dumps([json.loads(path.read_text())[0], entry]))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}"):
        SentenceEncoder.from_pretrained(folder)
