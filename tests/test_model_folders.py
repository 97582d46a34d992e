"""Around the checkpoint: layouts of sentence-transformers, tokenizers, names on the hub, saved folders in use."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tests import families, tiny
from tests.families import FAMILIES
from tests.test_checkpoints import as_bin
from tests.tolerances import FLOAT32
from tsdae.encoder import SentenceEncoder
from tsdae.hub.model_folder import read_sentence_settings

every_family = pytest.mark.parametrize("family", FAMILIES)
POSITIONS = 20  # of the tiny models


def save_model(folder: Path, family: str = "bert", auto: Any = AutoModel, **changes: Any) -> Path:
    """A tiny model with tokenizer, as transformers writes it."""
    if family not in ("bert", "distilbert"):
        changes = {"pad_token_id": 0} | changes  # the tiny tokenizer's
    families.save(folder, family, auto, **changes)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def add_modules(folder: Path, *kinds: str, pooling: dict[str, Any] | None = None, transformer: str = "") -> Path:
    """modules.json as old versions wrote it, with a module of each kind after the transformer."""
    modules = [{"idx": 0, "name": "0", "path": transformer, "type": "sentence_transformers.models.Transformer"}]
    for i, kind in enumerate(kinds, start=1):
        path, type_ = f"{i}_{kind}", f"sentence_transformers.models.{kind}"
        modules.append({"idx": i, "name": str(i), "path": path, "type": type_})
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 24} | (pooling or {}))
    return folder


def vectors(folder: Path | str, **settings: Any) -> np.ndarray:
    return SentenceEncoder.from_pretrained(folder, **settings).encode(tiny.SENTENCES)


# ---------------------------------------------------------------------------------------------------------------
# Layouts


def test_plain_folder_means_cls_and_all_positions(tmp_path: Path) -> None:
    encoder = SentenceEncoder.from_pretrained(save_model(tmp_path))
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("cls", False, POSITIONS)


@pytest.mark.parametrize(
    ("stored", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["max"]}, "max"),
        ({}, "mean"),  # sentence-transformers' default
    ],
)
def test_pooling_of_old_and_new_folders(stored: dict[str, Any], pooling: str, tmp_path: Path) -> None:
    add_modules(tmp_path, "Pooling", pooling=stored)
    assert read_sentence_settings(tmp_path).pooling == pooling


def test_argument_outweighs_the_folder(tmp_path: Path) -> None:
    add_modules(save_model(tmp_path), "Pooling", pooling={"pooling_mode": "mean"})
    assert SentenceEncoder.from_pretrained(tmp_path).pooling == "mean"
    assert SentenceEncoder.from_pretrained(tmp_path, pooling="max").pooling == "max"


@pytest.mark.parametrize("mode", ["lasttoken", ["cls", "mean"], None])
def test_pooling_that_is_not_implemented_is_named(mode: Any, tmp_path: Path) -> None:
    add_modules(tmp_path, "Pooling", pooling={"pooling_mode": mode})
    named = " + ".join(mode) if isinstance(mode, list) else str(mode)
    with pytest.raises(ValueError, match=rf"1_Pooling.*the pooling {named.replace('+', '.')} is not implemented"):
        read_sentence_settings(tmp_path)


def test_old_pooling_that_is_not_implemented_is_named(tmp_path: Path) -> None:
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True}
    add_modules(tmp_path, "Pooling", pooling=both)
    with pytest.raises(ValueError, match=r"mean \+ pooling_mode_mean_sqrt_len_tokens is not implemented"):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "MyOwn"])
def test_module_that_is_not_implemented_is_named(kind: str, tmp_path: Path) -> None:
    add_modules(tmp_path, "Pooling", kind)
    with pytest.raises(ValueError, match=rf"modules\.json: the module '{kind}' is not implemented"):
        read_sentence_settings(tmp_path)


def test_module_names_of_new_versions(tmp_path: Path) -> None:
    package = "sentence_transformers.sentence_transformer.modules"
    write(
        tmp_path / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.pooling.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{package}.normalize.Normalize"},
        ],
    )
    write(tmp_path / "1_Pooling" / "config.json", {"embedding_dimension": 24, "pooling_mode": "max"})
    settings = read_sentence_settings(tmp_path)
    assert (settings.pooling, settings.normalize, settings.model_folder) == ("max", True, "")


def test_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """The oldest layout: weights, tokenizer and sentence_bert_config.json lie in 0_Transformer."""
    save_model(tmp_path / "old" / "0_Transformer")
    write(tmp_path / "old" / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 9})
    add_modules(tmp_path / "old", "Pooling", pooling={"pooling_mode_cls_token": True}, transformer="0_Transformer")
    assert SentenceEncoder.from_pretrained(tmp_path / "old").max_length == 9
    plain = vectors(save_model(tmp_path / "plain"), max_length=9)
    np.testing.assert_array_equal(vectors(tmp_path / "old"), plain)


def test_normalize_is_kept_and_written_again(tmp_path: Path) -> None:
    add_modules(save_model(tmp_path / "source"), "Pooling", "Normalize", pooling={"pooling_mode": "mean"})
    encoder = SentenceEncoder.from_pretrained(tmp_path / "source")
    encoder.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert (again.pooling, again.normalize) == ("mean", True)
    lengths = np.linalg.norm(again.encode(tiny.SENTENCES), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    assert (np.abs(np.linalg.norm(again.encode(tiny.SENTENCES, normalize=False), axis=1) - 1.0) > 0.01).all()


def test_default_prompt_is_refused_and_named_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "config_sentence_transformers.json"
    write(path, {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None})
    read_sentence_settings(tmp_path)
    write(path, {"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    with pytest.raises(ValueError, match="its default prompt 'query' is not implemented"):
        read_sentence_settings(tmp_path)


def test_broken_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ValueError, match=r"modules\.json is not valid JSON"):
        read_sentence_settings(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(ValueError, match=r"modules\.json holds a JSON dict, not a list"):
        read_sentence_settings(tmp_path)
    add_modules(tmp_path, "Pooling")
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"1_Pooling/config\.json cannot be read: No such file"):
        read_sentence_settings(tmp_path)


# ---------------------------------------------------------------------------------------------------------------
# Lengths


@pytest.mark.parametrize(
    ("family", "stored", "tokenizer_says", "expected"),
    [
        ("bert", 12, None, 12),
        ("bert", 100, None, POSITIONS),  # more than there are positions
        ("bert", None, 15, 15),  # model_max_length, where the folder says nothing else
        ("bert", 12, 10, 12),  # as in sentence-transformers, max_seq_length comes first
        ("bert", None, None, POSITIONS),
        ("distilbert", None, None, POSITIONS),
        ("roberta", None, None, POSITIONS - 1),  # positions begin after the padding id, here 0
        ("xlm-roberta", POSITIONS, None, POSITIONS - 1),
    ],
)
def test_longest_sentence(
    family: str, stored: int | None, tokenizer_says: int | None, expected: int, tmp_path: Path
) -> None:
    save_model(tmp_path, family)
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": stored})
    if tokenizer_says:
        tokenizer = tiny.tokenizer()
        tokenizer.model_max_length = tokenizer_says
        tokenizer.save_pretrained(tmp_path)
    encoder = SentenceEncoder.from_pretrained(tmp_path)
    assert encoder.max_length == expected
    assert np.isfinite(encoder.encode(["dog " * 50])).all()  # the longest sentence has a position for each token


def test_length_under_an_old_file_name(tmp_path: Path) -> None:
    """Old versions named the file after the family; where there are several, sentence_bert_config.json counts."""
    write(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 7})
    assert read_sentence_settings(tmp_path).max_length == 7
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 9})
    assert read_sentence_settings(tmp_path).max_length == 9


def test_roberta_positions_begin_after_its_padding_id(tmp_path: Path) -> None:
    save_model(tmp_path, "roberta", pad_token_id=1)
    assert SentenceEncoder.from_pretrained(tmp_path).max_length == POSITIONS - 2


@pytest.mark.parametrize("max_length", [2, 0, -1, POSITIONS + 1])
def test_length_that_the_model_does_not_have(max_length: int, tmp_path: Path) -> None:
    save_model(tmp_path)
    assert SentenceEncoder.from_pretrained(tmp_path, max_length=POSITIONS).max_length == POSITIONS
    with pytest.raises(ValueError, match=rf"must be in \[3, {POSITIONS}\], got {max_length}"):
        SentenceEncoder.from_pretrained(tmp_path, max_length=max_length)


# ---------------------------------------------------------------------------------------------------------------
# Tokenizers


def cased_vocabulary(folder: Path) -> None:
    """BERT's own tokenizer for cased text, in its oldest form: a list of words, and no tokenizer.json."""
    (folder / "tokenizer.json").unlink()
    words = sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in words))
    write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})


