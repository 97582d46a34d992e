"""Checkpoints on disk: the one room that knows the names of Hugging Face's weights and configs, in both directions.

A folder is read once into a `Pretrained`: our `Bert`, its language-model head if the file has one, the tokenizer, and
what must be written back unchanged (the pooler, the original config). Weights come from safetensors, or from
pytorch_model.bin with ``weights_only=True``; no code of a folder is ever run.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tsdae.bert import Bert, BertConfig, LanguageModelHead, Pretrained
from tsdae.utils.files import read_json, read_weights, write_json

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
    prefix: str  # before every encoder name, where the pretrained has a head
    layer_prefix: str
    layer: dict[str, tuple[str, ...]]
    config_names: dict[str, str]
    head: dict[str, str]  # transform, norm and bias of the language-model head
    has_token_types: bool = True
    has_pooler: bool = True
    offset_positions: bool = False  # positions begin after the padding id
    attention_output_dropout: bool = True

    def fits(self, config: BertConfig) -> bool:
        """Whether a folder of this family can hold a model of this shape."""
        return (
            (config.token_types > 0) == self.has_token_types
            and (config.position_offset > 0) == self.offset_positions
            and config.attention_output_dropout == self.attention_output_dropout
        )


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
    "quantization_config": None,
    "auto_map": None,  # a model with code of its own is another model, whatever its type says
}
FRACTIONS = ("dropout", "attention_dropout", "layer_norm_epsilon", "initializer_range")  # all other settings count
# Known weights without a use here. The pooler is not among them: it is kept and written back.
WITHOUT_USE = re.compile(
    r"(embeddings\.(position_ids|token_type_ids)|cls\.seq_relationship\.(weight|bias)|cls\.predictions\.decoder\.bias"
    r"|lm_head\.decoder\.bias)$"
)
TIED_COPIES = ("cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight")
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


class UnsupportedArchitecture(ValueError):
    """The folder holds a model that has no hand-written encoder here."""


def check_family(bert: Bert, model_type: str) -> str:
    """The family whose folders hold such a model, the first one by default; ValueError if there is none."""
    fitting = [name for name, family in FAMILIES.items() if family.fits(bert.config)]
    model_type = model_type or next(iter(fitting), "")
    if model_type not in fitting:
        raise ValueError(
            "a model with these token_types, position_offset and attention_output_dropout cannot be saved as "
            f"{model_type or 'any of ' + ', '.join(FAMILIES)}: {bert.config}"
        )
    return model_type


def parameter_names(family: Family, layers: int) -> dict[str, tuple[str, ...]]:
    """The two-way table: every parameter of our `Bert` -> the pretrained's names, without prefix."""
    modules: dict[str, tuple[str, ...]] = dict(BERT_TOP)
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
    """Every parameter of our `LanguageModelHead` -> the pretrained's name."""
    names = {
        f"{part}.{kind}": f"{family.head[part]}.{kind}" for part in ("transform", "norm") for kind in ("weight", "bias")
    }
    return names | {"bias": family.head["bias"]}


# ---------------------------------------------------------------------------------------------------------------
# Reading


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
            only = "" if value is None else f", only {value!r}"
            raise ValueError(f"{folder}/config.json: {name} = {raw[name]!r} is not implemented{only}")
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
        settings["position_offset"] = raw.get("pad_token_id", 1)  # of the padding id; the first token comes after it
    for name, value in settings.items():
        kinds = (int, float) if name in FRACTIONS else int
        if isinstance(value, bool) or not isinstance(value, kinds):
            theirs = family.config_names.get(name, "pad_token_id")
            raise ValueError(f"{folder}/config.json: {theirs} = {value!r} is not a number that it can have")
    if family.offset_positions:
        settings["position_offset"] += 1
    try:
        config = BertConfig(**settings, attention_output_dropout=family.attention_output_dropout)
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: {error}") from error
    return config, model_type, raw


