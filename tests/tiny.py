"""Tiny models, tokenizers and batches for tests: every parameter random, sentences of unequal length, no network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from tsdae.autoencoder import TSDAE
from tsdae.bert import Bert, BertConfig
from tsdae.config import TrainConfig
from tsdae.dataset import DenoisingDataset
from tsdae.encoder import SentenceEncoder
from tsdae.packing import Batch
from tsdae.text.corpus import Corpus

WORDS = (
    "a an the man woman child dog cat horse bird is are was plays playing eats eating runs running on in at with of "
    "green grass red house big small guitar flute bread apple morning evening and or not very quickly slowly"
).split()
PIECES = ["##s", "##ing", "##ed", "un", "##known", "walk", "jump", "cook"]
SENTENCES = [
    "a man is playing a guitar in the morning .",
    "dog",
    "the small bird and the big cat are walking on green grass , not quickly .",
    "a woman cooks bread",
    "an apple !",
    "the horse jumped and the child runs with the red dog in the evening of the morning",
    "unknown cats eating slowly",
    "is the house very big or very small ?",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-like WordPiece tokenizer of about 80 ids."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'", *WORDS, *PIECES]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def config(**changes: Any) -> BertConfig:
    """3 layers, 24 wide, 3 heads; ``changes`` replace fields."""
    shape = {"width": 24, "layers": 3, "heads": 3, "feed_forward": 40, "positions": 40}
    return BertConfig(**({"vocabulary_size": len(tokenizer())} | shape | changes))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, biases and layer norms too: a fresh model hides most errors in them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                part.weight += 1.0  # around one, as trained ones are: gains around zero let the model collapse
    return module


def encoder(pooling: str = "cls", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> SentenceEncoder:
    """A random `SentenceEncoder` in evaluation mode."""
    made = SentenceEncoder(Bert(config(**changes)), tokenizer(), pooling)
    randomise(made, seed)
    return made.to(dtype).eval()


def model(
    pooling: str = "cls",
    tie: bool = True,
    decoder_layers: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> TSDAE:
    """A random `TSDAE` in evaluation mode (no dropout)."""
    made = TSDAE(encoder(pooling, seed, dtype, **changes), tie, decoder_layers)
    randomise(made, seed)
    return made.to(dtype).eval()


def dataset(sentences: list[str] | None = None, **settings: Any) -> DenoisingDataset:
    """The sentences above under deletion noise; ``settings`` go to `DenoisingDataset`."""
    return DenoisingDataset(sentences or SENTENCES, tokenizer(), **settings)


def batch(size: int = len(SENTENCES), epoch: int = 0) -> Batch:
    """The first ``size`` sentences, noised: ragged on both sides."""
    data = dataset()
    return data.collate([data[(epoch, row)] for row in range(size)])


def settings(**changes: Any) -> TrainConfig:
    """A few steps on a CPU, without evaluations; ``changes`` replace fields."""
    fixed: dict[str, Any] = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "eval_every": 0}
    return TrainConfig(**(fixed | {"device": "cpu", "precision": "fp32"} | changes))


def prepared(
    folder: Path, sentences: list[str] | None = None, heldout: list[str] | None = None, words: str = "auto"
) -> Corpus:
    """Writes the sentences above as a corpus on disk, prepared for a model named bert-tiny; returns it in memory."""
    apart = Corpus.build(heldout, tokenizer()) if heldout else None
    made_from = {"model": "bert-tiny", "heldout_sentences": len(apart) if apart else 0}
    corpus = dataclasses.replace(Corpus.build(sentences or SENTENCES, tokenizer(), words), made_from=made_from)
    corpus.write(folder, apart)
    return corpus


def assert_equal(first: Corpus, second: Corpus) -> None:
    """The same rows of the same tokens."""
    for name in ("token_ids", "marks", "boundaries"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
