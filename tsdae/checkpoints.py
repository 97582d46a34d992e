"""Folders on disk: the one room that knows the names of Hugging Face and sentence-transformers, in both directions.

A folder is read once into a `Checkpoint`: our `Bert`, its language-model head if the file has one, the tokenizer, and
what must be written back unchanged (the pooler, the original config). Weights come from safetensors, or from
pytorch_model.bin with ``weights_only=True``; no code of a folder is ever run.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsdae.bert import Bert, BertConfig

# ---------------------------------------------------------------------------------------------------------------
# Names. ours -> theirs; several of theirs are laid end to end along dimension 0 (query, key, value).

BERT_TOP = {
    "embeddings.words": ("embeddings.word_embeddings",),
    "embeddings.positions": ("embeddings.position_embeddings",),
    "embeddings.token_types": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
}
BERT_LAYER = {
    "attention.project": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention.norm": ("attention.output.LayerNorm",),
    "feed_forward.expand": ("intermediate.dense",),
    "feed_forward.contract": ("output.dense",),
    "feed_forward.norm": ("output.LayerNorm",),
}
DISTILBERT_LAYER = {
    "attention.project": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention.output": ("attention.out_lin",),
    "attention.norm": ("sa_layer_norm",),
    "feed_forward.expand": ("ffn.lin1",),
    "feed_forward.contract": ("ffn.lin2",),
    "feed_forward.norm": ("output_layer_norm",),
}
BERT_CONFIG = {
    "vocabulary_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
DISTILBERT_CONFIG = {
    "vocabulary_size": "vocab_size",
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "feed_forward": "hidden_dim",
    "positions": "max_position_embeddings",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}


@dataclass(frozen=True)
class Family:
    """How one family of checkpoints names things, and what sets its shape apart from BERT's."""

    architecture: str  # what AutoModel calls the encoder
    prefix: str  # before every encoder name, where the checkpoint has a head
    layer_prefix: str
    layer: dict[str, tuple[str, ...]]
    config_names: dict[str, str]
    head: dict[str, str]  # transform, norm and bias of the language-model head
    has_token_types: bool = True
    has_pooler: bool = True
    offset_positions: bool = False  # positions begin after the padding id
    attention_output_dropout: bool = True


