"""Tensors of transformers' models (weights, or their gradients) under the names that a `TSDAE` gives them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tsdae import TSDAE
from tsdae.bert import Bert
from tsdae.hub.conversion import FAMILIES

CROSS_ATTENTION = {"value": "self.value", "output": "output.dense", "norm": "output.LayerNorm"}


def encoder_as_ours(bert: Bert, family_name: str, theirs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """``theirs``: by the names of BertModel or its kin, each after ``prefix``. One tensor for each of ``bert``'s."""
    names_of = FAMILIES[family_name].names_of
    return {ours: torch.cat([theirs[prefix + name] for name in names_of(ours)]) for ours, _ in bert.named_parameters()}


def as_ours(
    model: TSDAE, family_name: str, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``encoder``: by the names of BertModel or its kin. ``decoder``: by those of its language model, with
    cross-attention, whose query and key have no counterpart here. One tensor for each parameter of ``model``.
    """
    family = FAMILIES[family_name]
    ours = {f"encoder.bert.{n}": t for n, t in encoder_as_ours(model.encoder.bert, family_name, encoder).items()}
    if model.untied is not None:
        untied = encoder_as_ours(model.untied, family_name, decoder, family.prefix)
        ours |= {f"untied.{name}": tensor for name, tensor in untied.items()}
    for i in range(model.decoder_layers):
        for part, theirs in CROSS_ATTENTION.items():
            for kind in ("weight", "bias"):
                name = f"{family.prefix}{family.layer_prefix}{i}.crossattention.{theirs}.{kind}"
                ours[f"crosses.{i}.{part}.{kind}"] = decoder[name]
    ours |= {f"head.{name}": decoder[family.head_name_of(name)] for name, _ in model.head.named_parameters()}
    assert ours.keys() == dict(model.named_parameters()).keys()
    return ours