def read_pretrained(folder: Path) -> Pretrained:
    """Reads a model folder. ValueError names what is missing; a weight that nobody knows is named in a warning."""
    config, model_type, raw = read_config(folder)
    family = FAMILIES[model_type]
    theirs = {_plain_name(name, family): tensor for name, tensor in read_weights(folder).items()}
    names = parameter_names(family, config.layers)
    wanted = {name for group in names.values() for name in group}
    if missing := wanted - theirs.keys():
        raise ValueError(f"{folder}: its weights lack {_list(missing)}")

    bert = Bert(config)
    state = {}
    for ours, parameter in bert.named_parameters():
        group = names[ours]
        part_shape = (parameter.shape[0] // len(group), *parameter.shape[1:])
        state[ours] = torch.cat([_weight(theirs, name, part_shape, folder) for name in group])
    bert.load_state_dict(state)

    head_of = head_names(family)
    bias = family.head["bias"]
    also_bias = bias.replace(".bias", ".decoder.bias")
    if bias not in theirs and also_bias in theirs:
        theirs[bias] = theirs[also_bias]
    head: dict[str, Tensor] | None = None
    lacking = set(head_of.values()) - theirs.keys()
    if not lacking:
        shapes = {ours: tuple(tensor.shape) for ours, tensor in LanguageModelHead(config).state_dict().items()}
        head = {ours: _weight(theirs, name, shapes[ours], folder) for ours, name in head_of.items()}
    elif len(lacking) < len(head_of):
        warnings.warn(f"{folder}: its language-model head is not used, it lacks {_list(lacking)}", stacklevel=2)

    embedding = theirs["embeddings.word_embeddings.weight"]
    tied = {name for name in TIED_COPIES if name in theirs and torch.equal(theirs[name], embedding)}
    unknown = theirs.keys() - wanted - set(head_of.values()) - tied - set(POOLER)
    unknown = {name for name in unknown if not WITHOUT_USE.match(name)}
    if unknown:
        warnings.warn(f"{folder}: weights that nothing here uses: {', '.join(sorted(unknown))}", stacklevel=2)
    pooler = {name: theirs[name].float() for name in POOLER if name in theirs}
    return Pretrained(bert, model_type, head, pooler, raw)


def _weight(theirs: dict[str, Tensor], name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    """One weight in fp32, after a look at its shape and type."""
    tensor = theirs[name]
    if tensor.shape != shape:
        raise ValueError(f"{folder}: {name} has shape {tuple(tensor.shape)}, config.json asks for {shape}")
    if not tensor.is_floating_point():
        raise ValueError(f"{folder}: {name} holds {tensor.dtype}; quantised weights are not implemented")
    return tensor.float()


def _list(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _plain_name(name: str, family: Family) -> str:
    """A pretrained's name without the family's prefix, and with the names of layer norms that TensorFlow's lacked."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


# ---------------------------------------------------------------------------------------------------------------
# Writing


def write_pretrained(folder: Path, pretrained: Pretrained, with_head: bool = False) -> None:
    """Writes config.json and model.safetensors so that AutoModel and SentenceTransformer load them without a report.

    A pooler that the pretrained lacks is written as AutoModel would start it; nothing here uses it.
    with_head: write a language model instead, which AutoModelForMaskedLM loads: no pooler, but the pretrained's head.
    """
    bert, family = pretrained.bert, FAMILIES[pretrained.model_type]
    config = bert.config
    raw = dict(pretrained.raw_config)
    raw |= {theirs: getattr(config, ours) for ours, theirs in family.config_names.items()}
    architecture = family.architecture.replace("Model", "ForMaskedLM") if with_head else family.architecture
    raw |= {"model_type": pretrained.model_type, "architectures": [architecture], "dtype": "float32"}
    raw.pop("torch_dtype", None)
    if family.offset_positions:
        raw["pad_token_id"] = config.position_offset - 1
    state = bert.state_dict()
    theirs: dict[str, Tensor] = {}
    for ours, group in parameter_names(family, config.layers).items():
        theirs |= zip(group, state[ours].detach().float().cpu().chunk(len(group)), strict=True)
    if with_head:
        if pretrained.head is None:
            raise ValueError("this pretrained has no language-model head to write")
        theirs = {family.prefix + name: tensor for name, tensor in theirs.items()}
        theirs |= {name: pretrained.head[ours].detach().float().cpu() for ours, name in head_names(family).items()}
    elif family.has_pooler:
        generator = torch.Generator().manual_seed(0)
        weight = torch.empty(config.width, config.width).normal_(0.0, config.initializer_range, generator=generator)
        theirs |= dict(zip(POOLER, (weight, torch.zeros(config.width)), strict=True)) | pretrained.pooler
    write_json(folder / "config.json", raw)
    # Cloned: safetensors refuses tensors that share storage, as the chunks of one matrix do.
    save_file({name: tensor.clone() for name, tensor in theirs.items()}, folder / "model.safetensors", {"format": "pt"})