BERT_HEAD = {
    "transform": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
}
ROBERTA_HEAD = {"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}
DISTILBERT_HEAD = {"transform": "vocab_transform", "norm": "vocab_layer_norm", "bias": "vocab_projector.bias"}


def _roberta(architecture: str) -> Family:
    return Family(
        architecture, "roberta.", "encoder.layer.", BERT_LAYER, BERT_CONFIG, ROBERTA_HEAD, offset_positions=True
    )


FAMILIES = {
    "bert": Family("BertModel", "bert.", "encoder.layer.", BERT_LAYER, BERT_CONFIG, BERT_HEAD),
    "roberta": _roberta("RobertaModel"),
    "xlm-roberta": _roberta("XLMRobertaModel"),
    "camembert": _roberta("CamembertModel"),
    "distilbert": Family(
        "DistilBertModel",
        "distilbert.",
        "transformer.layer.",
        DISTILBERT_LAYER,
        DISTILBERT_CONFIG,
        DISTILBERT_HEAD,
        has_token_types=False,
        has_pooler=False,
        attention_output_dropout=False,
    ),
}

# Settings that change the computation and of which exactly one value is implemented. Absent means that value.
ONLY_IMPLEMENTED = {
    "hidden_act": "gelu",
    "activation": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
    "sinusoidal_pos_embds": False,
    "pruned_heads": {},
}
# Known weights without a use here. The pooler is not among them: it is kept and written back.
WITHOUT_USE = re.compile(
    r"(embeddings\.(position_ids|token_type_ids)|cls\.seq_relationship\.(weight|bias)|cls\.predictions\.decoder\.bias"
    r"|lm_head\.decoder\.bias)$"
)
TIED_COPIES = ("cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight")
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


class UnsupportedArchitecture(ValueError):
    """The folder holds a model that has no hand-written encoder here."""


@dataclass
class Checkpoint:
    """What a model folder holds.

    bert: the encoder. head: state of `bert.LanguageModelHead`, or None. raw_config: config.json as it was read.
    pooler: weights kept aside, under their own names, to be written back unchanged.
    """

    bert: Bert
    model_type: str = "bert"
    head: dict[str, Tensor] | None = None
    pooler: dict[str, Tensor] = field(default_factory=dict)
    raw_config: dict[str, Any] = field(default_factory=dict)


def parameter_names(family: Family, layers: int) -> dict[str, tuple[str, ...]]:
    """The two-way table: every parameter of our `Bert` -> the checkpoint's names, without prefix."""
    modules = dict(BERT_TOP)
    if not family.has_token_types:
        del modules["embeddings.token_types"]
    for i in range(layers):
        for ours, theirs in family.layer.items():
            modules[f"layers.{i}.{ours}"] = tuple(f"{family.layer_prefix}{i}.{name}" for name in theirs)
    names = {}
    for ours, theirs in modules.items():
        is_table = ours.startswith("embeddings.") and ours != "embeddings.norm"
        for kind in ("weight",) if is_table else ("weight", "bias"):
            names[f"{ours}.{kind}"] = tuple(f"{name}.{kind}" for name in theirs)
    return names


def head_names(family: Family) -> dict[str, str]:
    """Every parameter of our `LanguageModelHead` -> the checkpoint's name."""
    names = {
        f"{part}.{kind}": f"{family.head[part]}.{kind}" for part in ("transform", "norm") for kind in ("weight", "bias")
    }
    return names | {"bias": family.head["bias"]}


# ---------------------------------------------------------------------------------------------------------------
# Reading


def read_json(path: Path) -> Any:
    """A JSON file; ValueError that names it if it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_config(folder: Path) -> tuple[BertConfig, str, dict[str, Any]]:
    """config.json -> our config, the model type, and the file as it is. Refuses by name what is not implemented."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    raw = read_json(folder / "config.json")
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedArchitecture(
            f"{folder} holds a model of type {model_type!r} ({', '.join(raw.get('architectures') or ['unnamed'])}); "
            f"supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    for name, value in ONLY_IMPLEMENTED.items():
        if raw.get(name) not in (None, value):
            raise ValueError(f"{folder}/config.json: {name} = {raw[name]!r} is not implemented, only {value!r}")
    settings = {ours: raw[theirs] for ours, theirs in family.config_names.items() if theirs in raw}
    missing = sorted(
        family.config_names[name]
        for name in ("vocabulary_size", "width", "layers", "heads", "feed_forward", "positions")
        if name not in settings
    )
    if missing:
        raise ValueError(f"{folder}/config.json lacks {', '.join(missing)}")
    if not family.has_token_types:
        settings["token_types"] = 0
    if family.offset_positions:
        settings["position_offset"] = int(raw.get("pad_token_id", 1)) + 1
    return BertConfig(**settings, attention_output_dropout=family.attention_output_dropout), model_type, raw


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, from safetensors or pytorch_model.bin, whole or in shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            weights: dict[str, Tensor] = {}
            for shard in sorted(set(read_json(index)["weight_map"].values())):
                if Path(shard).name != shard:
                    raise ValueError(f"{index} names {shard!r}, which is not a file of its own folder")
                if not (folder / shard).is_file():
                    raise ValueError(f"{folder} lacks {shard}, one of the files its weights are spread over")
                weights |= _read_weight_file(folder / shard)
            return weights
    raise ValueError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # the readers raise their own kinds; all mean that the file cannot be used
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights: {first_line}") from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a model folder. ValueError names what is missing; a weight that nobody knows is named in a warning."""
    config, model_type, raw = read_config(folder)
    family = FAMILIES[model_type]
    theirs = {_plain_name(name, family): tensor for name, tensor in read_weights(folder).items()}
    names = parameter_names(family, config.layers)
    wanted = {name for group in names.values() for name in group}
    missing = sorted(wanted - theirs.keys())
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(f"{folder}: its weights lack {shown}")

    head: dict[str, Tensor] | None = None
    bias_name = family.head["bias"]
    if bias_name not in theirs and bias_name.replace(".bias", ".decoder.bias") in theirs:
        theirs[bias_name] = theirs[bias_name.replace(".bias", ".decoder.bias")]
    head_of = head_names(family)
    if head_of.items() and all(name in theirs for name in head_of.values()):
        head = {ours: theirs[name].float() for ours, name in head_of.items()}
    embedding = theirs["embeddings.word_embeddings.weight"]
    tied = {name for name in TIED_COPIES if name in theirs and torch.equal(theirs[name], embedding)}
    unknown = theirs.keys() - wanted - set(head_of.values()) - tied - set(POOLER)
    unknown = {name for name in unknown if not WITHOUT_USE.match(name)}
    if unknown:
        warnings.warn(f"{folder}: weights that nothing here uses: {', '.join(sorted(unknown))}", stacklevel=2)

    bert = Bert(config)
    state = {ours: torch.cat([theirs[name] for name in group]).float() for ours, group in names.items()}
    for name, parameter in bert.named_parameters():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"{folder}: {' + '.join(names[name])} has shape {tuple(state[name].shape)}, "
                f"config.json asks for {tuple(parameter.shape)}"
            )
    bert.load_state_dict(state)
    pooler = {name: theirs[name].float() for name in POOLER if name in theirs}
    return Checkpoint(bert, model_type, head, pooler, raw)


def _plain_name(name: str, family: Family) -> str:
    """A checkpoint's name without the family's prefix, and with the names of layer norms that TensorFlow's lacked."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


# ---------------------------------------------------------------------------------------------------------------
# Writing


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes config.json and model.safetensors so that AutoModel and SentenceTransformer load them without a report.

    A pooler that the checkpoint lacks is written as AutoModel would start it; nothing here uses it.
    """
    bert, family = checkpoint.bert, FAMILIES[checkpoint.model_type]
    config = bert.config
    raw = dict(checkpoint.raw_config)
    raw |= {theirs: getattr(config, ours) for ours, theirs in family.config_names.items()}
    raw |= {"model_type": checkpoint.model_type, "architectures": [family.architecture], "dtype": "float32"}
    raw.pop("torch_dtype", None)
    if family.offset_positions:
        raw["pad_token_id"] = config.position_offset - 1
    state = bert.state_dict()
    theirs: dict[str, Tensor] = {}
    for ours, group in parameter_names(family, config.layers).items():
        theirs |= zip(group, state[ours].detach().float().cpu().chunk(len(group)), strict=True)
    if family.has_pooler:
        generator = torch.Generator().manual_seed(0)
        weight = torch.empty(config.width, config.width).normal_(0.0, config.initializer_range, generator=generator)
        theirs |= dict(zip(POOLER, (weight, torch.zeros(config.width)), strict=True)) | checkpoint.pooler
    write_json(folder / "config.json", raw)
    # Cloned: safetensors refuses tensors that share storage, as the chunks of one matrix do.
    save_file({name: tensor.clone() for name, tensor in theirs.items()}, folder / "model.safetensors", {"format": "pt"})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------
# The layout of sentence-transformers around a model folder


@dataclass(frozen=True)
class SentenceSettings:
    """How a folder turns token vectors into a sentence vector. None: the folder does not say."""

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    model_folder: str = ""  # where below the folder the transformer lies; old folders use 0_Transformer


POOLINGS = ("cls", "mean", "max")


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """modules.json and what it points to. A module, pooling or prompt that is not implemented is refused by name."""
    settings: dict[str, Any] = {}
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        place = folder / module.get("path", "")
        if kind == "Transformer":
            settings["model_folder"] = module.get("path", "")
        elif kind == "Pooling":
            settings["pooling"] = _pooling_of(place / "config.json")
        elif kind == "Normalize":
            settings["normalize"] = True
        else:
            raise ValueError(f"{folder}/modules.json: the module {kind} is not implemented, only Pooling and Normalize")
    model_folder = folder / settings.get("model_folder", "")
    for name in ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
                 "sentence_xlm-roberta_config.json", "sentence_camembert_config.json"):  # fmt: skip
        if (model_folder / name).is_file():
            read = read_json(model_folder / name)
            settings["max_length"] = read.get("max_seq_length")
            settings["lowercase"] = bool(read.get("do_lower_case"))
    if (folder / "config_sentence_transformers.json").is_file():
        read = read_json(folder / "config_sentence_transformers.json")
        default = read.get("default_prompt_name")
        if default and (read.get("prompts") or {}).get(default):
            raise ValueError(f"{folder}: its default prompt {default!r} is not implemented")
    return SentenceSettings(**settings)


