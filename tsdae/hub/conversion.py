"""Read and write model folders: the one file that knows the names of Hugging Face's weights and configs.

A folder is read into a `Pretrained`: our `Bert`, its language-model head if the folder has one, and what must be
written back unchanged (the pooler, the original config). No code of a folder is ever run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tsdae.bert import Bert, BertConfig, LanguageModelHead, Pretrained
from tsdae.hub.settings import MODEL, SHAPE, checked
from tsdae.utils.checks import check_range
from tsdae.utils.files import read_json, read_weights, write_json

# ---------------------------------------------------------------------------------------------------------------
# Names. our module -> theirs; several of theirs are concatenated along dimension 0 (query, key, value).

Names = dict[str, tuple[str, ...]]
EMBEDDINGS: Names = {
    "embeddings.words": ("embeddings.word_embeddings",),
    "embeddings.positions": ("embeddings.position_embeddings",),
    "embeddings.token_types": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
}
BERT_LAYER: Names = {
    "attention.project": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention.norm": ("attention.output.LayerNorm",),
    "feed_forward.expand": ("intermediate.dense",),
    "feed_forward.contract": ("output.dense",),
    "feed_forward.norm": ("output.LayerNorm",),
}
DISTILBERT_LAYER: Names = {
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
REQUIRED = ("vocabulary_size", "width", "layers", "heads", "feed_forward", "positions")


@dataclass(frozen=True)
class Family:
    """How one family of pretrained models names things, and how its shape differs from BERT's."""

    architecture: str  # what AutoModel calls the encoder
    prefix: str  # before every encoder name, where the folder has a head
    layer_prefix: str
    layer: Names
    config_names: dict[str, str]
    head: dict[str, str]  # of the language-model head: transform, norm, and the module that owns the output bias ("")
    has_pooler: bool = True
    offset_positions: bool = False  # positions start after the padding id
    attention_output_dropout: bool = True

    def fits(self, config: BertConfig) -> bool:
        """True if a folder of this family can hold a model of this shape."""
        return (
            (config.token_types > 0) == ("token_types" in self.config_names)
            and (config.position_offset > 0) == self.offset_positions
            and config.attention_output_dropout == self.attention_output_dropout
        )

    def names_of(self, parameter: str) -> tuple[str, ...]:
        """Return their names, without prefix, of a parameter of our `Bert`."""
        module, kind = parameter.rsplit(".", 1)
        if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
            return tuple(f"{self.layer_prefix}{layer[1]}.{name}.{kind}" for name in self.layer[layer[2]])
        return tuple(f"{name}.{kind}" for name in EMBEDDINGS[module])

    def head_name_of(self, parameter: str) -> str:
        """Return their name of a parameter of our `LanguageModelHead`."""
        module, _, kind = parameter.rpartition(".")
        return f"{self.head[module]}.{kind}"