def test_lower_case_is_applied_and_outlives_a_save(tmp_path: Path) -> None:
    """do_lower_case of sentence-transformers stands apart from the tokenizer's own setting of that name."""
    save_model(tmp_path / "source")
    cased_vocabulary(tmp_path / "source")
    encoder = SentenceEncoder.from_pretrained(tmp_path / "source")
    assert not np.allclose(encoder.encode(["DOG"]), encoder.encode(["dog"]))  # a cased tokenizer does not know DOG
    write(tmp_path / "source" / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True})
    encoder = SentenceEncoder.from_pretrained(tmp_path / "source")
    np.testing.assert_array_equal(encoder.encode(["DOG"]), encoder.encode(["dog"]))
    for name in ("saved", "saved again"):
        encoder.save_pretrained(tmp_path / name)
        encoder = SentenceEncoder.from_pretrained(tmp_path / name)
        np.testing.assert_array_equal(encoder.encode(["DOG"]), encoder.encode(["dog"]))


def test_broken_tokenizer(tmp_path: Path) -> None:
    (save_model(tmp_path) / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^the tokenizer of .* cannot be read: [^\n]*$"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_tokenizer_with_more_ids_than_the_model(tmp_path: Path) -> None:
    save_model(tmp_path, vocab_size=50)
    with pytest.raises(ValueError, match=r"ids up to \d+, the model has 50 word embeddings"):
        SentenceEncoder.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------------------
# Where a model comes from


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which conftest has put offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def cache_model(cache: Path, name: str) -> Path:
    """A model in the hub's cache, laid out as its client does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return save_model(repository / "snapshots" / commit)


def test_model_of_the_hub_from_its_cache(hub_cache: Path) -> None:
    folder = cache_model(hub_cache, "someone/some-bert")
    np.testing.assert_array_equal(vectors("someone/some-bert"), vectors(folder))


def test_bare_name_is_tried_under_sentence_transformers(hub_cache: Path) -> None:
    folder = add_modules(cache_model(hub_cache, "sentence-transformers/some-bert"), "Pooling")
    np.testing.assert_array_equal(vectors("some-bert"), vectors(folder))


def test_bare_name_itself_comes_first(hub_cache: Path) -> None:
    cache_model(hub_cache, "some-bert")
    folder = cache_model(hub_cache, "sentence-transformers/some-bert")
    (folder / "config.json").write_text("{}")  # would be an error if it were read
    vectors("some-bert")


def test_a_part_of_a_model_in_the_cache_is_not_read_as_a_raw_one(
    hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What other programs have fetched of it: without modules.json, without weights, without a tokenizer."""
    message = "only a part of it is in the cache, and the hub was not reached"
    refused = {"sentence-transformers/some": "", "some/described": "", "some/light": "model.safetensors"}
    refused["some/mute"] = "tokenizer.json"
    for name, lacking in refused.items():
        folder = cache_model(hub_cache, name)
        if name == "some/described":
            write(folder / "config_sentence_transformers.json", {"prompts": {}})
        if lacking:
            (folder / lacking).unlink()
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            SentenceEncoder.from_pretrained(name)
    capsys.readouterr()
    folder = cache_model(hub_cache, "some/raw")
    vectors("some/raw")
    assert "some/raw: treated as a raw model, since the hub" in capsys.readouterr().err
    known = folder.parents[1] / ".no_exist" / folder.name / "modules.json"  # as the hub's client notes its answer
    known.parent.mkdir(parents=True)
    known.touch()
    vectors("some/raw")
    assert capsys.readouterr().err == ""


def test_name_that_is_not_there(hub_cache: Path) -> None:
    why = "not in the cache, and the hub cannot be reached"
    with pytest.raises(ValueError, match=rf"no model folder none.*\(none: {why}; sentence-transformers/none: {why}\)"):
        SentenceEncoder.from_pretrained("none")
    with pytest.raises(ValueError, match=rf"no model folder some/none.*\(some/none: {why}\)"):
        SentenceEncoder.from_pretrained("some/none")
    assert not hub_cache.exists()


def test_path_that_does_not_exist_is_not_asked_for_on_the_hub(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    for name in (str(tmp_path / "none"), "./none", "~/none/of/these", "runs/001/encoder", "C:\\none"):
        with pytest.raises(ValueError, match="does not exist; give a model folder"):
            SentenceEncoder.from_pretrained(name)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder; give a model folder"):
        SentenceEncoder.from_pretrained(tmp_path / "file")


@pytest.mark.parametrize("kept", ["safetensors", "bin"])
def test_what_is_fetched_from_the_hub(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is read and no more: of two forms of the weights one, below 0_Transformer too."""
    remote = save_model(tmp_path / "remote" / "0_Transformer").parent
    add_modules(remote, "Pooling", transformer="0_Transformer")
    shutil.copy(remote / "0_Transformer" / "model.safetensors", remote / "model.safetensors.copy")
    as_bin(remote / "0_Transformer")
    if kept == "safetensors":
        (remote / "model.safetensors.copy").rename(remote / "0_Transformer" / "model.safetensors")
    for unread in ("onnx/model.safetensors", "0_Transformer/onnx/config.json", "tf_model.h5", "picture.png"):
        (remote / unread).parent.mkdir(exist_ok=True)
        (remote / unread).touch()

    def download(_name: str, allow_patterns: list[str], ignore_patterns: Any = None, **_: Any) -> str:
        files = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / "local" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / file, tmp_path / "local" / file)
        return str(tmp_path / "local")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    np.testing.assert_array_equal(vectors("someone/old-bert"), vectors(remote))
    fetched = {str(path.relative_to(tmp_path / "local")) for path in (tmp_path / "local").rglob("*") if path.is_file()}
    weights = "model.safetensors" if kept == "safetensors" else "pytorch_model.bin"
    in_transformer = {f"0_Transformer/{name}" for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    assert fetched == {"modules.json", "1_Pooling/config.json", f"0_Transformer/{weights}"} | in_transformer


def test_gated_model_is_not_called_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gated(GatedRepoError):
        def __init__(self) -> None:
            pass  # the hub's answer, which the original wants, is not needed

    def download(*_: Any, **__: Any) -> str:
        raise Gated

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match="someone/closed: gated: request access on the hub"):
        SentenceEncoder.from_pretrained("someone/closed")


# ---------------------------------------------------------------------------------------------------------------
# Saved folders in other hands


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """A function that returns what was printed or logged since its last call. Warnings are errors anyway."""
    library = logging.getLogger("transformers")  # does not propagate to the root logger, which caplog listens to
    library.addHandler(caplog.handler)
    transformers_logging.disable_progress_bar()

    def take() -> str:
        text = "".join(capfd.readouterr()) + caplog.text
        caplog.clear()
        return text

    yield take
    transformers_logging.enable_progress_bar()
    library.removeHandler(caplog.handler)


def test_a_loading_report_is_heard(tmp_path: Path, said: Callable[[], str]) -> None:
    """Premise of the tests of silence below."""
    save_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({"none": weights.pop("pooler.dense.bias")} | weights, tmp_path / "model.safetensors", {"format": "pt"})
    said()
    AutoModel.from_pretrained(tmp_path)
    report = said()
    assert "MISSING" in report
    assert "UNEXPECTED" in report


SOURCES = [(family, AutoModel) for family in FAMILIES] + [(family, AutoModelForMaskedLM) for family in FAMILIES]
with_and_without_pooler = pytest.mark.parametrize(
    ("family", "auto"), SOURCES, ids=[f"{family}-{auto.__name__}" for family, auto in SOURCES]
)


@with_and_without_pooler
def test_saved_folder_is_loaded_silently_by_transformers(
    family: str, auto: Any, tmp_path: Path, said: Callable[[], str]
) -> None:
    encoder = SentenceEncoder.from_pretrained(save_model(tmp_path / "source", family, auto), max_length=12)
    said()
    encoder.save_pretrained(tmp_path / "saved")
    theirs = AutoModel.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert said() == ""
    features = tokenizer(tiny.SENTENCES, padding=True, truncation=True, max_length=12, return_tensors="pt")
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    expected = theirs(**inputs).last_hidden_state[:, 0].detach().numpy()
    np.testing.assert_allclose(encoder.encode(tiny.SENTENCES), expected, **FLOAT32)


NO_REFERENCE = "the extra [reference], sentence-transformers, is not installed"


@pytest.mark.reference
@with_and_without_pooler
@pytest.mark.parametrize(("pooling", "normalize"), [("cls", False), ("mean", True), ("max", False)])
def test_saved_folder_is_loaded_silently_by_sentence_transformers(
    family: str, auto: Any, pooling: str, normalize: bool, tmp_path: Path, said: Callable[[], str]
) -> None:
    reference = pytest.importorskip("sentence_transformers", reason=NO_REFERENCE)
    encoder = SentenceEncoder.from_pretrained(save_model(tmp_path / "source", family, auto), pooling, max_length=12)
    encoder.normalize = normalize
    said()
    encoder.save_pretrained(tmp_path / "saved")
    theirs = reference.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert said() == ""
    assert theirs.max_seq_length == 12  # shorter than one of the sentences
    expected = theirs.encode(tiny.SENTENCES, show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(tiny.SENTENCES), expected, **FLOAT32)


@pytest.mark.reference
@every_family
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_folder_of_sentence_transformers_is_read(family: str, pooling: str, tmp_path: Path) -> None:
    """As the installed version writes it: its vectors are ours, for lower-cased and longer sentences too."""
    pytest.importorskip("sentence_transformers", reason=NO_REFERENCE)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    save_model(tmp_path / "source", family)
    transformer = modules.Transformer(str(tmp_path / "source"), max_seq_length=12, do_lower_case=True)
    theirs = SentenceTransformer(modules=[transformer, modules.Pooling(24, pooling), modules.Normalize()], device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    ours = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    assert (ours.pooling, ours.normalize, ours.max_length) == (pooling, True, 12)
    sentences = [*tiny.SENTENCES, "A DOG"]
    expected = theirs.encode(sentences, show_progress_bar=False)
    np.testing.assert_allclose(ours.encode(sentences), expected, **FLOAT32)