def _pooling_of(path: Path) -> str:
    read = read_json(path)
    if "pooling_mode" in read:  # written by sentence-transformers 5 and later
        modes = [read["pooling_mode"]] if isinstance(read["pooling_mode"], str) else list(read["pooling_mode"])
    else:
        old_names = {
            "pooling_mode_cls_token": "cls",
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_max_tokens": "max",
        }
        chosen = [name for name, value in read.items() if name.startswith("pooling_mode_") and value is True]
        modes = [old_names.get(name, name) for name in chosen]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"{path}: the pooling {' + '.join(modes) or 'none'} is not implemented, only {', '.join(POOLINGS)}"
        )
    return str(modes[0])


def write_sentence_settings(folder: Path, width: int, pooling: str, normalize: bool, max_length: int) -> None:
    """The files that make a model folder one of sentence-transformers, under names that old and new versions load."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    for path, _ in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": pooling == "max",
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )


# ---------------------------------------------------------------------------------------------------------------
# Tokenizers and the hub


def load_tokenizer(folder: Path, lowercase: bool = False) -> Any:
    """The folder's fast tokenizer, with the padding and truncation that tokenizer.json may store switched off."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder} has no tokenizer: none of {', '.join(files)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers raises many kinds for a broken tokenizer folder
        raise ValueError(f"the tokenizer of {folder} cannot be read: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {folder} has no fast version, which the word boundaries come from")
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    if lowercase:  # sentence-transformers lowers the text itself when sentence_bert_config.json says so
        parts = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(parts)
    return tokenizer


def model_folder(name_or_path: str) -> Path:
    """A local folder as it is; otherwise a model of the Hugging Face hub, fetched into its cache.

    A bare name that the hub does not know is tried under ``sentence-transformers/``. ValueError says what was tried.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    looks_local = path.exists() or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name_or_path):
        what = "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"the model {name_or_path} {what}; give a model folder, or a name on the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    ignore = ["onnx/*", "openvino/*", "*/onnx/*", "coreml/*"]
    names = [name_or_path] + ([f"sentence-transformers/{name_or_path}"] if "/" not in name_or_path else [])
    for name in names:
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignore, etag_timeout=10))
            if not list(folder.rglob("*.safetensors")):
                snapshot_download(name, allow_patterns=["pytorch_model*.bin"], etag_timeout=10)
            return folder
        except RepositoryNotFoundError:
            continue
        except Exception as error:  # no network, a gated model, a time-out: all end with the same advice
            if name is not names[-1] and "Cannot find an appropriate cached snapshot" in str(error):
                continue
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the model {name} is no local folder and the Hugging Face hub could not give it ({first_line}); "
                "check the name, or give the path of a model folder"
            ) from error
    raise ValueError(f"the Hugging Face hub has no model {' or '.join(names)}, and there is no such folder here")