BERT_HEAD = {
    "transform": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "": "cls.predictions",
}
ROBERTA_HEAD = {"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "": "lm_head"}
DISTILBERT_HEAD = {"transform": "vocab_transform", "norm": "vocab_layer_norm", "": "vocab_projector"}
ROBERTAS = {"roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel"}
FAMILIES = {
    "bert": Family("BertModel", "bert.", "encoder.layer.", BERT_LAYER, BERT_CONFIG, BERT_HEAD),
    **{
        name: Family(model, "roberta.", "encoder.layer.", BERT_LAYER, BERT_CONFIG, ROBERTA_HEAD, offset_positions=True)
        for name, model in ROBERTAS.items()
    },
    "distilbert": Family(
        *("DistilBertModel", "distilbert.", "transformer.layer."),
        *(DISTILBERT_LAYER, DISTILBERT_CONFIG, DISTILBERT_HEAD),
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
    "pruned_heads": {},
    "quantization_config": None,
    "auto_map": None,  # a model with code of its own is another model, whatever its type says
}
# Known weights that are not used here. The pooler is not among them: it is kept and written back.
WITHOUT_USE = re.compile(
    r"(embeddings\.(position_ids|token_type_ids)|cls\.seq_relationship\.(weight|bias)|cls\.predictions\.decoder\.bias"
    r"|lm_head\.decoder\.bias)$"
)
TIED_COPIES = ("cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight")
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


class UnsupportedArchitecture(ValueError):
    """The folder holds a model whose architecture is not implemented here."""


def check_family(bert: Bert, model_type: str) -> str:
    """Return the family whose folders can hold such a model, by default the first; ValueError if there is none."""
    fitting = [name for name, family in FAMILIES.items() if family.fits(bert.config)]
    model_type = model_type or next(iter(fitting), "")
    if model_type not in fitting:
        raise ValueError(
            "a model with these token_types, position_offset and attention_output_dropout cannot be saved as "
            f"{model_type or 'any of ' + ', '.join(FAMILIES)}: {bert.config}"
        )
    return model_type


# ---------------------------------------------------------------------------------------------------------------
# Reading


def read_config(folder: Path) -> tuple[BertConfig, str, dict[str, Any]]:
    """Return config.json as our config, the model type, and the file as it is; ValueError if it is not implemented."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            read_weights(folder)  # an adapter alone is named there
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    raw = read_json(path)
    given = checked(str(path), raw, MODEL)
    model_type = raw.get("model_type")
    if model_type is None and (folder / "encoder" / "config.json").is_file():
        raise ValueError(f"{folder} is a run folder; give its encoder: {folder / 'encoder'}")
    if model_type not in FAMILIES:
        raise UnsupportedArchitecture(
            f"{folder} holds a model of type {model_type!r} ({', '.join(raw.get('architectures') or ['unnamed'])}); "
            f"supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    for name, value in ONLY_IMPLEMENTED.items():
        if raw.get(name) not in (None, value):
            only = "" if value is None else f", only {value!r}"
            raise ValueError(f"{path}: {name} = {raw[name]!r} is not implemented{only}")
    names = family.config_names | ({"position_offset": "pad_token_id"} if family.offset_positions else {})
    if family.offset_positions and "pad_token_id" not in raw:
        given["pad_token_id"] = 1
    required = REQUIRED + (("position_offset",) if family.offset_positions else ())
    if missing := sorted(names[ours] for ours in required if names[ours] not in given):
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    checked(str(path), given, {theirs: SHAPE[ours] for ours, theirs in names.items()})
    settings = {"token_types": 0} if "token_types" not in names else {}
    settings |= {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    if family.offset_positions:
        settings["position_offset"] += 1  # the first token comes after the padding id
    try:
        config = BertConfig(**settings, attention_output_dropout=family.attention_output_dropout)
        check_range(names["positions"], config.positions, f"[{config.position_offset + 3}, inf)", "three tokens")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, model_type, raw


def read_pretrained(folder: Path) -> Pretrained:
    """Return the model of a folder. ValueError names what is missing, a warning the weights that are not used."""
    config, model_type, raw = read_config(folder)
    family = FAMILIES[model_type]
    theirs = {_plain_name(name, family): tensor for name, tensor in read_weights(folder).items()}
    bias = family.head_name_of("bias")
    if (other_name := bias.replace(".bias", ".decoder.bias")) in theirs:
        theirs.setdefault(bias, theirs[other_name])

    if config.layers > len(theirs):  # before a module is made for each of them
        key = family.config_names["layers"]
        raise ValueError(f"{folder}/config.json: {key} is {config.layers}, and the weights are {len(theirs)} tensors")
    with torch.device("meta"):  # names and shapes alone: no memory for sizes that the weights do not have
        bert, head = Bert(config), LanguageModelHead(config)
    names = {ours: family.names_of(ours) for ours in bert.state_dict()}
    head_names: Names = {ours: (family.head_name_of(ours),) for ours in head.state_dict()}
    wanted, wanted_head = ({name for group in table.values() for name in group} for table in (names, head_names))
    if missing := wanted - theirs.keys():
        raise ValueError(f"{folder}: its weights lack {_list(missing)}")
    bert.load_state_dict(_state_of(bert, names, theirs, folder), assign=True)
    embedding = theirs["embeddings.word_embeddings.weight"]
    tied = {name for name in TIED_COPIES if name in theirs and torch.equal(theirs[name], embedding)}
    unknown = theirs.keys() - wanted - wanted_head - tied - set(POOLER)
    if unknown := {name for name in unknown if not WITHOUT_USE.match(name)}:
        warnings.warn(f"{folder}: unused weights: {', '.join(sorted(unknown))}", stacklevel=2)
    pooler = {name: theirs[name].float() for name in POOLER if name in theirs}
    head_state = _head_of(head, head_names, theirs, folder)
    if (folder / "adapter_config.json").is_file():
        warnings.warn(
            f"{folder}: ignoring its adapter (adapter_config.json); only the base model is loaded", stacklevel=2
        )
    return Pretrained(bert, model_type, head_state, pooler, raw)


def _head_of(
    head: LanguageModelHead, names: Names, theirs: Mapping[str, Tensor], folder: Path
) -> dict[str, Tensor] | None:
    """Return the head's weights; None if there are none, or, with a warning that says why, if they do not fit."""
    wanted = {name for group in names.values() for name in group}
    missing = wanted - theirs.keys()
    if missing == wanted:
        return None
    try:
        if missing:
            raise ValueError(f"{folder}: its weights lack {_list(missing)}")
        return _state_of(head, names, theirs, folder)
    except ValueError as error:
        warnings.warn(f"{error}; loading the encoder without its language-model head", stacklevel=3)
        return None


def _state_of(module: nn.Module, names: Names, theirs: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the module's weights in fp32, taken from ``theirs``; ValueError for a wrong shape or type."""
    state = {}
    for ours, parameter in module.state_dict().items():
        group = names[ours]
        shape = (parameter.shape[0] // len(group), *parameter.shape[1:])
        for name in group:
            if theirs[name].shape != shape:
                found = tuple(theirs[name].shape)
                raise ValueError(f"{folder}: {name} has shape {found}, config.json asks for {shape}")
            if not theirs[name].is_floating_point():
                raise ValueError(f"{folder}: {name} holds {theirs[name].dtype}; quantised weights are not implemented")
        state[ours] = torch.cat([theirs[name].float() for name in group])
    return state


def _list(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _plain_name(name: str, family: Family) -> str:
    """Return a weight's name without the family's prefix, and with today's names for TensorFlow's gamma and beta."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


# ---------------------------------------------------------------------------------------------------------------
# Writing


def write_pretrained(folder: Path, pretrained: Pretrained, head: Mapping[str, Tensor] | None = None) -> None:
    """Write config.json and model.safetensors so that AutoModel and SentenceTransformer load them without a warning.

    A pooler that the model lacks is written as AutoModel would initialise it; nothing here uses it.
    head: state of a `LanguageModelHead`: write a language model, which AutoModelForMaskedLM loads, with no pooler.
    """
    bert, family = pretrained.bert, FAMILIES[pretrained.model_type]
    config = bert.config
    architecture = family.architecture.replace("Model", "ForMaskedLM") if head else family.architecture
    raw = pretrained.raw_config | {theirs: getattr(config, ours) for ours, theirs in family.config_names.items()}
    raw |= {"model_type": pretrained.model_type, "architectures": [architecture], "dtype": "float32"}
    raw.pop("torch_dtype", None)
    if family.offset_positions:
        raw["pad_token_id"] = config.position_offset - 1
    prefix = family.prefix if head else ""
    theirs: dict[str, Tensor] = {}
    for ours, tensor in bert.state_dict().items():
        names = [prefix + name for name in family.names_of(ours)]
        theirs |= zip(names, tensor.chunk(len(names)), strict=True)
    if head:
        theirs |= {family.head_name_of(ours): tensor for ours, tensor in head.items()}
    elif family.has_pooler:
        generator = torch.Generator().manual_seed(0)
        weight = torch.empty(config.width, config.width).normal_(0.0, config.initializer_range, generator=generator)
        theirs |= dict(zip(POOLER, (weight, torch.zeros(config.width)), strict=True)) | pretrained.pooler
    write_json(folder / "config.json", raw)
    # Cloned: safetensors refuses tensors that share storage, as the chunks of one matrix do.
    weights = {name: tensor.detach().float().cpu().clone() for name, tensor in theirs.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
