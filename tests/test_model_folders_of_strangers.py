"""Model folders with one setting changed: each is used, or refused in one line that names it; nothing else, no hang."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
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
SHOWN = 3  # of a file's settings and values in the default tests, the same ones each time


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
    "bert": ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]
    + ["config_sentence_transformers.json", *TOKENIZER],
    "mpnet": ["config.json"],
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
