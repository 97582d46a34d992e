"""Tiny transformers models of every family, every parameter random: what ours is compared with.

# B sentences, T packed tokens, L padded length, D width
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from tests.tiny import randomise
from tsdae.packing import Packed

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")
VOCABULARY = 90  # more than the tiny tokenizer's ids
LENGTHS = (7, 1, 12, 3, 9)  # of the sentences below: ragged, one of a single token, the longest neither first nor last


def shape(family: str, **changes: Any) -> dict[str, Any]:
    """3 layers, 24 wide, 3 heads, in the family's own words. RoBERTa's positions begin after the padding id."""
    if family == "distilbert":
        settings = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 20}
    else:
        settings = {
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "max_position_embeddings": 20,
            "layer_norm_eps": 1e-5,  # RoBERTa's; an epsilon that is not read would show
        }
    if family not in ("bert", "distilbert"):
        settings["pad_token_id"] = 3
    return settings | {"vocab_size": VOCABULARY} | changes


def build(family: str, auto: Any = AutoModel, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in evaluation mode. auto: the class of transformers that picks the architecture."""
    config = AutoConfig.for_model(family, **shape(family, **changes))
    return randomise(auto.from_config(config), seed).eval()


def save(folder: Path, family: str, auto: Any = AutoModel, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """`build`, written to ``folder`` by transformers' own save_pretrained."""
    made = build(family, auto, seed, **changes)
    made.save_pretrained(folder)
    return made


def ragged(seed: int = 0) -> Packed[Tensor]:
    """Sentences of ``LENGTHS`` random ids, none of which a family takes for padding."""
    generator = torch.Generator().manual_seed(seed)
    sentences = [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]
    return Packed.from_lists(sentences).to("cpu")


def padded(packed: Packed[Tensor], padding_id: int) -> dict[str, Tensor]:
    """The same sentences as transformers takes them, made without the code under test."""
    sentences = list(packed.sentences())
    longest = max(map(len, sentences))
    ids_BL = torch.tensor([ids + [padding_id] * (longest - len(ids)) for ids in sentences])
    mask_BL = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sentences])
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


def hidden(model: PreTrainedModel, packed: Packed[Tensor]) -> Tensor:
    """hidden_TD of a transformers encoder, without the padding."""
    inputs = padded(packed, model.config.pad_token_id)
    return model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
